"""How feature maps lie on disk: as float16, as one byte per value, or as PCA coefficients. What is read is float16 again.

Beside `teacher.cache` (decodes) and `teacher.writer` (encodes). Only maps (T, C, gh, gw) that get smaller are reduced; frames
and frame numbers stay as they are. What a form costs on given features is measured by

    vega-edge bench cache CACHE
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from teacher.claims import claim
from teacher.shard import Shard
from vega_artifact import UserError, atomic_write, file_sha256, unknown_name

BASIS = "basis.safetensors"
FLOAT16_MAX = float(np.finfo(np.float16).max)
LEVELS = 255
CHOICES = ("float16", "int8", "pca:COMPONENTS")


class Storage:
    """Maps as they are given: float16. The other forms derive from this one.

    Attributes:
        name: as typed, and as recorded in the cache.
        files: what it keeps in the cache folder beside the shards.
    """

    name = "float16"
    files: tuple[str, ...] = ()

    def reduces(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """Whether an array (T, C, gh, gw) of this dtype is stored in another form."""
        return False

    def nbytes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        """Bytes on disk of such an array."""
        return int(np.prod(shape)) * dtype.itemsize

    def encode(self, stream: str, maps: np.ndarray) -> dict[str, np.ndarray]:
        """Parts on disk by the suffix of their name, each with the frames first; for arrays that `reduces`."""
        return {"": maps}

    def decode(self, stream: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """The inverse, float16 (..., C, gh, gw), for whole clips or for single frames of the parts."""
        return parts[""]

    @property
    def suffixes(self) -> tuple[str, ...]:
        return ("",)

    def prepare(self, records: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> None:
        """Make `files` from sample clips unless they are there; the clips are asked for only then."""

    def identity(self) -> dict[str, str]:
        """What else than the shard its bytes depend on."""
        return {}

    def roundtrip(self, stream: str, array: np.ndarray) -> np.ndarray:
        """What will be read of an array that is stored."""
        if not self.reduces(array.shape, array.dtype):
            return array
        return self.decode(stream, self.encode(stream, array))


class Int8(Storage):
    """One byte per value: per frame and channel the range from its smallest to its largest value in 255 equal steps.

    The error is at most half a step. Two float32 per frame and channel come on top (4 % at 14x14), so that a frame can be
    read alone and no statistics of other clips are needed. A zero point matters: channels of a residual stream sit far from 0.
    """

    name = "int8"

    def reduces(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        return dtype.kind == "f" and len(shape) == 4 and self.nbytes(shape, dtype) < super().nbytes(shape, dtype)

    def nbytes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        return int(np.prod(shape)) + 8 * int(np.prod(shape[:2]))

    @property
    def suffixes(self) -> tuple[str, ...]:
        return ("", ".scale", ".offset")

    def encode(self, stream: str, maps: np.ndarray) -> dict[str, np.ndarray]:
        wide = maps.astype(np.float32)
        low, high = wide.min(axis=(2, 3), keepdims=True), wide.max(axis=(2, 3), keepdims=True)
        scale = np.where(high > low, (high - low) / LEVELS, np.float32(1))
        codes = np.rint((wide - low) / scale).astype(np.uint8)
        return {"": codes, ".scale": scale, ".offset": low}

    def decode(self, stream: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        return (parts[""] * parts[".scale"] + parts[".offset"]).astype(np.float16)


class Pca(Storage):
    """The leading principal components of a stream, coefficients in float16; mean and basis lie once in the cache folder.

    Args:
        components: how many; streams of no more channels are kept as they are.
        folder: of the cache; `fit` writes the basis there.
    """

    files = (BASIS,)

    def __init__(self, components: int, folder: Path) -> None:
        self.name, self.components, self.path = f"pca:{components}", components, folder / BASIS
        self._basis: Shard | None = None

    def reduces(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        return dtype.kind == "f" and len(shape) == 4 and shape[1] > self.components

    def nbytes(self, shape: tuple[int, ...], dtype: np.dtype) -> int:
        return 2 * int(np.prod((shape[0], self.components, *shape[2:])))

    def prepare(self, records: Callable[[], Iterable[Mapping[str, np.ndarray]]]) -> None:
        if not self.path.exists():
            with claim(self.path.with_name(".basis.lock"), wait=True):
                if not self.path.exists():  # another process may have come first
                    self.fit(records())

    def fit(self, records: Iterable[Mapping[str, np.ndarray]]) -> None:
        """Write the basis of every stream that is reduced, from sample clips {stream: (T, C, gh, gw)}.

        Raises:
            UserError: no stream has more channels than components.
        """
        sums: dict[str, _Moments] = {}
        for record in records:
            for stream, maps in record.items():
                if self.reduces(maps.shape, maps.dtype):
                    sums.setdefault(stream, _Moments(maps.shape[1])).add(maps)
        if not sums:
            raise UserError(f"storage {self.name}: no stream has more channels than that; ask for fewer, or for float16")
        content = save({key: value for stream, part in sums.items() for key, value in part.basis(stream, self.components)})
        atomic_write(self.path, lambda temporary: temporary.write_bytes(content))

    def identity(self) -> dict[str, str]:
        return {BASIS: file_sha256(self.path)}

    def encode(self, stream: str, maps: np.ndarray) -> dict[str, np.ndarray]:
        mean, basis = self._read(stream)
        tokens = maps.reshape(*maps.shape[:2], -1).astype(np.float32)
        found = basis @ (tokens - mean[:, None])
        return {"": found.astype(np.float16).reshape(len(maps), self.components, *maps.shape[2:])}

    def decode(self, stream: str, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        mean, basis = self._read(stream)
        grid = parts[""].shape[-2:]
        tokens = parts[""].reshape(*parts[""].shape[:-2], -1).astype(np.float32)
        found = np.clip(basis.T @ tokens + mean[:, None], -FLOAT16_MAX, FLOAT16_MAX)
        return found.astype(np.float16).reshape(*found.shape[:-1], *grid)

    def _read(self, stream: str) -> tuple[np.ndarray, np.ndarray]:
        if self._basis is None:
            self._basis = Shard(self.path)
        return self._basis.view(f"{stream}.mean"), self._basis.view(f"{stream}.basis")

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_basis": None}  # memory maps do not travel to another process


class _Moments:
    """Streamed mean and covariance of tokens, float64, shifted by the first token so that big means cost no digits."""

    def __init__(self, channels: int) -> None:
        self.count, self.shift = 0, np.zeros(0)
        self.total, self.square = np.zeros(channels), np.zeros((channels, channels))

    def add(self, maps: np.ndarray) -> None:
        tokens = np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float64)
        if not self.count:
            self.shift = tokens[0]
        tokens = tokens - self.shift
        self.count += len(tokens)
        self.total += tokens.sum(axis=0)
        self.square += tokens.T @ tokens

    def basis(self, stream: str, components: int) -> Iterable[tuple[str, np.ndarray]]:
        """Named arrays: mean (C,) and basis (components, C), float32, the strongest direction first."""
        mean = self.total / self.count
        _, vectors = np.linalg.eigh(self.square / self.count - np.outer(mean, mean))
        leading = vectors[:, ::-1][:, :components].T
        yield f"{stream}.mean", (mean + self.shift).astype(np.float32)
        yield f"{stream}.basis", np.ascontiguousarray(leading, dtype=np.float32)


def open_storage(name: str, folder: Path) -> Storage:
    """The storage of that name for a cache folder: "float16", "int8" or "pca:COMPONENTS".

    Raises:
        UserError: an unknown name, or a number of components that is none.
    """
    method, _, number = name.partition(":")
    if method == "pca":
        if not number.isdecimal() or int(number) < 1:
            raise UserError(f"storage {name!r}: a number of components expected, such as pca:128")
        return Pca(int(number), folder)
    if name not in ("float16", "int8"):
        raise unknown_name("storage", name, CHOICES)
    return Int8() if name == "int8" else Storage()
