"""Frames to normalised VAE latents: the first step of the teacher.

Single frames take an exact fast path: a causal 3D convolution pads the past with zeros, so for one frame only the last temporal
slice of its kernel meets data, and the whole encoder folds to 2D convolutions that run over all frames as one batch
(spec: Wan 2.1 VAE, 16 channels, stride 4x8x8; posterior mean, then (mu - mean) / std per channel).

    python -c "from teacher import load_teacher; print(load_teacher('tiny').latents)"
"""

from __future__ import annotations

import copy

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor, nn
from torch.nn import functional as F


class FoldedConv(nn.Module):
    """A causal 3D convolution applied to one frame (B, C, 1, H, W): a 2D convolution with the last temporal slice."""

    def __init__(self, conv: WanCausalConv3d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach()[:, :, -1].contiguous(), requires_grad=False)
        self.bias = conv.bias
        self.stride = conv.stride[1:]
        self.spatial_padding = (conv._padding[2], conv._padding[0])  # F.pad order is (w, w, h, h, t, t)

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        return F.conv2d(x[:, :, 0], self.weight, self.bias, self.stride, self.spatial_padding)[:, :, None]


def fold_single_frame(module: nn.Module) -> nn.Module:
    """A copy of a Wan encoder (or quant conv) whose causal convolutions are folded for one-frame inputs."""
    if isinstance(module, WanCausalConv3d):
        return FoldedConv(module)
    folded = copy.copy(module)
    folded._modules = {name: fold_single_frame(child) if child is not None else None for name, child in module._modules.items()}
    return folded


class LatentEncoder(nn.Module):
    """Encodes frames with a Wan VAE to normalised latents.

    Args:
        vae: the diffusers VAE; only its encoder and quant convolution are used.
        batch: frames encoded together (memory bound, not accuracy).
    """

    def __init__(self, vae: AutoencoderKLWan, batch: int = 8) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.encoder = fold_single_frame(vae.encoder)
        self.quant_conv = fold_single_frame(vae.quant_conv)
        self.batch = batch
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(vae.config.latents_std).view(shape), persistent=False)

    @property
    def stride(self) -> int:
        """Pixels per latent cell."""
        return int(self.vae.config.scale_factor_spatial)

    @torch.no_grad()
    def frames(self, images: Tensor) -> Tensor:
        """Encode frames one by one in time but batched in memory.

        Args:
            images: (T, 3, H, W) float in [0, 1], H and W multiples of the stride.
        Returns:
            (T, 16, 1, H/8, W/8) float32 normalised posterior means.
        """
        return torch.cat([self._normalise(self._encode_single(chunk)) for chunk in images.split(self.batch)])

    @torch.no_grad()
    def clip(self, images: Tensor) -> Tensor:
        """Encode frames as one video: (T, 3, H, W) in [0, 1] -> (1, 16, 1 + (T-1)/4, H/8, W/8).

        As in the causal VAE, frames beyond the last full group of four are dropped.
        """
        video = self._signed(images).transpose(0, 1)[None]
        return self._normalise(self.vae.encode(video).latent_dist.mode())

    def _encode_single(self, images: Tensor) -> Tensor:
        moments = self.quant_conv(self.encoder(self._signed(images)[:, :, None]))
        return moments.chunk(2, dim=1)[0]

    def _signed(self, images: Tensor) -> Tensor:
        return images.to(self.vae.dtype) * 2 - 1

    def _normalise(self, mean: Tensor) -> Tensor:
        return (mean.float() - self.mean) / self.std  # in float32: the reference keeps these constants in bf16, 0.4 % off
