"""The run folder: whose it is, whether it is finished, and the checkpoints a killed run resumes from.

A checkpoint is a folder that appears under its name by one rename, so it is whole or not there. Nothing is unpickled:
safetensors, JSON, and `torch.load(weights_only=True)` for the optimisers.

    python -m pytest tests/distill/test_state.py -q
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from distill.config import RunConfig
from student.checkpoint import read_weights, save_weights
from teacher.cache import differences, listed
from teacher.claims import claim
from vega_artifact import MANIFEST, UserError, atomic_write, canonical, read_json, read_manifest, verify_files, write_json

CONFIG = "config.json"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoint"
KEPT = "kept"
BEST = "best.json"
LOCK = ".run.lock"
NOT_IDENTITY = ("full_config", "resolved")  # of config.json


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next step depends on besides config and cache.

    `step` is also the sampler's place and what every random number is derived from; `scaler` is the loss scaler of fp16.
    """

    step: int
    seconds: float
    student: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    scaler: dict[str, Any] = field(default_factory=dict)


class RunFolder:
    """One run's place on disk, bound to the config, the cache and whatever else it depends on.

    Args:
        further: what else makes it this run, by name, None where it plays no part: `start_from`, the fingerprint of the run of
            a warm start; `pretrained`, the SHA-256 of a weight file; `batch_statistics`, see `distill.preflight`.
    """

    def __init__(self, path: Path, config: RunConfig, cache_fingerprint: str, **further: str | None) -> None:
        self.path = path
        self.config = config
        self.parents = {"cache": cache_fingerprint} | {name: value for name, value in further.items() if value is not None}
        self.identity = {"config": config.identity(), **self.parents}

    def is_complete(self) -> bool:
        """True when the very run asked for is finished and whole.

        Raises:
            UserError: the folder belongs to another run (says which fields differ), is no run, or was altered.
        """
        if (self.path / MANIFEST).exists():
            manifest = read_manifest(self.path, "run")
            self._refuse_other({"config": manifest["config"], **manifest["parents"]})
            verify_files(self.path, manifest)
            return True
        if (self.path / CONFIG).exists():
            record = read_json(self.path / CONFIG)
            held = record.items() if isinstance(record, Mapping) else ()
            self._refuse_other({key: value for key, value in held if key not in NOT_IDENTITY})
        elif self.path.exists() and (not self.path.is_dir() or any(not p.name.startswith(".") for p in self.path.iterdir())):
            raise UserError(f"{self.path}: exists and is no run (no {CONFIG}); choose another --out")
        return False

    def _refuse_other(self, found: Mapping[str, Any]) -> None:
        if isinstance(found.get("config"), Mapping):  # a field that is younger than the run was at its default
            found = {**found, "config": {**RunConfig().identity(), **found["config"]}}
        if lines := differences(found, self.identity):
            raise UserError(f"{self.path}: holds another run ({listed(lines)}); choose another --out or delete it")

    def claim(self, resolved: Mapping[str, Any]) -> None:
        """Write config.json: from now on the folder is this run's. `resolved`: what every "auto" became."""
        write_json(self.path / CONFIG, {**self.identity, "full_config": canonical(self.config), "resolved": resolved})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else may train here for the length of a `with` block. Raises UserError when somebody does, or just has."""
        self.path.mkdir(parents=True, exist_ok=True)
        with claim(self.path / LOCK, wait=False) as ours:
            if not ours:
                raise UserError(f"{self.path}: another process is training this run; wait for it, or choose another --out")
            if (self.path / MANIFEST).exists():
                raise UserError(f"{self.path}: another process has just finished this run; it is complete")
            yield

    def begun(self) -> Mapping[str, Any]:
        """What "auto" became where the run began that a checkpoint is there of; {} when there is none."""
        record = read_json(self.path / CONFIG) if self._checkpoints() and (self.path / CONFIG).exists() else {}
        return record.get("resolved", {})

    def safe(self) -> str:
        """For the end of a sentence about what went wrong: what there is to go on from."""
        return "the last checkpoint is intact" if self._checkpoints() else "no checkpoint had been written yet"

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / CHECKPOINTS).glob("step-*"))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then drop the older ones; one of the same step is there already and stays."""
        root = self.path / CHECKPOINTS
        final, unfinished = root / f"step-{checkpoint.step:08d}", root / ".unfinished"
        if final.exists():
            return
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_weights(unfinished / "student.safetensors", checkpoint.student)
        if checkpoint.average:
            save_weights(unfinished / "average.safetensors", checkpoint.average)
        states = io.BytesIO()  # torch.save to a file would hide a full disk behind another error
        torch.save(checkpoint.optimizers, states)
        atomic_write(unfinished / "optimizers.pt", lambda path: path.write_bytes(states.getvalue()))
        state = {"step": checkpoint.step, "seconds": checkpoint.seconds, "scaler": checkpoint.scaler}
        write_json(unfinished / "state.json", state)
        unfinished.rename(final)
        for older in self._checkpoints():
            if older != final:
                shutil.rmtree(older, ignore_errors=True)

    def load(self) -> Checkpoint | None:
        """The latest checkpoint, tensors on the CPU; None when there is none. Raises UserError when it is unreadable."""
        found = self._checkpoints()
        if not found:
            return None
        folder = found[-1]
        state = read_json(folder / "state.json")
        average = folder / "average.safetensors"
        try:
            optimizers = torch.load(folder / "optimizers.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            hint = f"delete {self.path / CHECKPOINTS} to begin this run anew"
            raise UserError(f"{folder / 'optimizers.pt'}: unreadable ({str(error).splitlines()[0]}); {hint}") from error
        weights = read_weights(folder / "student.safetensors")
        averaged = read_weights(average) if average.exists() else {}
        return Checkpoint(state["step"], state["seconds"], weights, averaged, optimizers, state.get("scaler", {}))

    def keep(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Weights of a step that stay in the folder whatever comes later."""
        (self.path / KEPT).mkdir(exist_ok=True)
        save_weights(self.path / KEPT / f"step-{step:08d}.safetensors", weights)

    def offer(self, step: int, value: float, weights: Mapping[str, Tensor]) -> None:
        """Keep these weights as the best so far if `value` (higher is better) says so; what was best before is dropped."""
        before = read_json(self.path / BEST) if (self.path / BEST).exists() else None
        if before is not None and value <= before["value"]:
            return
        name = f"best-{step:08d}.safetensors"
        save_weights(self.path / name, weights)
        write_json(self.path / BEST, {"step": step, "value": value, "file": name})
        if before is not None and before["file"] != name:
            (self.path / before["file"]).unlink(missing_ok=True)

    def best(self) -> tuple[int, dict[str, Tensor]]:
        """Step and weights of the best validation. Raises UserError when they are unreadable or none was offered."""
        record = read_json(self.path / BEST)
        return record["step"], read_weights(self.path / record["file"])

    def drop_checkpoints(self) -> None:
        """What a finished run needs no longer; kept weights stay."""
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        for path in (*self.path.glob("best-*.safetensors"), self.path / BEST):
            path.unlink(missing_ok=True)


def restore_optimizers(optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]], where: Path) -> None:
    """Load the states in the order they were saved."""
    if len(optimizers) != len(states):
        raise UserError(f"{where}: {len(states)} optimiser states for {len(optimizers)} optimisers; delete it to begin anew")
    for optimizer, state in zip(optimizers, states):
        optimizer.load_state_dict(state)
