"""The order in which a language model reads visual tokens: maps of frames become one sequence, and every place gets a position.

Last step before the language model. LLaVA-Video and VEGA-3D's scene-understanding branch end each row of tokens by a learned
newline (spec/vega3d.md 4: 32 frames of 14x14 are 6720 tokens); Qwen2.5-VL wraps each frame in a start and an end token and
gives its patches positions of time, row and column.

    python -c "import torch; from teacher.serialise import with_newlines; \
               print(with_newlines(torch.zeros(32, 8, 14, 14), torch.ones(8)).shape)"
"""

from __future__ import annotations

import torch
from torch import Tensor


def flat(maps: Tensor) -> Tensor:
    """Maps (T, D, gh, gw) -> (T * gh * gw, D): frame after frame, row after row."""
    return maps.movedim(1, -1).flatten(0, 2)


def with_newlines(maps: Tensor, newline: Tensor) -> Tensor:
    """As `flat` with `newline` (D,) after every row: (T * gh * (gw + 1), D).

    Raises:
        ValueError: a newline of another width than the maps.
    """
    if newline.shape != maps.shape[1:2]:
        raise ValueError(f"a newline of shape {tuple(maps.shape[1:2])} expected, found {tuple(newline.shape)}")
    ends = newline[None, :, None, None].expand(len(maps), -1, maps.shape[2], 1)
    return flat(torch.cat((maps, ends.to(maps)), dim=3))


def one_after_the_other(semantic: Tensor, generative: Tensor, newline: Tensor) -> Tensor:
    """Sequence concatenation, the variant without a fusion module: all semantic rows, then all generative ones.

    Maps (T, D, gh, gw) and (T', D, gh', gw') -> one sequence; both streams have newlines of their own.
    """
    return torch.cat((with_newlines(semantic, newline), with_newlines(generative, newline)))


def wrapped(maps: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Every frame between `start` and `end`, both (D,): (T * (gh * gw + 2), D)."""
    cells = maps.flatten(2).transpose(1, 2)
    edges = [edge.to(maps).expand(len(maps), 1, -1) for edge in (start, end)]
    return torch.cat((edges[0], cells, edges[1]), dim=1).flatten(0, 1)


def grid_positions(frames: int, grid: tuple[int, int], first: int) -> Tensor:
    """Qwen2.5-VL's positions of `wrapped` frames sent as images: int64 (3, T * (gh * gw + 2)), time, row and column.

    Start and end tokens count on as words do. The patches of an image share one time and are offset by their row and column,
    and what follows continues after the largest of these.

    Args:
        first: position of the first start token.
    """
    height, width = grid
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    cells = torch.stack((torch.zeros_like(rows), rows, columns)) + 1
    end = max(height, width) + 1
    image = torch.cat((torch.zeros(3, 1, dtype=torch.long), cells, torch.full((3, 1), end)), dim=1)
    return torch.cat([image + first + frame * (end + 1) for frame in range(frames)], dim=1)
