"""Streamed moments: mean, variance and, if wanted, covariance of features too many to hold at once.

Place in the chain: the normalisers of `distill` are fitted with them over a whole cache. Batches are folded in one by one
in float64 (Chan, Golub, LeVeque 1979), so the result does not lose digits to a large common mean, and the moments of
parts (shards, processes) merge into those of the whole.

    python -c "import numpy as np; from teacher.moments import Moments; m = Moments(2); m.update(np.eye(2)); print(m.mean)"
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


class Moments:
    """Per-channel moments of everything given to `update`; population moments (divided by the count, not count - 1).

    Args:
        channels: C.
        covariance: also keep the (C, C) covariance; costs a matrix product per batch.

    Attributes:
        count: rows seen.
        mean: (C,) float64.
    """

    def __init__(self, channels: int, covariance: bool = False) -> None:
        self.channels = channels
        self.count = 0
        self.mean = np.zeros(channels)
        self._scatter = np.zeros((channels, channels) if covariance else channels)  # sums of (products of) deviations

    def update(self, batch: ArrayLike, axis: int = -1) -> None:
        """Fold in a batch of any shape whose `axis` has C entries; axis 1 for cached maps (T, C, gh, gw).

        Raises:
            ValueError: another number of channels, or NaN or Inf, which would spoil all that was gathered.
        """
        values = np.moveaxis(np.asarray(batch, dtype=np.float64), axis, -1)
        if values.shape[-1] != self.channels:
            raise ValueError(f"{self.channels} channels expected on axis {axis}, found {values.shape[-1]}")
        rows = values.reshape(-1, self.channels)
        if not len(rows):
            return
        mean = rows.mean(axis=0)
        if not np.isfinite(mean).all():
            raise ValueError(f"NaN or Inf in channel {np.flatnonzero(~np.isfinite(mean))[0]} of the batch")
        deviation = rows - mean
        scatter = deviation.T @ deviation if self._scatter.ndim == 2 else np.square(deviation).sum(axis=0)
        self._fold(len(rows), mean, scatter)

    def merge(self, other: Moments) -> None:
        """Fold in what another instance has seen; `other` stays as it is."""
        if other._scatter.shape != self._scatter.shape:
            raise ValueError(f"moments of different kinds: {self._scatter.shape} and {other._scatter.shape}")
        self._fold(other.count, other.mean, other._scatter)

    @property
    def variance(self) -> np.ndarray:
        """(C,) float64."""
        return (np.diagonal(self._scatter) if self._scatter.ndim == 2 else self._scatter) / self._seen()

    @property
    def covariance(self) -> np.ndarray:
        """(C, C) float64, symmetric; only of an instance made with `covariance=True`."""
        if self._scatter.ndim != 2:
            raise ValueError("no covariance was kept; make Moments(channels, covariance=True)")
        return self._scatter / self._seen()

    def _seen(self) -> int:
        if not self.count:
            raise ValueError("no moments before the first update")
        return self.count

    def _fold(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        if not count:
            return
        step = mean - self.mean
        between = np.outer(step, step) if scatter.ndim == 2 else np.square(step)
        self._scatter = self._scatter + scatter + between * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total
