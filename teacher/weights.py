"""Reads weights tensor by tensor, checked while they are read: safetensors (one file or shards) and weights-only torch files.

First step of loading a teacher. Nothing is unpickled, safetensors stay on disk until a tensor is wanted, and every tensor is
cast and checked once, so that a 14B checkpoint costs the memory of what is kept of it in the wanted precision.

    python -c "from teacher.weights import open_safetensors; print(open_safetensors('FOLDER').shapes)"
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vega_artifact import UserError, read_json

SAMPLE = 1 << 20


class Entry(NamedTuple):
    """One tensor of a checkpoint: the file that holds it, its name there, its shape."""

    file: Path
    key: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """Named tensors of one checkpoint.

    Attributes:
        where: file or folder that errors name.
        entries: name -> where the tensor is.
        read: gets one tensor, on the CPU and as stored.
    """

    where: Path
    entries: Mapping[str, Entry]
    read: Callable[[Entry], Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.entries.items()}

    @property
    def files(self) -> list[Path]:
        return sorted({entry.file for entry in self.entries.values()})

    def renamed(self, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> Weights:
        """The same tensors under the names that a state dict conversion gives them."""
        return replace(self, entries=convert(dict(self.entries)))

    def only(self, keep: Callable[[str], bool]) -> Weights:
        """The tensors whose name `keep` accepts; the others are never read."""
        return replace(self, entries={name: entry for name, entry in self.entries.items() if keep(name)})


def open_safetensors(folder: Path, stem: str = "diffusion_pytorch_model") -> Weights:
    """Open `stem`.safetensors, or the shards that `stem`.safetensors.index.json names, without reading a tensor.

    Raises:
        UserError: a missing file or shard, a truncated file, or an index that names a tensor its shard lacks.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return Weights(folder, _entries(folder / f"{stem}.safetensors", ""), _read_safetensors)
    where: dict[str, str] = read_json(index).get("weight_map", {})
    found: dict[str, Entry] = {}
    for shard in sorted(set(where.values())):
        found |= _entries(folder / shard, f" (named by {index.name})")
    for name, shard in where.items():
        if name not in found:
            raise UserError(f"{folder / shard}: {name} is missing, which {index.name} puts there; copy the folder again")
    return Weights(folder, found, _read_safetensors)


def open_torch(path: Path) -> Weights:
    """Read a torch file with `weights_only=True`, so that it cannot run code.

    Raises:
        UserError: missing, truncated, holding objects, or no dictionary of tensors.
    """
    state = load_torch(path)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: a dictionary of tensors expected, found {type(state).__name__}; is it another file?")
    entries = {name: Entry(path, name, tuple(value.shape)) for name, value in state.items()}
    return Weights(path, entries, lambda entry: state[entry.key])


def load_torch(path: Path) -> Any:
    """`torch.load(weights_only=True)` on the CPU with the errors of this module."""
    _require(path, "")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and end-of-file errors share no base class
        raise _unreadable(path, error) from error


def fill(model: nn.Module, weights: Weights, dtype: torch.dtype, float32: Collection[str] = ()) -> Any:
    """Give a model built on the meta device its weights, in `dtype` and checked.

    Args:
        float32: modules or parameters by name (any part of the dotted name) that stay float32: tiny and precision-critical.
    Returns:
        the model in eval mode, frozen.
    Raises:
        UserError: a missing, surplus, wrongly shaped or non-finite tensor; the first one is named.
    """
    wanted = model.state_dict()
    _require_fit(model, weights, {name: tuple(value.shape) for name, value in wanted.items()})
    state = {}
    for name in wanted:
        entry = weights.entries[name]
        value = weights.read(entry).to(torch.float32 if set(name.split(".")) & set(float32) else dtype)
        low, high = value.aminmax()  # both carry a NaN; sixty times cheaper than isfinite on every element
        if not torch.isfinite(low) or not torch.isfinite(high):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{entry.file}: {entry.key} holds NaN or infinity (as {kind}); the checkpoint is damaged, copy it again"
            )
        state[name] = value
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def identity(files: Iterable[tuple[str, Path]]) -> str:
    """Hash of names, sizes and the first and last MiB of (name, file) pairs: quick also for tens of GB."""
    digest = hashlib.sha256()
    for name, path in files:
        size = path.stat().st_size
        digest.update(f"{name}:{size}".encode())
        with open(path, "rb") as stream:
            digest.update(stream.read(SAMPLE))
            stream.seek(max(0, size - SAMPLE))
            digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:16]


def _require_fit(model: nn.Module, weights: Weights, wanted: dict[str, tuple[int, ...]]) -> None:
    found, kind = weights.shapes, type(model).__name__
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted]
    wrong = [name for name in wanted if name in found and found[name] != wanted[name]]
    if missing:
        detail = f"{missing[0]} is missing (and {len(missing) - 1} more)"
    elif surplus:
        detail = f"{weights.entries[surplus[0]].key} has no place in it (and {len(surplus) - 1} more)"
    elif wrong:
        detail = f"{weights.entries[wrong[0]].key}: shape {wanted[wrong[0]]} expected, found {found[wrong[0]]}"
    else:
        return
    raise UserError(f"{weights.where}: the weights do not fit {kind} ({detail}); is it another variant?")


def _entries(path: Path, why: str) -> dict[str, Entry]:
    _require(path, why)
    try:
        with safe_open(path, "pt") as stream:  # checks the header against the file's size
            return {name: Entry(path, name, tuple(stream.get_slice(name).get_shape())) for name in stream.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_safetensors(entry: Entry) -> Tensor:
    try:
        with safe_open(entry.file, "pt") as stream:
            return stream.get_tensor(entry.key)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(entry.file, error) from error


def _require(path: Path, why: str) -> None:
    if not path.exists():
        raise UserError(f"{path}: missing{why}; the checkpoint is incomplete, copy this file too")


def _unreadable(path: Path, error: Exception) -> UserError:
    line = str(error).strip().split("\n")[0][:200]
    return UserError(f"{path}: cannot be read ({line}); it is truncated or no checkpoint, copy it again")
