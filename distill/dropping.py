"""Hardest target first: per frame some streams (or teachers) are left out, never the one the student fits worst.

UNIC's teacher dropping: a student that could please one easy target for ever is made to work on the others. Used by
`distill.losses`; drawn per training sample, so that neither processes nor interruptions change it.

    python -m pytest tests/distill/test_dropping.py -q
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

STREAM_TAG = 0x64726F70  # keeps these draws apart from the shuffles, which use the same seed


def draw_keeps(seed: int, samples: np.ndarray, streams: int, drop: float) -> Tensor:
    """Which streams each sample keeps whatever their loss: bool (B, S), True with probability 1 - `drop`.

    Args:
        samples: running number of each training sample (step * batch + i).
    """
    draws = [np.random.default_rng([STREAM_TAG, seed, int(sample)]).random(streams) for sample in samples]
    return torch.from_numpy(np.stack(draws) >= drop)


def coefficients(losses: Tensor, keep: Tensor) -> Tensor:
    """What the losses (B, S) are multiplied by: 1 where `keep` (B, S) says so and for each row's largest loss, else 0."""
    hardest = torch.zeros_like(keep).scatter_(1, losses.detach().argmax(1, keepdim=True), True)
    return (keep | hardest).to(losses.dtype)
