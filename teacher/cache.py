"""Feature cache: what the teacher said about every clip, on disk, complete or resumable, never half-written.

Place in the chain: `teacher.extract` writes it through `CacheWriter` (`teacher.writer` says what lies in the folder),
`distill` and `bench` read it through `FeatureCache`. Check one by hand, and see how fast it is read:

    vega-edge verify CACHE
    vega-edge bench cache CACHE
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from teacher.claims import claim
from teacher.shard import REMAKE, Shard
from teacher.storage import Storage, open_storage
from teacher.writer import CacheWriter, differences, listed
from vega_artifact import UserError, atomic_write, file_sha256, read_manifest, unknown_name

DERIVED = "derived"  # folder beside the shards; no part of the artifact, may be deleted at any time
__all__ = ["CacheWriter", "FeatureCache", "differences", "listed"]


class FeatureCache:
    """Random access to a finished cache: `cache[scene_id]` -> {stream: array (T, ...)}, read through memory maps.

    Shards stay mapped per process, so an instance may be handed to forked or spawned data-loader workers. What `read` and
    `frame` return is a copy of the asked-for part and may be written to; `view` copies nothing. Reduced storage is undone:
    arrays always have the dtype and shape that `manifest["streams"]` states.

    Attributes:
        scene_ids: in the order of the extraction plan.
        streams: feature map name -> (C, gh, gw), for every floating stream with three axes per frame.
        storage: how maps lie on disk.
        manifest: as written; `["streams"]` also has the other arrays (rgb, frame_ids, ...) with dtype and per-frame shape,
            `["dropped"]` the frames that extraction left out.

    Raises:
        UserError: no finished cache at `path`; a shard that is missing, truncated or unreadable; an unknown scene or stream.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = read_manifest(self.path, "cache")
        self.fingerprint: str = self.manifest["fingerprint"]
        self.scene_ids: list[str] = list(self.manifest["scenes"])
        self.frames: dict[str, int] = dict(zip(self.scene_ids, self.manifest["frames"], strict=True))
        self.streams: dict[str, tuple[int, ...]] = {
            name: tuple(record["shape"])
            for name, record in self.manifest["streams"].items()
            if record["dtype"].startswith("float") and len(record["shape"]) == 3
        }
        self.storage: Storage = open_storage(self.manifest.get("storage", Storage.name), self.path)
        self._shards: dict[str, Shard] = {}

    def __len__(self) -> int:
        return len(self.scene_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.scene_ids)

    def __contains__(self, scene_id: object) -> bool:
        return scene_id in self.frames

    def __getitem__(self, scene_id: str) -> dict[str, np.ndarray]:
        """All streams of one clip, each (T, ...)."""
        return {stream: self.read(scene_id, stream) for stream in self.manifest["streams"]}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # memory maps do not travel to another process

    def read(self, scene_id: str, stream: str) -> np.ndarray:
        """One stream of one clip, (T, ...); cheaper than `cache[scene_id]` when the others are not needed."""
        return self._decoded(stream, self._views(scene_id, stream))

    def frame(self, scene_id: str, t: int, stream: str) -> np.ndarray:
        """Frame `t` of one stream, (...) without the time axis; only its bytes are read."""
        views = self._views(scene_id, stream)
        if not 0 <= t < self.frames[scene_id]:
            raise IndexError(f"frame {t} of {scene_id!r}, which has {self.frames[scene_id]}")
        return self._decoded(stream, {suffix: part[t] for suffix, part in views.items()})

    def view(self, scene_id: str, stream: str) -> np.ndarray:
        """One stream of one clip, (T, ...), read-only, straight from the page cache; pages are read when they are looked at.

        Raises:
            UserError: also for a stream in reduced storage, which has no bytes to look at; use `read` or `frame`.
        """
        views = self._views(scene_id, stream)
        if len(views) > 1 or "stored" in self.manifest["streams"][stream]:
            raise UserError(f"{self.path}: stream {stream!r} is stored as {self.storage.name}; read it with `read` or `frame`")
        return views[""]

    def derived(self, name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays that follow from this cache: read when an earlier call kept them, else made and kept in `derived/`.

        Processes that ask at once let one of them compute. In a folder that cannot be written to nothing is kept.

        Args:
            name: file name that says what they are and everything they depend on besides the cache's content.
        """
        path = self.path / DERIVED / f"{name}-{self.fingerprint}.safetensors"
        if (found := _kept(path)) is not None:
            return found
        if not os.access(path.parent if path.parent.exists() else self.path, os.W_OK):
            return dict(make())
        path.parent.mkdir(exist_ok=True)
        with claim(path.with_name(f".{path.name}.lock"), wait=True):
            if (found := _kept(path)) is not None:  # another process may have come first
                return found
            found = {key: np.ascontiguousarray(value) for key, value in make().items()}
            atomic_write(path, lambda temporary: temporary.write_bytes(save(found)))
        return found

    def verify(self) -> None:
        """Re-hash every file; raises UserError naming the first one that differs from the manifest."""
        for name in self.manifest["files"]:
            self._check_size(name)
            if file_sha256(self.path / name) != self.manifest["files"][name]["sha256"]:
                raise UserError(f"{self.path / name}: corrupt, its SHA-256 is not the one in the manifest; {REMAKE}")

    def _decoded(self, stream: str, parts: dict[str, np.ndarray]) -> np.ndarray:
        if "stored" in self.manifest["streams"][stream]:
            return self.storage.decode(stream, parts)
        return parts[""].copy()

    def _views(self, scene_id: str, stream: str) -> dict[str, np.ndarray]:
        """What lies on disk of one stream of one clip, by suffix, without copying."""
        if scene_id not in self.frames:
            close = difflib.get_close_matches(str(scene_id), self.scene_ids, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{self.path}: no scene {scene_id!r} among its {len(self)} scenes{hint}")
        if stream not in self.manifest["streams"]:
            raise unknown_name("stream", stream, self.manifest["streams"])
        name = self.manifest["index"][scene_id]
        if name not in self._shards:
            for needed in (name, *self.storage.files):
                self._check_size(needed)
            self._shards[name] = Shard(self.path / name)
        shard, key = self._shards[name], f"{scene_id}/{stream}"
        suffixes = self.storage.suffixes if "stored" in self.manifest["streams"][stream] else ("",)
        if lacking := [key + suffix for suffix in suffixes if key + suffix not in shard]:
            raise UserError(f"{self.path / name}: unreadable shard (holds no {lacking[0]}); {REMAKE}")
        return {suffix: shard.view(key + suffix) for suffix in suffixes}

    def _check_size(self, name: str) -> None:
        path, expected = self.path / name, self.manifest["files"][name]["bytes"]
        if not path.exists():
            raise UserError(
                f"{path}: shard named in the manifest but missing; run the same extract command again, it makes only that"
            )
        if (found := path.stat().st_size) != expected:
            raise UserError(f"{path}: truncated or altered, {found} bytes instead of {expected}; {REMAKE}")


def _kept(path: Path) -> dict[str, np.ndarray] | None:
    """What `derived` kept there, or None: nothing yet, or a file that was cut and is made again."""
    if not path.exists():
        return None
    try:
        shard = Shard(path)
    except UserError:
        return None
    return {name: shard.view(name).copy() for name in shard.names}
