"""What every step sees: frames chosen, coloured and cropped, targets normalised, the next ones fetched while this step runs.

Between `distill.dataset`, which holds the frames, and `distill.train`. Everything is a function of seed and running number of
the sample, so neither the number of processes, nor accumulation, nor an interruption changes what a step sees.

    python -m pytest tests/distill/test_batches.py -q
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from distill.augment import draw_factors, prepare
from distill.config import RunConfig
from distill.crop import cropped, cropped_tokens, draw_boxes
from distill.dataset import Frames, gather
from distill.hints import check_pairs, hints_for, prepared, step_indices
from distill.losses import NO_HINTS, Hints
from distill.normalize import Normalizer
from distill.online import LiveFrames
from distill.windows import check_windows
from student import Preprocess
from teacher.cache import FeatureCache
from vega_artifact import UserError


@dataclass(frozen=True)
class Batch:
    """Pixels (B, 3, H, W) float32 as the student wants them, targets {stream: (B, N, C)} float32, normalised."""

    pixels: Tensor
    targets: Mapping[str, Tensor]
    hints: Hints = NO_HINTS


@dataclass(frozen=True)
class Fetched:
    """The same before it is prepared: images (B, H, W, 3) uint8, float16 targets, draws of colours and boxes."""

    images: Tensor
    targets: Mapping[str, Tensor]
    factors: Tensor | None
    boxes: Tensor | None
    hints: Hints


def share(config: RunConfig, processes: int) -> int:
    """Frames that one process takes at once. Raises UserError where the batch cannot be dealt out evenly."""
    if config.batch % (processes * config.accumulate):
        parts = f"{processes} processes" + (f" of {config.accumulate} parts each" if config.accumulate > 1 else "")
        raise UserError(f"run config: batch {config.batch} cannot be dealt to {parts} evenly")
    return config.batch // (processes * config.accumulate)


def check_batch(config: RunConfig, processes: int, frames: int, scenes: int) -> int:
    """Frames that one process takes at once.

    Raises:
        UserError: a batch that cannot be dealt out evenly, in whole pairs or windows where those are wanted, or that is larger
            than the `frames` of the training scenes.
    """
    taken = share(config, processes)
    check_pairs(config, taken)
    check_windows(config, taken)
    if config.batch > frames:
        have = f"{frames} frames of {scenes} training scenes"
        raise UserError(f"run config: batch {config.batch} is larger than the data, {have}; lower batch or extract more")
    return taken


def places(cache: FeatureCache, scenes: tuple[str, ...]) -> list[str]:
    """Name of every frame of these scenes, in the order of `load_frames`: SCENE/NUMBER within the scene's clip."""
    return [f"{scene}/{number}" for scene in scenes for number in range(cache.frames[scene])]


class Batches:
    """The parts of every step of one process; a context manager, because a thread works ahead.

    Args:
        frames: of the training scenes, on any device.
        normalizers: of every stream, on `device`.
        grid: (gh, gw) of the targets.
        processes, rank: how many share a step, and which of them this is.

    Raises:
        UserError: see `check_batch`; or no pair or window can be drawn from these scenes.
    """

    def __init__(
        self,
        frames: Frames,
        normalizers: Mapping[str, Normalizer],
        preprocess: Preprocess,
        grid: tuple[int, int],
        config: RunConfig,
        device: torch.device,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        self.share = check_batch(config, processes, len(frames), len(frames.scenes))
        self.frames, self.normalizers, self.grid, self.config, self.device = frames, normalizers, grid, config, device
        self.first = rank * self.share * config.accumulate
        self.mean, self.std = (torch.tensor(values, device=device) for values in (preprocess.mean, preprocess.std))
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self.ahead: tuple[tuple[int, int], Future[Fetched]] | None = None
        self.rows(0, 0)  # what cannot be drawn from these scenes is said before the run has a folder

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pool.shutdown(cancel_futures=True)

    def rows(self, step: int, part: int) -> np.ndarray:
        """Which frames this process sees in one part of a step, int64 (share,)."""
        return step_indices(self.config, step, self.frames)[self._slice(part)]

    def take(self, step: int, part: int) -> Batch:
        """One part of a step (0-based), ready for the student; the next one in order is fetched meanwhile."""
        ready, self.ahead = self.ahead, None
        fetched = ready[1].result() if ready and ready[0] == (step, part) else self._fetch(step, part)
        following = (step, part + 1) if part + 1 < self.config.accumulate else (step + 1, 0)
        if following[0] < self.config.steps:
            self.ahead = (following, self.pool.submit(self._fetch, *following))
        return self._prepared(fetched)

    def _slice(self, part: int) -> slice:
        start = self.first + part * self.share
        return slice(start, start + self.share)

    def _fetch(self, step: int, part: int) -> Fetched:
        config = self.config
        rows = self.rows(step, part)
        images, targets = self.frames.gather(rows) if isinstance(self.frames, LiveFrames) else gather(self.frames, rows)
        samples = np.arange(step * config.batch, (step + 1) * config.batch)[self._slice(part)]
        factors = draw_factors(config.seed, samples, config.jitter) if config.jitter > 0 else None
        boxes = draw_boxes(config.seed, samples, config.crop) if config.crop > 0 else None
        return Fetched(images, targets, factors, boxes, hints_for(config, self.frames, step, rows, samples))

    def _prepared(self, fetched: Fetched) -> Batch:
        pixels = prepare(fetched.images.to(self.device), fetched.factors, self.mean, self.std)
        targets = {name: self.normalizers[name].normalize(value.to(self.device)) for name, value in fetched.targets.items()}
        hints = prepared(fetched.hints, fetched.boxes, self.grid, self.device)
        if fetched.boxes is None:
            return Batch(pixels, targets, hints)
        kept = {name: cropped_tokens(value, fetched.boxes, self.grid) for name, value in targets.items()}
        return Batch(cropped(pixels, fetched.boxes), kept, hints)
