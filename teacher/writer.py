"""Writes feature caches: shard by shard, by any number of processes, killed and started again as often as it happens.

Place in the chain: `teacher.extract` hands clips to a `CacheWriter`; what it leaves is read by `teacher.cache.FeatureCache`.
On disk: `plan.json` first, then per shard a safetensors file (keys `"{scene_id}/{stream}"`, whole clips) and its side-car JSON,
`manifest.json` last. What processes promise one another:

- A shard is made under a claim (`teacher.claims`), so by one process at a time, and its bytes do not depend on which one.
- Whoever comes to the end waits for the claims of the others. If one dies, the shard it held is free at once and is made by
  those still running; what it had finished stays. If all die, the same command goes on, with any number of processes.
- Whoever then finds all shards complete writes the manifest; all would write the same. Nobody waits for a message.

    python -m pytest tests/teacher/test_cache.py tests/teacher/test_workers.py
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from teacher.claims import claim
from teacher.shard import REMAKE
from teacher.storage import Storage
from vega_artifact import (
    MANIFEST,
    UserError,
    atomic_write,
    canonical,
    file_sha256,
    fingerprint,
    read_json,
    read_manifest,
    write_json,
    write_manifest,
)

PLAN = "plan.json"


class CacheWriter:
    """Writes a cache shard by shard; interrupted at any time and started again with the same plan, it ends in identical bytes.

    Shard k holds scenes [k * scenes_per_shard, (k + 1) * scenes_per_shard) of the plan whatever the order of `add`; it is
    written when its last scene is there, then its side-car. Clips of unfinished shards are held in memory (about three
    times a shard's bytes at the peak). Processes that share a folder take their scenes from `claims`; a single one may
    also go through `missing`. Nothing is written before the first claim or the first complete shard.

    Args:
        path: the cache folder; a folder with another plan is refused and left alone.
        config: everything that changes a value (JSON-able); becomes the manifest's config.
        parents: stage -> fingerprint, e.g. {"teacher": ...}.
        scene_ids: the planned scenes in order.
        storage: how maps lie on disk.

    Raises:
        UserError: no or repeated scene ids; a folder that is no cache or a cache of another plan (the message names the
            field that differs); a finished shard that was altered.
    """

    def __init__(
        self,
        path: Path | str,
        config: Mapping[str, Any],
        parents: Mapping[str, str],
        scene_ids: Sequence[str],
        scenes_per_shard: int = 32,
        storage: Storage | None = None,
    ) -> None:
        self.path, self.storage = Path(path), storage or Storage()
        self.scene_ids = list(scene_ids)
        if not self.scene_ids or len(set(self.scene_ids)) != len(self.scene_ids) or scenes_per_shard < 1:
            raise UserError(f"{self.path}: a cache needs at least one scene, scene ids that differ and scenes_per_shard >= 1")
        self.plan: dict[str, Any] = canonical(
            {"config": config, "parents": parents, "scene_ids": self.scene_ids, "scenes_per_shard": scenes_per_shard}
        )
        self.plan_fingerprint = fingerprint(self.plan)
        self.groups = [self.scene_ids[i : i + scenes_per_shard] for i in range(0, len(self.scene_ids), scenes_per_shard)]
        self._shard_of = {scene_id: k for k, group in enumerate(self.groups) for scene_id in group}
        self._pending: dict[str, dict[str, np.ndarray]] = {}
        self._dropped: dict[str, list[str]] = {}
        self._done: set[int] = set()
        self._refuse_other_plan()
        self._manifest_seen = self._manifest_stamp()
        done = set(range(len(self.groups))) - set(self.missing_shards())
        self.streams: dict[str, Any] | None = self._sidecar(min(done))["streams"] if done else None  # type: ignore[index]

    def missing_shards(self) -> list[int]:
        """Shards that are not on disk by now, whoever wrote the others."""
        return [k for k in range(len(self.groups)) if not self._is_done(k)]

    def missing(self) -> list[str]:
        """Scenes still to be added by somebody, in plan order."""
        return [scene_id for k in self.missing_shards() for scene_id in self.groups[k] if scene_id not in self._pending]

    def claims(self, first: int = 0) -> Iterator[list[str]]:
        """Shards that are this process's alone while it works on them, each as its scenes in plan order.

        Ends when every shard of the cache is on disk: shards that others hold are waited for, and made if their holder dies.

        Args:
            first: shard to begin with; processes that begin apart get in one another's way less.
        """
        self.begin()
        order = [*range(first, len(self.groups)), *range(first)]
        for wait in (False, True):
            for k in order:
                if self._is_done(k):
                    continue
                with claim(self.path / f".shard-{k:05d}.lock", wait) as ours:
                    if ours and not self._is_done(k):  # its holder may have finished it in the meantime
                        yield list(self.groups[k])

    def begin(self) -> None:
        """Make the folder and its plan.json, unless they are there; refuses a folder with another plan."""
        self._refuse_other_plan()
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / PLAN).exists():
            with claim(self.path / ".plan.lock", wait=True):
                self._refuse_other_plan()  # another process may have come first
                write_json(self.path / PLAN, self.plan)

    def check_space(self, bytes_needed: int) -> None:
        """Refuse before the start when the disk under the folder has less than `bytes_needed` free (caller's estimate)."""
        if (free := self.free_space()) < bytes_needed:
            raise UserError(
                f"{self.path}: the plan needs {bytes_needed / 1e9:.2f} GB, the disk has {free / 1e9:.2f} GB free; "
                "free some space, choose another --out, or extract fewer scenes or streams"
            )

    def free_space(self) -> int:
        """Bytes free on the disk the folder is or will be on."""
        existing = next(folder for folder in (self.path.absolute(), *self.path.absolute().parents) if folder.exists())
        return shutil.disk_usage(existing).free

    def add(self, scene_id: str, arrays: Mapping[str, np.ndarray], dropped: Sequence[str] = ()) -> None:
        """Hand over one clip: {stream: array (T, ...)}, read back in its dtype (features: float16; numpy has no bfloat16).

        A scene whose shard is already on disk is left as it is.

        Args:
            dropped: frames that were left out of the clip, one entry each with the reason; listed in the manifest.

        Raises:
            UserError: NaN or Inf (names scene, stream and frame), or streams whose names, dtypes, per-frame shapes or T
                differ from the other clips'.
        """
        shard = self._shard_of.get(scene_id)
        if shard is None:
            raise UserError(f"{self.path}: scene {scene_id!r} is not in the plan of this cache; plan it from the start")
        if shard in self._done:
            return
        self.check(scene_id, arrays)
        self._pending[scene_id] = {
            stream + suffix: np.ascontiguousarray(part)
            for stream, array in sorted(arrays.items())
            for suffix, part in self._parts(stream, array).items()
        }
        self._dropped[scene_id] = list(dropped)
        if all(member in self._pending for member in self.groups[shard]):
            self._write_shard(shard)

    def check(self, scene_id: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Refuse a clip that `add` would refuse for its content; the first clip says what the others must look like."""
        found = {name: self._describe(arrays[name]) for name in sorted(arrays)}
        lengths = {array.shape[0] if array.ndim else -1 for array in arrays.values()}
        if len(lengths) != 1 or min(lengths) < 1:
            raise UserError(f"scene {scene_id!r}: all streams need the same number T >= 1 of frames, found {sorted(lengths)}")
        if lines := differences(self.streams or found, found):
            raise UserError(f"scene {scene_id!r}: its streams differ from the other clips' ({listed(lines)})")
        for name, array in arrays.items():
            if array.dtype.kind != "f":
                continue
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            if bad.size:
                hint = " (float16 ends at 65504)" if array.dtype == np.float16 else ""
                where = f"scene {scene_id!r}, stream {name!r}, frame {bad[0]}"
                raise UserError(f"{where}: NaN or Inf{hint}; fix the input or leave the scene out")
        self.streams = found

    def finish(self) -> dict[str, Any]:
        """Check every shard against its side-car and write the manifest; returns it. Any number of processes may call this.

        Raises:
            UserError: scenes are missing, a shard was altered since it was written, or shards hold different streams.
        """
        names = [self._shard_name(k) for k in range(len(self.groups))]
        found = [self._sidecar(k) for k in range(len(names))]  # from disk: other processes may have written some
        sidecars = [sidecar for sidecar in found if sidecar is not None]
        if len(sidecars) < len(names):
            raise UserError(f"{self.path}: {len(names) - len(sidecars)} of {len(names)} shards missing; run extract again")
        with claim(self.path / ".finish.lock", wait=True):
            earlier = self._finished(dict(zip(names, sidecars, strict=True)))
            if earlier is None or self._manifest_stamp() == self._manifest_seen:  # else checked by another process just now
                self._check_shards(dict(zip(names, sidecars, strict=True)))
                earlier = earlier or self._write_manifest(dict(zip(names, sidecars, strict=True)))
            self._sweep("*")
        return earlier

    def _check_shards(self, sidecars: Mapping[str, Mapping[str, Any]]) -> None:
        first, expected = next(iter(sidecars)), self.storage.identity()
        for name, sidecar in sidecars.items():
            if sidecar["streams"] != sidecars[first]["streams"]:
                raise UserError(f"{self.path / name}: its streams differ from those of {first}; {REMAKE}")
            if lines := differences(sidecar["storage"], expected):
                raise UserError(f"{self.path / name}: stored with another basis ({listed(lines)}); {REMAKE}")
            if file_sha256(self.path / name) != sidecar["sha256"]:
                raise UserError(f"{self.path / name}: corrupt, altered since it was written; {REMAKE}")

    def _write_manifest(self, sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        names = list(sidecars)
        frames = {scene_id: count for sidecar in sidecars.values() for scene_id, count in sidecar["frames"].items()}
        dropped = {scene_id: lost for sidecar in sidecars.values() for scene_id, lost in sidecar["dropped"].items() if lost}
        return write_manifest(
            self.path,
            "cache",
            self.plan["config"],
            self.plan["parents"],
            [*names, *self.storage.files],
            streams=sidecars[names[0]]["streams"],
            storage=self.storage.name,
            index={scene_id: names[k] for scene_id, k in self._shard_of.items()},
            scenes=self.scene_ids,
            frames=[frames[scene_id] for scene_id in self.scene_ids],
            dropped={"count": sum(map(len, dropped.values())), "scenes": dropped},
        )

    def _finished(self, sidecars: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """The manifest of an earlier `finish` if it is of these very shards; it names the tool versions that made them."""
        try:
            manifest = read_manifest(self.path, "cache")
        except UserError:  # none yet, or damaged: written again either way
            return None
        files = {name: {key: sidecar[key] for key in ("sha256", "bytes")} for name, sidecar in sidecars.items()}
        files |= {name: {"sha256": file_sha256(self.path / name), "bytes": (self.path / name).stat().st_size}
                  for name in self.storage.files}  # fmt: skip
        identity = {"kind": "cache", "config": self.plan["config"], "parents": self.plan["parents"], "files": files}
        return manifest if manifest["fingerprint"] == fingerprint(identity) else None

    def _manifest_stamp(self) -> int | None:
        path = self.path / MANIFEST
        return path.stat().st_mtime_ns if path.exists() else None

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

    def _describe(self, array: np.ndarray) -> dict[str, Any]:
        record: dict[str, Any] = {"dtype": str(array.dtype), "shape": list(array.shape[1:])}
        return {**record, "stored": self.storage.name} if self.storage.reduces(array.shape, array.dtype) else record

    def _parts(self, stream: str, array: np.ndarray) -> dict[str, np.ndarray]:
        return self.storage.encode(stream, array) if self.storage.reduces(array.shape, array.dtype) else {"": array}

    def _write_shard(self, k: int) -> None:
        name, scenes = self._shard_name(k), self.groups[k]
        clips = {scene_id: self._pending[scene_id] for scene_id in scenes}
        record: dict[str, Any] = {"plan": self.plan_fingerprint, "streams": self.streams, "storage": self.storage.identity()}
        record["frames"] = {scene_id: len(next(iter(clip.values()))) for scene_id, clip in clips.items()}
        record["dropped"] = {scene_id: self._dropped[scene_id] for scene_id in scenes}

        def write(temporary: Path) -> None:
            content = save({f"{scene_id}/{key}": array for scene_id, clip in clips.items() for key, array in clip.items()})
            record.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            temporary.write_bytes(content)

        self.begin()
        (self.path / MANIFEST).unlink(missing_ok=True)  # a shard is being replaced, so the cache is not complete until finish()
        self._sweep(name)
        atomic_write(self.path / name, write)
        write_json(self._sidecar_path(k), record)
        self._done.add(k)
        for scene_id in clips:
            del self._pending[scene_id]

    def _is_done(self, k: int) -> bool:
        if k not in self._done and self._sidecar(k) is not None:
            self._done.add(k)
        return k in self._done

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
        """Remove what a killed writer left half-written, and its claims; only who holds a shard, or all, calls this."""
        for leftover in (*self.path.glob(f".{name}.*.tmp"), *self.path.glob(f".{name}.lock")):
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
