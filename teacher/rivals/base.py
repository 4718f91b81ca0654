"""What all rivals share: frames in, pooled maps out, noise seeded per frame.

A clip is cut into pieces the network sees at once: single frames ("frame"), or several frames together ("clip"). A family
says in `encode` (or, where something is noised, in `latents` and `denoise`) what happens to one batch of such pieces.

    python -c "from teacher.rivals.base import RivalConfig; help(RivalConfig)"
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from teacher.features import Features
from teacher.framing import as_unit_images, frame_images
from teacher.rivals.schedules import Schedule
from teacher.rivals.taps import Taps
from teacher.simulator import seeded_noise
from vega_artifact import UserError, fingerprint


@dataclass(frozen=True, kw_only=True)
class RivalConfig:
    """Everything that changes a rival's feature; part of the cache's fingerprint.

    Attributes:
        name: registry name or path (shown, not fingerprinted: `weights` is).
        weights: hash of the weight and configuration files.
        mode: "frame" (each frame alone) or "clip" (frames are seen together).
        crop: "aligned" (whole frame, its aspect kept, about as many pixels as `size`) or "square" (the whole frame pressed
            into `size`, as the reference does for these models).
        blocks: indices of the layers read; empty until the rival has put in its default.
        sigma: noise factor asked for; 0 where nothing is noised.
        size, grid: (H, W) pixels the network sees, and (gh, gw) the maps are pooled to or None for the network's own.
        seed, draws: noise seed, and the number of noise draws averaged.
    """

    name: str
    weights: str
    mode: str
    crop: str
    size: tuple[int, int]
    blocks: tuple[int, ...] = ()
    sigma: float = 0.0
    grid: tuple[int, int] | None = (14, 14)
    dtype: str = "float32"
    seed: int = 0
    draws: int = 1


@dataclass(frozen=True)
class NoiseSource:
    """Where the noise of a clip comes from: given by the caller, or drawn per (scene, source frame, draw, seed).

    Attributes:
        given: (T', C, h, w) noise to use instead of drawing, one per map, or None.
        frame_ids: what a frame's noise is keyed by, one per frame.
        index: (T',) source frame of every map.
    """

    given: Tensor | None
    scene_id: str
    frame_ids: Sequence[int]
    seed: int
    index: np.ndarray

    def draw(self, shape: Sequence[int], sources: Tensor, number: int) -> Tensor:
        """The `number`-th draw for latents of `shape` (B, L', C, h, w) whose source frames are (B, L')."""
        rows = sources.flatten().tolist()
        if self.given is None:
            drawn = [seeded_noise(shape[2:], self.scene_id, self.frame_ids[row], number, self.seed) for row in rows]
            return torch.stack(drawn).view(*shape)
        expected = (len(self.index), *shape[2:])
        if tuple(self.given.shape) != expected:
            raise UserError(f"noise: shape {expected} expected, one latent per map, found {tuple(self.given.shape)}")
        return self.given[np.searchsorted(self.index, rows)].view(*shape)


class RivalTeacher(abc.ABC):
    """A frozen network read at some of its layers; `teacher.features.FeatureTeacher` is its interface.

    Args:
        config: settings; where `blocks` is empty, `depth` chooses the layer.
        layers: the network's layers in running order, and `widths` the channels of each one's output.
        multiple: pixels both sides must divide by.
        schedule: how latents are noised, or None.
        batch: pieces run together; memory, never values, depends on it.
    """

    depth: ClassVar[float] = 1.0  # which layer is read by default, as a fraction of all
    clip_length: ClassVar[int | None] = None  # frames seen together in clip mode; None: all
    schedule: Schedule | None = None

    def __init__(
        self,
        config: RivalConfig,
        layers: Sequence[nn.Module],
        widths: Sequence[int],
        multiple: int,
        device: str | torch.device = "cpu",
        batch: int = 8,
    ) -> None:
        count = len(layers)
        blocks = config.blocks or (max(round(self.depth * count), 1) - 1,)
        if any(not -count <= block < count for block in blocks):
            raise UserError(f"blocks {blocks}: indices in 0..{count - 1} (or negative from the end) expected for {config.name}")
        self.config, self.multiple, self.batch = replace(config, blocks=blocks), multiple, batch
        self.device = torch.device(device)
        self.wanted = sorted({block % count for block in blocks})
        self.taps, self.channels = Taps(layers, self.wanted), widths[self.wanted[-1]]
        if any(side <= 0 or side % multiple for side in config.size):
            raise UserError(f"size {config.size}: both sides must be positive multiples of {multiple} for {config.name}")

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a feature; the name the weights were found under does not count."""
        return fingerprint({key: value for key, value in vars(self.config).items() if key != "name"})

    @property
    def sigma(self) -> float:
        """Noise factor really used; 0 where nothing is noised."""
        return self.schedule.sigma if self.schedule else 0.0

    @abc.abstractmethod
    def maps(self, clips: Tensor, sources: Tensor, noise: NoiseSource) -> dict[int, Tensor]:
        """One batch of pieces through the network.

        Args:
            clips: (B, L, 3, H, W) float32 in [0, 1].
            sources: (B, L') frame number each map will stand for.
            noise: where noise comes from, for those that need some.
        Returns:
            layer index -> (B, L', C, gh, gw).
        """

    def kept(self, length: int) -> list[int]:
        """Which of the `length` frames of a piece a map is given for: the first source frame of each map."""
        return list(range(length))

    @torch.no_grad()
    def features(
        self,
        frames: np.ndarray | Tensor,
        noise: Tensor | None = None,
        scene_id: str = "",
        frame_ids: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> Features:
        """Features of one clip; arguments as in `teacher.features.Teacher.features`.

        Args:
            noise: overrides the seed; (T', C, h, w) like the latents, one per map in every mode.
        Raises:
            UserError: bad frames, noise of another shape, or noise for a model that takes none.
        """
        images = self._images(as_unit_images(frames))
        index = self.frame_index(len(images))
        ids = list(range(len(images))) if frame_ids is None else list(frame_ids)
        source = NoiseSource(noise, scene_id, ids, self.config.seed if seed is None else seed, index)
        parts = []
        for rows in self._pieces(len(images)):
            found = self.maps(images[rows].to(self.device), rows[:, self.kept(rows.shape[1])], source)
            parts.append({block: self._pool(value) for block, value in found.items()})
        blocks = {block: torch.cat([part[block] for part in parts]) for block in self.wanted}
        return Features(blocks, self.sigma, self.schedule.timestep if self.schedule else 0, index)

    def frame_index(self, frames: int) -> np.ndarray:
        """(T',) index of the source frame each map stands for, for a clip of `frames` frames."""
        return torch.cat([rows[:, self.kept(rows.shape[1])].flatten() for rows in self._pieces(frames)]).numpy()

    def _pieces(self, frames: int) -> Iterator[Tensor]:
        """(B, L) frame numbers of the pieces that are run together."""
        every = torch.arange(frames)
        if self.config.mode == "frame":
            yield from every[:, None].split(self.batch)
        else:
            yield from (piece[None] for piece in every.split(self.clip_length or frames))

    def _images(self, images: Tensor) -> Tensor:
        if self.config.crop == "aligned":
            return frame_images(images, "aligned", self.config.size, self.multiple)
        if tuple(images.shape[2:]) == self.config.size:
            return images
        return F.interpolate(images, self.config.size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)

    def _pool(self, maps: Tensor) -> Tensor:
        """(B, L', C, gh, gw) -> (B * L', C, *grid) float32 on the CPU; overlapping bins as in the reference."""
        flat = maps.flatten(0, 1).float()
        return (F.adaptive_avg_pool2d(flat, self.config.grid) if self.config.grid else flat.contiguous()).cpu()


class CleanRival(RivalTeacher):
    """A rival that sees the frames as they are: no noise, no sigma, one draw."""

    def __init__(self, config: RivalConfig, *arguments: Any, **options: Any) -> None:
        if config.sigma or config.draws != 1:
            raise UserError(f"{config.name}: sees clean frames, so sigma must stay 0 and draws 1")
        super().__init__(config, *arguments, **options)

    def maps(self, clips: Tensor, sources: Tensor, noise: NoiseSource) -> dict[int, Tensor]:
        if noise.given is not None:
            raise UserError(f"noise: {self.config.name} adds none, so none can be given")
        return self.encode(clips)

    @abc.abstractmethod
    def encode(self, clips: Tensor) -> dict[int, Tensor]:
        """(B, L, 3, H, W) float32 in [0, 1] -> layer index -> (B, L', C, gh, gw)."""


class NoisedRival(RivalTeacher):
    """A rival whose latents are noised before the network sees them."""

    schedule: Schedule

    def maps(self, clips: Tensor, sources: Tensor, noise: NoiseSource) -> dict[int, Tensor]:
        latents = self.latents(clips)
        draws = self.config.draws if noise.given is None else 1
        total: dict[int, Tensor] = {}
        for number in range(draws):
            noisy = self.schedule.noised(latents, noise.draw(latents.shape, sources, number).to(self.device))
            for block, value in self.denoise(clips, latents, noisy).items():
                total[block] = total.get(block, 0) + value.float() / draws
        return total

    @abc.abstractmethod
    def latents(self, clips: Tensor) -> Tensor:
        """(B, L, 3, H, W) float32 in [0, 1] -> clean latents (B, L', C, h, w) float32, scaled as the network expects."""

    @abc.abstractmethod
    def denoise(self, clips: Tensor, latents: Tensor, noisy: Tensor) -> dict[int, Tensor]:
        """Clips, clean and noised latents -> layer index -> (B, L', C, gh, gw)."""
