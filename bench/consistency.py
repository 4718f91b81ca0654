"""Voxel consistency: VEGA-3D's multi-view correspondence score, with the centring and the control it lacks.

One of the 3D probes of bench/probes.py. Source: H-EmbodVis/VEGA-3D@9c96924, scripts/visualization/
wan_t2v_adjacent_correspondence_matching.py. Raw, any feature with a large mean scores near 1, so judge by the centred value and
by its contrast to random pairs.

    from bench.consistency import pair_consistency
    from bench.correspondence import unit
    pair_consistency(unit(tokens_i), unit(tokens_j), xyz_i, xyz_j, valid_i, valid_j).score
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
    directions_i: np.ndarray,
    directions_j: np.ndarray,
    xyz_i: np.ndarray,
    xyz_j: np.ndarray,
    valid_i: np.ndarray,
    valid_j: np.ndarray,
    voxel: float = VOXEL,
) -> PairConsistency:
    """VEGA-3D's pair score in float32.

    Args:
        directions_i, directions_j: (N, C) tokens at unit length, see `bench.correspondence.unit`.
        xyz_i, xyz_j: (N, 3) world metres; valid_i, valid_j: bool (N,); voxel: edge in metres.
    """
    first, second = directions_i[valid_i], directions_j[valid_j]
    similarity = np.full(len(valid_i), np.nan, dtype=np.float32)
    if not len(first) or not len(second):
        return PairConsistency(np.nan, np.nan, 0, 0, similarity)
    points = np.concatenate([xyz_i[valid_i], xyz_j[valid_j]]).astype(np.float32)
    keys = np.floor((points - points.min(0)) / np.float32(voxel)).astype(np.int64)
    flat = np.ravel_multi_index(tuple(keys.T), tuple(keys.max(0) + 1))
    in_i, in_j = flat[: len(first)], flat[len(first) :]
    shared = np.intersect1d(in_i, in_j)
    cosine = (_voxel_means(first, in_i, shared) * _voxel_means(second, in_j, shared)).sum(1)
    place = np.searchsorted(shared, in_i)
    hit = np.isin(in_i, shared)
    similarity[np.flatnonzero(valid_i)[hit]] = cosine[place[hit]]
    score = float(cosine.mean()) if len(shared) else np.nan
    return PairConsistency(score, float(first.mean(0) @ second.mean(0)), len(shared), len(np.unique(flat)), similarity)


def _voxel_means(directions: np.ndarray, voxels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Mean direction in each wanted voxel, float32 (len(wanted), C), at unit length again."""
    return unit((wanted[:, None] == voxels).astype(np.float32) @ directions)


def scene_consistency(
    tokens: np.ndarray, geometry: CellGeometry, centre: np.ndarray | None = None, voxel: float = VOXEL
) -> np.ndarray:
    """Mean over the adjacent pairs of a clip that share a voxel.

    Args:
        tokens: (T, N, C); centre: (C,) subtracted from every token, or None.

    Returns:
        float64 (2, 2): rows for the score and the random control; columns sum (the scene's mean) and count (1, or 0 when no
        pair shares a voxel), so that sums over scenes give the mean over scenes.
    """
    directions, xyz, valid = unit(tokens, centre), geometry.mean_xyz, geometry.valid
    pairs = [
        pair_consistency(directions[i], directions[i + 1], xyz[i], xyz[i + 1], valid[i], valid[i + 1], voxel)
        for i in range(len(tokens) - 1)
    ]
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
