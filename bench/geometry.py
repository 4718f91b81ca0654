"""Geometry of token grids: what every cell of every frame really sees, computed once per clip and grid for all models.

Between posed clips (teacher/scenes) and the probes: depth targets for bench/depth.py, visible correspondences for
bench/correspondence.py, cell positions for bench/consistency.py.

    python -c "from teacher.scenes import open_scenes; from bench.geometry import CellGeometry; \
               print(CellGeometry.of(open_scenes('procedural:val?count=1')[0], 8, 8).queries.shape)"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vega_artifact import UserError

if TYPE_CHECKING:
    from teacher.scenes import PosedClip

MIN_VALID = 0.1  # share of a cell's pixels with known depth from which the cell counts, as in VEGA-3D
HIT_RADIUS = 0.5  # metres within which a matched token is the right one
OCCLUSION = 0.05  # a projected point is visible when the depth found there agrees to 5 cm or 5 %, whichever is more
NEAREST = 0.1  # metres in front of the camera
FAR_CELLS = 2  # a match that many cells away (Chebyshev) cannot be had by staying at the same place of the picture


@dataclass(frozen=True)
class CellGeometry:
    """One clip on a (gh, gw) grid; N = gh * gw cells in row-major order, T frames.

    Attributes:
        log_depth: float64 (T, N), mean natural log of the cell's valid depths in metres; NaN where `valid` is False.
        valid: bool (T, N), at least 10 % of the pixels have a depth.
        mean_xyz: float32 (T, N, 3), mean world position of the valid pixels.
        queries: int64 (Q, 3) [frame i, cell, frame j]: the surface point at the middle of this cell of i is visible in j, and
            some cell of j lies within 0.5 m of it.
        right: bool (Q, N), which cells of frame j are right answers.
        candidates: bool (T, N), cells whose middle has a depth; only they can be answers.
        far: bool (Q,), the true place in j is at least two cells from the place in i.
        middles: float32 (T, N, 3), world position of the surface at the middle of each cell, NaN where unknown.
    """

    log_depth: np.ndarray
    valid: np.ndarray
    mean_xyz: np.ndarray
    queries: np.ndarray
    right: np.ndarray
    candidates: np.ndarray
    far: np.ndarray
    middles: np.ndarray

    @classmethod
    def of(cls, clip: PosedClip, grid_height: int, grid_width: int, views: bool = True) -> CellGeometry:
        """Measure a clip; `views=False` leaves the queries empty, which fitting a depth probe does not need.

        Raises:
            UserError: the clip has no geometry, or the grid is finer than the depth image.
        """
        points = clip.world_points()
        assert clip.depth is not None  # or the clip would have refused
        height, width = clip.depth.shape[1:]
        if grid_height > height or grid_width > width:
            raise UserError(
                f"scene {clip.scene_id}: a {grid_height}x{grid_width} token grid is finer than its {height}x{width} depth image"
            )
        known = np.greater(clip.depth, 0)
        share = _cell_sums(np.ones((1, height, width)), grid_height, grid_width)
        count = _cell_sums(known.astype(np.float64), grid_height, grid_width)
        valid = (count >= MIN_VALID * share) & (count > 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = _cell_sums(np.log(np.where(known, clip.depth, 1.0)), grid_height, grid_width) / count
            axes = np.moveaxis(np.where(known[..., None], points, 0.0), -1, 0)
            mean_xyz = np.stack([_cell_sums(axis, grid_height, grid_width) / count for axis in axes], axis=-1)
        rows, columns = _middles(grid_height, height), _middles(grid_width, width)
        middles = points[:, rows[:, None], columns[None, :]].reshape(len(points), -1, 3)
        queries, right, far = _visible(clip, middles, (grid_height, grid_width), range(len(points)) if views else ())
        candidates = np.isfinite(middles).all(-1)
        return cls(np.where(valid, logs, np.nan), valid, mean_xyz.astype(np.float32), queries, right, candidates, far, middles)


def _cell_of(count: int, size: int) -> np.ndarray:
    """For each pixel along an axis the cell its centre lies in: int64 (size,)."""
    return ((np.arange(size) + 0.5) * count / size).astype(np.int64)


def _middles(count: int, size: int) -> np.ndarray:
    """For each cell along an axis the pixel that holds its middle: int64 (count,)."""
    return ((np.arange(count) + 0.5) * size / count).astype(np.int64)


def _cell_sums(images: np.ndarray, grid_height: int, grid_width: int) -> np.ndarray:
    """(T, H, W) -> (T, N) sums over the pixels of each cell."""
    starts_y = np.searchsorted(_cell_of(grid_height, images.shape[1]), np.arange(grid_height))
    starts_x = np.searchsorted(_cell_of(grid_width, images.shape[2]), np.arange(grid_width))
    sums = np.add.reduceat(np.add.reduceat(images, starts_y, axis=1, dtype=np.float64), starts_x, axis=2)
    return sums.reshape(len(images), -1)


def _visible(
    clip: PosedClip, middles: np.ndarray, grid: tuple[int, int], frames: Iterable[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries (Q, 3), right answers (Q, N) and the far flag (Q,): what frame j of `frames` sees of the others."""
    assert clip.depth is not None and clip.intrinsics is not None and clip.camera_to_world is not None
    height, width = clip.depth.shape[1:]
    queries, right, far = [np.zeros((0, 3), int)], [np.zeros((0, middles.shape[1]), bool)], [np.zeros(0, bool)]
    for j in frames:
        world_to_camera = np.linalg.inv(clip.camera_to_world[j])
        local = middles @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]  # (T, N, 3)
        depth = local[..., 2]
        with np.errstate(invalid="ignore", divide="ignore"):
            pixels = local @ clip.intrinsics.T
            x, y = pixels[..., 0] / pixels[..., 2], pixels[..., 1] / pixels[..., 2]
            inside = (depth > NEAREST) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        inside[j] = False
        frame, cell = np.nonzero(inside)
        column, row = x[frame, cell].astype(np.int64), y[frame, cell].astype(np.int64)
        found, expected = clip.depth[j, row, column], depth[frame, cell]
        seen = (found > 0) & (abs(found - expected) <= np.maximum(OCCLUSION, OCCLUSION * expected))
        frame, cell, row, column = frame[seen], cell[seen], row[seen], column[seen]
        distance = np.linalg.norm(middles[frame, cell][:, None] - middles[j][None], axis=-1)  # NaN compares as False
        answers = distance <= HIT_RADIUS
        step_y = abs(_cell_of(grid[0], height)[row] - cell // grid[1])
        step_x = abs(_cell_of(grid[1], width)[column] - cell % grid[1])
        keep = answers.any(1)
        queries.append(np.stack([frame, cell, np.full_like(frame, j)], axis=1)[keep])
        right.append(answers[keep])
        far.append((np.maximum(step_y, step_x) >= FAR_CELLS)[keep])
    return np.concatenate(queries), np.concatenate(right), np.concatenate(far)
