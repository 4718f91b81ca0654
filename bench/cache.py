"""How fast single frames come out of a feature cache, and what reduced storage of it would save and cost.

A leaf of the chain: CACHE -> a table. "Reading a frame" can mean several things, so all are measured, in turns, on frames in
random order from a warm page cache:

    view     an array on the memory map; no byte of it is looked at
    touch    a view, and one byte of each of its memory pages read: everything is there to be used
    sum      a view, and every byte of it read once
    copy     the bytes copied into one buffer that is used again
    read     a new array each time, what `FeatureCache.frame` gives (reduced storage is decoded here)
    library  safetensors' own reader, which also gives a new array

    vega-edge bench cache CACHE                (or without CACHE: float16 records of 1536x14x14 made for the occasion)
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from teacher.cache import CacheWriter, FeatureCache
from teacher.storage import Storage, open_storage
from vega_artifact import UserError

PAGE = 4096
ROUNDS = 5
RECORD = (1536, 14, 14)  # Wan2.1-1.3B on the reference's grid
Reader = Callable[[str, int], object]


def measure(path: Path | None, stream: str, threads: Sequence[int], seconds: float, storages: Sequence[str]) -> dict[str, Any]:
    """Both measurements; without a path on a cache of random records made in the temporary folder.

    Args:
        threads: numbers of threads to read with. seconds: for each row, about. storages: forms to compare with float16.

    Returns:
        {"reads": rows, "storage": rows, "record": bytes of one frame, "frames": how many there are}

    Raises:
        UserError: no cache, an unknown stream, or nothing to measure.
    """
    if not threads or min(threads) < 1 or seconds <= 0:
        raise UserError(f"bench cache: threads {list(threads)} must be at least 1 and seconds {seconds} above 0")
    with tempfile.TemporaryDirectory() as folder:
        cache = FeatureCache(path) if path else synthetic(Path(folder) / "cache", stream)
        if stream not in cache.streams:
            raise UserError(f"{cache.path}: no stream {stream!r}; it has {', '.join(sorted(cache.streams))}")
        record = int(np.prod(cache.streams[stream])) * np.dtype(cache.manifest["streams"][stream]["dtype"]).itemsize
        return {
            "record": record,
            "frames": sum(cache.frames.values()),
            "storage_of_cache": cache.storage.name,
            "reads": random_reads(cache, stream, threads, seconds, record),
            "storage": storage_costs(cache, storages) if path and cache.storage.name == "float16" else [],
        }


def synthetic(path: Path, stream: str, scenes: int = 16, frames: int = 32, shape: tuple[int, ...] = RECORD) -> FeatureCache:
    """A cache of random float16 records, 308 MB as it is by default: well beyond the processor's caches."""
    names = [f"scene-{index:02d}" for index in range(scenes)]
    writer = CacheWriter(path, {"synthetic": list(shape)}, {"teacher": "none"}, names, 4)
    writer.check_space(2 * scenes * frames * int(np.prod(shape)))
    for index, name in enumerate(names):
        rng = np.random.default_rng(index)
        writer.add(name, {stream: rng.standard_normal((frames, *shape), np.float32).astype(np.float16)})
    writer.finish()
    return FeatureCache(path)


def random_reads(cache: FeatureCache, stream: str, threads: Sequence[int], seconds: float, record: int) -> list[dict[str, Any]]:
    """Frames per second of every way to read, the ways taking turns; rows {way, threads, frames_per_s, gb_per_s, spread}."""
    frames = [(scene, t) for scene in cache.scene_ids for t in range(cache.frames[scene])]
    plain = "stored" not in cache.manifest["streams"][stream]
    ways: dict[str, Reader] = readers(cache, stream) if plain else {"read": lambda scene, t: cache.frame(scene, t, stream)}
    for way in ways.values():  # warm: every page mapped and in memory
        for scene, t in frames:
            way(scene, t)
    shuffled = [frames[index] for index in np.random.default_rng(0).permutation(len(frames))]
    found: dict[tuple[str, int], list[float]] = {(name, count): [] for count in threads for name in ways}
    for _ in range(ROUNDS):
        for name, count in found:
            found[name, count].append(_rate(ways[name], shuffled, count, seconds / ROUNDS))
    return [
        {
            "way": way,
            "threads": count,
            "frames_per_s": float(np.median(rates)),
            "spread": [min(rates), max(rates)],
            "gb_per_s": None if way in ("view", "touch") else float(np.median(rates)) * record / 1e9,
        }
        for (way, count), rates in found.items()
    ]


def readers(cache: FeatureCache, stream: str) -> dict[str, Reader]:
    """The ways to read one frame (scene, t) that the module docstring lists."""
    shape, dtype = cache.streams[stream], np.dtype(cache.manifest["streams"][stream]["dtype"])
    handles = {name: safe_open(cache.path / name, framework="numpy") for name in set(cache.manifest["index"].values())}

    def view(scene: str, t: int) -> np.ndarray:
        return cache.view(scene, stream)[t]

    buffers = threading.local()  # one for each thread

    def copy(scene: str, t: int) -> None:
        if not hasattr(buffers, "own"):
            buffers.own = np.empty(shape, dtype)
        np.copyto(buffers.own, view(scene, t))

    def words(scene: str, t: int) -> np.ndarray:
        flat = view(scene, t).reshape(-1).view(np.uint8)
        return flat[: flat.size // 8 * 8].view(np.uint64)

    return {
        "view": view,
        "touch": lambda scene, t: view(scene, t).reshape(-1).view(np.uint8)[::PAGE].max(),
        "sum": lambda scene, t: np.bitwise_xor.reduce(words(scene, t)),
        "copy": copy,
        "read": lambda scene, t: cache.frame(scene, t, stream),
        "library": lambda scene, t: handles[cache.manifest["index"][scene]].get_slice(f"{scene}/{stream}")[t],
    }


def _rate(way: Reader, frames: Sequence[tuple[str, int]], threads: int, seconds: float) -> float:
    """Frames per second of all threads together, each going round the frames from a place of its own."""

    def run(start: int) -> int:
        done, ends = 0, time.perf_counter() + seconds
        while time.perf_counter() < ends:
            for index in range(start, start + 16):  # the clock costs as much as a view
                way(*frames[index % len(frames)])
            start, done = start + 16, done + 16
        return done

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        total = sum(pool.map(run, [k * len(frames) // threads for k in range(threads)]))
    return total / (time.perf_counter() - began)


def storage_costs(cache: FeatureCache, storages: Sequence[str], clips: int = 32) -> list[dict[str, Any]]:
    """What each form of storage would make of this cache: rows {storage, stream, bytes_per_frame, part, and three errors}.

    part: of the bytes in float16. error: root mean square difference over the root mean square of the float16 values;
    centred_error: the same over the spread around each channel's mean, which is stricter; centred_cosine: mean over tokens,
    after removing those means. Forms with a basis are fitted on the first half of the clips looked at and judged on the second.
    """
    names = [cache.scene_ids[i] for i in sorted({*np.linspace(0, len(cache) - 1, min(clips, len(cache))).astype(int)})]
    fitted, judged = (names[: len(names) // 2], names[len(names) // 2 :]) if len(names) > 1 else (names, names)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(storages):
            place = Path(folder) / str(number)
            place.mkdir()
            form = open_storage(name, place)
            form.prepare(lambda: ({stream: cache.read(scene, stream) for stream in cache.streams} for scene in fitted))
            rows += [
                {"storage": name, "stream": stream, **cost(form, stream, [cache.read(scene, stream) for scene in judged])}
                for stream in cache.streams
            ]
    return rows


def cost(form: Storage, stream: str, maps: Sequence[np.ndarray]) -> dict[str, float]:
    """Bytes per frame and errors of one stream, for clips (T, C, gh, gw)."""
    given = np.concatenate(maps).astype(np.float64)
    found = np.concatenate([form.roundtrip(stream, clip) for clip in maps]).astype(np.float64)
    mean = given.mean(axis=(0, 2, 3), keepdims=True)
    square = float(np.square(found - given).mean())
    one, other = given - mean, found - mean
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    plain = maps[0].dtype.itemsize * given[0].size
    reduced = form.reduces(maps[0].shape, maps[0].dtype)
    size = sum(form.nbytes(clip.shape, clip.dtype) if reduced else clip.nbytes for clip in maps) / len(given)
    return {
        "bytes_per_frame": size,
        "part": size / plain,
        "error": (square / max(float(np.square(given).mean()), 1e-30)) ** 0.5,
        "centred_error": (square / max(float(np.square(one).mean()), 1e-30)) ** 0.5,
        "centred_cosine": float(((one * other).sum(axis=1) / np.maximum(lengths, 1e-30)).mean()),
    }


def table(result: Mapping[str, Any]) -> str:
    """Both measurements as text."""
    lines = [
        f"random reads of single frames, {result['frames']} records of {result['record']:,} bytes, warm, "
        f"{os.cpu_count()} cores, stored as {result['storage_of_cache']}",
        f"{'way':<10}{'threads':>8}{'frames/s':>14}{'GB/s':>8}   slowest to fastest round",
    ]
    for row in result["reads"]:
        rate = f"{row['gb_per_s']:.1f}" if row["gb_per_s"] is not None else "–"
        low, high = row["spread"]
        lines.append(f"{row['way']:<10}{row['threads']:>8}{row['frames_per_s']:>14,.0f}{rate:>8}   {low:,.0f} to {high:,.0f}")
    if result["storage"]:
        lines += ["", f"{'storage':<12}{'stream':<14}{'bytes/frame':>12}{'part':>7}{'error':>10}{'centred':>10}{'cosine':>10}"]
    for row in result["storage"]:
        numbers = f"{row['part']:>7.2f}{row['error']:>10.5f}{row['centred_error']:>10.5f}{row['centred_cosine']:>10.6f}"
        lines.append(f"{row['storage']:<12}{row['stream']:<14}{row['bytes_per_frame']:>12,.0f}{numbers}")
    return "\n".join(lines)
