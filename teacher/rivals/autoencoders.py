"""The autoencoders alone: how much 3D a generator's latent code knows before any generating.

python -c "from teacher.rivals import load_rival; load_rival('wan-vae', 'PATH')"
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, AutoencoderKLWan
from torch import Tensor

from teacher.latents import LatentEncoder
from teacher.rivals.base import CleanRival, RivalConfig
from teacher.rivals.folder import Folder
from teacher.rivals.stable_diffusion import encode_images


class StableAutoencoder(CleanRival):
    """Stable Diffusion's image autoencoder: tap 0 is the posterior mode times 0.18215, 4 channels at 1/8."""

    def __init__(self, config: RivalConfig, vae: AutoencoderKL, device: str | torch.device = "cpu") -> None:
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        super().__init__(config, [vae], [vae.config.latent_channels], stride, device)
        self.vae = vae.to(self.device)

    def encode(self, clips: Tensor) -> dict[int, Tensor]:
        return {0: encode_images(self.vae, clips)}


class WanAutoencoder(CleanRival):
    """Wan's video autoencoder: tap 0 is the normalised posterior mode, 16 channels at 1/8; 1 + (L - 1) / 4 maps per clip."""

    def __init__(self, config: RivalConfig, vae: AutoencoderKLWan, device: str | torch.device = "cpu") -> None:
        super().__init__(config, [vae], [vae.config.z_dim], int(vae.config.scale_factor_spatial), device)
        self.encoder = LatentEncoder(vae, dtype=vae.dtype).to(self.device)
        self.group = int(vae.config.scale_factor_temporal)

    def kept(self, length: int) -> list[int]:
        return [0, *range(1, length - self.group + 1, self.group)]

    def encode(self, clips: Tensor) -> dict[int, Tensor]:
        if self.config.mode == "frame":
            return {0: self.encoder.frames(clips[:, 0]).transpose(1, 2)}
        return {0: torch.cat([self.encoder.clip(clip) for clip in clips]).transpose(1, 2)}


def _home(folder: Folder) -> str:
    """The autoencoder's folder may be given itself, or the checkpoint it is a part of."""
    return "vae" if (folder.path / "vae").is_dir() else ""


def load_stable(folder: Folder, config: RivalConfig, device: str | torch.device) -> StableAutoencoder:
    return StableAutoencoder(config, folder.network(_home(folder), AutoencoderKL), device)


def load_wan(folder: Folder, config: RivalConfig, device: str | torch.device) -> WanAutoencoder:
    return WanAutoencoder(config, folder.network(_home(folder), AutoencoderKLWan), device)
