"""3D probes: what frozen per-frame token maps know of the room, as rows of report.json with intervals and controls.

From features of any model (teacher, student, exported file, controls) and posed clips to the "probes" and "paired" rows of the
report. Three questions: depth (bench/depth.py), correspondence between views (bench/correspondence.py) and VEGA-3D's voxel
consistency (bench/consistency.py). Fitted on the training rooms, tuned on the validation rooms, judged on the test rooms.

    from bench.probes import evaluate
    result = evaluate({"teacher": teacher_maps, "raw_patches": patch_maps}, train_clips, val_clips, test_clips)
    result["probes"], result["paired"], result["extras"]["teacher"]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import consistency, correspondence
from bench.depth import DepthProbe, delta1, r2
from bench.geometry import CellGeometry
from bench.intervals import DRAWS, Interval, Reduce, interval, paired, ratio, retained
from vega_artifact import UserError

if TYPE_CHECKING:
    from teacher.scenes import PosedClip

__all__ = ["METRICS", "PAIRS", "DepthProbe", "evaluate"]

Maps = Mapping[str, np.ndarray]  # scene_id -> float (T, C, gh, gw)


@dataclass(frozen=True)
class Measure:
    """Where a metric lives in the statistics of a model: their name, the row of them, how sums become the value."""

    source: str
    row: int | None
    reduce: Reduce

    def read(self, statistics: Mapping[str, np.ndarray]) -> np.ndarray:
        """float64 (S, K) of one model."""
        table = statistics[self.source]
        return table if self.row is None else table[:, self.row]


METRICS = {
    "depth_r2": Measure("depth", None, r2),
    "depth_delta1": Measure("depth", None, delta1),
    "correspondence_recall": Measure("recall", correspondence.ALL, ratio),
    "correspondence_recall_centred": Measure("recall_centred", correspondence.ALL, ratio),
    "voxel_consistency": Measure("voxel", consistency.SCENE, ratio),
    "voxel_consistency_centred": Measure("voxel_centred", consistency.SCENE, ratio),
}
EXTRAS = {
    "position_r2": Measure("position", None, r2),
    "position_delta1": Measure("position", None, delta1),
    "correspondence_chance": Measure("recall", correspondence.CHANCE, ratio),
    "correspondence_recall_far": Measure("recall", correspondence.FAR, ratio),
    "correspondence_recall_far_centred": Measure("recall_centred", correspondence.FAR, ratio),
    "voxel_random": Measure("voxel", consistency.RANDOM, ratio),
    "voxel_random_centred": Measure("voxel_centred", consistency.RANDOM, ratio),
}
# a minus b is reported for those that are there.
PAIRS = (
    ("teacher", "teacher_random"),
    ("teacher", "teacher_reseeded"),
    ("teacher", "semantic"),
    ("teacher", "raw_patches"),
    ("student_exported", "teacher"),
    ("student_exported", "student"),
    ("student_exported", "student_undistilled"),
    ("student_exported", "semantic"),
    ("student_exported", "raw_patches"),
    ("teacher_fused", "semantic"),
    ("student_exported_fused", "teacher_fused"),
    ("student_exported_fused", "student_undistilled_fused"),
    ("student_exported_fused", "raw_patches"),
)
KEPT = ("student_exported", "teacher", "raw_patches")  # how much of the gain of the second over the third the first keeps


def evaluate(
    models: Mapping[str, Maps],
    train: Iterable[PosedClip],
    val: Iterable[PosedClip],
    test: Iterable[PosedClip],
    pairs: Sequence[tuple[str, str]] = PAIRS,
    draws: int = DRAWS,
    seed: int = 0,
    sums: bool = False,
) -> dict[str, Any]:
    """Run every probe on every model over the same rooms.

    Args:
        models: name -> scene_id -> features, float (T, C, gh, gw), for the scenes of all three splits. Frames are those of the
            clip, in order; channels and grid may differ between models. Any Mapping will do: scenes are read one at a time.
        train, val, test: clips with depth, intrinsics and poses; no room in two splits.
        pairs: (a, b) to compare; pairs with an absent model are skipped.

    Returns:
        probes, paired: rows as documented in bench/schema.py.
        retained: rows {metric, value, low, high, n}: share of the teacher's gain over raw patches that the exported student
            keeps.
        extras: model -> {"strength", "val_r2", and name -> {value, low, high, n}}: depth from the position alone, chance and
            far subset of the correspondences, random-pair control and contrast of the voxel score.
        per_scene: metric -> model -> scene_id -> value, NaN where a scene does not carry the metric.
        sums: only if asked for; metric -> model -> scene_id -> what is summed over scenes to make the metric (of depth the five
            columns of bench/depth.py, else numerator and denominator).
        missing: metric -> why no row has it.

    Raises:
        UserError: a model without features for a scene, wrong shapes, NaN, a scene in two splits, fewer than two test scenes.
    """
    if not models:
        raise UserError("probes: no model given; pass at least one set of features")
    rooms = Rooms(train, val, test)
    measured, extras = {}, {}
    for name, maps in models.items():
        measured[name], extras[name] = _measure(name, maps, rooms)
    result: dict[str, Any] = {"probes": [], "paired": [], "retained": [], "extras": extras, "per_scene": {}, "missing": {}}
    for metric, measure in METRICS.items():
        tables = {name: measure.read(statistics) for name, statistics in measured.items()}
        if not all(np.isfinite(measure.reduce(table.sum(0))) for table in tables.values()):
            result["missing"][metric] = "no test scene carries it: no two frames that see the same place, or no depth"
            continue
        _add_rows(result, metric, tables, measure.reduce, rooms.names("test"), (pairs, draws, seed))
        if sums:
            held = {name: dict(zip(rooms.names("test"), table.tolist())) for name, table in tables.items()}
            result.setdefault("sums", {})[metric] = held
    for name, statistics in measured.items():
        extras[name] |= _controls(statistics, draws, seed)
    return result


class Rooms:
    """The clips of the three splits; their geometry is computed once per grid and shared by all models."""

    def __init__(self, train: Iterable[PosedClip], val: Iterable[PosedClip], test: Iterable[PosedClip]) -> None:
        self.clips = {"train": list(train), "val": list(val), "test": list(test)}
        self._geometry: dict[tuple[int, int], dict[str, list[CellGeometry]]] = {}
        seen: dict[str, str] = {}
        for split, clips in self.clips.items():
            if not clips:
                raise UserError(f"probes: the {split} split has no scenes; give clips for train, val and test")
            for clip in clips:
                if clip.scene_id in seen:
                    raise UserError(
                        f"probes: scene {clip.scene_id} is in {seen[clip.scene_id]} and in {split}; splits share no room"
                    )
                seen[clip.scene_id] = split

    def names(self, split: str) -> list[str]:
        return [clip.scene_id for clip in self.clips[split]]

    def geometry(self, grid: tuple[int, int]) -> dict[str, list[CellGeometry]]:
        """split -> geometry of its clips on a (gh, gw) grid."""
        if grid not in self._geometry:
            self._geometry[grid] = {
                split: [CellGeometry.of(clip, *grid, views=split == "test") for clip in clips]
                for split, clips in self.clips.items()
            }
        return self._geometry[grid]

    def tokens(self, model: str, maps: Maps, split: str) -> tuple[list[np.ndarray], tuple[int, int]]:
        """float32 (T, N, C) per scene of the split, and the grid they share."""
        found, grids = [], set()
        for clip in self.clips[split]:
            try:  # and not `in`, which for a lazy Mapping computes the features a first time
                features = np.asarray(maps[clip.scene_id])
            except KeyError as error:
                raise UserError(
                    f"probes: {model} has no features for scene {clip.scene_id} ({split}); extract that scene too"
                ) from error
            if features.ndim != 4 or len(features) != len(clip.rgb):
                raise UserError(
                    f"probes: {model}, scene {clip.scene_id}: ({len(clip.rgb)}, C, gh, gw) expected, one map per frame, "
                    f"found {features.shape}"
                )
            if not np.isfinite(features).all():
                raise UserError(
                    f"probes: {model}, scene {clip.scene_id}: features hold NaN or infinite numbers; extract them again"
                )
            grids.add((*features.shape[1:],))
            found.append(np.ascontiguousarray(features.reshape(*features.shape[:2], -1).transpose(0, 2, 1), dtype=np.float32))
        if len(grids) > 1:
            raise UserError(f"probes: {model} has features of different (C, gh, gw) in {split}: {sorted(grids)}")
        return found, grids.pop()[1:]


def _measure(name: str, maps: Maps, rooms: Rooms) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Statistics of one model, each (S, ...) over the test scenes, and what its depth probe chose."""
    (train, grid), (val, val_grid), (test, test_grid) = (rooms.tokens(name, maps, split) for split in ("train", "val", "test"))
    if not grid == val_grid == test_grid or not train[0].shape[2] == val[0].shape[2] == test[0].shape[2]:
        raise UserError(f"probes: {name} has features of different size in train, val and test; extract all with one setting")
    geometry = rooms.geometry(grid)
    probe = DepthProbe.fit(train, geometry["train"], val, geometry["val"])
    centre = correspondence.mean_token(train)
    scenes = list(zip(test, geometry["test"]))
    statistics = {
        "depth": np.stack([probe.statistics(*scene) for scene in scenes]),
        "position": np.stack([probe.position_statistics(cells) for _, cells in scenes]),
        "recall": np.stack([correspondence.recall_statistics(*scene) for scene in scenes]),
        "recall_centred": np.stack([correspondence.recall_statistics(*scene, centre) for scene in scenes]),
        "voxel": np.stack([consistency.scene_consistency(*scene) for scene in scenes]),
        "voxel_centred": np.stack([consistency.scene_consistency(*scene, centre) for scene in scenes]),
    }
    return statistics, {"strength": probe.strength, "val_r2": probe.val_r2}


def _add_rows(
    result: dict[str, Any],
    metric: str,
    tables: Mapping[str, np.ndarray],
    reduce: Reduce,
    scenes: Sequence[str],
    how: tuple[Sequence[tuple[str, str]], int, int],
) -> None:
    pairs, draws, seed = how
    for name, table in tables.items():
        found = interval(table, reduce, draws, seed)
        result["probes"].append(
            {"model": name, "metric": metric, "value": found.value, "low": found.low, "high": found.high, "scenes": found.n}
        )
    for a, b in pairs:
        if a in tables and b in tables:
            found = paired(tables[a], tables[b], reduce, draws, seed)
            identity = {"metric": metric, "task": None, "protocol": None, "type": None, "a": a, "b": b}
            result["paired"].append(identity | {"difference": found.value, "low": found.low, "high": found.high, "n": found.n})
    if all(name in tables for name in KEPT):
        student, teacher, baseline = (tables[name] for name in KEPT)
        if reduce(teacher.sum(0)) != reduce(baseline.sum(0)):
            result["retained"].append({"metric": metric, **asdict(retained(student, teacher, baseline, reduce, draws, seed))})
    result["per_scene"][metric] = {
        name: {scene: float(value) for scene, value in zip(scenes, reduce(table))} for name, table in tables.items()
    }


def _controls(statistics: Mapping[str, np.ndarray], draws: int, seed: int) -> dict[str, Any]:
    found: dict[str, Interval] = {}
    for name, measure in EXTRAS.items():
        table = measure.read(statistics)
        if np.isfinite(measure.reduce(table.sum(0))):
            found[name] = interval(table, measure.reduce, draws, seed)
    for source in ("voxel", "voxel_centred"):
        table = statistics[source]
        if table[:, consistency.SCENE, 1].any():
            contrast = paired(table[:, consistency.SCENE], table[:, consistency.RANDOM], ratio, draws, seed)
            found[source.replace("voxel", "voxel_contrast")] = contrast
    return {name: asdict(value) for name, value in found.items()}
