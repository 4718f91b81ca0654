"""Random crops of a frame together with the teacher's map of it: the same box of both, each brought back to its own size.

A step of `distill.batches`, off by default. What the teacher said about a place stays with that place, so no frame is ever
flipped; but it saw the whole frame, so a crop also takes context away that its features may hold.

    vega-edge train --cache CACHE --recipe demo --change crop=0.7 --out RUN
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

STREAM_TAG = 0x63726F70  # keeps these draws apart from the colours and the shuffles, which use the same seed


def draw_boxes(seed: int, samples: np.ndarray, smallest: float) -> Tensor:
    """Random boxes (B, 4) float32: top, left, height, width as parts of the frame, inside it.

    Args:
        samples: running number of each training sample, each with its own random stream.
        smallest: height and width are drawn independently from [smallest, 1].
    """
    draws = np.stack([np.random.default_rng([STREAM_TAG, seed, int(sample)]).uniform(0, 1, 4) for sample in samples])
    sides = smallest + (1 - smallest) * draws[:, 2:]
    return torch.from_numpy(np.concatenate([draws[:, :2] * (1 - sides), sides], axis=1).astype(np.float32))


def cropped(maps: Tensor, boxes: Tensor) -> Tensor:
    """Each map (B, C, H, W) float32 within its box, bilinear, at the old size; pixels are areas, not points."""
    height, width = maps.shape[2:]
    boxes = boxes.to(maps.device)
    rows = boxes[:, :1] + boxes[:, 2:3] * (torch.arange(height, device=maps.device) + 0.5) / height
    columns = boxes[:, 1:2] + boxes[:, 3:] * (torch.arange(width, device=maps.device) + 0.5) / width
    places = torch.stack([columns[:, None].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=-1)
    return grid_sample(maps, 2 * places - 1, mode="bilinear", padding_mode="border", align_corners=False)


def cropped_tokens(tokens: Tensor, boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The same for tokens (B, N, C), row-major over `grid`."""
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    return cropped(maps, boxes).flatten(2).transpose(1, 2)
