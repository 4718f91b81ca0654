"""The folder of a fit: whose it is, the checkpoint a killed one resumes from, and the fitted reader read back.

Written by `teacher.fit`. Nothing is unpickled: safetensors and JSON only.

    python -c "from teacher.fit_folder import load_fit; print(load_fit('runs/fit').reader)"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from teacher.cache import differences, listed
from teacher.tutor import EMBEDDED, Parts, Tutor, build
from vega_artifact import MANIFEST, UserError, atomic_write, read_json, read_manifest, verify_files

WEIGHTS, CONFIG, CHECKPOINT = "fit.safetensors", "config.json", "checkpoint.safetensors"


def reader_weights(reader: str) -> Any:
    """What tells one reader's weights from another's: the bundle's fingerprint, or names and sizes of a folder's files."""
    if reader == EMBEDDED:
        from teacher.tiny.bundle import BUNDLE

        return read_manifest(BUNDLE, "teacher")["fingerprint"]
    return {path.name: path.stat().st_size for path in sorted(Path(reader).glob("*")) if path.is_file()}


def is_complete(out: Path, identity: dict[str, Any]) -> bool:
    """True for a finished fit of this identity; UserError for a folder that holds something else."""
    if not (out / CONFIG).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is no fit (no {CONFIG}); choose another --out")
        return False
    if lines := differences(read_json(out / CONFIG), identity):
        raise UserError(f"{out}: holds another fit ({listed(lines)}); choose another --out or delete it")
    if not (out / MANIFEST).exists():
        return False
    verify_files(out, read_manifest(out, "fit"))
    return True


def write_checkpoint(path: Path, learned: dict[str, Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights, AdamW's moments and the step in one safetensors file: nothing to unpickle, whole or not there."""
    names = {id(value): name for name, value in learned.items()}
    tensors = {f"weight/{name}": value.detach().cpu().contiguous() for name, value in learned.items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"{key}/{names[id(parameter)]}": value.detach().cpu().contiguous() for key, value in state.items()}
    content = save(tensors, metadata={"step": str(step)})
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


@torch.no_grad()
def read_checkpoint(path: Path, learned: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> int:
    """Restore in place; returns the step. UserError when the file is unreadable or of another module."""
    try:
        with safe_open(path, framework="pt") as stored:
            step = int(stored.metadata()["step"])
            keys = {key for key in stored.keys() if not key.startswith("weight/")}
            for name, value in learned.items():
                value.copy_(stored.get_tensor(f"weight/{name}"))
            for name, value in learned.items():
                moments = ("step", "exp_avg", "exp_avg_sq")
                found = {key: stored.get_tensor(f"{key}/{name}") for key in moments if f"{key}/{name}" in keys}
                if found:
                    optimizer.state[value] = {key: part if key == "step" else part.to(value) for key, part in found.items()}
    except (SafetensorError, OSError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: unreadable ({error}); delete it to begin this fit anew") from error
    return step


def load_fit(folder: Path | str) -> Tutor:
    """The fitted module, ready to answer; its reader is loaded again from where it was (it may not have changed since).

    Raises:
        UserError: no finished fit, altered files, or another reader than the one it was fitted with.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "fit")
    verify_files(folder, manifest)
    parts = Parts(**manifest["config"]["parts"])
    if reader_weights(parts.reader) != manifest["config"]["reader_weights"]:
        raise UserError(f"{folder}: fitted with another reader than {parts.reader} holds now; fit again, or restore the reader")
    tutor = build(parts, tuple(manifest["semantic"]), tuple(manifest["generative"] or ()) or None)
    learned = tutor.learned()
    with safe_open(folder / WEIGHTS, framework="pt") as stored, torch.no_grad():
        if set(stored.keys()) != set(learned):
            raise UserError(f"{folder / WEIGHTS}: not the weights of this version's fit; fit again")
        for name, value in learned.items():
            value.copy_(stored.get_tensor(name))
    return tutor.eval().requires_grad_(False)
