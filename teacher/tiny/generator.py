"""Stage 2 of the embedded teacher: a small Wan video DiT (`WanTransformer3DModel`), trained by flow matching on latents.

Two models come out. `generative` has seen nothing but pixels: the flow-matching loss on video and single frames. `geometry`
continues from it with four more output channels that regress log depth and world position: direct supervision of what the
depth probe asks, and called so wherever it is used.

    python -m teacher.tiny train --stage generative
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from teacher.latents import LatentEncoder
from teacher.tiny.loop import Stage, muon_and_adamw, step_rng

TEXT_DIM = 32


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Widths after spec/prototype.md 6; video and image batches of about the same number of tokens."""

    heads: int = 4
    head_dim: int = 32
    ffn_dim: int = 384
    layers: int = 8
    steps: int = 3000
    video_batch: int = 4
    image_batch: int = 20
    image_fraction: float = 0.35
    context_fraction: float = 0.5
    shift: float = 3.0
    muon_lr: float = 0.02
    adamw_lr: float = 1e-3
    geometry_steps: int = 2400
    geometry_image_fraction: float = 0.5
    geometry_weight: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class LatentVideos:
    """Training latents: video (N, 5, 16, h, w), images (M, 16, h, w); for `geometry` the targets of each, with 4 channels."""

    video: np.ndarray
    images: np.ndarray
    geometry: np.ndarray
    image_geometry: np.ndarray


def build(config: GeneratorConfig, out_channels: int = 16) -> WanTransformer3DModel:
    """A Wan transformer of the embedded size with seeded fresh weights."""
    torch.manual_seed(config.seed)
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=config.heads,
        attention_head_dim=config.head_dim,
        in_channels=16,
        out_channels=out_channels,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=config.ffn_dim,
        num_layers=config.layers,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


@torch.no_grad()
def encode_videos(vae: AutoencoderKLWan, video: np.ndarray) -> np.ndarray:
    """(N, T, H, W, 3) uint8 -> (N, T', 16, h, w) float16 normalised latents, clip by clip."""
    encoder = LatentEncoder(vae)
    clips = [encoder.clip(torch.from_numpy(clip).movedim(-1, 1).float() / 255)[0].transpose(0, 1) for clip in video]
    return torch.stack(clips).half().numpy()


@torch.no_grad()
def encode_images(vae: AutoencoderKLWan, frames: np.ndarray, batch: int = 64) -> np.ndarray:
    """(N, H, W, 3) uint8 -> (N, 16, h, w) float16 normalised latents, each frame alone."""
    encoder = LatentEncoder(vae, batch=batch)
    chunks = np.array_split(frames, max(1, len(frames) // 512))
    return np.concatenate(
        [encoder.frames(torch.from_numpy(c).movedim(-1, 1).float() / 255)[:, :, 0].half().numpy() for c in chunks]
    )


def frame_sigmas(rng: np.random.Generator, batch: int, frames: int, config: GeneratorConfig) -> np.ndarray:
    """Noise level per frame (B, T): independent ("diffusion forcing"), some frames nearly clean as context for the others."""
    uniform = rng.random((batch, frames))
    sigmas = config.shift * uniform / (1 + (config.shift - 1) * uniform)
    if frames > 1:
        context = (rng.random((batch, frames)) < 0.4) & (rng.random((batch, 1)) < config.context_fraction)
        sigmas = np.where(context, 0.1 * uniform, sigmas)
    return sigmas.astype(np.float32)


def flow_loss(model: WanTransformer3DModel, clean: Tensor, sigmas: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Flow matching on (B, T, 16, h, w): predict eps - x0 from (1 - sigma) x0 + sigma eps.

    Returns:
        the mean squared error per frame (B, T) and whatever the model put out beyond 16 channels (B, T, extra, h, w).
    """
    batch, _, _, height, width = clean.shape
    level = sigmas[:, :, None, None, None]
    noisy = (1 - level) * clean + level * noise
    timestep = (1000 * sigmas)[:, :, None].expand(-1, -1, height * width).reshape(batch, -1)
    context = clean.new_zeros(batch, 1, TEXT_DIM)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(noisy.transpose(1, 2), timestep, context).sample
    output = output.float().transpose(1, 2)
    return (output[:, :, :16] - (noise - clean)).square().mean((2, 3, 4)), output[:, :, 16:]


def train_generator(data: LatentVideos, work: Path, config: GeneratorConfig) -> WanTransformer3DModel:
    """The purely generative model."""
    model = build(config)

    def loss(step: int) -> dict[str, Tensor]:
        error, _ = flow_loss(model, *_batch(data, step, config, config.image_fraction)[:3])
        return {"loss": error.mean()}

    optimizers = muon_and_adamw(model, config.muon_lr, config.adamw_lr)
    Stage("generative", work, {"model": model}, optimizers).run(loss, config.steps)
    return model.eval()


def train_geometry(
    generative: WanTransformer3DModel, data: LatentVideos, work: Path, config: GeneratorConfig
) -> WanTransformer3DModel:
    """The auxiliary model: continues from `generative`, also regressing (log depth - 1) / 0.5 and xyz / 2 per cell.

    xyz is in metres, in the camera of the first frame.
    """
    model = build(config, out_channels=20)
    state = generative.state_dict()
    for name in ("proj_out.weight", "proj_out.bias"):
        state[name] = torch.cat([state[name], 0.02 * model.state_dict()[name][16:]])
    model.load_state_dict(state)

    def loss(step: int) -> dict[str, Tensor]:
        clean, sigmas, noise, target = _batch(data, step + 10**6, config, config.geometry_image_fraction)
        error, extra = flow_loss(model, clean, sigmas, noise)
        geometry = (extra - target).square().clamp(max=9).mean()
        return {"loss": error.mean() + config.geometry_weight * geometry, "flow": error.mean(), "geometry": geometry}

    optimizers = muon_and_adamw(model, config.muon_lr, config.adamw_lr)
    Stage("geometry", work, {"model": model}, optimizers).run(loss, config.geometry_steps)
    return model.eval()


def _batch(
    data: LatentVideos, step: int, config: GeneratorConfig, image_fraction: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clean latents (B, T, 16, h, w), sigmas (B, T), noise and geometry targets (B, T, 4, h, w) of one step."""
    rng = step_rng(config.seed, step)
    if rng.random() < image_fraction:
        rows = rng.integers(0, len(data.images), config.image_batch)
        clean, target = data.images[rows][:, None], data.image_geometry[rows][:, None]
    else:
        rows = rng.integers(0, len(data.video), config.video_batch)
        clean, target = data.video[rows], data.geometry[rows]
    sigmas = frame_sigmas(rng, clean.shape[0], clean.shape[1], config)
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    return (
        torch.from_numpy(clean.astype(np.float32)),
        torch.from_numpy(sigmas),
        torch.from_numpy(noise),
        torch.from_numpy(target.astype(np.float32)),
    )
