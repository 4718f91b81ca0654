"""What an extraction will cost, said before it starts: clips, frames, bytes by stream, time from one measured clip.

Between `teacher.scenes` and `teacher.extract`; `vega-edge extract ... --plan` prints it and stops.

    vega-edge extract --teacher tiny --scenes "procedural:train?count=300" --out runs/cache --plan
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from teacher.scenes import PosedClip
from teacher.storage import Storage

WARM_UP_BELOW = 5.0  # seconds: a probe shorter than this is run twice, because the first pass also sets things up


@dataclass(frozen=True)
class Probe:
    """One clip, really read and run; its bytes may have come from the page cache.

    Attributes:
        clip, arrays: the clip and what the cache would hold of it.
        read, run: seconds to read the clip, and for teacher and encoders.
    """

    clip: PosedClip
    arrays: Mapping[str, np.ndarray]
    read: float
    run: float

    @classmethod
    def measure(cls, read: Callable[[], PosedClip], run: Callable[[PosedClip], Mapping[str, np.ndarray]]) -> Probe:
        for _ in range(2):
            began = time.perf_counter()
            clip = read()
            between = time.perf_counter()
            arrays = run(clip)
            ended = time.perf_counter()
            if ended - began > WARM_UP_BELOW:
                break
        return cls(clip, arrays, between - began, ended - between)


@dataclass(frozen=True)
class Plan:
    """Cost of the clips that are still missing, as if all were like the probe.

    Attributes:
        clips, missing, shards: in the whole cache, still to be made, files of the whole cache.
        frames: stored per clip.
        stream_bytes: bytes on disk per clip and stream.
        seconds: per clip on one process; reading overlaps with computing.
        free: bytes free on the disk.
    """

    clips: int
    missing: int
    shards: int
    frames: int
    stream_bytes: dict[str, int]
    read: float
    run: float
    free: int

    @classmethod
    def of(cls, probe: Probe, storage: Storage, clips: int, missing: int, shards: int, free: int) -> Plan:
        sizes = {
            name: storage.nbytes(array.shape, array.dtype) if storage.reduces(array.shape, array.dtype) else array.nbytes
            for name, array in probe.arrays.items()
        }
        frames = len(next(iter(probe.arrays.values())))
        return cls(clips, missing, shards, frames, sizes, probe.read, probe.run, free)

    @property
    def bytes_needed(self) -> int:
        return self.missing * sum(self.stream_bytes.values())

    @property
    def seconds(self) -> float:
        return self.missing * max(self.read, self.run)

    def text(self) -> str:
        """A few lines for people."""
        parts = ", ".join(f"{name} {size_text(self.missing * size)}" for name, size in self.stream_bytes.items())
        return "\n".join(
            (
                f"plan: {self.missing} of {self.clips} clips to make, {self.missing * self.frames} frames "
                f"({self.frames} a clip), {self.shards} shards in all",
                f"  disk: {size_text(self.bytes_needed)} ({parts}); {size_text(self.free)} free",
                f"  time: about {time_text(self.seconds)} on one process (measured on one clip: {time_text(self.run)} for the "
                f"teacher, {time_text(self.read)} to read it meanwhile); N processes take an Nth if each has its own device",
            )
        )


def size_text(count: float) -> str:
    """Bytes in decimal units: 19267584 -> "19.3 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def time_text(seconds: float) -> str:
    """Seconds in a fitting unit: 4000 -> "1.1 h"."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1000:.0f} ms"
