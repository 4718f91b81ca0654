"""Relational objectives: tokens shall resemble one another, within a frame and across two views, as the teacher's do.

Independent of any rotation of the feature space, so they ask for structure rather than for coordinates. Called by
`distill.losses` on normalised tokens, whose mean is gone: cosines of raw features are near 1 everywhere.

    python -m pytest tests/distill/test_relational.py -q
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

TEMPERATURE = 0.07  # of the similarities between tokens: lightly-train's third recipe
SAME_PLACE = 0.5  # metres within which two tokens look at the same place: the radius of the correspondence probe


def gram_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared difference of the two within-frame cosine matrices (DINOv3's Gram term, there against an anchor).

    Args:
        predicted, target: (B, N, C) float.

    Returns:
        (B,): mean over the N x N pairs of each frame.
    """
    ours, theirs = normalize(predicted, dim=-1), normalize(target, dim=-1)
    return (ours @ ours.mT - theirs @ theirs.mT).square().mean((1, 2))


def cross_view_loss(predicted: Tensor, target: Tensor, answers: Tensor) -> Tensor:
    """How each token is to find its like in the other view of the same scene.

    Frames 2k and 2k + 1 are two views. Per token with answers: KL(q || p) over the tokens of the other view, where p is the
    softmax of the student's cosines over TEMPERATURE and q that of the teacher's among the answers alone. With geometry
    (`same_place`) the student is thus taught the teacher's similarities where they are right, and not where the teacher
    mistakes one place for another; without (`mutual_nearest`), those of the tokens that the teacher itself is sure of.

    Args:
        predicted, target: (B, N, C) float, B even.
        answers: bool (B, N, N), [b, i, j]: token j of the other view may answer token i of frame b.

    Returns:
        (B,): mean over the frame's tokens that have an answer; 0 for a frame without any.
    """
    found, wanted = (_similarities(tokens) / TEMPERATURE for tokens in (predicted, target))
    answered = answers.any(-1)
    admitted = answers | ~answered[..., None]  # a row without an answer would be a softmax over nothing
    logs = log_softmax(wanted.masked_fill(~admitted, -torch.inf), dim=-1)
    share = logs.exp()
    rows = (share * (logs.masked_fill(~admitted, 0) - log_softmax(found, dim=-1))).sum(-1)
    return (rows * answered).sum(-1) / answered.sum(-1).clamp_min(1)


def _similarities(tokens: Tensor) -> Tensor:
    """Cosines (B, N, N) of every token of a frame with those of the other view."""
    first, second = normalize(tokens, dim=-1).unflatten(0, (-1, 2)).unbind(1)
    return _both_ways(first @ second.mT)


def _both_ways(forth: Tensor) -> Tensor:
    """(B / 2, N, N) from frame 2k to frame 2k + 1 -> (B, N, N) from every frame to the other view."""
    return torch.stack((forth, forth.mT), dim=1).flatten(0, 1)


def same_place(places: Tensor) -> Tensor:
    """Answers by geometry: tokens of two views whose surface points lie within SAME_PLACE of one another.

    Args:
        places: (B, N, 3) float32 world position in metres that each token looks at, NaN where unknown; frames 2k and 2k + 1
            are two views of one scene.

    Returns:
        bool (B, N, N) as `cross_view_loss` takes it; an unknown place is and has no answer.
    """
    first, second = places.unflatten(0, (-1, 2)).unbind(1)
    # cdist's matrix-product path loses centimetres far from the origin, and NaN compares as False
    return _both_ways(torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist") <= SAME_PLACE)


def mutual_nearest(target: Tensor) -> Tensor:
    """Answers by the teacher's own tokens: who is the most similar one (cosine) of their most similar one may be taught.

    Only tells which tokens take part: of the embedded teacher's mutual pairs less than half are the same place even between
    neighbouring views, so that the pairs are not taught as truths but the teacher's whole row of similarities is.

    Args:
        target: (B, N, C) float; frames 2k and 2k + 1 are two views of one scene.

    Returns:
        bool (B, N, N) as `cross_view_loss` takes it; rows are open to all tokens or to none.
    """
    similarity = _similarities(target)
    mutual = (similarity == similarity.amax(-1, keepdim=True)) & (similarity == similarity.amax(-2, keepdim=True))
    return mutual.any(-1, keepdim=True).expand_as(mutual)
