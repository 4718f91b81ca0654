"""Tasks: benchmark scorers that name their protocol, and the registry that finds them by name.

They take saved predictions and the benchmark's own annotation records, need no GPU and no model, and all answer
{"metrics": {name: percent}, "per_item": {id: {...}}, "notes": {...}}. notes["counts"] holds how many items were empty, None,
unusable or rewarded for nonsense by the published rules, notes["missing"] the metrics left out and why:

    from bench.tasks import get_task
    get_task("vsibench").score({"7": "B"}, records, protocol="official")["metrics"]["overall"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.tasks import ladder, multi3drefer, scan2cap, scanqa, scanrefer, sqa3d, vsibench
from bench.tasks.records import identify
from vega_artifact import unknown_name


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        score: score(predictions, annotations, protocol=...) -> {"metrics", "per_item", "notes"}.
        protocols: the scoring rules it knows; the first is the default.
        primary: the metric a parity claim is made on.
        id_field, scene_field, type_field: where its records keep the id (some benchmarks need several fields, see
            `identify`), the scene and the question type whose means make up `overall` (None: the mean over all questions).
        uncounted: types that get a row of their own but stay out of `overall`.
        item_value: the key of "per_item" whose mean is the primary metric / 100.
    """

    name: str
    score: Callable[..., dict[str, Any]]
    protocols: tuple[str, ...]
    primary: str
    id_field: str | tuple[str, ...]
    scene_field: str
    type_field: str | None
    item_value: str
    uncounted: tuple[str, ...] = ()

    def identify(self, record: Mapping[str, Any]) -> str:
        """The id of a record as predictions spell it, as text."""
        return identify(record, self.id_field, self.name)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("vsibench", vsibench.score, vsibench.PROTOCOLS, "overall", "id", "scene_name", "question_type", "score"),
        Task("scanqa", scanqa.score, tuple(scanqa.PROTOCOLS), "em", "question_id", "scene_id", None, "em"),
        Task("sqa3d", sqa3d.score, sqa3d.PROTOCOLS, "em", "question_id", "scene_id", None, "em"),
        Task("scanrefer", scanrefer.score, scanrefer.PROTOCOLS, "acc50", scanrefer.ID_FIELDS, "scene_id", None, "acc50"),
        Task(
            "multi3drefer",
            multi3drefer.score,
            multi3drefer.PROTOCOLS,
            "f1_50",
            multi3drefer.ID_FIELDS,
            "scene_id",
            None,
            "f1_50",
        ),
        Task("scan2cap", scan2cap.score, scan2cap.PROTOCOLS, "cider", scan2cap.ID_FIELDS, "scene_id", None, "cider"),
        Task("ladder", ladder.score, ladder.PROTOCOLS, "overall", "question_id", "scene_id", "type", "score", ladder.UNCOUNTED),
    )
}


def get_task(name: str) -> Task:
    """The registered task; UserError that lists the known names otherwise."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]


__all__ = [
    "TASKS",
    "Task",
    "get_task",
    "ladder",
    "multi3drefer",
    "scan2cap",
    "scanqa",
    "scanrefer",
    "sqa3d",
    "vsibench",
]
