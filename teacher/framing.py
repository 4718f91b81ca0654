"""Which pixels the teacher sees: value checks, resize and crop before the VAE.

The reference squashes frames to 384x384 and crops the middle 56 % of their rows, yet fuses the result with a full-frame grid
(spec/vega3d.md 1.3). `aligned` keeps the whole frame; `cover` and `reference` exist to reproduce published numbers.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vega_artifact import UserError, unknown_name

REFERENCE_SQUARE = 384


def as_unit_images(frames: np.ndarray | Tensor) -> Tensor:
    """Check frames and bring them to (T, 3, H, W) float32 in [0, 1].

    Args:
        frames: (T, H, W, 3) uint8, or (T, 3, H, W) float in [0, 1]. The range is stated by the dtype, never guessed.
    Raises:
        UserError: no frames, another shape, NaN, or floats outside [0, 1]; the first bad frame is named.
    """
    images = torch.as_tensor(frames)
    if images.ndim != 4 or len(images) == 0:
        raise UserError(
            f"frames: (T, H, W, 3) uint8 or (T, 3, H, W) float with T >= 1 expected, found shape {tuple(images.shape)}"
        )
    if images.dtype == torch.uint8:
        if images.shape[-1] != 3:
            raise UserError(f"frames: uint8 frames must be (T, H, W, 3), found {tuple(images.shape)}")
        return images.movedim(-1, 1).float() / 255
    if not images.is_floating_point() or images.shape[1] != 3:
        raise UserError(f"frames: float frames must be (T, 3, H, W), found {tuple(images.shape)} {images.dtype}")
    bad = ~torch.isfinite(images).flatten(1).all(1)
    if bad.any():
        raise UserError(f"frames: frame {int(bad.nonzero()[0])} holds NaN or infinity; drop it or decode it again")
    if images.min() < 0 or images.max() > 1:
        raise UserError(
            f"frames: float frames must lie in [0, 1], found {images.min():.3f} to {images.max():.3f}; divide by 255?"
        )
    return images.float()


def aligned_size(height: int, width: int, budget: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The (H, W), multiples of `multiple`, with the frame's aspect and about as many pixels as `budget`."""
    scale = math.sqrt(budget[0] * budget[1] / (height * width))
    return tuple(max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))  # type: ignore[return-value]


def frame_images(images: Tensor, crop: str, size: tuple[int, int], multiple: int) -> Tensor:
    """Resize (T, 3, H, W) in [0, 1] for the VAE.

    Args:
        crop: "aligned" (whole frame, antialiased), "cover" (scale to cover `size`, bilinear, centre crop), or "reference"
            (squash to 384x384 first, then cover).
        size: (H, W) in pixels; for "aligned" the pixel budget.
        multiple: latent stride times patch size, which both sides must divide by.
    """
    if crop not in CROPS:
        raise unknown_name("crop", crop, CROPS)
    if any(side % multiple for side in size):
        raise UserError(f"size {size}: both sides must be multiples of {multiple} for this teacher")
    return CROPS[crop](images, size, multiple)


def _aligned(images: Tensor, size: tuple[int, int], multiple: int) -> Tensor:
    target = aligned_size(*images.shape[2:], size, multiple)
    if tuple(images.shape[2:]) == target:
        return images
    return F.interpolate(images, target, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def _cover(images: Tensor, size: tuple[int, int], multiple: int) -> Tensor:
    height, width = images.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    target = (round(height * scale), round(width * scale))
    resized = F.interpolate(images, target, mode="bilinear", align_corners=False)
    top, left = (target[0] - size[0]) // 2, (target[1] - size[1]) // 2
    return resized[:, :, top : top + size[0], left : left + size[1]]


def _reference(images: Tensor, size: tuple[int, int], multiple: int) -> Tensor:
    # the reference squashes 8-bit frames with PIL's default (antialiased bicubic) and works on the rounded result
    square = F.interpolate(images, (REFERENCE_SQUARE,) * 2, mode="bicubic", align_corners=False, antialias=True)
    return _cover((square.clamp(0, 1) * 255).round() / 255, size, multiple)


CROPS = {"aligned": _aligned, "cover": _cover, "reference": _reference}
