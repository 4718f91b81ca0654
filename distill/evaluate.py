"""How close a student comes to its teacher on frames it did not train on: cosine per token, raw and centred.

Raw cosine is near 1 for any features with a big mean, so the centred one (teacher's training mean subtracted from both)
is the one to judge by.

    python -m pytest tests/distill/test_evaluate.py -q
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from distill.augment import prepare
from distill.dataset import Frames, gather
from distill.losses import vectors
from student import StudentModel

BATCH = 48


@torch.no_grad()
def validation_cosines(
    student: StudentModel, frames: Frames, means: Mapping[str, Tensor], limit: int | None = None
) -> dict[str, dict[str, float]]:
    """{stream: {"raw": mean cosine, "centred": mean cosine}} of the student's outputs, in float32, the teacher's units.

    Args:
        means: stream -> (C,) mean of the teacher's training tokens.
        limit: look at this many frames, spread evenly; None takes all.
    """
    chosen = np.arange(len(frames))
    if limit is not None and limit < len(frames):
        chosen = np.linspace(0, len(frames) - 1, limit).round().astype(np.int64)
    device = next(student.parameters()).device
    mean, std = (torch.tensor(values, device=device) for values in (student.preprocess.mean, student.preprocess.std))
    sums = {name: {"raw": 0.0, "centred": 0.0} for name in means}
    training = student.training
    student.eval()
    for start in range(0, len(chosen), BATCH):
        images, targets = gather(frames, chosen[start : start + BATCH])
        outputs = student(prepare(images.to(device), None, mean, std))
        for name, centre in means.items():
            ours, theirs = outputs[name].float(), targets[name].to(device).float()
            for key, shift in (("raw", 0), ("centred", centre)):
                pair = vectors(ours - shift), vectors(theirs - shift)
                sums[name][key] += cosine_similarity(*pair, dim=-1).mean(-1).sum().item()
    student.train(training)
    return {name: {key: total / len(chosen) for key, total in sums[name].items()} for name in means}
