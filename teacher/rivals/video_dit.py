"""What the video diffusion transformers share: a causal video autoencoder, blocks cut after the last one read.

python -c "from teacher.rivals.video_dit import VideoTransformer; help(VideoTransformer)"
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from teacher.rivals.base import NoisedRival, RivalConfig
from teacher.rivals.schedules import Schedule


class VideoTransformer(NoisedRival):
    """Tap i is the residual stream of the video tokens after block i, before any norm, as Wan's.

    Frame mode makes every frame its own video; clip mode encodes 1 + k * group frames to 1 + k latent frames, and drops the
    frames that do not fill a group. By default it is read as deep as the paper reads Wan: after 21 of 30 blocks.

    Args:
        stacks: names of the transformer's block lists, in running order.
        group: frames per latent frame; stride: pixels per latent cell; patch: latent cells per token side.
    """

    depth = 21 / 30

    def __init__(
        self,
        config: RivalConfig,
        transformer: nn.Module,
        vae: nn.Module,
        schedule: Schedule,
        *,
        stacks: Sequence[str],
        group: int,
        stride: int,
        patch: int,
        device: str | torch.device = "cpu",
    ) -> None:
        blocks = [block for stack in stacks for block in getattr(transformer, stack)]
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        super().__init__(config, blocks, [width] * len(blocks), stride * patch, device)
        left = self.wanted[-1] + 1
        for stack in stacks:
            full = getattr(transformer, stack)
            setattr(transformer, stack, full[:left])
            left = max(0, left - len(full))
        self.transformer, self.vae = transformer.to(self.device), vae.to(self.device)
        self.schedule, self.group, self.patch = schedule, group, patch

    def kept(self, length: int) -> list[int]:
        return [0, *range(1, length - self.group + 1, self.group)]

    def latents(self, clips: Tensor) -> Tensor:
        whole = 1 + (clips.shape[1] - 1) // self.group * self.group
        video = clips[:, :whole].transpose(1, 2).to(self.vae.dtype) * 2 - 1
        return self.normalised(self.vae.encode(video).latent_dist.mode().float()).transpose(1, 2)

    def denoise(self, clips: Tensor, latents: Tensor, noisy: Tensor) -> dict[int, Tensor]:
        noisy = noisy.to(self.transformer.dtype)
        time = torch.full((len(noisy),), self.schedule.timestep, device=self.device)
        found = self.taps.run(lambda: self.run(noisy, time))
        grid = [noisy.shape[1], *(side // self.patch for side in noisy.shape[3:])]
        return {index: tokens.unflatten(1, grid).movedim(-1, 2) for index, tokens in found.items()}

    @abc.abstractmethod
    def normalised(self, latents: Tensor) -> Tensor:
        """(B, C, L', h, w) posterior mode -> what the transformer was trained on."""

    @abc.abstractmethod
    def run(self, noisy: Tensor, time: Tensor) -> object:
        """Call the transformer on latents (B, L', C, h, w) at timesteps (B,)."""
