"""Runs the teacher over scenes and fills a feature cache: plan first, resumable, shard by shard.

vega-edge extract --teacher tiny --scenes "procedural:train?count=300" --out runs/cache
accelerate launch --num_processes 2 --cpu -m vega_edge extract ...
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from teacher.cache import CacheWriter, FeatureCache
from teacher.scenes import PosedClip, SceneSource, open_scenes
from teacher.streams import Pipeline, load_pipeline

FLOAT_BYTES = 2  # streams are stored in float16


def extract(
    teacher: str | Pipeline,
    scenes: str,
    out: Path | str,
    *,
    seed: int | None = None,
    store_frames: bool = True,
    scenes_per_shard: int = 16,
    **options: Any,
) -> FeatureCache:
    """Fill (or complete) the cache at `out`.

    Args:
        teacher: registry name, folder of weights, or a ready pipeline.
        scenes: scenes URI, see `teacher.scenes`.
        seed: noise seed; None takes the teacher's.
        store_frames: also keep the frames, so that a student can train from the cache alone.
        options: passed to `load_teacher` (blocks, sigma, mode, ...).
    Raises:
        UserError: the folder holds another cache, the disk is short, a frame cannot be read, or a feature is not finite.
    """
    source = open_scenes(scenes)  # first: a typo in the URI must not cost the loading of a teacher
    pipeline = teacher if isinstance(teacher, Pipeline) else load_pipeline(teacher, **options)
    state = PartialState()
    writer = CacheWriter(
        out,
        _config(pipeline, source, seed, store_frames),
        {"teacher": pipeline.fingerprint},
        list(source.scene_ids),
        scenes_per_shard,
    )
    missing = writer.missing(state.process_index, state.num_processes)
    if missing:
        first = source[source.scene_ids.index(missing[0])]
        _announce(pipeline, first, seed, store_frames, writer, len(writer.missing()))
        _fill(pipeline, source, writer, missing, seed, store_frames, quiet=not state.is_main_process)
    state.wait_for_everyone()
    if state.is_main_process:
        writer.finish()
    state.wait_for_everyone()
    return FeatureCache(out)


def clip_record(pipeline: Pipeline, clip: PosedClip, seed: int | None, store_frames: bool) -> dict[str, np.ndarray]:
    """What the cache holds of one clip: float16 streams, frame ids, and the frames if wanted."""
    record = {
        name: value.astype(np.float16)
        for name, value in pipeline.streams(clip.rgb, clip.scene_id, clip.frame_ids, seed).items()
    }
    kept = pipeline.teacher.frame_index(len(clip.rgb))
    record["frame_ids"] = np.asarray(clip.frame_ids, dtype=np.int64)[kept]
    if store_frames:
        record["rgb"] = clip.rgb[kept]
    return record


def _config(pipeline: Pipeline, source: SceneSource, seed: int | None, store_frames: bool) -> dict[str, Any]:
    return {
        "teacher": vars(pipeline.teacher.config),
        "block": pipeline.block,
        "sigma_used": pipeline.teacher.simulator.sigma,
        "scenes": source.uri,
        "scenes_fingerprint": source.fingerprint,
        "seed": pipeline.teacher.config.seed if seed is None else seed,
        "store_frames": store_frames,
    }


def _announce(pipeline: Pipeline, clip: PosedClip, seed: int | None, frames: bool, writer: CacheWriter, count: int) -> None:
    """The plan, from one measured clip: bytes and time, refused when the disk is short."""
    began = time.perf_counter()
    record = clip_record(pipeline, clip, seed, frames)
    seconds = time.perf_counter() - began
    needed = count * sum(value.nbytes for value in record.values())
    writer.check_space(needed)
    Console(stderr=True).print(
        f"plan: {count} clips, {needed / 2**20:.0f} MiB, about {count * seconds / 60:.1f} min of teacher time on one process"
    )


def _fill(
    pipeline: Pipeline,
    source: SceneSource,
    writer: CacheWriter,
    missing: list[str],
    seed: int | None,
    frames: bool,
    quiet: bool,
) -> None:
    index = {scene_id: position for position, scene_id in enumerate(source.scene_ids)}
    columns = (TextColumn("extract"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=True if quiet else None) as progress:
        task = progress.add_task("extract", total=len(missing))
        for scene_id in missing:
            writer.add(scene_id, clip_record(pipeline, source[index[scene_id]], seed, frames))
            progress.advance(task)
