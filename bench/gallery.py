"""The pictures of the report: a few test views with features, gates, depth and correspondences of teacher and student.

from bench.gallery import collect
collect([train_cache, val_cache, test_cache], RUN, EXPORT, probe_rooms=80).save(REPORT)
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import maps, pictures
from bench.correspondence import mean_token
from bench.depth import DepthProbe
from bench.exhibits import Matches, ReportPictures
from bench.geometry import CellGeometry
from teacher.cache import FeatureCache
from teacher.scenes import PosedClip

STREAM = "generative"
SHOWN = ("teacher", "student_exported", "student_undistilled")
DEPTH = ("teacher", "student_exported", "raw_patches")
VIEWS = 6
PROBE_FIT = 40  # rooms that fit the depth pictures' probe; the table's own probe uses more


def collect(caches: list[FeatureCache], run: Path, export: Path, probe_rooms: int) -> ReportPictures:
    """Exhibits from the first test room with overlapping views and two views each of two others.

    Args:
        caches: train, val and test cache of the teacher, with frames.
        probe_rooms: train rooms available to fit the depth probe.
    """
    models = maps.collect(caches, run, export, STREAM)
    train, val, test = (
        maps.clips(cache, count) for cache, count in zip(caches, (min(PROBE_FIT, probe_rooms), 12, 12), strict=True)
    )
    views = [(test[0], 2), (test[0], 3), (test[1], 1), (test[1], 5), (test[2], 2), (test[2], 6)][:VIEWS]
    return ReportPictures(
        frames=np.stack([clip.rgb[view] for clip, view in views]),
        captions=tuple(f"{clip.scene_id.removeprefix('procedural-')}, view {view + 1}" for clip, view in views),
        features={name: np.stack([models[name][clip.scene_id][view] for clip, view in views]) for name in SHOWN},
        gates=np.stack([caches[2].read(clip.scene_id, "gate")[view].astype(np.float32) for clip, view in views]),
        depth=np.stack([clip.depth[view] for clip, view in views]),
        depth_predictions={name: _depth(models[name], train, val, views) for name in DEPTH},
        matches=_matches(models, train, test[0]),
        curves=_curves(run),
    )


def _tokens(model: maps.Maps, clip: PosedClip) -> np.ndarray:
    value = model[clip.scene_id]
    return np.ascontiguousarray(value.reshape(*value.shape[:2], -1).transpose(0, 2, 1), dtype=np.float32)


def _depth(model: maps.Maps, train: list[PosedClip], val: list[PosedClip], views: list[tuple[PosedClip, int]]) -> np.ndarray:
    """(N, gh, gw) metres read out by a linear probe fitted on training rooms."""
    grid = model[views[0][0].scene_id].shape[2:]
    geometry = [[CellGeometry.of(clip, *grid, views=False) for clip in clips] for clips in (train, val)]
    tokens = [[_tokens(model, clip) for clip in clips] for clips in (train, val)]
    probe = DepthProbe.fit(tokens[0], geometry[0], tokens[1], geometry[1])
    return np.stack([probe.predict(_tokens(model, clip))[view].reshape(grid) for clip, view in views])


def _matches(models: dict[str, maps.Maps], train: list[PosedClip], clip: PosedClip) -> Matches | None:
    chosen = {name: models[name] for name in DEPTH}
    grid = models["teacher"][clip.scene_id].shape[2:]
    geometry = CellGeometry.of(clip, *grid)
    shared = geometry.queries[(geometry.queries[:, 0] == 2) & (geometry.queries[:, 2] == 3)]
    if not len(shared):
        return None
    centres = {name: mean_token([_tokens(model, other) for other in train]) for name, model in chosen.items()}
    features = {name: model[clip.scene_id] for name, model in chosen.items()}
    found = pictures.match_views(features, geometry, 2, 3, size=clip.rgb.shape[1:3], centres=centres)
    return replace(found, view_a=0, view_b=1)  # views 2 and 3 of the room are the first two shown


def _curves(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The student's log and, from the bundle, the curves that trained the embedded teacher and its readers."""
    from teacher.tiny.bundle import curves

    student = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if line.strip()]
    stages = curves()
    wanted = {"teacher": "generative", "reader": "reader_fused-0"}
    return {"student": student} | {name: stages[stage] for name, stage in wanted.items() if stage in stages}
