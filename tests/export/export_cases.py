"""A run folder as training leaves it, small enough to export in a second or two; shared by the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from student import create_student
from student.checkpoint import WEIGHTS, config_to_json, save_weights
from vega_artifact import fingerprint, identity, write_manifest

ROOT = Path(__file__).resolve().parents[2]
HEADS = {"fused": 24, "generative": 16}


def make_run(folder: Path, name: str = "vit_micro", seed: int = 0, size: int = 64, **options) -> Path:
    """A folder as `distill.train` leaves it: random weights, and denormalisers that are not the identity."""
    student = create_student(name, HEADS, (size, size), (4, 4), seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    for denormalizer in student.denormalizers.values():
        scale = torch.rand(denormalizer.matrix.shape, generator=generator) + 0.5
        denormalizer.set(scale, torch.randn(denormalizer.offset.shape, generator=generator))
    folder.mkdir(parents=True)
    save_weights(folder / WEIGHTS, student.state_dict())
    write_manifest(folder, "run", {"seed": seed}, {"cache": "0" * 16}, [WEIGHTS], student=config_to_json(student.config))
    return folder


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the manifest of an artifact and its fingerprint with it, as if it had been written so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    manifest["fingerprint"] = fingerprint(identity(manifest))
    (folder / "manifest.json").write_text(json.dumps(manifest))
