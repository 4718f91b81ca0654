"""Depth probe: how much of the distance to the surface a linear map reads off frozen tokens.

One of the 3D probes of bench/probes.py. Ridge regression from a token to the mean log depth of its cell, beside a free offset
for every cell of the grid, so that every model starts from knowing that the floor is at the bottom. Fitted on the training
rooms, strength chosen on the validation rooms, judged on the test rooms.

    from bench.depth import DepthProbe
    probe = DepthProbe.fit(train_tokens, train_geometry, val_tokens, val_geometry)
    probe.statistics(test_tokens[0], test_geometry[0])        # sufficient statistics of one scene, see `r2` and `delta1`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.geometry import CellGeometry
from bench.intervals import ratio
from vega_artifact import UserError

STRENGTHS = 10.0 ** np.arange(-6, 2.5, 0.5)  # times the number of training tokens
DELTA1 = np.log(1.25)
# Columns of the statistics of a scene.
COUNT, SUM, SQUARES, RESIDUALS, WITHIN = range(5)


def r2(sums: np.ndarray) -> np.ndarray:
    """(..., 5) summed statistics -> share of the variance of log depth explained, pooled over all tokens of the scenes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        total = sums[..., SQUARES] - sums[..., SUM] ** 2 / sums[..., COUNT]
        return np.where(total > 0, 1 - sums[..., RESIDUALS] / total, np.nan)


def delta1(sums: np.ndarray) -> np.ndarray:
    """(..., 5) summed statistics -> share of tokens whose depth is right within a factor of 1.25."""
    return ratio(sums[..., [WITHIN, COUNT]])


@dataclass(frozen=True)
class DepthProbe:
    """A fitted probe.

    Attributes:
        offsets: float64 (N,) mean log depth of each cell over the training rooms.
        centres: float64 (N, C) mean token of each cell; weights: float64 (C,).
        strength: the chosen ridge penalty per training token; val_r2: its score on the validation rooms.
    """

    offsets: np.ndarray
    centres: np.ndarray
    weights: np.ndarray
    strength: float
    val_r2: float

    @classmethod
    def fit(
        cls,
        train: Sequence[np.ndarray],
        train_geometry: Sequence[CellGeometry],
        val: Sequence[np.ndarray],
        val_geometry: Sequence[CellGeometry],
    ) -> DepthProbe:
        """Fit on the rooms of `train`, choose the penalty on those of `val`.

        Args:
            train, val: tokens per scene, float (T, N, C); train_geometry, val_geometry: the same scenes on the same grid.

        Raises:
            UserError: no training or validation token has a depth.
        """
        offsets, centres = _cell_means(train, train_geometry)
        gram, moment, count = _normal_equations(train, train_geometry, offsets, centres)
        scale = np.sqrt(np.diag(gram) / count)
        scale[scale < 1e-6 * scale.max(initial=0) + 1e-12] = np.inf  # a constant channel carries nothing
        values, vectors = np.linalg.eigh(gram / np.outer(scale, scale))
        projected = vectors.T @ (moment / scale)
        paths = [vectors @ (projected / (values + strength * count)) / scale for strength in STRENGTHS]
        weights = np.stack(paths, axis=1)  # (C, strengths)
        errors, total = np.zeros(len(STRENGTHS)), np.zeros(3)
        for tokens, geometry in zip(val, val_geometry):
            x, y, cell = _rows(tokens, geometry)
            residual = (y - offsets[cell])[:, None] - (x - centres[cell]) @ weights
            errors += (residual**2).sum(0)
            total += len(y), y.sum(), (y**2).sum()
        if not total[0]:
            raise UserError("depth probe: no token of the validation rooms has a valid depth; check the depth images")
        best = int(errors.argmin())
        val_r2 = r2(np.array([*total, errors[best], 0.0]))
        return cls(offsets, centres, weights[:, best], float(STRENGTHS[best]), float(val_r2))

    def predict(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (T, N, C) -> depth in metres, float64 (T, N)."""
        return np.exp(self.offsets + (tokens - self.centres) @ self.weights)

    def statistics(self, tokens: np.ndarray, geometry: CellGeometry) -> np.ndarray:
        """float64 (5,): count, sum and sum of squares of log depth, squared residuals, tokens within a factor of 1.25."""
        return _statistics(geometry.log_depth, np.log(self.predict(tokens)), geometry.valid)

    def position_statistics(self, geometry: CellGeometry) -> np.ndarray:
        """The same for the cell offsets alone: what the place in the picture tells without looking."""
        return _statistics(geometry.log_depth, np.broadcast_to(self.offsets, geometry.valid.shape), geometry.valid)


def _statistics(truth: np.ndarray, predicted: np.ndarray, valid: np.ndarray) -> np.ndarray:
    y, error = truth[valid], (truth - predicted)[valid]
    return np.array([len(y), y.sum(), (y**2).sum(), (error**2).sum(), (abs(error) < DELTA1).sum()], dtype=np.float64)


def _rows(tokens: np.ndarray, geometry: CellGeometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (K, C), log depths (K,) and cells (K,) of the valid cells of one scene."""
    cell = np.broadcast_to(np.arange(geometry.valid.shape[1]), geometry.valid.shape)[geometry.valid]
    return tokens[geometry.valid], geometry.log_depth[geometry.valid], cell


def _cell_means(scenes: Sequence[np.ndarray], geometries: Sequence[CellGeometry]) -> tuple[np.ndarray, np.ndarray]:
    """Mean log depth (N,) and mean token (N, C) per cell; a cell never seen takes the mean of the others."""
    count = sum(geometry.valid.sum(0) for geometry in geometries).astype(np.float64)
    if not count.any():
        raise UserError("depth probe: no token of the training rooms has a valid depth; check the depth images")
    depth = sum(np.where(geometry.valid, geometry.log_depth, 0).sum(0) for geometry in geometries)
    token = sum((tokens * geometry.valid[..., None]).sum(0, dtype=np.float64) for tokens, geometry in zip(scenes, geometries))
    seen = np.maximum(count, 1)
    offsets = np.where(count > 0, depth / seen, depth.sum() / count.sum())
    centres = np.where(count[:, None] > 0, token / seen[:, None], token.sum(0) / count.sum())
    return offsets, centres


def _normal_equations(
    scenes: Sequence[np.ndarray], geometries: Sequence[CellGeometry], offsets: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    channels = centres.shape[1]
    gram, moment, count = np.zeros((channels, channels)), np.zeros(channels), 0
    for tokens, geometry in zip(scenes, geometries):
        x, y, cell = _rows(tokens, geometry)
        x = (x - centres[cell]).astype(np.float32)  # centred first, so that single precision loses nothing that matters
        gram += x.T @ x
        moment += x.T @ (y - offsets[cell]).astype(np.float32)
        count += len(y)
    return gram, moment, count
