"""The latent world simulator: noised latents through the video DiT up to the wanted block.

What differs from a plain forward is only what never changes a value: it stops after the last wanted block, computes time
modulation and text keys/values once (`teacher.frozen_block`), and replaces the zero-padded text rows by one row with logit bias
ln(count) (Wan pads to 512 rows without a mask, so those rows are identical). Source: VEGA-3D, arXiv 2603.19235, section 3.

    python -c "from teacher.simulator import snap_sigma; print(snap_sigma(0.3))"
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from torch import Tensor, nn

from teacher.frozen_block import FrozenBlock
from vega_artifact import UserError

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


class WanSimulator(nn.Module):
    """Truncated, constant-folded forward of a diffusers Wan transformer at one sigma.

    The transformer itself is left as it is and shares its weights; what is not needed of it is not kept here.

    Args:
        transformer: `WanTransformer3DModel` in float32 or bfloat16; the residual stream is float32 either way.
        blocks: zero-based indices whose output residual stream is wanted; negative counts from the end.
        prompt_embeds: (rows, text_dim) real rows of the text encoding (empty prompt: one row).
        sigma: noise level in [0, 1]; snapped to the schedule as the reference does.
        text_rows: rows the prompt is zero-padded to; 1 for models trained without padding.
        compile: let torch.compile fuse what stands between the matrix products; the blocks share one compilation.
    """

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        blocks: Sequence[int],
        prompt_embeds: Tensor,
        sigma: float = 0.3,
        shift: float = 5.0,
        text_rows: int = TEXT_ROWS,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.config = config = transformer.config
        self.wanted = sorted({index % config.num_layers for index in blocks})
        self.timestep, self.sigma = snap_sigma(sigma, shift)
        transformer.eval().requires_grad_(False)
        self.patch_embedding = transformer.patch_embedding
        # built anew: a cast of the whole model would have rounded its angles to bfloat16
        self.rope = WanRotaryPosEmbed(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)
        self.rope.to(self.patch_embedding.weight.device)
        time, modulation, context, bias = self._constants(transformer, prompt_embeds, text_rows)
        kept = transformer.blocks[: self.wanted[-1] + 1]
        self.blocks = nn.ModuleList(FrozenBlock(block, modulation, context, bias) for block in kept)
        if len(kept) == config.num_layers:
            self.proj_out = transformer.proj_out
            self.register_buffer("head", transformer.scale_shift_table.float() + time[:, None], persistent=False)
        if compile:
            for block in self.blocks:
                block.compile()

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    @torch.no_grad()
    def _constants(
        self, transformer: WanTransformer3DModel, prompt_embeds: Tensor, text_rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is the same for every frame and scene, in float32 whatever the weights are held in.

        Returns:
            Time embedding (1, C), modulation (1, 6, C), text context (1, rows, C) and the logit bias of its rows (rows,).
        """
        embedder = copy.deepcopy(transformer.condition_embedder).float()
        rows = prompt_embeds.to(self.patch_embedding.weight.device, torch.float32)[:text_rows]
        padding = text_rows - len(rows)
        context = torch.cat([rows, rows.new_zeros(min(padding, 1), rows.shape[1])])
        bias = rows.new_zeros(len(context))
        if padding > 1:
            bias[-1] = math.log(padding)
        timestep = torch.tensor([self.timestep], device=rows.device)
        time, modulation, context, _ = embedder(timestep, context[None])
        return time, modulation.unflatten(1, (6, -1)), context, bias

    def frame_bytes(self, tokens: int) -> int:
        """Activation bytes of one video of `tokens` tokens: the wider of attention and FFN, and the wanted blocks' outputs."""
        width = self.config.num_attention_heads * self.config.attention_head_dim
        inner = 2 * self.config.ffn_dim * self.patch_embedding.weight.element_size()
        return tokens * (4 * width * (6 + len(self.wanted)) + max(inner, 4 * width * 6))

    def add_noise(self, latents: Tensor, noise: Tensor) -> Tensor:
        """x_t = (1 - sigma) x_0 + sigma eps, in float32."""
        return (1 - self.sigma) * latents.float() + self.sigma * noise.float()

    @torch.no_grad()
    def forward(self, noisy: Tensor) -> dict[int, Tensor]:
        """Run noised latents (B, 16, T', h, w) to the wanted blocks.

        Returns:
            block index -> (B, T', gh, gw, C) float32 residual stream, before any norm.
        """
        cos, sin = self.rope(noisy)
        rotary = cos[..., 0::2].contiguous(), sin[..., 1::2].contiguous()
        hidden = self.patch_embedding(noisy.to(self.dtype))
        grid = hidden.shape[2:]
        hidden = hidden.flatten(2).transpose(1, 2).float().contiguous()
        found: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, *rotary)
            if index in self.wanted:
                found[index] = hidden.unflatten(1, grid)
        return found

    @torch.no_grad()
    def velocity(self, noisy: Tensor) -> Tensor:
        """The model's own output, noise minus clean latents: (B, 16, T', h, w) -> the same shape, float32.

        Raises:
            UserError: the last block is not among the wanted ones, so the depth was cut.
        """
        if not hasattr(self, "head"):
            raise UserError(f"velocity: needs the full depth, so ask for block {self.config.num_layers - 1} too")
        hidden = self(noisy)[self.wanted[-1]].to(self.head.device)
        shift, scale = self.head.chunk(2, dim=1)
        normed = nn.functional.layer_norm(hidden, hidden.shape[-1:], 1 + scale[0, 0], shift[0, 0], self.config.eps)
        patches = self.proj_out(normed.to(self.dtype)).float().unflatten(-1, (*self.config.patch_size, -1))
        return patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
