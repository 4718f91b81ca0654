"""Photometric augmentation of the student's view: brightness, contrast, saturation, colour balance. Nothing geometric.

The teacher saw the plain frame and its features sit where things are, so flips and crops would tell the student lies.
Everything is one 3x3 matrix and one offset per image, hence a single matrix product together with the normalisation.

    python -m pytest tests/distill/test_augment.py -q
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
STREAM_TAG = 0x6A69747465  # keeps these draws apart from the shuffles, which use the same seed


def draw_factors(seed: int, samples: np.ndarray, strength: float) -> Tensor:
    """Random factors (B, 6) float32 around 1: brightness, contrast, saturation, red, green, blue.

    Args:
        samples: running number of each training sample (step * batch + i): each has its own random stream, so neither
            the number of processes nor an interruption changes what a sample looks like.
        strength: largest relative change; a quarter of it for the colour balance.
    """
    draws = np.stack([np.random.default_rng([STREAM_TAG, seed, int(sample)]).uniform(-1, 1, 6) for sample in samples])
    spread = strength * np.array([1, 1, 1, 0.25, 0.25, 0.25])
    return torch.from_numpy((1 + spread * draws).astype(np.float32))


def prepare(images: Tensor, factors: Tensor | None, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> augmented, normalised float32 (B, 3, H, W).

    Without factors: (x / 255 - mean) / std. With them: gains, then contrast about the image's mean grey, then saturation,
    clipped to [0, 1] as a camera would, then normalised.
    """
    pixels = images.permute(0, 3, 1, 2).flatten(2).float().div_(255)  # (B, 3, H*W)
    if factors is not None:
        matrix, offset = _colour_map(pixels, factors.to(pixels.device))
        pixels = torch.baddbmm(offset, matrix, pixels).clamp_(0, 1)
    pixels = pixels.sub_(mean.view(3, 1)).div_(std.view(3, 1))
    return pixels.unflatten(2, images.shape[1:3])


def _colour_map(pixels: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (B, 3, 3) and offsets (B, 3, 1) that do all changes at once."""
    brightness, contrast, saturation = (factors[:, k].view(-1, 1, 1) for k in range(3))
    luma = torch.tensor(LUMA, device=pixels.device)
    gains = torch.diag_embed(factors[:, 3:]) * brightness
    saturate = saturation * torch.eye(3, device=pixels.device) + (1 - saturation) * luma.expand(3, 3)
    # The mean grey after the gains needs only the mean of each channel; grey is what saturation leaves alone.
    grey = luma.view(1, 1, 3) @ gains @ pixels.mean(2, keepdim=True)
    return contrast * saturate @ gains, ((1 - contrast) * grey).expand(-1, 3, 1)
