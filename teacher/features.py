"""The teacher's public face: frames in, mid-denoising feature maps out.

    python -c "from teacher import load_teacher; import numpy as np; \
               print(load_teacher('tiny').features(np.zeros((2, 128, 128, 3), np.uint8)).blocks)"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F

from teacher.chunks import frames_per_chunk
from teacher.framing import as_unit_images, frame_images
from teacher.latents import LatentEncoder
from teacher.simulator import TEXT_ROWS, WanSimulator, seeded_noise
from vega_artifact import UserError, fingerprint

MODES = ("frame", "clip")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Everything that changes a feature; part of the cache's fingerprint.

    Attributes:
        name: registry name or path the weights came from (shown, not fingerprinted: `weights` is).
        weights: hash of the weight files.
        blocks: zero-based DiT blocks whose output residual stream is wanted.
        sigma: requested noise level; the one really used is `Features.sigma`.
        mode: "frame" (each frame its own video, as the reference) or "clip" (frames attend to one another).
        crop, size: see `teacher.framing`.
        grid: (gh, gw) the maps are average-pooled to, or None for the native token grid.
        seed, draws: noise seed, and the number of noise draws averaged.
    """

    name: str
    weights: str
    blocks: tuple[int, ...] = (20,)
    sigma: float = 0.3
    mode: str = "frame"
    crop: str = "aligned"
    size: tuple[int, int] = (480, 832)
    grid: tuple[int, int] | None = (14, 14)
    dtype: str = "float32"
    shift: float = 5.0
    text_rows: int = TEXT_ROWS
    seed: int = 0
    draws: int = 1


@dataclass(frozen=True)
class Features:
    """Feature maps of one clip.

    Attributes:
        blocks: block index -> (T, C, gh, gw) float32; in clip mode T' latent frames.
        sigma, timestep: what was really used after snapping to the schedule.
        frame_index: (T',) index of the first source frame of each latent frame.
    """

    blocks: dict[int, Tensor]
    sigma: float
    timestep: int
    frame_index: np.ndarray


class FeatureTeacher(Protocol):
    """What the rest of the chain asks of a teacher, Wan or rival: frames in, feature maps out, and a name for both.

    Attributes:
        config: frozen dataclass whose `vars()` are JSON: name, weights, blocks, mode, sigma, size, grid, dtype, seed, draws.
        fingerprint: changes with anything that changes a feature.
        sigma: noise level really used, after snapping to the model's schedule; 0 where nothing is noised.
        wanted: indices delivered by `features`, sorted, never negative.
        channels: C of every map.
    """

    config: Any
    device: torch.device
    channels: int

    @property
    def fingerprint(self) -> str: ...

    @property
    def sigma(self) -> float: ...

    @property
    def wanted(self) -> list[int]: ...

    def features(
        self,
        frames: np.ndarray | Tensor,
        noise: Tensor | None = None,
        scene_id: str = "",
        frame_ids: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> Features:
        """Features of one clip: frames (T, H, W, 3) uint8 or (T, 3, H, W) float in [0, 1]; noise keyed by scene and frame."""
        ...

    def frame_index(self, frames: int) -> np.ndarray:
        """(T',) index of the source frame each map stands for, for a clip of `frames` frames."""
        ...


class Teacher:
    """A frozen video diffusion model tapped in mid-denoising.

    Args:
        transformer, vae: diffusers models; the transformer is cut after the last wanted block.
        prompt_embeds: (rows, text_dim) encoding of the empty prompt.
        batch: most frames run through the DiT together; fewer where memory is short. Speed, never values, depends on it.
        memory: GiB the activations may take; None: half of what is free on the device.
        compile: use torch.compile: slow to start, and equal to rounding. Worth it on a GPU and for many frames.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        prompt_embeds: Tensor,
        config: TeacherConfig,
        device: str | torch.device = "cpu",
        batch: int = 32,
        memory: float | None = None,
        compile: bool = False,
    ) -> None:
        if config.mode not in MODES:
            raise UserError(f"mode {config.mode!r}: one of {', '.join(MODES)} expected")
        layers = transformer.config.num_layers
        if not config.blocks or any(not -layers <= block < layers for block in config.blocks):
            raise UserError(f"blocks {config.blocks}: indices in 0..{layers - 1} (or negative from the end) expected")
        if not 0 <= config.sigma <= 1:
            raise UserError(f"sigma {config.sigma}: a noise level in [0, 1] expected (the paper's k=300 is sigma 0.3)")
        self.config, self.batch, self.memory, self.device = config, batch, memory, torch.device(device)
        dtype = transformer.patch_embedding.weight.dtype
        self.latents = LatentEncoder(vae, dtype=dtype, memory=memory, compile=compile).to(self.device)
        self.simulator = WanSimulator(
            transformer, config.blocks, prompt_embeds, config.sigma, config.shift, config.text_rows, compile
        ).to(self.device)
        self.multiple = self.latents.stride * transformer.config.patch_size[1]
        self.channels = transformer.config.num_attention_heads * transformer.config.attention_head_dim

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a feature; the name the weights were found under does not count."""
        return fingerprint({key: value for key, value in vars(self.config).items() if key != "name"})

    @property
    def sigma(self) -> float:
        """Noise level really used, after snapping to the schedule."""
        return self.simulator.sigma

    @property
    def wanted(self) -> list[int]:
        """Blocks delivered by `features`, sorted, counted from the front."""
        return self.simulator.wanted

    def noise(
        self, shape: Sequence[int], scene_id: str, frame_ids: Sequence[int], draw: int, seed: int | None = None
    ) -> Tensor:
        """Seeded noise for latents of `shape` (B, 16, T', h, w); in frame mode B follows `frame_ids`."""
        seed = self.config.seed if seed is None else seed
        rows = frame_ids if self.config.mode == "frame" else frame_ids[:1]
        return torch.stack([seeded_noise(shape[1:], scene_id, frame, draw, seed) for frame in rows])

    @torch.no_grad()
    def features(
        self,
        frames: np.ndarray | Tensor,
        noise: Tensor | None = None,
        scene_id: str = "",
        frame_ids: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> Features:
        """Features of one clip.

        Args:
            frames: (T, H, W, 3) uint8 or (T, 3, H, W) float in [0, 1].
            noise: overrides the seed; (T, 16, 1, h, w) in frame mode, (1, 16, T', h, w) in clip mode.
            scene_id, frame_ids: what the seeded noise is keyed by; frame_ids default to 0..T-1.
            seed: another noise seed than the configured one (for the noise floor).
        Raises:
            UserError: bad frames, or noise of another shape than the latents.
        """
        raw = as_unit_images(torch.as_tensor(frames).to(self.device))  # 8-bit over the bus, resized where it is fast
        images = frame_images(raw, self.config.crop, self.config.size, self.multiple)
        frame_ids = list(range(len(images))) if frame_ids is None else list(frame_ids)
        latents = self.latents.frames(images) if self.config.mode == "frame" else self.latents.clip(images)
        draws = self.config.draws if noise is None else 1
        total: dict[int, Tensor] = {}
        for draw in range(draws):
            drawn = self.noise(latents.shape, scene_id, frame_ids, draw, seed) if noise is None else noise
            if drawn.shape != latents.shape:
                raise UserError(f"noise: shape {tuple(latents.shape)} expected like the latents, found {tuple(drawn.shape)}")
            for block, value in self.maps(latents, drawn.to(self.device)).items():
                total[block] = total.get(block, 0) + value / draws
        return Features(
            {block: value.cpu() for block, value in total.items()},
            self.simulator.sigma,
            self.simulator.timestep,
            self.frame_index(len(images)),
        )

    def maps(self, latents: Tensor, noise: Tensor) -> dict[int, Tensor]:
        """Pooled float32 maps (B * T', C, gh, gw) of every wanted block, from clean latents and noise (B, 16, T', h, w).

        One chunk of videos at a time, as many as the memory budget allows.
        """
        noisy = self.simulator.add_noise(latents, noise)
        tokens = noisy[0, 0].numel() // math.prod(self.simulator.config.patch_size)
        chunk = frames_per_chunk(self.simulator.frame_bytes(tokens), self.device, self.memory, self.batch)
        parts = [{block: self._pool(value) for block, value in self.simulator(part).items()} for part in noisy.split(chunk)]
        return {block: torch.cat([part[block] for part in parts]) for block in parts[0]}

    def _pool(self, tokens: Tensor) -> Tensor:
        """(B, T', gh, gw, C) -> (B * T', C, gh, gw), average-pooled with overlapping bins as in the reference."""
        maps = tokens.flatten(0, 1).movedim(-1, 1)
        return F.adaptive_avg_pool2d(maps, self.config.grid) if self.config.grid else maps.contiguous()

    def frame_index(self, frames: int) -> np.ndarray:
        """(T',) index of the first source frame of each latent frame, for a clip of `frames` frames."""
        if self.config.mode == "frame":
            return np.arange(frames)
        return np.array([0, *range(1, frames - 3, 4)])  # the causal VAE groups four frames after the first
