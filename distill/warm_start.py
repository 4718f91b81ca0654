"""Warm start: a new run whose student begins with the weights of a finished one. Not a resume: steps, rates and log are new.

Place in the chain: between `student.create_student` and the first step of `distill.train`.

    python -c "from distill import train, recipes; train('CACHE', 'RUN2', recipes.demo(), start_from='RUN1')"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from student import StudentModel
from student.checkpoint import WEIGHTS, read_weights
from vega_artifact import UserError, read_manifest, verify_files


def read_start(run: Path) -> dict[str, Any]:
    """The manifest of the run to start from, its files checked. Raises UserError: no finished run, or altered."""
    manifest = read_manifest(run, "run")
    verify_files(run, manifest)
    return manifest


def take_weights(student: StudentModel, run: Path) -> list[str]:
    """Fill the backbone, and the heads that are there in the same shape; returns the streams whose head stays new.

    Denormalisers stay as they are: they belong to the cache of this run. Of a student with memory the part that sees single
    frames is taken.

    Raises:
        UserError: the backbone is another one, or for images of another size; the sentence names the first difference.
    """
    theirs = {name.removeprefix("frame."): value for name, value in read_weights(run / WEIGHTS).items()}
    ours = student.state_dict()
    for name, value in ours.items():
        if name.startswith("backbone.") and (name not in theirs or theirs[name].shape != value.shape):
            found = tuple(theirs[name].shape) if name in theirs else "missing"
            raise UserError(
                f"{run / WEIGHTS}: {name} {tuple(value.shape)} expected, found {found}; start from a run of the same student "
                "and image size"
            )
    fitting = {
        name: value
        for name, value in theirs.items()
        if name in ours and value.shape == ours[name].shape and not name.startswith("denormalizers.")
    }
    student.load_state_dict(fitting, strict=False)
    heads = {name for name in ours if name.startswith("heads.")}
    return sorted({name.split(".")[1] for name in heads - set(fitting)})
