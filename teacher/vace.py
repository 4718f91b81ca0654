"""WAN-VACE as a teacher: the video DiT with its control branch, which sees the clean frames beside the noised ones.

For every frame the control context is [first frame of the clip as reference | the frame]: 96 channels, of which 16 are an
encoded grey image, 16 the frame itself and 64 a mask of ones; the reference half has the reference in the first 16 and zeros
elsewhere. Even blocks add a hint from the control branch, so block 20 carries hint 10 (spec/vega3d.md 3.4).

Two read-outs:
- "corrected" (default): the noised video has the same two latent frames as the context, as VACE was trained, and the frame's
  own tokens are read.
- "padded": VEGA-3D's code noises one latent frame but reads where the second would be. Those tokens start as zero padding, have
  no rotary position and are keys for nobody; they know the frame only through the hints. Kept to reproduce its numbers.

Features depend on the clip's first frame as the reference image in either case.

    python -c "from teacher import load_teacher; load_teacher('wan2.1-vace-1.3b=FOLDER')"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanVACETransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F

from teacher.chunks import frames_per_chunk
from teacher.features import Features, Teacher, TeacherConfig
from teacher.framing import as_unit_images, frame_images
from teacher.frozen_block import FrozenBlock, rotate
from teacher.simulator import WanSimulator
from vega_artifact import UserError, unknown_name

READOUTS = ("corrected", "padded")
MASK_CHANNELS = 64  # one per pixel of an 8x8 latent cell
GREY = 0.5  # the "zero image" of the [-1, 1] range


@dataclass(frozen=True, kw_only=True)
class VaceConfig(TeacherConfig):
    """Everything that changes a VACE feature.

    Attributes:
        readout: "corrected" or "padded"; see the module's text.
    """

    readout: str = "corrected"


class PrefixBlock(FrozenBlock):
    """A block in which only the first tokens, as many as there are rotary positions, are keys; the rest only ask."""

    def _attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attention, real = self.attn1, cos.shape[1]
        heads = (attention.heads, -1)
        query = attention.norm_q(attention.to_q(x)).unflatten(2, heads)
        query = torch.cat([rotate(query[:, :real], cos, sin), query[:, real:]], dim=1)
        key = rotate(attention.norm_k(attention.to_k(x[:, :real])).unflatten(2, heads), cos, sin)
        value = attention.to_v(x[:, :real]).unflatten(2, heads)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attention.to_out[0](mixed.transpose(1, 2).flatten(2))


class VaceSimulator(WanSimulator):
    """The simulator with VACE's control branch; arguments as there, `readout` as in `VaceConfig`."""

    def __init__(
        self,
        transformer: WanVACETransformer3DModel,
        blocks: Sequence[int],
        prompt_embeds: Tensor,
        sigma: float,
        shift: float,
        text_rows: int,
        readout: str,
        compile: bool = False,
    ) -> None:
        super().__init__(transformer, blocks, prompt_embeds, sigma, shift, text_rows)
        _, *constants = self._constants(transformer, prompt_embeds, text_rows)
        self.hint_at = [layer for layer in transformer.config.vace_layers if layer <= self.wanted[-1]]
        control = transformer.vace_blocks[: len(self.hint_at)]
        self.blocks = nn.ModuleList(PrefixBlock(block, *constants) for block in transformer.blocks[: self.wanted[-1] + 1])
        self.control_blocks = nn.ModuleList(PrefixBlock(block, *constants) for block in control)
        self.control_embedding, self.control_in = transformer.vace_patch_embedding, control[0].proj_in
        self.control_out = nn.ModuleList(block.proj_out for block in control)
        self.readout = readout
        if compile:
            for block in (*self.blocks, *self.control_blocks):
                block.compile()

    def context(self, reference: Tensor, grey: Tensor, clean: Tensor) -> Tensor:
        """The control input of a clip.

        Args:
            reference: (1, 16, 1, h, w) latents of the reference frame; grey, clean: (B or 1, 16, T', h, w).
        Returns:
            (B, 96, 1 + T', h, w): inactive, reactive and mask channels.
        """
        ones = clean.new_ones(len(clean), MASK_CHANNELS, *clean.shape[2:])
        now = torch.cat([grey.expand_as(clean), clean, ones], dim=1)
        first = reference.expand(len(clean), -1, -1, -1, -1)
        empty = first.new_zeros(len(clean), now.shape[1] - first.shape[1], *first.shape[2:])
        return torch.cat([torch.cat([first, empty], dim=1), now], dim=2)

    @torch.no_grad()
    def forward(self, noisy: Tensor, context: Tensor) -> dict[int, Tensor]:  # type: ignore[override]
        """Run noised latents to the wanted blocks.

        Args:
            noisy: (B, 16, 1 + T', h, w), or in the padded read-out (B, 16, 1, h, w).
            context: (B, 96, 1 + T', h, w).
        Returns:
            block index -> (B, T', gh, gw, C) float32 residual stream with the hints, without the reference's tokens.
        """
        cos, sin = self.rope(noisy)
        rotary = cos[..., 0::2].contiguous(), sin[..., 1::2].contiguous()
        hidden = self.patch_embedding(noisy.to(self.dtype)).flatten(2).transpose(1, 2).float()
        control = self.control_embedding(context.to(self.dtype))
        grid = control.shape[2:]
        control = control.flatten(2).transpose(1, 2).float()
        hidden = F.pad(hidden, (0, 0, 0, control.shape[1] - hidden.shape[1]))
        control = self.control_in(control.to(self.dtype)).float() + hidden
        found: dict[int, Tensor] = {}
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, *rotary)
            if index in self.hint_at:
                step = self.hint_at.index(index)
                control = self.control_blocks[step](control, *rotary)
                hint = self.control_out[step](control.to(self.dtype))
                hidden = hidden + hint.to(hidden)
            if index in self.wanted:
                found[index] = hidden.unflatten(1, grid)[:, 1:]
        return found


class VaceTeacher(Teacher):
    """A VACE checkpoint behind the teacher's interface; arguments as for `Teacher`."""

    config: VaceConfig
    simulator: VaceSimulator

    def __init__(
        self,
        transformer: WanVACETransformer3DModel,
        vae: AutoencoderKLWan,
        prompt_embeds: Tensor,
        config: VaceConfig,
        device: str | torch.device = "cpu",
        batch: int = 32,
        memory: float | None = None,
        compile: bool = False,
    ) -> None:
        if config.readout not in READOUTS:
            raise unknown_name("read-out", config.readout, READOUTS)
        if config.readout == "padded" and config.mode != "frame":
            raise UserError(f"mode {config.mode!r}: the padded read-out exists for single frames only, use mode 'frame'")
        super().__init__(transformer, vae, prompt_embeds, config, device, batch, memory, compile)
        settings: dict[str, Any] = {"sigma": config.sigma, "shift": config.shift, "text_rows": config.text_rows}
        simulator = VaceSimulator(
            transformer, config.blocks, prompt_embeds, readout=config.readout, compile=compile, **settings
        )
        self.simulator = simulator.to(self.device)

    @torch.no_grad()
    def features(
        self,
        frames: np.ndarray | Tensor,
        noise: Tensor | None = None,
        scene_id: str = "",
        frame_ids: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> Features:
        """Features of one clip, whose first frame is the reference image; arguments and errors as in `Teacher.features`.

        Noise is that of the same frame in a text-to-video teacher; the reference's own noise is always seeded.
        """
        raw = as_unit_images(torch.as_tensor(frames).to(self.device))
        images = frame_images(raw, self.config.crop, self.config.size, self.multiple)
        ids = list(range(len(images))) if frame_ids is None else list(frame_ids)
        encode = self.latents.frames if self.config.mode == "frame" else self.latents.clip
        clean, reference = encode(images), self.latents.frames(images[:1])
        grey = encode(torch.full_like(images[:1] if self.config.mode == "frame" else images, GREY))
        context = self.simulator.context(reference, grey, clean)
        if noise is not None and noise.shape != clean.shape:
            raise UserError(f"noise: shape {tuple(clean.shape)} expected like the latents, found {tuple(noise.shape)}")
        draws = self.config.draws if noise is None else 1
        total: dict[int, Tensor] = {}
        for draw in range(draws):
            drawn = self.noise(clean.shape, scene_id, ids, draw, seed) if noise is None else noise
            noisy = self.simulator.add_noise(clean, drawn.to(self.device))
            if self.config.readout == "corrected":
                noisy = torch.cat([self._noised_reference(reference, scene_id, ids, draw, seed), noisy], dim=2)
            for block, value in self._run(noisy, context).items():
                total[block] = total.get(block, 0) + value / draws
        maps = {block: value.cpu() for block, value in total.items()}
        return Features(maps, self.sigma, self.simulator.timestep, self.frame_index(len(images)))

    def _noised_reference(self, reference: Tensor, scene_id: str, ids: Sequence[int], draw: int, seed: int | None) -> Tensor:
        """The reference frame noised once per video, with its own seeded noise: (B, 16, 1, h, w)."""
        noise = self.noise(reference.shape, f"{scene_id}\x1freference", ids, draw, seed).to(self.device)
        return self.simulator.add_noise(reference, noise)

    def _run(self, noisy: Tensor, context: Tensor) -> dict[int, Tensor]:
        """Pooled float32 maps of every wanted block, one chunk of videos at a time."""
        tokens = context[0, 0].numel() // math.prod(self.simulator.config.patch_size)
        chunk = frames_per_chunk(self.simulator.frame_bytes(tokens), self.device, self.memory, self.batch)
        pairs = zip(noisy.split(chunk), context.split(chunk))
        parts = [{block: self._pool(value) for block, value in self.simulator(*pair).items()} for pair in pairs]
        return {block: torch.cat([part[block] for part in parts]) for block in self.wanted}
