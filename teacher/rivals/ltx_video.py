"""LTX-Video: a video diffusion transformer on very small latents (1/32), not in the reference (arXiv 2501.00103).

python -c "from teacher.rivals import load_rival; load_rival('ltx-video', 'PATH')"
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLLTXVideo, LTXPipeline, LTXVideoTransformer3DModel
from torch import Tensor

from teacher.rivals.base import RivalConfig
from teacher.rivals.folder import Folder
from teacher.rivals.schedules import FlowMatching
from teacher.rivals.video_dit import VideoTransformer
from vega_artifact import UserError

FRAME_RATE = 25  # the pipeline's default; rotary positions are in seconds


class LtxVideo(VideoTransformer):
    """LTX-Video 2b; 2048 channels after each of 28 blocks.

    Args:
        prompt: (1, rows, text width) encoding of the empty prompt, masked rows left out: attention gives those no weight.
    """

    def __init__(
        self,
        config: RivalConfig,
        transformer: LTXVideoTransformer3DModel,
        vae: AutoencoderKLLTXVideo,
        prompt: Tensor,
        device: str | torch.device = "cpu",
    ) -> None:
        if (transformer.config.patch_size, transformer.config.patch_size_t) != (1, 1):
            raise UserError(f"{config.name}: an LTX-Video transformer with patch size 1 expected")
        super().__init__(
            config,
            transformer,
            vae,
            FlowMatching(config.sigma),
            stacks=["transformer_blocks"],
            group=vae.temporal_compression_ratio,
            stride=vae.spatial_compression_ratio,
            patch=1,
            device=device,
        )
        self.prompt = prompt.to(self.device, transformer.dtype)

    def normalised(self, latents: Tensor) -> Tensor:
        mean, std = (value.float().view(1, -1, 1, 1, 1).to(latents) for value in (self.vae.latents_mean, self.vae.latents_std))
        return (latents - mean) * self.vae.config.scaling_factor / std

    def run(self, noisy: Tensor, time: Tensor) -> object:
        batch, frames, _, height, width = noisy.shape
        return self.transformer(
            noisy.permute(0, 1, 3, 4, 2).flatten(1, 3),
            encoder_hidden_states=self.prompt.expand(batch, -1, -1),
            timestep=time,
            encoder_attention_mask=torch.ones(batch, self.prompt.shape[1], device=self.device),
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.group / FRAME_RATE, self.multiple, self.multiple),
        )


def load(folder: Folder, config: RivalConfig, device: str | torch.device) -> LtxVideo:
    """Read transformer/, vae/ and, once, the text encoder."""
    transformer = folder.network("transformer", LTXVideoTransformer3DModel)
    vae = folder.part("vae", AutoencoderKLLTXVideo)
    text = folder.text(LTXPipeline, ("transformer", "vae", "scheduler"))
    with torch.no_grad():
        rows, mask, _, _ = text.encode_prompt("", do_classifier_free_guidance=False, device=torch.device("cpu"))
    return LtxVideo(config, transformer, vae, rows[mask.bool()][None], device)
