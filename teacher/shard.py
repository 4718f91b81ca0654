"""One safetensors file through a memory map: arrays are views of the page cache, nothing is read before it is looked at.

Beside `teacher.cache`, which knows which shard holds what. safetensors' own reader copies every tensor; of a feature cache one
frame out of thousands is wanted, thousands of times a second. Format: 8 bytes little-endian header length, the header
in JSON (name -> dtype, shape, data_offsets from the header's end), the data.

    python -c "from pathlib import Path; from teacher.shard import Shard; print(Shard(Path('FILE')).names)"
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path

import numpy as np

from vega_artifact import UserError

REMAKE = "delete that file and run the same extract command again, only this shard is computed anew"
DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}


class Shard:
    """Arrays of one file by name.

    Attributes:
        names: every array in the file.

    Raises:
        UserError: the file is missing, cut, or no safetensors file of numpy dtypes.
    """

    def __init__(self, path: Path) -> None:
        try:
            with open(path, "rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            self._arrays = _arrays(self._map)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # what a foreign header can run into
            raise UserError(f"{path}: unreadable shard ({error}); {REMAKE}") from error

    @property
    def names(self) -> list[str]:
        return list(self._arrays)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def view(self, name: str) -> np.ndarray:
        """The array of that name, read-only and not copied; it keeps the map alive. KeyError for an unknown name."""
        return self._arrays[name]


def _arrays(content: mmap.mmap) -> dict[str, np.ndarray]:
    start = 8 + int.from_bytes(content[:8], "little")
    if start > len(content):
        raise ValueError("its header does not end within the file")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, record in header.items():
        first, last = record["data_offsets"]
        dtype, shape = np.dtype(DTYPES[record["dtype"]]), tuple(record["shape"])
        count = math.prod(shape)
        if first < 0 or last - first != count * dtype.itemsize or start + last > len(content):
            raise ValueError(f"array {name!r} does not lie within the file")
        found[name] = np.frombuffer(content, dtype, count, start + first).reshape(shape)
    return found
