"""The reference recipe in plain diffusers: what the teacher's speed and exactness are measured against.

It does what the published code does (full depth with a hook on the wanted block, the 3D VAE frame by frame, 512 text rows,
float32 weights, on a GPU under bfloat16 autocast; VEGA-3D, arXiv 2603.19235) with diffusers' own modules and nothing else.
Random weights do: neither time nor exactness depends on what a network has learned.

    vega-edge bench teacher
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from torch.nn import functional as F

TEXT_ROWS = 512
GRID = (14, 14)
WAN_1_3B: dict[str, Any] = {  # Wan2.1-T2V-1.3B
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
}


def random_wan(
    layers: int, seed: int = 0, device: str | torch.device = "cpu"
) -> tuple[WanTransformer3DModel, AutoencoderKLWan]:
    """A 1.3B transformer of `layers` blocks (the true one has 30) and the true VAE, float32, random weights."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(**(WAN_1_3B | {"num_layers": layers}))
        vae = AutoencoderKLWan()
    return transformer.eval().requires_grad_(False), vae.eval().requires_grad_(False)


class ReferenceRecipe:
    """The reference's two steps, frame mode.

    Args:
        transformer, vae: float32 diffusers models, used as they are.
        prompt_embeds: (rows, text_dim), zero-padded to 512 rows here.
        block: whose output is read; negative counts from the end.
        timestep: integer the transformer is given.
        dtype: bfloat16 runs everything under autocast, as the reference does on a GPU; the weights stay float32.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        prompt_embeds: Tensor,
        block: int,
        timestep: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.transformer, self.vae, self.block, self.timestep, self.dtype = transformer, vae, block, timestep, dtype
        self.device = transformer.patch_embedding.weight.device
        self.context = F.pad(prompt_embeds, (0, 0, 0, TEXT_ROWS - len(prompt_embeds)))[None].to(self.device)
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean, device=self.device).view(shape)
        self.std = torch.tensor(vae.config.latents_std, device=self.device).view(shape)

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """(T, 3, H, W) in [0, 1] -> (T, 16, 1, H/8, W/8) float32, one frame after the other."""
        with self._autocast():
            means = [self.vae.encode(image[None, :, None] * 2 - 1).latent_dist.mode() for image in images]
        return (torch.cat(means).float() - self.mean) / self.std

    @torch.no_grad()
    def maps(self, noisy: Tensor) -> Tensor:
        """Noised latents (T, 16, 1, h, w) -> pooled output of the wanted block, (T, C, 14, 14) float32."""
        found: list[Tensor] = []
        hook = self.transformer.blocks[self.block].register_forward_hook(lambda *call: found.append(call[2]))
        timestep = torch.full((len(noisy),), self.timestep, device=self.device)
        try:
            with self._autocast():
                self.transformer(noisy, timestep, self.context.expand(len(noisy), -1, -1))
        finally:
            hook.remove()
        height, width = (side // 2 for side in noisy.shape[-2:])
        return F.adaptive_avg_pool2d(found[0].float().transpose(1, 2).unflatten(2, (height, width)), GRID)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
