"""Frames in a row, for a student with memory: batches made of windows, each some consecutive frames of one scene.

Beside `distill.views`, which makes pairs. A window begins with an empty memory, as the step on the device does.

    python -m pytest tests/distill/test_windows.py -q
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.config import RunConfig
from distill.dataset import shuffled
from vega_artifact import UserError


def window_indices(seed: int, step: int, batch: int, window: int, lengths: Sequence[int]) -> np.ndarray:
    """Which frames step `step` (0-based) sees, int64 (batch,): batch / window windows, the frames of each in order.

    An endless row of shuffles of all windows there are; each epoch holds every window once.

    Args:
        lengths: frames per scene, in the order in which the frames lie in memory.

    Raises:
        UserError: no scene is as long as a window.
    """
    places = np.maximum(0, np.asarray(lengths) - window + 1)  # at which a window may begin, per scene
    if not places.any():
        raise UserError(f"run config: no scene of this cache has {window} frames in a row; set window={max(lengths)} or less")
    count = batch // window
    chosen = shuffled(seed, np.arange(step * count, (step + 1) * count), int(places.sum()))
    scene = np.searchsorted(np.cumsum(places), chosen, side="right")
    within = chosen - (np.cumsum(places) - places)[scene]
    first = (np.cumsum(lengths) - np.asarray(lengths))[scene] + within
    return (first[:, None] + np.arange(window)).ravel()


def check_windows(config: RunConfig, share: int) -> None:
    """Raises UserError where a student with memory would get a part of a window: `share` is what a process takes at once."""
    if config.memory > 0 and share % config.window:
        raise UserError(
            f"run config: a student with memory takes windows of {config.window} frames, but a process takes {share} of batch "
            f"{config.batch} at once; choose a batch that gives each process and part whole windows"
        )
