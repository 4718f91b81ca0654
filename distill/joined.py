"""Several caches of the same scenes as one: a student may learn from several teachers at once.

Between `teacher.cache` and `distill.dataset`. Caches are listed; the first gives the frames, the scenes' geometry and streams
under their own names, each further one is written NAME=PATH and gives its streams as NAME_stream.

    python -c "from distill.joined import open_caches; print(open_caches(['CACHE', 'dino=OTHER']).streams)"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from teacher.cache import FeatureCache
from vega_artifact import UserError, fingerprint

SHARED = ("rgb", "frame_ids")  # of the first cache alone
NAME_RULE = "NAME must be letters, digits and underscores, and PATH a cache folder: for example dino=runs/dino"


class JoinedCache(FeatureCache):
    """Several caches behind the interface of one; what is read comes straight from the cache it lies in.

    Args:
        parts: prefix of the streams ("" or "NAME_") -> cache; the first is the one that gives the frames.

    Raises:
        UserError: a further cache lacks a scene of the first, holds other frames of it, or two streams share a name.
    """

    def __init__(self, parts: Mapping[str, FeatureCache]) -> None:
        self.parts = dict(parts)
        first, *others = self.parts.values()
        for other in others:
            _check_same_scenes(first, other)
        self.path, self.scene_ids, self.frames = first.path, first.scene_ids, first.frames
        self._origin: dict[str, tuple[FeatureCache, str]] = {}
        for prefix, cache in self.parts.items():
            for name in cache.streams:
                if prefix + name in self._origin:
                    raise UserError(
                        f"{cache.path}: stream {prefix + name!r} is there already; choose another NAME for this cache"
                    )
                self._origin[prefix + name] = (cache, name)
        self.streams = {name: cache.streams[own] for name, (cache, own) in self._origin.items()}
        records = {name: cache.manifest["streams"][own] for name, (cache, own) in self._origin.items()}
        shared = {name: first.manifest["streams"][name] for name in SHARED if name in first.manifest["streams"]}
        self.fingerprint = fingerprint({prefix: cache.fingerprint for prefix, cache in self.parts.items()})
        self.manifest = {
            **first.manifest,
            "streams": shared | records,
            "fingerprint": self.fingerprint,
        }

    def origin(self, stream: str) -> tuple[FeatureCache, str]:
        """The cache a stream lies in and its name there; what is no stream of its own belongs to the first."""
        return self._origin.get(stream, (next(iter(self.parts.values())), stream))

    def read(self, scene_id: str, stream: str) -> np.ndarray:
        cache, own = self.origin(stream)
        return cache.read(scene_id, own)

    def frame(self, scene_id: str, t: int, stream: str) -> np.ndarray:
        cache, own = self.origin(stream)
        return cache.frame(scene_id, t, own)

    def view(self, scene_id: str, stream: str) -> np.ndarray:
        cache, own = self.origin(stream)
        return cache.view(scene_id, own)

    def derived(self, name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Kept with the first cache, whose frames and scenes these are."""
        return next(iter(self.parts.values())).derived(name, make)

    def verify(self) -> None:
        for cache in self.parts.values():
            cache.verify()


def open_caches(paths: Path | str | Sequence[Path | str]) -> FeatureCache:
    """One cache, or several as one.

    Args:
        paths: a folder, or several of which all but the first are written NAME=PATH.

    Raises:
        UserError: no cache at a path, a further cache without a NAME, or caches that do not fit (see `JoinedCache`).
    """
    listed = [paths] if isinstance(paths, (Path, str)) else list(paths)
    if not listed:
        raise UserError("no cache given; list at least one folder made by `vega-edge extract`")
    parts = {"": FeatureCache(listed[0])}
    for item in listed[1:]:
        name, given, path = str(item).partition("=")
        if not given or not name.isidentifier():
            raise UserError(f"cache {str(item)!r}: each after the first is written NAME=PATH; {NAME_RULE}")
        if f"{name}_" in parts:
            raise UserError(f"cache {str(item)!r}: the name {name!r} is given twice; choose another NAME")
        parts[f"{name}_"] = FeatureCache(path)
    return JoinedCache(parts) if len(parts) > 1 else parts[""]


def _check_same_scenes(first: FeatureCache, other: FeatureCache) -> None:
    """Same ids, same frames; and, where both hold frames of one size, the same picture."""
    advice = "extract both from the same scenes"
    if lacking := [scene for scene in first.scene_ids if scene not in other]:
        raise UserError(f"{other.path}: lacks {len(lacking)} scenes of {first.path}, for example {lacking[0]!r}; {advice}")
    for scene in first.scene_ids:
        if not np.array_equal(first.read(scene, "frame_ids"), other.read(scene, "frame_ids")):
            raise UserError(f"{other.path}: holds other frames of scene {scene!r} than {first.path}; {advice}")
    ours, theirs = (cache.manifest["streams"].get("rgb") for cache in (first, other))
    if ours is None or ours != theirs:  # not held, or at another size: the ids have to do
        return
    scene = first.scene_ids[0]
    if not np.array_equal(first.frame(scene, 0, "rgb"), other.frame(scene, 0, "rgb")):
        raise UserError(f"{other.path}: shows something else than {first.path} in scene {scene!r}; {advice}")
