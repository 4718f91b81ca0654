"""Does the file compute what the student computes? Torch against onnxruntime, at batches the export never saw.

Last check of `export.onnx`; its numbers go into the manifest, and its limits are those of the runtime's self test too.

    from export.parity import check_parity
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vega_artifact import UserError

BATCHES = (1, 3)
# relative: norm of the difference over norm of the reference; peak: largest difference over largest reference value.
TOLERANCES: dict[str, dict[str, float]] = {
    "fp32": {"relative": 1e-4, "peak": 1e-4},
    "fp16": {"relative": 1e-2, "peak": 2e-2},
    # A relative difference of 0.1 is a cosine of 0.995; single values of an INT8 graph may be far off.
    "int8": {"relative": 1e-1, "peak": 5e-1},
    "int8_fp16": {"relative": 1e-1, "peak": 5e-1},
    "fp8_fp16": {"relative": 1e-1, "peak": 5e-1},
}
Streams = Mapping[str, np.ndarray]


class WrongAnswers(UserError):
    """A file that does not compute what it should; it is worth looking into, so `export.staging` keeps it."""


def difference(reference: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How far `found` is from `reference`, both float (B, N, C): max_abs, relative, peak, mean and worst cosine of tokens.

    A shape that differs or a value that is not finite counts as infinitely far.
    """
    if reference.shape != found.shape or not np.isfinite(found).all():
        far = float("inf")
        return {"max_abs": far, "relative": far, "peak": far, "cosine": -1.0, "min_cosine": -1.0}
    a, b = reference.astype(np.float64), found.astype(np.float64)
    largest = float(np.abs(a - b).max())
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = (a * b).sum(-1) / np.maximum(lengths, 1e-12)
    return {
        "max_abs": largest,
        "relative": float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), 1e-12)),
        "peak": largest / max(float(np.abs(a).max()), 1e-12),
        "cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
    }


def probe_images(batch: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Normalised test input, float32 (batch, 3, H, W): smooth blobs plus noise, a pure function of the arguments."""
    height, width = size
    rng = np.random.default_rng([seed, batch, height, width])
    rows, columns = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    phase = rng.uniform(0, 2 * np.pi, (batch, 3, 2, 1, 1))
    turns = rng.uniform(1, 6, (batch, 3, 2, 1, 1)) * 2 * np.pi
    waves = np.sin(turns[:, :, 0] * rows + phase[:, :, 0]) * np.sin(turns[:, :, 1] * columns + phase[:, :, 1])
    return (1.5 * waves + 0.3 * rng.standard_normal((batch, 3, height, width))).astype(np.float32)


def check_parity(
    reference: Callable[[np.ndarray], Streams],
    found: Callable[[np.ndarray], Streams],
    size: tuple[int, int],
    precision: str,
    batches: tuple[int, ...] = BATCHES,
    images: Callable[[int], np.ndarray] | None = None,
) -> list[dict[str, Any]]:
    """Compare two functions from images to streams; returns one row per batch and stream.

    Args:
        images: batch -> what both functions take; None: normalised float32 (B, 3, H, W) from `probe_images`.

    Raises:
        WrongAnswers: a difference above the limits of `precision`, naming stream, batch and both numbers.
    """
    rows = []
    for batch in batches:
        given = probe_images(batch, size) if images is None else images(batch)
        expected, got = reference(given), found(given)
        for name, value in expected.items():
            distance = difference(value, got[name])
            for kind, limit in TOLERANCES[precision].items():
                if not distance[kind] <= limit:
                    text = f"{name} at batch {batch}: {kind} difference {distance[kind]:.2e}, {limit:.0e} allowed"
                    advice = "export with --precision fp32" if precision != "fp32" else "choose another student"
                    raise WrongAnswers(f"the exported file does not compute what the student computes ({text}); {advice}")
            rows.append({"stream": name, "batch": batch, **distance})
    return rows
