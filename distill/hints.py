"""What the objective is told about each batch besides tokens: where they look, which streams stay, how far the ramp is.

Between `distill.batches`, which makes batches, and `distill.losses.Hints`. Like everything in a batch it is a function of seed,
step and running number of the sample.

    python -m pytest tests/distill/test_hints.py -q
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.config import RunConfig
from distill.crop import cropped_tokens
from distill.dataset import Frames, batch_indices, select
from distill.dropping import draw_keeps
from distill.losses import Hints
from distill.views import pair_indices
from distill.windows import window_indices
from vega_artifact import UserError


def step_indices(config: RunConfig, step: int, frames: Frames) -> np.ndarray:
    """Which frames a step (0-based) sees, int64 (batch,): pairs of views where the objective compares them, windows of frames
    in a row where the student has a memory."""
    if config.memory > 0:
        return window_indices(config.seed, step, config.batch, config.window, frames.lengths)
    if config.cross_view > 0:
        return pair_indices(config.seed, step, config.batch, frames.lengths)
    return batch_indices(config.seed, step, config.batch, len(frames))


def check_pairs(config: RunConfig, share: int) -> None:
    """Raises UserError where cross_view is on and one process takes an odd number of frames at once: pairs stay together."""
    if config.cross_view > 0 and share % 2:
        raise UserError(
            f"run config: with cross_view > 0 every process takes pairs of views, but its share of batch {config.batch} is "
            f"{share} frames; choose a batch that gives each process and part an even number"
        )


def hints_for(config: RunConfig, frames: Frames, step: int, rows: np.ndarray, samples: np.ndarray) -> Hints:
    """Hints of some frames, on the device where the frames lie.

    Args:
        rows: which frames, int64 (B,). samples: their running numbers (step * batch + i).
    """
    keep = draw_keeps(config.seed, samples, len(config.streams), config.drop) if config.drop > 0 else None
    places = None if frames.places is None else select(frames.places, rows)
    ramp = None
    if config.relation_ramp > 0:
        ramp = torch.tensor(min(1.0, (step + 1) / (config.relation_ramp * config.steps)))
    return Hints(places, keep, ramp)


def prepared(hints: Hints, boxes: Tensor | None, grid: tuple[int, int], device: torch.device) -> Hints:
    """On the device of the step, with the places of the crops (B, 4) where frames are cropped."""
    places, keep, ramp = (None if part is None else part.to(device) for part in hints)
    if places is not None and boxes is not None:
        places = cropped_tokens(places, boxes, grid)
    return Hints(places, keep, ramp)
