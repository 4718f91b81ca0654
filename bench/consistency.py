"""Voxel consistency: VEGA-3D's multi-view correspondence score, with the centring and the control it lacks.

One of the 3D probes of bench/probes.py. Two published definitions: the released script's, over pairs of adjacent frames
(H-EmbodVis/VEGA-3D@9c96924, scripts/visualization/wan_t2v_adjacent_correspondence_matching.py), and the paper's, over all pairs
of views (arXiv 2603.19235, analysis section and supplementary), of which no code is released. Raw, any feature with a large
mean scores near 1, so judge by the centred value and by its contrast to random pairs.

    from bench.consistency import all_pairs, adjacent_pairs, published_positions
    xyz, valid = published_positions(clip, 14, 14)
    all_pairs(tokens, xyz, valid)            # (2, 2): score and random control; each sum and count
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.correspondence import unit
from bench.geometry import MIN_VALID, CellGeometry

if TYPE_CHECKING:
    from teacher.scenes import PosedClip

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
    """`adjacent_pairs` at the positions of a grid that leaves pixels without depth out."""
    return adjacent_pairs(tokens, geometry.mean_xyz, geometry.valid, centre, voxel)


def adjacent_pairs(
    tokens: np.ndarray, xyz: np.ndarray, valid: np.ndarray, centre: np.ndarray | None = None, voxel: float = VOXEL
) -> np.ndarray:
    """The released script's scene score: mean over the adjacent pairs of a clip that share a voxel.

    Args:
        tokens: (T, N, C); xyz: (T, N, 3) world metres; valid: bool (T, N).
        centre: (C,) subtracted from every token, or None as published.  voxel: edge in metres.

    Returns:
        float64 (2, 2): rows for the score and the random control; columns sum (the scene's mean) and count (1, or 0 when no
        pair shares a voxel), so that sums over scenes give the mean over scenes.
    """
    directions = unit(tokens, centre)
    pairs = [
        pair_consistency(directions[i], directions[i + 1], xyz[i], xyz[i + 1], valid[i], valid[i + 1], voxel)
        for i in range(len(tokens) - 1)
    ]
    scored = [pair for pair in pairs if pair.shared]
    if not scored:
        return np.zeros((2, 2))
    return np.array([[np.mean([pair.score for pair in scored]), 1.0], [np.mean([pair.random for pair in scored]), 1.0]])


def all_pairs(
    tokens: np.ndarray, xyz: np.ndarray, valid: np.ndarray, centre: np.ndarray | None = None, voxel: float = VOXEL
) -> np.ndarray:
    """The paper's scene score: one voxel grid for all views, cosines between the prototypes of every two views of a voxel.

    A prototype is the mean of a view's tokens in a voxel, then at unit length. The text does not say that tokens are brought to
    unit length before that mean, as the released script does; pass `unit(tokens)` for that reading.

    Args:
        tokens: (T, N, C); xyz: (T, N, 3) world metres; valid: bool (T, N).
        centre: (C,) subtracted from every token, or None as published.  voxel: edge in metres.

    Returns:
        float64 (2, 2): rows for the score and for its control, any two prototypes of different views; columns sum of cosines
        and number of pairs, so that sums over scenes weigh every pair alike. Zeros where no voxel has two views.
    """
    view, cell = np.nonzero(valid)
    if not len(view):
        return np.zeros((2, 2))
    points = xyz[view, cell].astype(np.float32)
    keys = np.floor((points - points.min(0)) / np.float32(voxel)).astype(np.int64)
    voxels = np.ravel_multi_index(tuple(keys.T), tuple(keys.max(0) + 1))
    order = np.lexsort((view, voxels))
    labels = np.stack([voxels, view], axis=1)[order]
    starts = np.flatnonzero(np.any(np.diff(labels, axis=0, prepend=-1) != 0, axis=1))
    sizes = np.diff(starts, append=len(order))[:, None]
    means = np.add.reduceat(tokens[view, cell][order].astype(np.float64), starts, axis=0) / sizes
    prototypes, labels = unit(means, centre).astype(np.float64), labels[starts]
    same_voxel = _cosines_between(prototypes, labels[:, 0])
    if not same_voxel[1]:
        return np.zeros((2, 2))
    everything = _cosines_between(prototypes, np.zeros(len(labels), dtype=np.int64))
    by_view = np.argsort(labels[:, 1], kind="stable")
    return np.array([same_voxel, everything - _cosines_between(prototypes[by_view], labels[by_view, 1])])


def _cosines_between(directions: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[sum of dot products, number] of all pairs within a group; groups (K,) are sorted. |sum|^2 holds every pair twice."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    sums, own = np.add.reduceat(directions, starts, axis=0), np.square(directions).sum()
    sizes = np.diff(starts, append=len(groups))
    return np.array([(np.square(sums).sum() - own) / 2, (sizes * (sizes - 1)).sum() / 2])


def published_positions(clip: PosedClip, grid_height: int, grid_width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the published score puts the tokens of a clip that shows what the teacher saw.

    The mean world position of a cell's pixels, those without depth included, which stand at the camera; where the grid does not
    divide the image the bins overlap as in adaptive pooling. `CellGeometry` has the corrected positions.

    Returns:
        float32 (T, N, 3) world metres, and bool (T, N): at least 10 % of the pixels have a depth.

    Raises:
        UserError: the clip has no depth or no poses.
    """
    from torch import from_numpy
    from torch.nn.functional import adaptive_avg_pool2d

    points = clip.world_points()
    assert clip.depth is not None and clip.camera_to_world is not None  # or the clip would have refused
    known = np.greater(clip.depth, 0)
    cameras = clip.camera_to_world[:, None, None, :3, 3]
    filled = np.where(known[..., None], points, cameras).astype(np.float32)
    images = np.concatenate([filled, known[..., None].astype(np.float32)], axis=-1).transpose(0, 3, 1, 2)
    pooled = adaptive_avg_pool2d(from_numpy(np.ascontiguousarray(images)), (grid_height, grid_width)).numpy()
    flat = pooled.reshape(len(pooled), 4, -1).transpose(0, 2, 1)
    return flat[..., :3], flat[..., 3] >= MIN_VALID


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
