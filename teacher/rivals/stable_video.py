"""Stable Video Diffusion (img2vid): clips of eight frames through its U-Net, read where the mid block begins.

The clean latents of all frames are also given to the network as its image condition, as in the reference, so a feature can
know the frame at any sigma.

    python -c "from teacher.rivals import load_rival; load_rival('svd', 'PATH')"
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor
from transformers import CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from teacher.rivals.base import NoisedRival, RivalConfig
from teacher.rivals.folder import Folder
from teacher.rivals.schedules import VarianceExploding
from teacher.rivals.stable_diffusion import cut_unet, encode_images, unet_multiple

FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION = 6.0, 127.0, 0.02  # spec/vega3d.md 3.3


class StableVideo(NoisedRival):
    """Tap i is the output of down block i; the last (default) is what enters the mid block: 1280 channels at 1/64.

    Only the conditional half of the reference's guided pair is run. sigma 700 is what the reference uses by accident.
    """

    clip_length = 8

    def __init__(
        self,
        config: RivalConfig,
        unet: UNetSpatioTemporalConditionModel,
        vae: AutoencoderKLTemporalDecoder,
        image_encoder: CLIPVisionModelWithProjection,
        device: str | torch.device = "cpu",
    ) -> None:
        widths = unet.config.block_out_channels
        super().__init__(config, list(unet.down_blocks), widths, unet_multiple(vae, unet), device)
        self.schedule = VarianceExploding(config.sigma)
        self.unet, self.vae = cut_unet(unet, self.wanted[-1]).to(self.device), vae.to(self.device)
        self.image_encoder = image_encoder.to(self.device)

    def latents(self, clips: Tensor) -> Tensor:
        return encode_images(self.vae, clips)

    def denoise(self, clips: Tensor, latents: Tensor, noisy: Tensor) -> dict[int, Tensor]:
        condition = latents / self.vae.config.scaling_factor  # the pipeline concatenates them unscaled
        both = torch.cat([noisy, condition], dim=2).to(self.unet.dtype)
        image = self._image(clips[:, 0]).to(both)
        ids = both.new_tensor([[FPS_ID, MOTION_BUCKET, NOISE_AUGMENTATION]]).expand(len(both), -1)
        time = torch.tensor(self.schedule.timestep, device=self.device)
        found = self.taps.run(lambda: self.unet(both, time, encoder_hidden_states=image, added_time_ids=ids))
        return {index: value.unflatten(0, both.shape[:2]) for index, value in found.items()}

    def _image(self, images: Tensor) -> Tensor:
        """First frames (B, 3, H, W) in [0, 1] -> (B, 1, D) CLIP embeddings, prepared as the pipeline does."""
        side = self.image_encoder.config.image_size
        small = (_resize_with_antialiasing(images * 2 - 1, (side, side)) + 1) / 2
        mean, std = (small.new_tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        return self.image_encoder((small - mean) / std).image_embeds[:, None]


def load(folder: Folder, config: RivalConfig, device: str | torch.device) -> StableVideo:
    """Read unet/, vae/ and image_encoder/."""
    unet = folder.network("unet", UNetSpatioTemporalConditionModel)
    vae = folder.part("vae", AutoencoderKLTemporalDecoder)
    return StableVideo(config, unet, vae, folder.part("image_encoder", CLIPVisionModelWithProjection), device)
