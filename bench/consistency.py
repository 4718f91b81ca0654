"""Voxel consistency: VEGA-3D's multi-view correspondence score, with the centring and the control it lacks.

One of the 3D probes of bench/probes.py. Source: H-EmbodVis/VEGA-3D@9c96924, scripts/visualization/
wan_t2v_adjacent_correspondence_matching.py. Raw, any feature with a large mean scores near 1, so judge by the centred value and
by its contrast to random pairs.

    from bench.consistency import pair_consistency
    pair_consistency(tokens_i, tokens_j, xyz_i, xyz_j, valid_i, valid_j).score
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.correspondence import unit
from bench.geometry import CellGeometry

VOXEL = 0.1  # metres
SCENE, RANDOM = range(2)


@dataclass(frozen=True)
class PairConsistency:
    """Two views compared voxel by voxel.

    Attributes:
        score: mean cosine over the voxels both views hit, NaN without any.
        random: mean cosine over all pairs of valid tokens, the control.
        shared, voxels: voxels hit by both views, by either.
        similarity_i: float32 (N,), the cosine of each token's voxel in view i, NaN where it is not shared.
    """

    score: float
    random: float
    shared: int
    voxels: int
    similarity_i: np.ndarray


def pair_consistency(
    tokens_i: np.ndarray,
    tokens_j: np.ndarray,
    xyz_i: np.ndarray,
    xyz_j: np.ndarray,
    valid_i: np.ndarray,
    valid_j: np.ndarray,
    voxel: float = VOXEL,
    centre: np.ndarray | None = None,
) -> PairConsistency:
    """VEGA-3D's pair score in float32.

    Args:
        tokens_i, tokens_j: (N, C); xyz_i, xyz_j: (N, 3) world metres; valid_i, valid_j: bool (N,).
        voxel: edge in metres; centre: (C,) subtracted from every token, or None.
    """
    first, second = unit(tokens_i, centre)[valid_i], unit(tokens_j, centre)[valid_j]
    points = np.concatenate([xyz_i[valid_i], xyz_j[valid_j]]).astype(np.float32)
    similarity = np.full(len(valid_i), np.nan, dtype=np.float32)
    if not len(first) or not len(second):
        return PairConsistency(np.nan, np.nan, 0, len(points), similarity)
    keys = np.floor((points - points.min(0)) / np.float32(voxel)).astype(np.int64)
    _, index = np.unique(keys, axis=0, return_inverse=True)
    index = index.reshape(-1)
    count = index.max() + 1
    in_i, in_j = index[: len(first)], index[len(first) :]
    mean_i, mean_j = _voxel_means(first, in_i, count), _voxel_means(second, in_j, count)
    shared = (np.bincount(in_i, minlength=count) > 0) & (np.bincount(in_j, minlength=count) > 0)
    cosine = np.where(shared, (mean_i * mean_j).sum(1), np.nan)
    similarity[valid_i] = cosine[in_i]
    score = float(cosine[shared].mean()) if shared.any() else np.nan
    random = float(first.mean(0) @ second.mean(0))
    return PairConsistency(score, random, int(shared.sum()), int(count), similarity)


def _voxel_means(directions: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Mean direction per voxel, float32 (count, C), at unit length again."""
    sums = np.zeros((count, directions.shape[1]), dtype=np.float32)
    np.add.at(sums, index, directions)
    return unit(sums)


def scene_consistency(
    tokens: np.ndarray, geometry: CellGeometry, centre: np.ndarray | None = None, voxel: float = VOXEL
) -> np.ndarray:
    """Mean over the adjacent pairs of a clip that share a voxel.

    Args:
        tokens: (T, N, C).

    Returns:
        float64 (2, 2): rows for the score and the random control; columns sum (the scene's mean) and count (1, or 0 when no pair
        shares a voxel), so that sums over scenes give the mean over scenes.
    """
    pairs = [
        pair_consistency(
            tokens[i], tokens[i + 1], geometry.mean_xyz[i], geometry.mean_xyz[i + 1], geometry.valid[i], geometry.valid[i + 1],
            voxel, centre,
        )
        for i in range(len(tokens) - 1)
    ]  # fmt: skip
    scored = [pair for pair in pairs if pair.shared]
    if not scored:
        return np.zeros((2, 2))
    return np.array([[np.mean([pair.score for pair in scored]), 1.0], [np.mean([pair.random for pair in scored]), 1.0]])


@dataclass(frozen=True)
class Matches:
    """Mutually nearest tokens of two views, most similar first: cells (M,) in i and in j, cosines float32 (M,)."""

    cells_i: np.ndarray
    cells_j: np.ndarray
    similarity: np.ndarray


def mutual_matches(
    tokens_i: np.ndarray, tokens_j: np.ndarray, valid_i: np.ndarray, valid_j: np.ndarray, threshold: float = 0.6
) -> Matches:
    """VEGA-3D's mutual matching: pairs that are each other's nearest valid token and at least `threshold` similar.

    Args:
        tokens_i, tokens_j: (N, C); valid_i, valid_j: bool (N,).
    """
    index_i, index_j = np.flatnonzero(valid_i), np.flatnonzero(valid_j)
    if not len(index_i) or not len(index_j):
        return Matches(index_i[:0], index_j[:0], np.zeros(0, dtype=np.float32))
    cosine = unit(tokens_i)[index_i] @ unit(tokens_j)[index_j].T
    best = cosine.argmax(1)
    similarity = cosine[np.arange(len(best)), best]
    kept = np.flatnonzero((cosine.argmax(0)[best] == np.arange(len(best))) & (similarity >= threshold))
    kept = kept[np.argsort(-similarity[kept], kind="stable")]
    return Matches(index_i[kept], index_j[best[kept]], similarity[kept])
