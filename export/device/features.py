"""Where features go: a folder of .npz files, or shared memory for other programs on the same device.

Last step of `export.device run`. Shared memory is one file in /dev/shm that any language can map: 64 bytes of head, a JSON
description, then one float32 (N, C) block per stream at the offsets it names. Writers never wait for readers.

    from export.device.features import FeatureReader
    index, seconds, streams = FeatureReader("vega-edge").latest()
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import time
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

import numpy as np

from export.runtime import RuntimeInputError
from export.runtime.__main__ import save
from export.runtime.manifest import SAFE_NAME, Description

from .frames import Frame

SHARED = Path("/dev/shm")
MAGIC = b"VEGAEDG1"
HEAD = struct.Struct("<8sQQdQQ")  # magic, sequence (odd while written), frame index, seconds, CRC-32 of data, length of JSON
ALIGN = 64
FRAMES_PER_FILE = 256


class Sink(ABC):
    """A place for features, to be used with `with`."""

    @abstractmethod
    def write(self, frame: Frame, streams: dict[str, np.ndarray]) -> None:
        """Take the features (1, N, C) of one frame."""

    @abstractmethod
    def close(self) -> None:
        """Write what is still held back."""

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class NpzFolder(Sink):
    """`features-000000.npz` and so on, named by their first frame, with at most 256 frames each, so memory stays constant.

    Each holds float32 (frames, N, C) per stream, and `index` and `seconds` of the frames. Files of an earlier run are refused.
    """

    def __init__(self, folder: Path) -> None:
        if folder.is_file() or (folder.is_dir() and any(folder.glob("features-*.npz"))):
            raise RuntimeInputError(f"{folder}: holds features already; give a new folder")
        self._folder = folder
        self._held: list[tuple[Frame, dict[str, np.ndarray]]] = []

    def write(self, frame: Frame, streams: dict[str, np.ndarray]) -> None:
        self._held.append((Frame(frame.index, frame.seconds, np.empty(0)), streams))  # the picture itself is not kept
        if len(self._held) == FRAMES_PER_FILE:
            self.close()

    def close(self) -> None:
        if not self._held:
            return
        arrays = {name: np.concatenate([streams[name] for _, streams in self._held]) for name in self._held[0][1]}
        arrays["index"] = np.array([frame.index for frame, _ in self._held], np.int64)
        arrays["seconds"] = np.array([frame.seconds for frame, _ in self._held], np.float64)
        save(self._folder / f"features-{self._held[0][0].index:06d}.npz", arrays)
        self._held = []


class SharedFeatures(Sink):
    """The features of the latest frame in shared memory `name`; it vanishes when the writer ends."""

    def __init__(self, name: str, description: Description) -> None:
        self._path = shared_path(name)
        shapes = description.streams
        offset, places = 0, {}
        for stream, (tokens, channels) in shapes.items():
            places[stream] = {"offset": offset, "tokens": tokens, "channels": channels}
            offset += -(-tokens * channels * 4 // ALIGN) * ALIGN
        text = json.dumps({"streams": places, "grid": description.grid, "fingerprint": description.fingerprint}).encode()
        self._start = -(-(ALIGN + len(text)) // ALIGN) * ALIGN
        self._places, self._sequence = places, 0
        fresh = self._path.with_name(f".{name}.{os.getpid()}")
        try:
            fresh.write_bytes(HEAD.pack(MAGIC, 0, 0, 0.0, 0, len(text)).ljust(ALIGN, b"\0") + text)
            os.truncate(fresh, self._start + offset)
            with open(fresh, "r+b") as stream_file:
                self._map = mmap.mmap(stream_file.fileno(), 0)
            os.replace(fresh, self._path)  # readers see all of it or nothing
        except OSError as error:
            raise RuntimeInputError(f"{self._path}: cannot be made ({error.strerror}); is /dev/shm full?") from None

    def write(self, frame: Frame, streams: dict[str, np.ndarray]) -> None:
        length = HEAD.unpack_from(self._map)[5]
        HEAD.pack_into(self._map, 0, MAGIC, self._sequence + 1, 0, 0.0, 0, length)
        for name, place in self._places.items():
            data = np.ascontiguousarray(streams[name][0], np.float32).tobytes()
            start = self._start + place["offset"]
            self._map[start : start + len(data)] = data
        self._sequence += 2
        crc = zlib.crc32(memoryview(self._map)[self._start :])
        HEAD.pack_into(self._map, 0, MAGIC, self._sequence, frame.index, frame.seconds, crc, length)

    def close(self) -> None:
        self._map.close()
        self._path.unlink(missing_ok=True)


class FeatureReader:
    """The other end of `SharedFeatures`, for any process of the same machine."""

    def __init__(self, name: str) -> None:
        path = shared_path(name)
        try:
            with open(path, "rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            raise RuntimeInputError(f"{path}: nobody shares features there; start `run --shm {name}` first") from None
        magic, *_, length = HEAD.unpack_from(self._map)
        if magic != MAGIC:
            raise RuntimeInputError(f"{path}: not shared features of this version; give the name of `run --shm`")
        self.about = json.loads(self._map[ALIGN : ALIGN + length])
        self._start = -(-(ALIGN + length) // ALIGN) * ALIGN

    def latest(self, timeout: float = 1.0) -> tuple[int, float, dict[str, np.ndarray]]:
        """Frame index, its seconds, and copies of its features float32 (N, C), never a mixture of two frames.

        Raises:
            RuntimeInputError: no whole frame within `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            _, sequence, index, seconds, crc, _ = HEAD.unpack_from(self._map)
            if sequence and sequence % 2 == 0:
                data = self._map[self._start :]
                if zlib.crc32(data) == crc:
                    return index, seconds, self._views(data)
            time.sleep(0.001)
        raise RuntimeInputError(f"no frame was shared within {timeout:g} s; is the writer still running?")

    def _views(self, data: bytes) -> dict[str, np.ndarray]:
        found = {}
        for name, place in self.about["streams"].items():
            values = np.frombuffer(data, np.float32, place["tokens"] * place["channels"], place["offset"])
            found[name] = values.reshape(place["tokens"], place["channels"])
        return found


def shared_path(name: str) -> Path:
    """The file of a shared memory name. Raises RuntimeInputError for one that is no plain name."""
    if not SAFE_NAME.fullmatch(name):
        raise RuntimeInputError(f"shared memory {name!r}: letters, digits, '.', '_' and '-' expected, such as vega-edge")
    return SHARED / name
