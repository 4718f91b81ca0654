"""Training data of the embedded teacher: procedural rooms, rendered once to arrays in the work folder.

Two kinds per room: dense video pieces (what a video generator is trained on) and tours of eight key frames with questions
(what the semantic tower and the reader are trained on). Only `train` rooms; `val` rooms choose settings, `test` rooms are left
to the bench.

    python -m teacher.tiny train --stage rooms
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from teacher.framing import as_unit_images, frame_images
from teacher.launch import end_with_parent
from teacher.scenes import PosedClip, open_scenes
from teacher.scenes.furniture import FURNITURE
from teacher.scenes.questions import procedural_questions
from teacher.scenes.rooms import FIXTURES
from vega_artifact import atomic_write, write_text

GRID = 8
PIXELS = 64  # what the generator sees
GROUP = 4  # frames per latent frame after the first


@dataclass(frozen=True, kw_only=True)
class RoomsConfig:
    videos: int = 2000
    video_frames: int = 17
    video_span: float = 0.35
    tours: int = 4000
    val_tours: int = 150
    questions: int = 48  # per room and task
    size: int = 128
    seed: int = 1


def class_names() -> list[str]:
    """Every class that has an instance id, in a fixed order."""
    return sorted({*FURNITURE, *FIXTURES})


def small_frames(rgb: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (T, 64, 64, 3) uint8 exactly as the teacher resizes frames."""
    images = frame_images(as_unit_images(rgb), "aligned", (PIXELS, PIXELS), 8)
    return (images * 255).round().byte().movedim(1, -1).numpy()


def cells(values: np.ndarray) -> np.ndarray:
    """(T, H, W, ...) -> (T, GRID, GRID, pixels per cell, ...)."""
    frames, height, width = values.shape[:3]
    step = height // GRID, width // GRID
    split = values.reshape(frames, GRID, step[0], GRID, step[1], *values.shape[3:])
    return np.moveaxis(split, 2, 3).reshape(frames, GRID, GRID, step[0] * step[1], *values.shape[3:])


def coverage(clip: PosedClip, names: list[str]) -> np.ndarray:
    """(T, GRID, GRID, K) uint8: share of each cell's pixels that each class covers, in 1/255."""
    lookup = np.zeros(max((o.id for o in clip.objects), default=0) + 1, dtype=np.int64)
    for item in clip.objects:
        lookup[item.id] = names.index(item.name) + 1
    classes = cells(lookup[clip.instances])
    return np.stack([(classes == k + 1).mean(-1) * 255 for k in range(len(names))], -1).round().astype(np.uint8)


def geometry(clip: PosedClip) -> np.ndarray:
    """(T', 4, GRID, GRID) float16: (log depth - 1) / 0.5 and xyz / 2 in the first camera, per latent frame and cell."""
    rows = np.arange(0, len(clip.rgb), GROUP)  # the last frame of each temporal group
    first = np.linalg.inv(clip.camera_to_world[0])
    return _targets(clip.depth[rows], clip.world_points()[rows] @ first[:3, :3].T + first[:3, 3])


def image_geometry(clip: PosedClip) -> np.ndarray:
    """(T, 4, GRID, GRID) float16: the same for frames that are pictures of their own, each in its own camera."""
    inverse = np.linalg.inv(clip.camera_to_world)
    points = np.einsum("tij,thwj->thwi", inverse[:, :3, :3], clip.world_points()) + inverse[:, None, None, :3, 3]
    return _targets(clip.depth, points)


def _targets(depth: np.ndarray, points: np.ndarray) -> np.ndarray:
    logs = np.log(np.clip(cells(depth), 0.05, None)).mean(-1)
    place = np.nanmean(cells(points.astype(np.float32)), axis=3)
    return np.concatenate([(logs[:, None] - 1) / 0.5, np.moveaxis(place, -1, 1) / 2], 1).astype(np.float16)


def _video(uri: str, index: int) -> tuple[Any, ...]:
    clip = open_scenes(uri)[index]
    return small_frames(clip.rgb), geometry(clip)


def _tour(uri: str, index: int, limit: int) -> tuple[Any, ...]:
    clip = open_scenes(uri)[index]
    questions = {task: procedural_questions(clip, task, limit=limit) for task in ("scanqa", "vsibench")}
    return clip.rgb, coverage(clip, class_names()), image_geometry(clip), json.dumps({"scene_id": clip.scene_id, **questions})


def render(work: Path, config: RoomsConfig) -> None:
    """Render what is missing in `work`; each array appears whole or not at all."""
    length = f"frames={config.video_frames}&span={config.video_span}"
    videos = f"procedural:train?count={config.videos}&{length}&size={config.size}&seed={config.seed}"
    _collect(work, ("video", "video_geometry"), _video, config.videos, (videos,))
    for name, split, count in (("val", "val", config.val_tours), ("train", "train", config.tours)):
        uri = tour_uri(split, count, config)
        names = [f"{name}_{part}" for part in ("rgb", "coverage", "geometry", "questions")]
        _collect(work, names, _tour, count, (uri, config.questions))


def tour_uri(split: str, count: int, config: RoomsConfig) -> str:
    # other seed than the videos: the reader must not be tested on rooms whose videos the generator memorised
    return f"procedural:{split}?count={count}&frames=8&size={config.size}&seed={config.seed + 1}"


def load(work: Path, name: str) -> np.ndarray:
    return np.load(work / f"{name}.npy", mmap_mode="r")


def load_questions(work: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / f"{name}_questions.jsonl").read_text().splitlines()]


def _collect(work: Path, names: Sequence[str], function: Callable, count: int, arguments: tuple) -> None:
    suffix = ["jsonl" if name.endswith("questions") else "npy" for name in names]
    paths = [work / f"{name}.{end}" for name, end in zip(names, suffix, strict=True)]
    if all(path.exists() for path in paths):
        return
    columns = list(zip(*in_parallel(function, count, arguments, names[0]), strict=True))
    for path, column in zip(paths, columns, strict=True):
        if path.suffix == ".jsonl":
            write_text(path, "\n".join(column) + "\n")
        else:
            atomic_write(path, lambda temporary, rows=column: _save(temporary, rows))


def _save(path: Path, rows: tuple[np.ndarray, ...]) -> None:
    with open(path, "wb") as stream:
        np.save(stream, np.stack(rows), allow_pickle=False)


def in_parallel(function: Callable, count: int, arguments: tuple, label: str) -> Iterator[Any]:
    """function(first, index, *rest) for every index below `count`, in order, on all cores."""
    first, *rest = arguments
    # not forked: a process whose torch has started threads leaves its children waiting for them
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        jobs = [pool.submit(function, first, index, *rest) for index in range(count)]
        for job in track(jobs, description=f"rendering {label}"):
            yield job.result()
