"""The same student for images of another size: sizes are static in a graph, so every size is a file of its own.

Called by `export.onnx`. Position embeddings are resampled as at fine-tuning, all other weights are the same; the grid of
the outputs stays the teacher's. How much quality another size costs is for the probes to say.

    vega-edge export RUN --out EXPORT --sizes 128 128 192 256
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from student.model import StudentModel
from student.registry import TokenBackbone
from vega_artifact import UserError


def at_size(student: StudentModel, size: tuple[int, int]) -> StudentModel:
    """The student rebuilt for images of (H, W) pixels, in eval mode; itself where that is its size already.

    Raises:
        UserError: the backbone does not take this size, or has weights that belong to one size only.
    """
    if tuple(student.config.image_size) == size:
        return student
    source = copy.deepcopy(student)
    with torch.random.fork_rng(devices=[]):
        target = StudentModel(replace(student.config, image_size=size))
    if isinstance(source.backbone, TokenBackbone):
        source.backbone.model.set_input_size(img_size=size)
    try:
        target.load_state_dict(source.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        wish = f"{size[0]}x{size[1]}"
        raise UserError(f"student {student.config.name!r} has weights for one size only, not for {wish} ({reason})") from error
    return target.eval()
