"""3D position encoding: where in the room a token looks, added to the token without any learned parameter.

Between fusion and serialisation: the world position behind every pixel is averaged per token, cut into 10 cm cells and encoded
with sines. `positions="reference"` does it as VEGA-3D does, flaws included: pixels without depth count as if they lay in the
camera's centre, the last 6 of 384 rows and columns are left out, and all arithmetic is in bfloat16 (spec/vega3d.md 4).
`positions="masked"` averages the pixels that have a depth, over the whole frame, in float32; a token without any gets zeros.

    python -c "from teacher.scenes import open_scenes; from teacher.positions import encode_clip; \
               print(encode_clip(open_scenes('procedural:val?count=1')[0], 128, (8, 8), 'masked').shape)"
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from teacher.scenes.clip import PosedClip, nearest_index
from vega_artifact import UserError, unknown_name

Positions = Literal["reference", "masked"]
LOW, HIGH = (-15.0, -15.0, -5.0), (15.0, 15.0, 5.0)  # metres of world space that have cells
VOXEL = 0.1
SIDE, PATCH = 384, 27  # the reference's frame, and the pixels per side of one of its 14x14 tokens


def encode_clip(clip: PosedClip, width: int, grid: tuple[int, int], positions: Positions) -> Tensor:
    """Encodings of all tokens of a clip: float32 (T, gh * gw, width), rows first.

    Raises:
        UserError: the clip has no depth or no poses, an unknown kind of positions, or a grid the reference does not have.
    """
    return sin3d(discretise(token_points(clip, grid, positions)), width)


def token_points(clip: PosedClip, grid: tuple[int, int], positions: Positions) -> Tensor:
    """World position in metres that each token looks at, (T, gh * gw, 3).

    "masked": float32, NaN where a token has no depth. "reference": bfloat16, in which the cells are then computed too.
    """
    if positions not in get_args(Positions):
        raise unknown_name("positions", positions, get_args(Positions))
    points = clip.world_points()
    if positions == "masked":
        return masked_means(torch.from_numpy(points), grid)
    if grid != (SIDE // PATCH,) * 2:
        found = "x".join(map(str, grid))
        raise UserError(f"positions 'reference' are those of 14x14 tokens, the tokens given are {found}; use 'masked'")
    assert clip.camera_to_world is not None  # world_points has asked for it
    centres = clip.camera_to_world[:, None, None, :3, 3].astype(np.float32)
    return reference_means(torch.from_numpy(np.where(np.isnan(points), centres, points)))


def masked_means(points: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of the known points of each cell: (T, H, W, 3) metres, NaN = unknown -> (T, gh * gw, 3), NaN in empty cells."""
    known = points.isfinite().all(-1, keepdim=True)
    filled = torch.where(known, points, 0.0)
    parts = torch.cat((filled, known.float()), dim=-1).movedim(-1, 1)
    parts = F.adaptive_avg_pool2d(parts, grid).flatten(2).transpose(1, 2)
    return parts[..., :3] / torch.where(parts[..., 3:] > 0, parts[..., 3:], torch.nan)


def reference_means(points: Tensor) -> Tensor:
    """The reference's token coordinates of points (T, H, W, 3), unknown ones already at the camera: bfloat16 (T, 196, 3).

    Nearest resize to 384x384, bfloat16, the last 6 rows and columns dropped, means of 27x27 pixels.
    """
    rows, columns = (nearest_index(SIDE, side) for side in points.shape[1:3])
    square = points[:, rows][:, :, columns].movedim(-1, 1).bfloat16()
    kept = SIDE // PATCH * PATCH
    return F.avg_pool2d(square[:, :, :kept, :kept], PATCH).flatten(2).transpose(1, 2)


def discretise(points: Tensor) -> Tensor:
    """Metres (..., 3) -> cells as whole float32 numbers, x and y in 0..300, z in 0..100; NaN stays NaN.

    Computed in the dtype of `points`: bfloat16 reaches only about 260 of the 301 cells and is up to 2 of them off.
    """
    low, high = points.new_tensor(LOW), points.new_tensor(HIGH)
    return ((points.clamp(low, high) - low) / VOXEL).round().float()


def sin3d(cells: Tensor, width: int) -> Tensor:
    """Interleaved sines and cosines of x, then y, then z: cells (..., 3) -> float32 (..., width); NaN cells become zeros.

    Each axis has width // 3 entries with frequency 10000^(-2 floor(j / 2) / (width // 3)); what remains of the width is zero.
    """
    per_axis = width // 3
    if per_axis < 2:
        raise UserError(f"3D positions need a width of at least 6, found {width}")
    number = torch.arange(per_axis, device=cells.device)
    frequency = 10000.0 ** (-2 * (number // 2).double() / per_axis)
    angle = cells.double()[..., None] * frequency  # float32 angles of 300 would already be off in the fifth digit
    waves = torch.where(number % 2 == 0, angle.sin(), angle.cos()).flatten(-2)
    return F.pad(waves.nan_to_num(0.0), (0, width - 3 * per_axis)).float()
