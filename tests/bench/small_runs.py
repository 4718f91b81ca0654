"""Runs of the smallest student with random weights: what the latency tests export and time."""

from __future__ import annotations

from pathlib import Path

from student import create_student
from student.checkpoint import WEIGHTS, config_to_json, save_weights
from vega_artifact import write_manifest

SIZE = (32, 32)


def make_run(folder: Path, seed: int, heads: dict[str, int]) -> Path:
    """A folder of kind "run"; heads: stream -> channels."""
    student = create_student("vit_micro", heads, SIZE, (2, 2), seed=seed)
    folder.mkdir()
    save_weights(folder / WEIGHTS, student.state_dict())
    write_manifest(folder, "run", {"seed": seed}, {"cache": "0" * 16}, [WEIGHTS], student=config_to_json(student.config))
    return folder
