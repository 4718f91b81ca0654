"""Feature cache: what the teacher said about every clip, on disk, complete or resumable, never half-written.

Place in the chain: `teacher.extract` writes it through `CacheWriter`, `distill` and `bench` read it through `FeatureCache`.
A cache is a folder of plain safetensors shards (keys `"{scene_id}/{stream}"`, whole clips), a side-car JSON per shard, the
`plan.json` of the run and, written last, `manifest.json`. Check one by hand:

    vega-edge verify CACHE
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from vega_artifact import (
    MANIFEST,
    UserError,
    atomic_write,
    canonical,
    file_sha256,
    fingerprint,
    read_json,
    read_manifest,
    unknown_name,
    write_json,
    write_manifest,
)

PLAN = "plan.json"
REMAKE = "delete that file and run the same extract command again, only this shard is computed anew"


class FeatureCache:
    """Random access to a finished cache: `cache[scene_id]` -> {stream: array (T, ...)}, read through memory maps.

    Shards stay open per process, so an instance may be handed to forked or spawned data-loader workers. What is returned is
    a copy of the asked-for part and may be written to.

    Attributes:
        scene_ids: in the order of the extraction plan.
        streams: feature map name -> (C, gh, gw), for every floating stream with three axes per frame.
        manifest: as written; `["streams"]` also has the other arrays (rgb, frame_ids, ...) with dtype and per-frame shape.

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
        self._handles: dict[tuple[int, str], Any] = {}

    def __len__(self) -> int:
        return len(self.scene_ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.scene_ids)

    def __contains__(self, scene_id: object) -> bool:
        return scene_id in self.frames

    def __getitem__(self, scene_id: str) -> dict[str, np.ndarray]:
        """All streams of one clip, each (T, ...) in its stored dtype."""
        return {stream: self.read(scene_id, stream) for stream in self.manifest["streams"]}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}  # memory maps do not travel to another process

    def read(self, scene_id: str, stream: str) -> np.ndarray:
        """One stream of one clip, (T, ...); cheaper than `cache[scene_id]` when the others are not needed."""
        return self._open(scene_id, stream).get_tensor(f"{scene_id}/{stream}")

    def frame(self, scene_id: str, t: int, stream: str) -> np.ndarray:
        """Frame `t` of one stream, (...) without the time axis; only its bytes are read."""
        handle = self._open(scene_id, stream)
        if not 0 <= t < self.frames[scene_id]:
            raise IndexError(f"frame {t} of {scene_id!r}, which has {self.frames[scene_id]}")
        return np.asarray(handle.get_slice(f"{scene_id}/{stream}")[t])

    def verify(self) -> None:
        """Re-hash every shard; raises UserError naming the first one that differs from the manifest."""
        for name in self.manifest["files"]:
            self._check_size(name)
            if file_sha256(self.path / name) != self.manifest["files"][name]["sha256"]:
                raise UserError(f"{self.path / name}: corrupt, its SHA-256 is not the one in the manifest; {REMAKE}")

    def _open(self, scene_id: str, stream: str) -> Any:
        if scene_id not in self.frames:
            close = difflib.get_close_matches(str(scene_id), self.scene_ids, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise UserError(f"{self.path}: no scene {scene_id!r} among its {len(self)} scenes{hint}")
        if stream not in self.manifest["streams"]:
            raise unknown_name("stream", stream, self.manifest["streams"])
        name = self.manifest["index"][scene_id]
        key = (os.getpid(), name)
        if key not in self._handles:
            self._check_size(name)
            try:
                self._handles[key] = safe_open(self.path / name, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise UserError(f"{self.path / name}: unreadable shard ({error}); {REMAKE}") from error
        return self._handles[key]

    def _check_size(self, name: str) -> None:
        path, expected = self.path / name, self.manifest["files"][name]["bytes"]
        if not path.exists():
            raise UserError(
                f"{path}: shard named in the manifest but missing; run the same extract command again, it makes only that"
            )
        if (found := path.stat().st_size) != expected:
            raise UserError(f"{path}: truncated or altered, {found} bytes instead of {expected}; {REMAKE}")


class CacheWriter:
    """Writes a cache shard by shard; killed at any time and started again with the same plan, it ends in identical bytes.

    Shard k holds scenes [k * scenes_per_shard, (k + 1) * scenes_per_shard) of the plan whatever the order of `add`; it is
    written when its last scene is there, then its side-car. Clips of unfinished shards are held in memory (about three
    times a shard's bytes at the peak). Several processes may share a folder when each takes whole shards, as
    `missing(rank, world)` deals them out. Nothing is written before the first shard is complete.

    Args:
        path: the cache folder; a folder with another plan is refused and left alone.
        config: everything that changes a value (JSON-able); becomes the manifest's config.
        parents: stage -> fingerprint, e.g. {"teacher": ...}.
        scene_ids: the planned scenes in order.

    Raises:
        UserError: another plan or something else at `path` (says which field differs); a finished shard that was altered.
    """

    def __init__(
        self,
        path: Path | str,
        config: Mapping[str, Any],
        parents: Mapping[str, str],
        scene_ids: Sequence[str],
        scenes_per_shard: int = 32,
    ) -> None:
        self.path = Path(path)
        self.scene_ids = list(scene_ids)
        if not self.scene_ids or len(set(self.scene_ids)) != len(self.scene_ids) or scenes_per_shard < 1:
            raise UserError(f"{self.path}: a cache needs at least one scene, scene ids that differ and scenes_per_shard >= 1")
        self.plan: dict[str, Any] = canonical(
            {"config": config, "parents": parents, "scene_ids": self.scene_ids, "scenes_per_shard": scenes_per_shard}
        )
        self.plan_fingerprint = fingerprint(self.plan)
        self._groups = [self.scene_ids[i : i + scenes_per_shard] for i in range(0, len(self.scene_ids), scenes_per_shard)]
        self._shard_of = {scene_id: k for k, group in enumerate(self._groups) for scene_id in group}
        self._pending: dict[str, dict[str, np.ndarray]] = {}
        self._refuse_other_plan()
        self._done = {k for k in range(len(self._groups)) if self._sidecar(k) is not None}
        self.streams: dict[str, Any] | None = self._sidecar(min(self._done))["streams"] if self._done else None  # type: ignore[index]

    def missing(self, rank: int = 0, world: int = 1) -> list[str]:
        """Scenes still to be added, in plan order; with `world` processes, those of every `world`-th shard from `rank` on."""
        todo = [k for k in range(rank, len(self._groups), world) if k not in self._done]
        return [scene_id for k in todo for scene_id in self._groups[k] if scene_id not in self._pending]

    def check_space(self, bytes_needed: int) -> None:
        """Refuse before the start when the disk under the folder has less than `bytes_needed` free (caller's estimate)."""
        existing = next(folder for folder in (self.path.absolute(), *self.path.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        if free < bytes_needed:
            raise UserError(
                f"{self.path}: the plan needs {bytes_needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; "
                "free some space, choose another --out, or extract fewer scenes or streams"
            )

    def add(self, scene_id: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Hand over one clip: {stream: array (T, ...)}, stored in the dtype given (features: float16; numpy has no bfloat16).

        A scene whose shard is already on disk is left as it is.

        Raises:
            UserError: NaN or Inf (names scene, stream and frame), or streams whose names, dtypes, per-frame shapes or T
                differ from the other clips'.
        """
        shard = self._shard_of.get(scene_id)
        if shard is None:
            raise UserError(f"{self.path}: scene {scene_id!r} is not in the plan of this cache; plan it from the start")
        if shard in self._done:
            return
        clip = {name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())}
        self._check_clip(scene_id, clip)
        self._pending[scene_id] = clip
        if all(member in self._pending for member in self._groups[shard]):
            self._write_shard(shard)

    def finish(self) -> dict[str, Any]:
        """Check every shard against its side-car and write the manifest; returns it.

        Raises:
            UserError: scenes are missing, a shard was altered since it was written, or shards hold different streams.
        """
        names = [self._shard_name(k) for k in range(len(self._groups))]
        found = [self._sidecar(k) for k in range(len(names))]  # from disk: other processes may have written some
        sidecars = [sidecar for sidecar in found if sidecar is not None]
        if len(sidecars) < len(names):
            raise UserError(f"{self.path}: {len(names) - len(sidecars)} of {len(names)} shards missing; run extract again")
        for name, sidecar in zip(names, sidecars, strict=True):
            if sidecar["streams"] != sidecars[0]["streams"]:
                raise UserError(f"{self.path / name}: its streams differ from those of {names[0]}; {REMAKE}")
            if file_sha256(self.path / name) != sidecar["sha256"]:
                raise UserError(f"{self.path / name}: corrupt, altered since it was written; {REMAKE}")
        frames = {scene_id: count for sidecar in sidecars for scene_id, count in sidecar["frames"].items()}
        self._sweep("*")
        if (earlier := self._finished(dict(zip(names, sidecars, strict=True)))) is not None:
            return earlier
        return write_manifest(
            self.path,
            "cache",
            self.plan["config"],
            self.plan["parents"],
            names,
            streams=sidecars[0]["streams"],
            index={scene_id: names[k] for scene_id, k in self._shard_of.items()},
            scenes=self.scene_ids,
            frames=[frames[scene_id] for scene_id in self.scene_ids],
        )

    def _finished(self, sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """The manifest of an earlier `finish` if it is of these very shards; it names the tool versions that made them."""
        try:
            manifest = read_manifest(self.path, "cache")
        except UserError:  # none yet, or damaged: written again either way
            return None
        files = {name: {key: sidecar[key] for key in ("sha256", "bytes")} for name, sidecar in sidecars.items()}
        identity = {"kind": "cache", "config": self.plan["config"], "parents": self.plan["parents"], "files": files}
        return manifest if manifest["fingerprint"] == fingerprint(identity) else None

    def _refuse_other_plan(self) -> None:
        plan_path = self.path / PLAN
        if plan_path.exists():
            if lines := differences(read_json(plan_path), self.plan):
                raise UserError(
                    f"{self.path}: holds a cache of another plan ({listed(lines)}); choose another --out or delete it"
                )
        elif self.path.exists() and (
            not self.path.is_dir() or any(not item.name.startswith(".") for item in self.path.iterdir())
        ):
            raise UserError(f"{self.path}: exists and is no cache (no {PLAN}); choose another --out")

    def _check_clip(self, scene_id: str, clip: Mapping[str, np.ndarray]) -> None:
        found = {name: {"dtype": str(array.dtype), "shape": list(array.shape[1:])} for name, array in clip.items()}
        lengths = {array.shape[0] if array.ndim else -1 for array in clip.values()}
        if len(lengths) != 1 or min(lengths) < 1:
            raise UserError(f"scene {scene_id!r}: all streams need the same number T >= 1 of frames, found {sorted(lengths)}")
        if lines := differences(self.streams or found, found):
            raise UserError(f"scene {scene_id!r}: its streams differ from the other clips' ({listed(lines)})")
        for name, array in clip.items():
            if array.dtype.kind != "f":
                continue
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            if bad.size:
                hint = " (float16 ends at 65504)" if array.dtype == np.float16 else ""
                where = f"scene {scene_id!r}, stream {name!r}, frame {bad[0]}"
                raise UserError(f"{where}: NaN or Inf{hint}; fix the input or leave the scene out")
        self.streams = found

    def _write_shard(self, k: int) -> None:
        name = self._shard_name(k)
        clips = {scene_id: self._pending[scene_id] for scene_id in self._groups[k]}
        record: dict[str, Any] = {"plan": self.plan_fingerprint, "streams": self.streams}
        record["frames"] = {scene_id: len(next(iter(clip.values()))) for scene_id, clip in clips.items()}

        def write(temporary: Path) -> None:
            content = save({f"{scene_id}/{key}": array for scene_id, clip in clips.items() for key, array in clip.items()})
            record.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            temporary.write_bytes(content)

        self._refuse_other_plan()  # another process may have come first
        write_json(self.path / PLAN, self.plan)
        (self.path / MANIFEST).unlink(missing_ok=True)  # a shard is being replaced, so the cache is not complete until finish()
        self._sweep(name)
        atomic_write(self.path / name, write)
        write_json(self._sidecar_path(k), record)
        self._done.add(k)
        for scene_id in clips:
            del self._pending[scene_id]

    def _sidecar(self, k: int) -> dict[str, Any] | None:
        """The record of shard `k` if it is on disk and whole by its size; None if it is still to be made."""
        shard = self.path / self._shard_name(k)
        if not shard.exists() or not self._sidecar_path(k).exists():
            return None
        record = read_json(self._sidecar_path(k))
        if not isinstance(record, dict) or record.get("plan") != self.plan_fingerprint:
            raise UserError(f"{self._sidecar_path(k)}: belongs to another plan; {REMAKE}")
        if (found := shard.stat().st_size) != record["bytes"]:
            raise UserError(f"{shard}: truncated or altered, {found} bytes instead of {record['bytes']}; {REMAKE}")
        return record

    def _sweep(self, name: str) -> None:
        """Remove what a killed writer left half-written; only the owner of a shard calls this for it."""
        for leftover in self.path.glob(f".{name}.*.tmp"):
            leftover.unlink(missing_ok=True)

    def _shard_name(self, k: int) -> str:
        return f"shard-{k:05d}.safetensors"

    def _sidecar_path(self, k: int) -> Path:
        return self.path / f"shard-{k:05d}.json"


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Human-readable list of the fields in which two JSON values differ: `"config.sigma: 0.3 -> 0.5"`."""
    if fingerprint(old) == fingerprint(new):
        return []
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = {key: (old.get(key, "absent"), new.get(key, "absent")) for key in sorted({*old, *new})}
        return [line for key, pair in pairs.items() for line in differences(*pair, f"{name}.{key}" if name else key)]
    if isinstance(old, list) and isinstance(new, list) and max(len(old), len(new)) > 4:
        at = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        change = f"{old[at : at + 1]} -> {new[at : at + 1]}"
        return [f"{name}: {len(old)} -> {len(new)} entries, first difference at {at}: {change}"]
    return [f"{name}: {old!r} -> {new!r}"]


def listed(lines: Sequence[str], most: int = 3) -> str:
    """The first few lines of a list in one sentence part."""
    return "; ".join(lines[:most]) + (f"; and {len(lines) - most} more" if len(lines) > most else "")
