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
from student import AnyStudent, StreamingStudent

BATCH = 48


@torch.no_grad()
def validation_cosines(
    student: AnyStudent, frames: Frames, means: Mapping[str, Tensor], limit: int | None = None
) -> dict[str, dict[str, float]]:
    """{stream: {"raw": mean cosine, "centred": mean cosine}} of the student's outputs, in float32, the teacher's units.

    Args:
        means: stream -> (C,) mean of the teacher's training tokens.
        limit: look at this many frames, spread evenly; None takes all. A student with memory sees whole scenes, in order.
    """
    if isinstance(student, StreamingStudent):
        count = None if limit is None else max(1, limit * len(frames.lengths) // len(frames))
        scenes = _spread(np.arange(len(frames.lengths)), count)
        ends = np.cumsum(frames.lengths)
        blocks = [np.arange(ends[scene] - frames.lengths[scene], ends[scene]) for scene in scenes]
    else:
        chosen = _spread(np.arange(len(frames)), limit)
        blocks = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    total = sum(map(len, blocks))
    device = next(student.parameters()).device
    mean, std = (torch.tensor(values, device=device) for values in (student.preprocess.mean, student.preprocess.std))
    sums = {name: {"raw": 0.0, "centred": 0.0} for name in means}
    training = student.training
    student.eval()
    for block in blocks:
        images, targets = gather(frames, block)
        outputs = student.film(prepare(images.to(device), None, mean, std))
        for name, centre in means.items():
            ours, theirs = outputs[name].float(), targets[name].to(device).float()
            for key, shift in (("raw", 0), ("centred", centre)):
                pair = vectors(ours - shift), vectors(theirs - shift)
                sums[name][key] += cosine_similarity(*pair, dim=-1).mean(-1).sum().item()
    student.train(training)
    return {name: {key: found / total for key, found in sums[name].items()} for name in means}


def _spread(values: np.ndarray, limit: int | None) -> np.ndarray:
    """At most `limit` of these, evenly spread."""
    if limit is None or limit >= len(values):
        return values
    return values[np.linspace(0, len(values) - 1, limit).round().astype(np.int64)]
