"""Stable Diffusion 2.1: an image generator's U-Net, frame by frame, read where its mid block begins.

python -c "from teacher.rivals import load_rival; load_rival('sd2.1', 'PATH')"
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from teacher.rivals.base import NoisedRival, RivalConfig
from teacher.rivals.folder import Folder
from teacher.rivals.schedules import VariancePreserving

NOT_TEXT = ("unet", "vae", "scheduler", "safety_checker", "feature_extractor", "image_encoder")


class StableDiffusion(NoisedRival):
    """Tap i is the output of down block i; the last (default) is what enters the mid block: 1280 channels at 1/64.

    Args:
        prompt: (1, 77, text width) encoding of the empty prompt.
        alphas_cumprod: (1000,) abar of the training schedule.
    """

    def __init__(
        self,
        config: RivalConfig,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        prompt: Tensor,
        alphas_cumprod: Tensor,
        device: str | torch.device = "cpu",
    ) -> None:
        widths = unet.config.block_out_channels
        super().__init__(config, list(unet.down_blocks), widths, unet_multiple(vae, unet), device)
        self.schedule = VariancePreserving(alphas_cumprod, config.sigma)
        self.unet, self.vae = cut_unet(unet, self.wanted[-1]).to(self.device), vae.to(self.device)
        self.prompt = prompt.to(self.device, unet.dtype)

    def latents(self, clips: Tensor) -> Tensor:
        return encode_images(self.vae, clips)

    def denoise(self, clips: Tensor, latents: Tensor, noisy: Tensor) -> dict[int, Tensor]:
        prompt = self.prompt.expand(len(noisy), -1, -1)
        noisy = noisy[:, 0].to(self.unet.dtype)
        found = self.taps.run(lambda: self.unet(noisy, self.schedule.timestep, encoder_hidden_states=prompt))
        return {index: value[:, None] for index, value in found.items()}


def unet_multiple(vae: AutoencoderKL, unet: nn.Module) -> int:
    """Pixels per cell of the U-Net's deepest map: 64 for the published ones."""
    return int(2 ** (len(vae.config.block_out_channels) - 1 + len(unet.config.block_out_channels) - 1))


def cut_unet(unet: nn.Module, last: int) -> nn.Module:
    """Drop what lies behind down block `last`; it never runs, so only memory is saved."""
    unet.down_blocks = unet.down_blocks[: last + 1]
    unet.mid_block, unet.up_blocks = None, nn.ModuleList()
    return unet


def encode_images(vae: AutoencoderKL, clips: Tensor) -> Tensor:
    """(B, L, 3, H, W) in [0, 1] -> (B, L, 4, H/8, W/8): posterior mode, times the scaling factor (0.18215)."""
    images = clips.flatten(0, 1).to(vae.dtype) * 2 - 1
    mode = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    return mode.float().unflatten(0, clips.shape[:2])


def load(folder: Folder, config: RivalConfig, device: str | torch.device) -> StableDiffusion:
    """Read unet/, vae/, scheduler/ and, once, the text encoder."""
    unet = folder.network("unet", UNet2DConditionModel)
    vae = folder.part("vae", AutoencoderKL)
    text = folder.text(StableDiffusionPipeline, NOT_TEXT, requires_safety_checker=False)
    with torch.no_grad():
        prompt, _ = text.encode_prompt("", "cpu", 1, do_classifier_free_guidance=False)
    return StableDiffusion(config, unet, vae, prompt, folder.schedule(DDIMScheduler), device)
