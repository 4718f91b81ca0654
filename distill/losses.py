"""The distillation objective, always in float32: per token cosine and smooth-L1 on normalised targets.

Frames may also be compared by how their tokens resemble one another (`distill.relational`).

    python -m pytest tests/distill/test_losses.py -q
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, smooth_l1_loss

from distill.relational import gram_loss


@dataclass(frozen=True)
class StreamLoss:
    """Scalars of one stream: what is minimised and, for the log, the mean cosine per token."""

    loss: Tensor
    cosine: Tensor


@dataclass(frozen=True, kw_only=True)
class Objective:
    """loss = cosine * mean(1 - cos) + smooth_l1 * mean(smooth-L1) + gram * Gram; the stream weights add them up."""

    weights: Mapping[str, float]
    cosine: float = 0.5
    smooth_l1: float = 0.5
    gram: float = 0.0

    def stream(self, predicted: Tensor, target: Tensor) -> StreamLoss:
        """Loss of one stream on normalised tokens (B, N, C); cosine per token, so that large tokens do not dominate."""
        predicted, target = predicted.float(), target.float()
        cosine = cosine_similarity(predicted, target, dim=-1).mean()
        loss = self.cosine * (1 - cosine) + self.smooth_l1 * smooth_l1_loss(predicted, target)
        if self.gram > 0:
            loss = loss + self.gram * gram_loss(predicted, target)
        return StreamLoss(loss, cosine.detach())

    def __call__(self, predicted: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, StreamLoss]]:
        """Weighted sum over the streams and each stream's own part. Autocast is off in here."""
        device = next(iter(targets.values())).device.type
        with torch.autocast(device, enabled=False):
            parts = {name: self.stream(predicted[name], targets[name]) for name in self.weights}
            total = torch.stack([weight * parts[name].loss for name, weight in self.weights.items()]).sum()
        return total, parts
