"""The latent world simulator: noised latents through the video DiT up to the wanted block.

What differs from a plain forward is only what never changes a value: it stops after the last wanted block, computes time
modulation and text keys/values once, and replaces the zero-padded text rows by one row with logit bias ln(count)
(Wan pads to 512 rows without a mask, so those rows are identical). Source: VEGA-3D, arXiv 2603.19235, section 3.

    python -c "from teacher.simulator import snap_sigma; print(snap_sigma(0.3))"
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

TEXT_ROWS = 512  # text length Wan was trained with
TRAIN_STEPS = 1000
SIGMA_MAX = 0.999


def schedule(shift: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Wan's 1000-step flow schedule: integer timesteps (1000,) and sigmas (1000,) in float64, descending.

    u_i = 0.999 (1 - i/1000), sigma = shift u / (1 + (shift - 1) u), t = trunc(1000 sigma).
    """
    # the reference builds the grid with a 1001-point linspace in float32-representable steps and drops the last point
    u = np.linspace(SIGMA_MAX, 0.0, TRAIN_STEPS + 1)[:-1]
    sigmas = shift * u / (1 + (shift - 1) * u)
    return (sigmas * TRAIN_STEPS).astype(np.int64), sigmas


def snap_sigma(sigma: float, shift: float = 5.0) -> tuple[int, float]:
    """The schedule's timestep nearest to 1000 * sigma and the sigma that belongs to it: 0.3 -> (299, 0.299924).

    Like the reference, the first minimum of |t - 1000 sigma| is taken, and where a timestep occurs twice its second
    occurrence gives the sigma (spec/vega3d.md 2.1).
    """
    timesteps, sigmas = schedule(shift)
    timestep = int(timesteps[np.abs(timesteps - TRAIN_STEPS * sigma).argmin()])
    occurrences = np.flatnonzero(timesteps == timestep)
    return timestep, float(np.float32(sigmas[occurrences[min(1, len(occurrences) - 1)]]))


def seeded_noise(shape: Sequence[int], scene_id: str, frame_id: int, draw: int = 0, seed: int = 0) -> Tensor:
    """Standard normal float32 noise that depends on (scene, frame, draw, seed) alone, never on batch, rank or order."""
    digest = hashlib.sha256(f"{scene_id}\x1f{int(frame_id)}\x1f{draw}\x1f{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(tuple(shape), generator=generator)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on interleaved pairs: x (B, L, heads, d), cos and sin (1, L, 1, d)."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).type_as(x)


def attend(attention: WanAttention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot product attention on (B, L, heads, d) and the output projection -> (B, L, C)."""
    mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=bias)
    return attention.to_out[0](mixed.transpose(1, 2).flatten(2))


class WanSimulator(nn.Module):
    """Truncated, constant-folded forward of a diffusers Wan transformer at one sigma.

    Args:
        transformer: `WanTransformer3DModel`; blocks after the last wanted one are released.
        blocks: zero-based indices whose output residual stream is wanted; negative counts from the end.
        prompt_embeds: (rows, text_dim) real rows of the text encoding (empty prompt: one row).
        sigma: noise level in (0, 1); snapped to the schedule as the reference does.
        text_rows: rows the prompt is zero-padded to; 1 for models trained without padding.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        blocks: Sequence[int],
        prompt_embeds: Tensor,
        sigma: float = 0.3,
        shift: float = 5.0,
        text_rows: int = TEXT_ROWS,
    ) -> None:
        super().__init__()
        self.wanted = sorted({index % transformer.config.num_layers for index in blocks})
        self.transformer = transformer.eval().requires_grad_(False)
        self.transformer.blocks = transformer.blocks[: self.wanted[-1] + 1]
        self.timestep, self.sigma = snap_sigma(sigma, shift)
        self._constants(prompt_embeds, text_rows)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.patch_embedding.weight.dtype

    @torch.no_grad()
    def _constants(self, prompt_embeds: Tensor, text_rows: int) -> None:
        """Time modulation and text keys/values: the same for every frame and scene."""
        embedder, weight = self.transformer.condition_embedder, self.transformer.patch_embedding.weight
        rows = prompt_embeds.to(weight)[:text_rows]
        padding = text_rows - len(rows)
        context = torch.cat([rows, rows.new_zeros(min(padding, 1), rows.shape[1])])
        time = torch.tensor([self.timestep], device=weight.device)
        _, modulation, context, _ = embedder(time, context[None])
        modulation = modulation.unflatten(1, (6, -1)).float()
        bias = torch.zeros(1, 1, 1, context.shape[1], device=weight.device)
        if padding > 1:
            bias[..., -1] = math.log(padding)
        self.register_buffer("text_bias", bias.to(weight.dtype), persistent=False)
        for index, block in enumerate(self.transformer.blocks):
            attention = block.attn2
            key = attention.norm_k(attention.to_k(context)).unflatten(2, (attention.heads, -1))
            value = attention.to_v(context).unflatten(2, (attention.heads, -1))
            self.register_buffer(f"modulation_{index}", block.scale_shift_table.float() + modulation, persistent=False)
            self.register_buffer(f"text_key_{index}", key, persistent=False)
            self.register_buffer(f"text_value_{index}", value, persistent=False)

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """x_t = (1 - sigma) x_0 + sigma eps, in float32."""
        return (1 - self.sigma) * latents.float() + self.sigma * noise.float()

    @torch.no_grad()
    def forward(self, noisy: Tensor) -> dict[int, Tensor]:
        """Run noised latents (B, 16, T', h, w) to the wanted blocks.

        Returns:
            block index -> (B, T', gh, gw, C) float32 residual stream, before any norm.
        """
        model = self.transformer
        rotary = model.rope(noisy)
        hidden = model.patch_embedding(noisy.to(self.dtype))
        grid = hidden.shape[2:]
        hidden = hidden.flatten(2).transpose(1, 2).contiguous()
        found: dict[int, Tensor] = {}
        for index, block in enumerate(model.blocks):
            hidden = self._block(index, block, hidden, rotary)
            if index in self.wanted:
                found[index] = hidden.float().unflatten(1, grid)
        return found

    def _block(self, index: int, block: WanTransformerBlock, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """One transformer block with modulation and text keys/values taken from the constants."""
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = getattr(self, f"modulation_{index}").chunk(6, dim=1)
        batch, attention = len(hidden), block.attn1
        x = (block.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        query = rotate(attention.norm_q(attention.to_q(x)).unflatten(2, (attention.heads, -1)), *rotary)
        key = rotate(attention.norm_k(attention.to_k(x)).unflatten(2, (attention.heads, -1)), *rotary)
        value = attention.to_v(x).unflatten(2, (attention.heads, -1))
        hidden = (hidden.float() + attend(attention, query, key, value) * gate).type_as(hidden)

        attention = block.attn2
        x = block.norm2(hidden.float()).type_as(hidden)
        query = attention.norm_q(attention.to_q(x)).unflatten(2, (attention.heads, -1))
        key = getattr(self, f"text_key_{index}").expand(batch, -1, -1, -1)
        value = getattr(self, f"text_value_{index}").expand(batch, -1, -1, -1)
        hidden = hidden + attend(attention, query, key, value, self.text_bias)

        x = (block.norm3(hidden.float()) * (1 + ffn_scale) + ffn_shift).type_as(hidden)
        return (hidden.float() + block.ffn(x).float() * ffn_gate).type_as(hidden)
