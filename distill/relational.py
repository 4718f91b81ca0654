"""Relational objective: tokens of one frame shall resemble one another as the teacher's do.

Independent of any rotation of the feature space, so it asks for the structure of a frame rather than for its coordinates.

    python -m pytest tests/distill/test_losses.py -q
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize


def gram_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the two within-frame cosine matrices (DINOv3's Gram term, there against an anchor).

    Args:
        predicted, target: (B, N, C) float32.

    Returns:
        scalar float32: mean over frames and the N x N pairs.
    """
    ours, theirs = normalize(predicted, dim=-1), normalize(target, dim=-1)
    return (ours @ ours.mT - theirs @ theirs.mT).square().mean()
