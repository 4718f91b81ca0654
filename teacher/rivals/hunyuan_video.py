"""HunyuanVideo: a 13b video diffusion transformer, not in the reference (arXiv 2412.03603).

python -c "from teacher.rivals import load_rival; load_rival('hunyuan-video', 'PATH')"
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from torch import Tensor

from teacher.rivals.base import RivalConfig
from teacher.rivals.folder import Folder
from teacher.rivals.schedules import FlowMatching
from teacher.rivals.video_dit import VideoTransformer
from vega_artifact import UserError

GUIDANCE = 6.0 * 1000  # distilled guidance scale the model is run with by its authors, in the unit its embedding expects


class HunyuanVideo(VideoTransformer):
    """Blocks 0..19 keep video and text apart, 20..59 run them as one; 3072 channels, read after block 41 by default.

    Args:
        prompt: (1, rows, 4096) states of the empty prompt, masked rows left out: attention gives those no weight.
        pooled: (1, 768) CLIP summary of the empty prompt.
    """

    def __init__(
        self,
        config: RivalConfig,
        transformer: HunyuanVideoTransformer3DModel,
        vae: AutoencoderKLHunyuanVideo,
        prompt: Tensor,
        pooled: Tensor,
        device: str | torch.device = "cpu",
    ) -> None:
        if transformer.config.image_condition_type is not None or transformer.config.patch_size_t != 1:
            raise UserError(f"{config.name}: the text-to-video HunyuanVideo expected, this one is conditioned on an image")
        super().__init__(
            config,
            transformer,
            vae,
            FlowMatching(config.sigma),
            stacks=["transformer_blocks", "single_transformer_blocks"],
            group=vae.temporal_compression_ratio,
            stride=vae.spatial_compression_ratio,
            patch=transformer.config.patch_size,
            device=device,
        )
        self.prompt, self.pooled = (value.to(self.device, transformer.dtype) for value in (prompt, pooled))

    def normalised(self, latents: Tensor) -> Tensor:
        return latents * self.vae.config.scaling_factor

    def run(self, noisy: Tensor, time: Tensor) -> object:
        batch = len(noisy)
        guided = self.transformer.config.guidance_embeds
        return self.transformer(
            noisy.transpose(1, 2),
            timestep=time,
            encoder_hidden_states=self.prompt.expand(batch, -1, -1),
            encoder_attention_mask=torch.ones(batch, self.prompt.shape[1], device=self.device),
            pooled_projections=self.pooled.expand(batch, -1),
            guidance=torch.full((batch,), GUIDANCE, device=self.device) if guided else None,  # bfloat16 cannot hold 6000
        )


def load(folder: Folder, config: RivalConfig, device: str | torch.device) -> HunyuanVideo:
    """Read transformer/, vae/ and, once, both text encoders."""
    transformer = folder.network("transformer", HunyuanVideoTransformer3DModel)
    vae = folder.part("vae", AutoencoderKLHunyuanVideo)
    text = folder.text(HunyuanVideoPipeline, ("transformer", "vae", "scheduler"))
    with torch.no_grad():
        rows, pooled, mask = text.encode_prompt("", device=torch.device("cpu"))
    return HunyuanVideo(config, transformer, vae, rows[mask.bool()][None], pooled, device)
