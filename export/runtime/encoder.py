"""The Encoder: an EXPORT folder as a function from frames to token features.

What applications on the device call; `bench.latency` times its three steps apart.

    from export.runtime import Encoder
    features = Encoder("EXPORT")(frames)["fused"]          # frames uint8 (B, H, W, 3) -> float32 (B, N, C)
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from .backends import INPUT, open_backend
from .manifest import GOLDEN_FRAMES, MODEL, Description, RuntimeInputError, read_description
from .preprocess import preprocess


class Encoder:
    """A loaded export.

    Args:
        export: the folder `vega-edge export` wrote.
        backend: "auto", "onnxruntime" (CPU) or "onnxruntime-cuda".
        threads: CPU threads inside one operator; None lets the backend choose.

    Attributes:
        description: size, mean, std, streams, grid and fingerprint of the export.
        backend: name of the backend that really runs; providers: what its session reported.

    Raises:
        RuntimeInputError: the folder is no export, a file was altered, or the backend cannot run here.
    """

    def __init__(self, export: Path | str, backend: str = "auto", threads: int | None = None) -> None:
        self.description: Description = read_description(export)
        self._backend = open_backend(self.description.read(MODEL), backend, threads)
        if self._backend.inputs != [INPUT] or self._backend.outputs != list(self.description.streams):
            found = f"{self._backend.inputs} -> {self._backend.outputs}"
            raise RuntimeInputError(f"{export}: the model computes {found}, not what its manifest says; export the run again")
        self.backend = self._backend.name
        self.providers = self._backend.providers

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3), or float in [0, 1], of any size -> normalised float32 (B, 3, h, w) at the export's size."""
        return preprocess(frames, self.description.size, self.description.mean, self.description.std)

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        """Normalised float32 (B, 3, h, w) -> raw outputs; batches above `max_batch` go in pieces."""
        step = self.description.max_batch
        pieces = [self._backend(images[start : start + step]) for start in range(0, len(images), step)]
        return pieces[0] if len(pieces) == 1 else [np.concatenate(parts) for parts in zip(*pieces)]

    def finish(self, outputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Raw outputs -> stream name -> float32 (B, N, C).

        Raises:
            RuntimeInputError: an output is not finite (a half-precision overflow, never silence).
        """
        named = {}
        for name, value in zip(self.description.streams, outputs):
            if not np.isfinite(value).all():
                hint = f"{self.description.precision} overflowed; export with --precision fp32"
                raise RuntimeInputError(f"{self.description.folder}: output {name} is not finite; {hint}")
            named[name] = np.asarray(value, np.float32)
        return named

    def __call__(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """RGB frames uint8 (B, H, W, 3) -> stream name -> float32 (B, N, C), tokens row-major over `description.grid`.

        Raises:
            RuntimeInputError: wrong dtype or shape, NaN, or an output that is not finite.
        """
        return self.finish(self.infer(self.prepare(frames)))

    def check(self) -> dict[str, dict[str, float]]:
        """The self test: the stored frames against the features torch computed for them at export time.

        Returns:
            stream name -> {"relative", "peak"} differences, both below the export's tolerances.

        Raises:
            RuntimeInputError: a stored file is damaged, or this machine computes something else.
        """
        found = self(_load(self.description, GOLDEN_FRAMES))
        differences = {}
        for name, value in found.items():
            differences[name] = _difference(_load(self.description, f"golden_{name}.npy"), value)
            for kind, limit in self.description.tolerances.items():
                if not differences[name][kind] <= limit:
                    text = f"{name}: {kind} difference {differences[name][kind]:.2e}, {limit:.0e} allowed"
                    raise RuntimeInputError(f"self test failed ({text}); do not trust {self.backend} on this machine")
        return differences


def _difference(expected: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Norm of the difference over norm ("relative"), and largest difference over largest value ("peak")."""
    if expected.shape != found.shape:
        return {"relative": float("inf"), "peak": float("inf")}
    error = found.astype(np.float64) - expected
    return {
        "relative": float(np.linalg.norm(error)) / max(float(np.linalg.norm(expected)), 1e-12),
        "peak": float(np.abs(error).max()) / max(float(np.abs(expected).max()), 1e-12),
    }


def _load(description: Description, name: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(description.read(name)), allow_pickle=False)
    except ValueError as error:
        raise RuntimeInputError(f"{description.folder / name}: no plain numpy array ({error}); export the run again") from None
