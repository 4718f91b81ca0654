"""Feature maps of every model over the rooms of a cache, computed when asked for: what the probes and the reader compare.

From a cache (frames and teacher streams), a run and an export to mappings scene_id -> float32 (T, C, gh, gw).

    from bench.maps import collect
    models = collect([train_cache, val_cache, test_cache], run=RUN, export=EXPORT)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from export.runtime import Encoder
from export.runtime.preprocess import resize
from student import AnyStudent, StreamingStudent, load_model
from teacher.cache import FeatureCache
from teacher.scenes import PosedClip, open_scenes
from vega_artifact import UserError, check_parent, read_manifest

PATCH = 8  # pixels per side of a cell of the "raw_patches" control: the resolution at which the embedded teacher sees it
STEP = 32  # frames per call of a network


class Maps(Mapping[str, np.ndarray]):
    """scene_id -> float32 (T, C, gh, gw), made by a function of (cache, scene_id) and not kept."""

    def __init__(self, caches: Sequence[FeatureCache], make: Callable[[FeatureCache, str], np.ndarray]) -> None:
        self._home = {scene_id: cache for cache in caches for scene_id in cache.scene_ids}
        self._make = make

    def __getitem__(self, scene_id: str) -> np.ndarray:
        return np.asarray(self._make(self._home[scene_id], scene_id), np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def collect(
    caches: Sequence[FeatureCache], run: Path | None = None, export: Path | None = None, stream: str = "fused"
) -> dict[str, Maps]:
    """The models that these artifacts hold, by their names in the report.

    Args:
        caches: of one teacher, with frames. run: adds `student` and `student_undistilled`. export: adds `student_exported`.
        stream: the teacher's stream that is judged, and that the students imitate.

    Raises:
        UserError: caches of different teachers or without the stream, no run, no export, or an export of another run.
    """
    teachers = {cache.manifest["parents"].get("teacher") for cache in caches}
    if len(teachers) != 1:
        raise UserError(f"caches of {len(teachers)} different teachers ({', '.join(map(str, teachers))}): extract all with one")
    for cache in caches:
        for name in (stream, "rgb"):
            if name not in cache.manifest["streams"]:
                raise UserError(
                    f"{cache.path}: no stream {name!r} in it; it has {', '.join(sorted(cache.manifest['streams']))}"
                )
    grid = caches[0].streams[stream][1:]
    models = {"teacher": Maps(caches, lambda cache, scene: cache.read(scene, stream))}
    if all("semantic" in cache.streams for cache in caches):
        models["semantic"] = Maps(caches, lambda cache, scene: cache.read(scene, "semantic"))
    models["raw_patches"] = Maps(caches, lambda cache, scene: raw_patches(cache.read(scene, "rgb"), grid))
    if run is not None:
        models["student"] = student_maps(caches, run, stream, undistilled=False)
        models["student_undistilled"] = student_maps(caches, run, stream, undistilled=True)
    if export is not None:
        if run is not None:
            check_parent(read_manifest(export, "export"), "run", read_manifest(run, "run")["fingerprint"], export)
        models["student_exported"] = exported_maps(caches, export, stream)
    return models


def raw_patches(frames: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """uint8 (T, H, W, 3) -> the pixels of every cell, float32 (T, 3 * PATCH**2, gh, gw) in [0, 1]."""
    small = resize(frames.astype(np.float32) / 255, (grid[0] * PATCH, grid[1] * PATCH))
    cells = small.reshape(len(frames), grid[0], PATCH, grid[1], PATCH, 3)
    return cells.transpose(0, 2, 4, 5, 1, 3).reshape(len(frames), -1, *grid)


def student_maps(caches: Sequence[FeatureCache], run: Path, stream: str, undistilled: bool) -> Maps:
    """The torch student of a run, or the untrained weights it began with."""
    model = load_model(run, undistilled=undistilled)

    @torch.inference_mode()
    def encode(frames: np.ndarray) -> dict[str, np.ndarray]:
        return {name: tokens.numpy() for name, tokens in model.film(model.preprocess(frames)).items()}

    return network_maps(caches, encode, model.grid, stream, run, step_of(model))


def step_of(student: AnyStudent) -> int:
    """Frames a student is given at once: one with memory sees a clip in one go."""
    return sys.maxsize if isinstance(student, StreamingStudent) else STEP


def exported_maps(caches: Sequence[FeatureCache], export: Path, stream: str) -> Maps:
    """The exported file, through the runtime that the device uses."""
    encoder = Encoder(export)
    return network_maps(caches, encoder, encoder.description.grid, stream, export)


def network_maps(
    caches: Sequence[FeatureCache],
    encode: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    grid: tuple[int, int],
    stream: str,
    where: Path,
    step: int = STEP,
) -> Maps:
    """`encode`: at most `step` frames (T, H, W, 3) uint8 -> stream -> tokens (T, N, C), row-major over `grid`."""

    def make(cache: FeatureCache, scene_id: str) -> np.ndarray:
        frames = cache.read(scene_id, "rgb")
        pieces = []
        for start in range(0, len(frames), step):
            streams = encode(frames[start : start + step])
            if stream not in streams:
                raise UserError(f"{where}: no stream {stream!r} in it; it has {', '.join(sorted(streams))}")
            pieces.append(streams[stream])
        tokens = np.concatenate(pieces)
        return tokens.transpose(0, 2, 1).reshape(len(tokens), -1, *grid)

    return Maps(caches, make)


def clips(cache: FeatureCache, limit: int | None = None) -> list[PosedClip]:
    """The (first `limit`) posed clips a cache was made from, opened again through the scenes URI in its manifest."""
    uri = str(cache.manifest["config"]["scenes"])
    source = open_scenes(uri)
    if source.fingerprint != cache.manifest["config"]["scenes_fingerprint"]:
        raise UserError(f"{cache.path}: the scenes {uri} are no longer those it was made from; extract the cache again")
    return [source[source.scene_ids.index(scene_id)] for scene_id in cache.scene_ids[:limit]]
