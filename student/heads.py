"""What stands between a backbone's tokens and a teacher stream: the head, and the way back into the teacher's units.

A head predicts *normalised* targets (that is what the loss sees); `Denormalizer` holds the inverse of the normaliser as
buffers, so that a saved or exported student answers in the teacher's own feature space without knowing how it was trained.

    python -m pytest tests/student -q
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vega_artifact import UserError, unknown_name

NARROWEST = 64  # hidden channels of a head whose stream has but a few (the gate has one)

HEADS: dict[str, Callable[[int, int], nn.Module]] = {}
DENORMALIZERS = ("diagonal", "full")


def register(name: str) -> Callable[[Callable[[int, int], nn.Module]], Callable[[int, int], nn.Module]]:
    """Decorator: make `(in_channels, out_channels) -> Module` on tokens (B, N, D) known under `name`."""

    def keep(make: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
        HEADS[name] = make
        return make

    return keep


@register("mlp")
def mlp_head(in_channels: int, out_channels: int) -> nn.Module:
    """LayerNorm-Linear-GELU-Linear per stream (as in RADIO).

    Hidden as wide as the input, but never a bottleneck for the output and at most twice as wide (a convolutional pyramid
    brings 1,056 channels).
    """
    hidden = max(out_channels, min(in_channels, max(2 * out_channels, NARROWEST)))
    layers = [nn.LayerNorm(in_channels), nn.Linear(in_channels, hidden), nn.GELU(), nn.Linear(hidden, out_channels)]
    return nn.Sequential(*layers)


@register("linear")
def linear_head(in_channels: int, out_channels: int) -> nn.Module:
    """One affine map per stream: the cheapest, and it leaves all the work to the backbone."""
    return nn.Linear(in_channels, out_channels)


def create_head(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    """Head by name; raises UserError listing the known ones."""
    if kind not in HEADS:
        raise unknown_name("head", kind, HEADS)
    return HEADS[kind](in_channels, out_channels)


def folded(head: nn.Module, units: Denormalizer) -> nn.Module | None:
    """A head (changed in place) that answers in the teacher's units by itself, equal to rounding; None: its last layer is not
    linear.

    W' = matrix^T W and b' = b matrix + offset, so that a deployed student has no steps after its heads.
    """
    last = head[-1] if isinstance(head, nn.Sequential) else head
    if not isinstance(last, nn.Linear):
        return None
    with torch.no_grad():
        last.weight.copy_(units.matrix[:, None] * last.weight if units.matrix.ndim == 1 else units.matrix.T @ last.weight)
        last.bias.copy_(units(last.bias))
    return head


class Denormalizer(nn.Module):
    """x = z @ matrix + offset ("full", matrix (C, C)) or z * matrix + offset ("diagonal", matrix (C,)); starts as identity."""

    matrix: Tensor
    offset: Tensor

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        if kind not in DENORMALIZERS:
            raise unknown_name("denormalizer", kind, DENORMALIZERS)
        self.register_buffer("matrix", torch.ones(channels) if kind == "diagonal" else torch.eye(channels))
        self.register_buffer("offset", torch.zeros(channels))

    def set(self, matrix: Tensor, offset: Tensor) -> None:
        """Take over the inverse of a normaliser, both parts float32 of the shapes above."""
        if matrix.shape != self.matrix.shape or offset.shape != self.offset.shape:
            expected = (tuple(self.matrix.shape), tuple(self.offset.shape))
            raise UserError(f"denormalizer: shapes {expected} expected, got {(tuple(matrix.shape), tuple(offset.shape))}")
        self.matrix.copy_(matrix)
        self.offset.copy_(offset)

    def forward(self, normalised: Tensor) -> Tensor:
        scaled = normalised * self.matrix if self.matrix.ndim == 1 else normalised @ self.matrix
        return scaled + self.offset
