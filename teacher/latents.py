"""Frames to normalised VAE latents: the first step of the teacher.

Single frames take an exact fast path: a causal 3D convolution pads the past with zeros, so for one frame only the last temporal
slice of its kernel meets data, and the whole encoder folds to 2D convolutions that run over all frames as one batch
(spec: Wan 2.1 VAE, 16 channels, stride 4x8x8; posterior mean, then (mu - mean) / std per channel).

    python -c "from teacher import load_teacher; print(load_teacher('tiny').latents)"
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanRMS_norm
from torch import Tensor, nn
from torch.nn import functional as F

from teacher.chunks import frames_per_chunk

LIVE_MAPS = 4  # full-resolution float32 maps of the first stage alive at once; measured 3 on a CPU


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


class FrozenNorm(nn.Module):
    """Wan's channel RMS norm for inference: its two factors as one, applied in place to the fresh result, in float32."""

    def __init__(self, norm: WanRMS_norm) -> None:
        super().__init__()
        self.gain = nn.Parameter(norm.gamma.detach().float() * norm.scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=1).mul_(self.gain).type_as(x)


def rebuild(module: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """A copy of a module tree that shares its parameters, with every part that `replace` has an answer for exchanged."""
    found = replace(module)
    if found is not None:
        return found
    rebuilt = copy.copy(module)
    rebuilt._modules = {n: rebuild(child, replace) if child is not None else None for n, child in module._modules.items()}
    return rebuilt


def fold_single_frame(module: nn.Module) -> nn.Module:
    """A copy of a Wan encoder (or quant conv) whose causal convolutions are folded for one-frame inputs."""
    return rebuild(module, lambda part: FoldedConv(part) if isinstance(part, WanCausalConv3d) else None)


def freeze(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """An inference-only copy of a folded encoder: own weights in `dtype`, channels last, no second pass where one will do."""

    def frozen(part: nn.Module) -> nn.Module | None:
        if isinstance(part, WanRMS_norm) and isinstance(part.bias, float):
            return FrozenNorm(part)
        if isinstance(part, nn.SiLU):
            return nn.SiLU(inplace=True)  # Wan applies it to a norm's fresh result only
        if isinstance(part, (FoldedConv, nn.Conv2d)):
            return copy.deepcopy(part).to(dtype=dtype, memory_format=torch.channels_last)
        return None

    return rebuild(module, frozen)


class LatentEncoder(nn.Module):
    """Encodes frames with a Wan VAE to normalised latents.

    Args:
        vae: the diffusers VAE; only its encoder and quant convolution are used, and its weights stay as they are.
        batch: most frames encoded together; fewer where memory is short (memory bound, not accuracy).
        dtype: of the convolutions; float32, or bfloat16 as the reference's autocast has them. Norms stay in float32.
        memory: GiB the activations may take; None: half of what is free.
        compile: let torch.compile fuse the passes between the convolutions.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        batch: int = 8,
        dtype: torch.dtype = torch.float32,
        memory: float | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.encoder = freeze(fold_single_frame(vae.encoder), dtype)
        self.quant_conv = freeze(fold_single_frame(vae.quant_conv), dtype)
        self.batch, self.dtype, self.memory = batch, dtype, memory
        if compile:
            self.encoder.compile()
        shape = (1, -1, 1, 1, 1)
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(shape), persistent=False)
        self.register_buffer("std", torch.tensor(vae.config.latents_std).view(shape), persistent=False)

    @property
    def stride(self) -> int:
        """Pixels per latent cell."""
        return int(self.vae.config.scale_factor_spatial)

    def frame_bytes(self, height: int, width: int) -> int:
        """Activation bytes per frame of (height, width) pixels, dominated by the first stage at full resolution."""
        return LIVE_MAPS * int(self.vae.config.base_dim) * height * width * 4

    @torch.no_grad()
    def frames(self, images: Tensor) -> Tensor:
        """Encode frames one by one in time but batched in memory.

        Args:
            images: (T, 3, H, W) float in [0, 1], H and W multiples of the stride.
        Returns:
            (T, 16, 1, H/8, W/8) float32 normalised posterior means.
        """
        chunk = frames_per_chunk(self.frame_bytes(*images.shape[2:]), images.device, self.memory, self.batch)
        return torch.cat([self._normalise(self._encode_single(part)) for part in images.split(chunk)])

    @torch.no_grad()
    def clip(self, images: Tensor) -> Tensor:
        """Encode frames as one video: (T, 3, H, W) in [0, 1] -> (1, 16, 1 + (T-1)/4, H/8, W/8).

        As in the causal VAE, frames beyond the last full group of four are dropped.
        """
        video = (images.to(self.vae.dtype) * 2 - 1).transpose(0, 1)[None]
        with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != self.vae.dtype):
            return self._normalise(self.vae.encode(video).latent_dist.mode())

    def _encode_single(self, images: Tensor) -> Tensor:
        signed = (images.to(self.dtype) * 2 - 1).contiguous(memory_format=torch.channels_last)
        return self.quant_conv(self.encoder(signed[:, :, None])).chunk(2, dim=1)[0]

    def _normalise(self, mean: Tensor) -> Tensor:
        return (mean.float() - self.mean) / self.std  # in float32: the reference keeps these constants in bf16, 0.4 % off
