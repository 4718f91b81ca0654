"""The run folder: whose it is, whether it is finished, and the checkpoints a killed run resumes from.

A checkpoint is a folder that appears under its name by one rename, so it is whole or not there. Nothing is unpickled:
safetensors, JSON, and `torch.load(weights_only=True)` for the optimisers.

    python -m pytest tests/distill/test_state.py -q
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from distill.config import RunConfig
from student.checkpoint import read_weights, save_weights
from teacher.cache import differences, listed
from vega_artifact import MANIFEST, UserError, atomic_write, canonical, read_json, read_manifest, verify_files, write_json

CONFIG = "config.json"
LOG = "log.jsonl"
CHECKPOINTS = "checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the next step depends on besides config and cache: `step` is also the sampler's place."""

    step: int
    seconds: float
    student: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizers: list[dict[str, Any]]


class RunFolder:
    """One run's place on disk, bound to the config and the cache it was started with."""

    def __init__(self, path: Path, config: RunConfig, cache_fingerprint: str) -> None:
        self.path = path
        self.config = config
        self.identity = {"config": config.identity(), "cache": cache_fingerprint}

    def is_complete(self) -> bool:
        """True when the very run asked for is finished and whole.

        Raises:
            UserError: the folder belongs to another run (says which fields differ), is no run, or was altered.
        """
        if (self.path / MANIFEST).exists():
            manifest = read_manifest(self.path, "run")
            self._refuse_other({"config": manifest["config"], "cache": manifest["parents"].get("cache")})
            verify_files(self.path, manifest)
            return True
        if (self.path / CONFIG).exists():
            record = read_json(self.path / CONFIG)
            self._refuse_other({key: record.get(key) for key in self.identity} if isinstance(record, Mapping) else {})
        elif self.path.exists() and (not self.path.is_dir() or any(not p.name.startswith(".") for p in self.path.iterdir())):
            raise UserError(f"{self.path}: exists and is no run (no {CONFIG}); choose another --out")
        return False

    def _refuse_other(self, found: Mapping[str, Any]) -> None:
        if lines := differences(found, self.identity):
            raise UserError(f"{self.path}: holds another run ({listed(lines)}); choose another --out or delete it")

    def claim(self, resolved: Mapping[str, Any]) -> None:
        """Write config.json: from now on the folder is this run's. `resolved`: what every "auto" became."""
        write_json(self.path / CONFIG, {**self.identity, "full_config": canonical(self.config), "resolved": resolved})

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then drop the older ones."""
        root = self.path / CHECKPOINTS
        final, unfinished = root / f"step-{checkpoint.step:08d}", root / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_weights(unfinished / "student.safetensors", checkpoint.student)
        if checkpoint.average:
            save_weights(unfinished / "average.safetensors", checkpoint.average)
        states = io.BytesIO()  # torch.save to a file would hide a full disk behind another error
        torch.save(checkpoint.optimizers, states)
        atomic_write(unfinished / "optimizers.pt", lambda path: path.write_bytes(states.getvalue()))
        write_json(unfinished / "state.json", {"step": checkpoint.step, "seconds": checkpoint.seconds})
        unfinished.rename(final)
        for older in root.glob("step-*"):
            if older != final:
                shutil.rmtree(older, ignore_errors=True)

    def load(self) -> Checkpoint | None:
        """The latest checkpoint, tensors on the CPU; None when there is none. Raises UserError when it is unreadable."""
        found = sorted((self.path / CHECKPOINTS).glob("step-*"))
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
        return Checkpoint(
            state["step"], state["seconds"], weights, read_weights(average) if average.exists() else {}, optimizers
        )

    def drop_checkpoints(self) -> None:
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)


def restore_optimizers(optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]], where: Path) -> None:
    """Load the states in the order they were saved."""
    if len(optimizers) != len(states):
        raise UserError(f"{where}: {len(states)} optimiser states for {len(optimizers)} optimisers; delete it to begin anew")
    for optimizer, state in zip(optimizers, states):
        optimizer.load_state_dict(state)
