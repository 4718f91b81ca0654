"""Golden arrays: frames and the features expected of them, so that a device can test itself without torch.

Written by `export.onnx` and `export.streaming` into every EXPORT folder, read by `Encoder.check`.

    python -m export.runtime EXPORT --check
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from export.runtime.manifest import GOLDEN_FRAMES
from export.runtime.preprocess import preprocess


def write_golden(
    student: Any, folder: Path, names: Sequence[str], answered: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
) -> list[str]:
    """Write frames and what is expected of them, for the self test on the device; returns the file names.

    Args:
        answered: frames uint8 (B, H, W, 3) of any size -> the expected streams; None: what torch computes. Of an INT8 graph it
            is the graph itself: these frames lie outside its calibrated ranges, and how close it is was decided on real ones.
    """
    wish = student.preprocess
    frames = golden_frames(wish.size)
    np.save(folder / GOLDEN_FRAMES, frames)
    if answered is None:
        streams = torch_streams(student, preprocess(frames, wish.size, wish.mean, wish.std))
    else:
        streams = answered(frames)
    for name in names:
        np.save(folder / f"golden_{name}.npy", streams[name])
    return [GOLDEN_FRAMES, *(f"golden_{name}.npy" for name in names)]


def torch_streams(student: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """Normalised float32 (B, 3, H, W) -> stream name -> float32 (B, N, C), as torch computes it."""
    with torch.inference_mode():
        return {name: value.float().numpy() for name, value in student(torch.from_numpy(images)).items()}


def golden_frames(size: tuple[int, int], count: int = 3) -> np.ndarray:
    """Deterministic uint8 frames (count, H', W', 3), larger than the model's size so that the self test resizes too."""
    height, width = size[0] * 5 // 4, size[1] * 3 // 2
    rng = np.random.default_rng(20)
    coarse = rng.uniform(0, 255, (count, 6, 8, 3)).astype(np.float32)
    rows = np.linspace(0, 5.999, height).astype(int)
    columns = np.linspace(0, 7.999, width).astype(int)
    noisy = coarse[:, rows][:, :, columns] + rng.normal(0, 8, (count, height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)
