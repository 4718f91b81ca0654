"""The Encoder: an EXPORT or ENGINE folder as a function from frames to token features.

What applications on the device call; `bench.latency` times its three steps apart.

    from export.runtime import Encoder
    features = Encoder("EXPORT")(frames)["fused"]          # frames uint8 (B, H, W, 3) -> float32 (B, N, C)
    stream = StreamingEncoder("STREAMING_EXPORT")          # written by export.streaming: it remembers
    for frame in video:
        features = stream(frame[None])["fused"]            # (1, N, C), from this frame and all before it
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .backends import OnnxRuntimeBackend, open_backend
from .manifest import ENGINE, GOLDEN_FRAMES, Description, RuntimeInputError, read_description
from .preprocess import check_frames, preprocess

if TYPE_CHECKING:
    from .engine import EngineBackend


class Encoder:
    """A loaded export, or the engine built from one.

    Args:
        export: the folder `vega-edge export` or `vega-edge build` wrote.
        backend: "auto", or for an export "onnxruntime" (CPU), "onnxruntime-cuda" or "onnxruntime-tensorrt".
        threads: CPU threads inside one operator; None lets the backend choose.

    Attributes:
        description: size, mean, std, streams, grid and fingerprint of the export.
        backend: name of the backend that really runs; providers: what its session reported.

    Raises:
        RuntimeInputError: the folder is no export, a file was altered, the backend cannot run here, or the export is that of
            a streaming student: frames given to it in a batch would be taken for those of many cameras.
    """

    streaming = False

    def __init__(self, export: Path | str, backend: str = "auto", threads: int | None = None) -> None:
        self.description: Description = read_description(export)
        open_any = open_engine if self.description.engine else open_backend
        self._backend: OnnxRuntimeBackend | EngineBackend = open_any(self.description, backend, threads)
        states = list(self.description.states)
        if bool(states) != self.streaming:
            name = "StreamingEncoder" if states else "Encoder"
            raise RuntimeInputError(f"{export}: holds a student {'with' if states else 'without'} memory; open it with {name}")
        outputs = [*self.description.streams, *(f"next_{name}" for name in states)]
        if self._backend.inputs != list(self.description.inputs) or self._backend.outputs != outputs:
            found = f"{self._backend.inputs} -> {self._backend.outputs}"
            raise RuntimeInputError(f"{export}: the model computes {found}, not what its manifest says; export the run again")
        self.backend = self._backend.name
        self.providers = self._backend.providers

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3), or float in [0, 1], of any size -> what the model takes, at its size.

        That is normalised float32 (B, 3, h, w); or, of a model that normalises by itself, uint8 (B, h, w, 3), rounded.
        """
        wish = self.description
        if not wish.pixels:
            return preprocess(frames, wish.size, wish.mean, wish.std)
        check_frames(frames)
        if frames.dtype == np.uint8 and frames.shape[1:] == (*wish.size, 3):
            return np.ascontiguousarray(frames)  # nothing to resize: the whole point of such a model
        plain = preprocess(frames, wish.size, (0.0,) * 3, (1.0,) * 3)
        return np.ascontiguousarray(np.rint(plain.transpose(0, 2, 3, 1) * 255).clip(0, 255).astype(np.uint8))

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        """What `prepare` gives -> raw outputs; batches above `max_batch` go in pieces."""
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
        found = self.golden_answers(_load(self.description, GOLDEN_FRAMES))
        differences = {}
        for name, value in found.items():
            differences[name] = _difference(_load(self.description, f"golden_{name}.npy"), value)
            for kind, limit in self.description.tolerances.items():
                if not differences[name][kind] <= limit:
                    text = f"{name}: {kind} difference {differences[name][kind]:.2e}, {limit:.0e} allowed"
                    raise RuntimeInputError(f"self test failed ({text}); do not trust {self.backend} on this machine")
        return differences

    def golden_answers(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """The stored frames, encoded as the export did when it stored what torch makes of them."""
        return self(frames)


class StreamingEncoder(Encoder):
    """An `Encoder` whose every call is the next frame of each of B cameras, until `reset`. The memory has a constant size."""

    streaming = True

    def __init__(self, export: Path | str, backend: str = "auto", threads: int | None = None) -> None:
        super().__init__(export, backend, threads)
        self._state: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        """Forget all frames: the next call is the first of new cameras, of any number up to `max_batch`."""
        self._state = {}

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        """The next frame of every camera, normalised float32 (B, 3, h, w) -> raw outputs; remembers it.

        Raises:
            RuntimeInputError: another number of cameras than before, or more than `max_batch`.
        """
        cameras, shapes = len(images), self.description.states
        before = self._state or {name: np.zeros((cameras, *shape), np.float32) for name, shape in shapes.items()}
        remembered = len(next(iter(before.values())))
        if cameras != remembered or cameras > self.description.max_batch:
            text = f"frames: {cameras} cameras, but {remembered} are remembered and {self.description.max_batch} is the most"
            raise RuntimeInputError(f"{text}; call reset() before other cameras")
        outputs = self._backend(images, before)
        streams = len(self.description.streams)
        self._state = dict(zip(shapes, outputs[streams:]))
        return outputs[:streams]

    def golden_answers(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Frames as one camera sees them one after the other from an empty memory; what was remembered before stays."""
        kept, self._state = self._state, {}
        try:
            answers = [self(frames[index : index + 1]) for index in range(len(frames))]
        finally:
            self._state = kept
        return {name: np.concatenate([answer[name] for answer in answers]) for name in self.description.streams}


def open_encoder(export: Path | str, backend: str = "auto", threads: int | None = None) -> Encoder:
    """The encoder an export needs; arguments and errors as for `Encoder`."""
    kind = StreamingEncoder if read_description(export).states else Encoder
    return kind(export, backend, threads)


def open_engine(description: Description, backend: str = "auto", threads: int | None = None) -> EngineBackend:
    """The backend of an ENGINE folder, which knows its own library; a number of CPU threads means nothing to it.

    Raises:
        RuntimeInputError: an altered engine or another machine's, or `backend` names something else.
    """
    from .engine import EngineBackend

    library = description.engine["library"]
    if backend not in ("auto", library):
        raise RuntimeInputError(f"{description.folder}: an engine of {library}; open it with backend auto, not {backend!r}")
    return EngineBackend(description.read(ENGINE), description)


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
