"""A feature cache as arrays in memory, and the order in which training sees them.

Frames stay uint8 and targets float16, so a demo cache is some 200 MB; which frames a step sees is a function of
(seed, step) alone, whatever the number of processes and wherever a run was interrupted.

    python -m pytest tests/distill/test_dataset.py -q
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from teacher.cache import FeatureCache
from vega_artifact import UserError, unknown_name

MEMORY_PART = 0.8  # of the available memory that the arrays may take


@dataclass(frozen=True)
class Frames:
    """Frames of some scenes with what the teacher said about them.

    images: (F, H, W, 3) uint8; targets: stream -> (F, N, C) float16, tokens row-major; scenes: which scenes, in order;
    lengths: frames of each scene; places: (F, N, 3) float32 as `distill.views.token_places` gives them, or None.
    """

    images: Tensor
    targets: dict[str, Tensor]
    scenes: tuple[str, ...]
    lengths: tuple[int, ...] = ()
    places: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Frames:
        targets = {name: value.to(device) for name, value in self.targets.items()}
        places = None if self.places is None else self.places.to(device)
        return replace(self, images=self.images.to(device), targets=targets, places=places)

    def nbytes(self) -> int:
        places = () if self.places is None else (self.places,)
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.images, *self.targets.values(), *places))


def check_streams(cache: FeatureCache, names: Sequence[str]) -> tuple[int, int]:
    """The grid (gh, gw) that all wanted streams share; UserError for an unknown stream or grids that differ."""
    for name in names:
        if name not in cache.streams:
            raise unknown_name("stream in the cache (set the config's weights to those it has)", name, cache.streams)
    grids = {name: (cache.streams[name][1], cache.streams[name][2]) for name in names}
    if len(set(grids.values())) > 1:
        raise UserError(f"{cache.path}: streams on different grids ({grids}); one student has one grid, extract them alike")
    if "rgb" not in cache.manifest["streams"]:
        raise UserError(f"{cache.path}: holds no 'rgb' frames, nothing for the student to look at; extract with frames")
    return grids[names[0]]


def split_scenes(scene_ids: Sequence[str], validation_part: float) -> tuple[list[str], list[str]]:
    """Training scenes and the last `validation_part` of them (at least one, unless 0) for validation."""
    count = math.ceil(validation_part * len(scene_ids))
    if len(scene_ids) <= count:
        raise UserError(f"{len(scene_ids)} scenes cannot be split into training and {count} for validation; extract more")
    cut = len(scene_ids) - count
    return list(scene_ids[:cut]), list(scene_ids[cut:])


def load_frames(cache: FeatureCache, scene_ids: Sequence[str], streams: Sequence[str], size: tuple[int, int] | None) -> Frames:
    """Read scenes into memory once.

    Args:
        streams: which teacher streams; (C, gh, gw) maps become (N, C) tokens.
        size: (H, W) the frames are resized to (antialiased bilinear); None leaves them.

    Raises:
        UserError: too big for the memory, or a target that is not finite.
    """
    total = sum(cache.frames[scene] for scene in scene_ids)
    height, width = size or frame_size(cache)
    shapes = {name: (total, math.prod(cache.streams[name][1:]), cache.streams[name][0]) for name in streams}
    check_memory(cache, bytes_of(cache, scene_ids, streams, size))
    images = torch.empty((total, height, width, 3), dtype=torch.uint8)
    targets = {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}
    start = 0
    for scene in scene_ids:
        part = slice(start, start := start + cache.frames[scene])
        images[part] = _resized(torch.from_numpy(cache.read(scene, "rgb")), (height, width))
        for name in streams:
            tokens = torch.from_numpy(cache.read(scene, name)).flatten(2).transpose(1, 2)
            if not torch.isfinite(tokens).all():
                raise UserError(f"{cache.path}: NaN or infinity in scene {scene!r}, stream {name!r}; extract this cache again")
            targets[name][part] = tokens
    return Frames(images, targets, tuple(scene_ids), tuple(cache.frames[scene] for scene in scene_ids))


def bytes_of(cache: FeatureCache, scene_ids: Sequence[str], streams: Sequence[str], size: tuple[int, int] | None) -> int:
    """Memory that `load_frames` takes for these scenes."""
    frames = sum(cache.frames[scene] for scene in scene_ids)
    height, width = size or frame_size(cache)
    return frames * (height * width * 3 + 2 * sum(math.prod(cache.streams[name]) for name in streams))


def frame_size(cache: FeatureCache) -> tuple[int, int]:
    """(H, W) of the frames as they lie in the cache."""
    height, width = cache.manifest["streams"]["rgb"]["shape"][:2]
    return height, width


def check_memory(cache: FeatureCache, needed: int, processes: int = 1) -> None:
    """Raises UserError where `processes` of this machine, each with `needed` bytes of its own, do not fit into its memory."""
    available = psutil.virtual_memory().available
    if needed * processes > MEMORY_PART * available:
        sizes = f"{needed / 2**30:.1f} GiB of frames and targets, {available / 2**30:.1f} GiB are available"
        sizes = f"{processes} processes of {sizes}" if processes > 1 else sizes
        fewer = "start fewer processes, " if processes > 1 else ""
        advice = f"{fewer}extract fewer scenes or streams, or a coarser grid"
        raise UserError(f"{cache.path}: does not fit into memory ({sizes}); {advice}")


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(frames.shape[1:3]) == size:
        return frames
    resized = interpolate(frames.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)


def batch_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """Which of `count` frames step `step` (0-based) sees, int64 (batch,): the next `batch` of an endless row of shuffles."""
    return shuffled(seed, np.arange(step * batch, (step + 1) * batch), count)


def shuffled(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Entries (int64) of the endless row of shuffles of `count` frames at some positions; each epoch holds every frame once."""
    return np.array([_shuffle(seed, int(p) // count, count)[int(p) % count] for p in positions], dtype=np.int64)


@lru_cache(maxsize=4)
def _shuffle(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def gather(frames: Frames, indices: np.ndarray) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Images (B, H, W, 3) uint8 and targets {stream: (B, N, C)} float16, on the device where the frames lie."""
    return select(frames.images, indices), {name: select(value, indices) for name, value in frames.targets.items()}


def select(values: Tensor, indices: np.ndarray) -> Tensor:
    """Rows of `values` on its device.

    On the CPU numpy does it: this runs in the thread that works ahead, and torch would give that thread OpenMP workers of its
    own. With more workers than cores OpenMP stops spinning between loops, which makes every small product of the step slower.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy()[indices])
    return values.index_select(0, torch.from_numpy(indices).to(values.device))
