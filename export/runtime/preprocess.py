"""Frames to model input with numpy alone: resize, scale, normalise.

Second step of `export.runtime`. The resize is bilinear with half-pixel centres; when an axis shrinks, the triangle is widened
by the scale (antialias) as Pillow and `torch.nn.functional.interpolate(antialias=True, align_corners=False)` do, but in float32
throughout: nothing is rounded to whole grey levels in between. The aspect ratio is not kept: crop before if it matters.

    python -m export.runtime EXPORT image.png --out features.npz
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .manifest import RuntimeInputError


@lru_cache(maxsize=32)
def resize_weights(source: int, target: int) -> np.ndarray:
    """The (target, source) float32 matrix that resizes one axis; every row sums to 1.

    Output sample i looks at source position (i + 0.5) * source / target (pixel j covers [j, j + 1]) through a triangle of half
    width max(1, source / target). At the borders the part of the triangle outside is dropped and the rest renormalised, which
    for an enlargement equals repeating the border pixel.
    """
    scale = source / target
    support = max(1.0, scale)
    centres = (np.arange(target, dtype=np.float64) + 0.5) * scale
    positions = np.arange(source, dtype=np.float64) + 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(positions[None, :] - centres[:, None]) / support)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize float32 (B, H, W, C) to (B, size[0], size[1], C); see the module's text for the filter."""
    batch, height, width, channels = frames.shape
    if height != size[0]:
        rows = resize_weights(height, size[0]) @ frames.reshape(batch, height, width * channels)
        frames = rows.reshape(batch, size[0], width, channels)
    if width != size[1]:
        frames = resize_weights(width, size[1]) @ frames
    return frames


def check_frames(frames: np.ndarray) -> None:
    """Raise RuntimeInputError unless `frames` is uint8, or float in [0, 1] without NaN, of shape (B, H, W, 3) and not empty."""
    if not isinstance(frames, np.ndarray):
        raise RuntimeInputError(f"frames: a numpy array expected, found {type(frames).__name__}")
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        expected = "shape (batch, height, width, 3) expected"
        raise RuntimeInputError(f"frames: {expected}, found {frames.shape}; for one image use frames[None]")
    if frames.dtype == np.uint8:
        return
    if frames.dtype not in (np.float32, np.float64):
        raise RuntimeInputError(f"frames: uint8, or float32 in [0, 1], expected, found {frames.dtype}")
    if not np.isfinite(frames).all():
        raise RuntimeInputError("frames: NaN or infinite pixels found; repair or drop those frames")
    if frames.min() < 0 or frames.max() > 1:
        raise RuntimeInputError("frames: float pixels must lie in [0, 1]; divide by 255 or pass uint8")


def preprocess(frames: np.ndarray, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """RGB frames, uint8 or float in [0, 1], (B, H, W, 3) -> contiguous float32 (B, 3, size[0], size[1]), normalised.

    Raises:
        RuntimeInputError: another shape or dtype, NaN, or values outside [0, 1].
    """
    check_frames(frames)
    scale = np.float32(1 / 255) if frames.dtype == np.uint8 else np.float32(1)
    pixels = resize(frames.astype(np.float32) * scale, size)
    normalised = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))
