"""Stage 1 of the embedded teacher: a small Wan VAE (`AutoencoderKLWan`), trained on procedural video.

First as an image autoencoder through folded 2D convolutions (three times cheaper: for one frame only the last temporal slice
of each causal kernel meets data), then, inflated with zero past slices, on 5-frame clips: only the temporal weights learn.

    python -m teacher.tiny train --stage codec
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample
from torch import Tensor, nn

from teacher.latents import FoldedConv, fold_single_frame
from teacher.tiny.loop import Stage, step_rng


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """What trains the VAE: widths, steps, batch sizes; 64 px frames as everything the embedded generator sees."""

    base_dim: int = 8
    image_steps: int = 1500
    image_batch: int = 24
    video_steps: int = 140
    video_batch: int = 4
    learning_rate: float = 3e-3
    kl_weight: float = 1e-5
    seed: int = 0


def train_codec(video: np.ndarray, work: Path, config: CodecConfig) -> AutoencoderKLWan:
    """Train on video (N, T, 64, 64, 3) uint8 and set the latent statistics in its config."""
    torch.manual_seed(config.seed)
    vae = AutoencoderKLWan(base_dim=config.base_dim, z_dim=16)
    frames = video.reshape(-1, *video.shape[2:])
    _train_images(vae, frames, work, config)
    _train_video(vae, video, work, config)
    _measure_latents(vae, frames, config)
    return vae.eval()


def as_images(frames: np.ndarray) -> Tensor:
    """(B, ..., H, W, 3) uint8 -> float in [-1, 1] with channels before H and W."""
    return torch.from_numpy(frames).movedim(-1, -3).float().div_(127.5).sub_(1)


def reconstruction_loss(output: Tensor, target: Tensor, mean: Tensor, logvar: Tensor, kl_weight: float) -> dict[str, Tensor]:
    """L1 + 2 MSE on pixels and a light KL to the unit normal; PSNR in dB (range 2) is logged."""
    mse = (output - target).square().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = (output - target).abs().mean() + 2 * mse + kl_weight * kl
    return {"loss": loss, "psnr": 10 * torch.log10(4 / mse.detach()), "kl": kl.detach()}


def sample(mean: Tensor, logvar: Tensor, rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32))
    return mean + (0.5 * logvar).exp() * noise


def _train_images(vae: AutoencoderKLWan, frames: np.ndarray, work: Path, config: CodecConfig) -> None:
    flat = nn.ModuleDict(
        {name: fold_single_frame(getattr(vae, name)) for name in ("encoder", "quant_conv", "post_quant_conv", "decoder")}
    )
    flat.requires_grad_(True)
    parameters = list({id(p): p for p in flat.parameters()}.values())
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=1e-4, betas=(0.9, 0.98))

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(config.seed, step)
        images = as_images(frames[rng.integers(0, len(frames), config.image_batch)])[:, :, None]
        with torch.autocast("cpu", torch.bfloat16):
            mean, logvar = flat["quant_conv"](flat["encoder"](images)).float().chunk(2, dim=1)
            logvar = logvar.clamp(-12, 4)
            output = flat["decoder"](flat["post_quant_conv"](sample(mean, logvar, rng))).float()
        return reconstruction_loss(output, images, mean, logvar, config.kl_weight)

    Stage("codec_image", work, {"flat": flat}, [optimizer]).run(loss, config.image_steps)
    for name, folded in flat.items():
        _inflate(getattr(vae, name), folded)


def _inflate(module: nn.Module, folded: nn.Module) -> None:
    """Write folded 2D weights into the last temporal slice; past slices start at zero (an image model on every frame)."""
    if isinstance(module, WanCausalConv3d) and isinstance(folded, FoldedConv):
        with torch.no_grad():
            last = folded.weight.clone()  # a 1x1x1 kernel and its folded form share their storage
            module.weight.zero_()
            module.weight[:, :, -1] = last
        return
    for name, child in module.named_children():
        _inflate(child, getattr(folded, name))


@torch.no_grad()
def _start_temporal(vae: AutoencoderKLWan) -> None:
    """Temporal strides start as "keep the last frame of a pair" and "show it twice": already a usable video codec."""
    for module in vae.modules():
        if not isinstance(module, WanResample) or not hasattr(module, "time_conv"):
            continue
        weight, bias = module.time_conv.weight, module.time_conv.bias
        weight.zero_()
        bias.zero_()
        identity = torch.eye(weight.shape[1])
        weight[:, :, -1, 0, 0] = identity.repeat(weight.shape[0] // weight.shape[1], 1)


def _temporal_parameters(vae: AutoencoderKLWan) -> list[nn.Parameter]:
    """Only what a single frame never meets: time convolutions and the past slices of causal kernels.

    Training everything on video cost the single-frame path 8 dB in a few minutes; so it stays exactly as it was.
    """
    vae.requires_grad_(False)
    chosen = []
    for name, module in vae.named_modules():
        if not isinstance(module, WanCausalConv3d) or module.kernel_size[0] == 1:
            continue
        chosen.append(module.weight.requires_grad_(True))
        if name.endswith("time_conv"):
            chosen.append(module.bias.requires_grad_(True))
        else:
            past = torch.ones_like(module.weight)
            past[:, :, -1] = 0
            module.weight.register_hook(lambda gradient, past=past: gradient * past)
    return chosen


def _train_video(vae: AutoencoderKLWan, video: np.ndarray, work: Path, config: CodecConfig) -> None:
    _start_temporal(vae)
    optimizer = torch.optim.AdamW(_temporal_parameters(vae), lr=0.5 * config.learning_rate, weight_decay=0.0, betas=(0.9, 0.98))

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(config.seed + 1, step)
        starts = rng.integers(0, video.shape[1] - 4, config.video_batch)
        rows = rng.integers(0, len(video), config.video_batch)
        clips = as_images(np.stack([video[row, start : start + 5] for row, start in zip(rows, starts, strict=True)]))
        clips = clips.transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16):
            mean, logvar = vae._encode(clips).float().chunk(2, dim=1)
            logvar = logvar.clamp(-12, 4)
            output = vae._decode(sample(mean, logvar, rng)).sample.float()
        return reconstruction_loss(output, clips, mean, logvar, config.kl_weight)

    Stage("codec_video", work, {"vae": vae}, [optimizer]).run(loss, config.video_steps)
    vae.requires_grad_(True)


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLWan, frames: np.ndarray, config: CodecConfig) -> None:
    """Per-channel mean and standard deviation of posterior means, written into the VAE's config as Wan does."""
    rows = np.random.default_rng(config.seed).integers(0, len(frames), 512)
    encoder, quant_conv = fold_single_frame(vae.encoder), fold_single_frame(vae.quant_conv)
    means = [quant_conv(encoder(as_images(frames[chunk])[:, :, None])).chunk(2, dim=1)[0] for chunk in np.split(rows, 16)]
    latents = torch.cat(means).transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())
