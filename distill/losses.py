"""The distillation objective, always in float32 on normalised targets: what a token is, and what it resembles.

Per token 1 - cosine, smooth-L1 and squared error; per frame and per pair of views the terms of `distill.relational`. Streams
are added by their weights, of which `distill.dropping` may leave out the easy ones.

    python -m pytest tests/distill/test_losses.py -q
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.dropping import coefficients
from distill.relational import cross_view_loss, gram_loss, mutual_nearest, same_place


def vectors(tokens: Tensor) -> Tensor:
    """What cosines are taken of: tokens (B, N, C) as they are, but of a single channel the maps (B, 1, N).

    One number has no direction; a stream of one channel, such as the gate, is compared by its pattern over the frame.
    """
    return tokens.mT if tokens.shape[-1] == 1 else tokens


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """(B, N, C) -> (B,): mean over the tokens of 1 - cosine, so that large tokens do not dominate."""
    return 1 - F.cosine_similarity(predicted, target, dim=-1).mean(-1)


def smooth_l1_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """(B, N, C) -> (B,): mean of d^2 / 2 where |d| < 1 and |d| - 1 / 2 elsewhere."""
    return F.smooth_l1_loss(predicted, target, reduction="none").mean((1, 2))


def mse_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """(B, N, C) -> (B,): mean squared difference (RADIO's choice after PHI-S)."""
    return (predicted - target).square().mean((1, 2))


TERMS = ("cosine", "smooth_l1", "mse", "gram", "cross_view")  # each has a weight of its name


class Hints(NamedTuple):
    """What the objective is told about a batch besides tokens; tensors, so that they follow the batch to its device.

    places: (B, N, 3) float32 metres, see `relational.same_place`; None: the teacher's tokens tell which to compare.
    keep: bool (B, S), see `dropping.draw_keeps`; None: no stream is dropped.
    ramp: scalar in 0..1 on the relational terms; None: 1.
    """

    places: Tensor | None = None
    keep: Tensor | None = None
    ramp: Tensor | None = None


NO_HINTS = Hints()


@dataclass(frozen=True)
class StreamLoss:
    """One stream: the loss of every frame (B,), and for the log the mean cosine and each term before it is weighted."""

    per_image: Tensor
    cosine: Tensor
    terms: Mapping[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """Scalar."""
        return self.per_image.mean()


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Sum over streams of weight x (cosine + smooth_l1 + mse + gram + cross_view, each times its own weight).

    weights: stream -> weight. With `cross_view` above 0 frames 2k and 2k + 1 of a batch are two views of one scene.
    """

    weights: Mapping[str, float]
    cosine: float = 0.5
    smooth_l1: float = 0.5
    mse: float = 0.0
    gram: float = 0.0
    cross_view: float = 0.0

    def stream(self, predicted: Tensor, target: Tensor, hints: Hints = NO_HINTS) -> StreamLoss:
        """Loss of one stream on normalised tokens (B, N, C).

        The relational terms, which compare tokens, are left out for a stream of one channel (see `vectors`).
        """
        relational = target.shape[-1] > 1
        predicted, target = vectors(predicted.float()), vectors(target.float())
        terms = {"cosine": cosine_loss(predicted, target)}
        if self.smooth_l1 > 0:
            terms["smooth_l1"] = smooth_l1_loss(predicted, target)
        if self.mse > 0:
            terms["mse"] = mse_loss(predicted, target)
        loss = torch.stack([getattr(self, name) * term for name, term in terms.items()]).sum(0)
        if relational and self.gram + self.cross_view > 0:
            further = self._relations(predicted, target, hints)
            ramp = 1.0 if hints.ramp is None else hints.ramp
            loss = loss + ramp * torch.stack([getattr(self, name) * term for name, term in further.items()]).sum(0)
            terms |= further
        means = {name: term.detach().mean() for name, term in terms.items()}
        return StreamLoss(loss, 1 - means["cosine"], means)

    def _relations(self, predicted: Tensor, target: Tensor, hints: Hints) -> dict[str, Tensor]:
        terms = {}
        if self.gram > 0:
            terms["gram"] = gram_loss(predicted, target)
        if self.cross_view > 0:
            answers = mutual_nearest(target) if hints.places is None else same_place(hints.places)
            terms["cross_view"] = cross_view_loss(predicted, target, answers)
        return terms

    def __call__(
        self, predicted: Mapping[str, Tensor], targets: Mapping[str, Tensor], hints: Hints = NO_HINTS
    ) -> tuple[Tensor, dict[str, StreamLoss]]:
        """Weighted sum over the streams, after dropping, and each stream's own part, before it. Autocast is off in here."""
        device = next(iter(targets.values())).device.type
        with torch.autocast(device, enabled=False):
            parts = {name: self.stream(predicted[name], targets[name], hints) for name in self.weights}
            losses = torch.stack([part.per_image for part in parts.values()], dim=1)  # (B, S)
            weights = losses.new_tensor(list(self.weights.values()))
            if hints.keep is not None:
                weights = weights * coefficients(losses, hints.keep)
            total = (losses * weights).sum(1).mean()
        return total, parts

    def term_means(self, parts: Mapping[str, StreamLoss]) -> dict[str, Tensor]:
        """For the log: each term in the order of TERMS, averaged over the streams that have it by their weights."""
        found = {}
        for term in TERMS:
            having = [name for name, part in parts.items() if term in part.terms]
            if having:
                total = torch.stack([self.weights[name] * parts[name].terms[term] for name in having]).sum()
                found[term] = total / sum(self.weights[name] for name in having)
        return found
