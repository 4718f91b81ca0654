"""Rows: scored answers of several models as the "tasks", "paired" and "parity" rows of report.json.

Between the scorers and the report. Per-question scores are averaged over reader seeds first, then scenes are resampled together
for all models, so that a difference is never blamed on the rooms or on one lucky reader.

    from bench.tasks import get_task
    from bench.tasks.rows import task_rows
    task_rows(get_task("vsibench"), {"teacher": [scored_seed0, scored_seed1], "blind": [scored]}, records, margin=1.0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.intervals import DRAWS, Interval, Reduce, by_type, interval, macro, noninferiority, paired
from bench.tasks.vsibench import DIRECTION, DIRECTION_LEVELS
from vega_artifact import UserError

if TYPE_CHECKING:
    from bench.tasks import Task

PAIRS = (
    ("teacher", "blind"),
    ("teacher", "semantic"),
    ("teacher", "student_undistilled"),
    ("teacher", "teacher_reseeded"),
    ("student_exported", "teacher"),
    ("student_exported", "blind"),
    ("student_exported", "semantic"),
    ("student_exported", "student_undistilled"),
)
PARITY = ("student_exported", "teacher")


def task_rows(
    task: Task,
    results: Mapping[str, Sequence[Mapping[str, Any]]],
    annotations: Sequence[Mapping[str, Any]],
    margin: float | None = None,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Rows for one task.

    Args:
        results: model -> what `task.score` returned, once per reader seed; all on the same questions and protocol.
        annotations: the records that were scored; they tell scene and question type.
        margin: percent points for the parity row of the exported student against the teacher; None leaves it out.
        pairs: (a, b) to compare; pairs with an absent model are skipped.

    Returns:
        {"tasks", "paired", "parity"}: rows as documented in bench/schema.py, in percent. `overall` is the primary metric of the
        task, a macro mean over its types where it has some (the three direction levels of VSI-Bench are one type).

    Raises:
        UserError: models scored on different questions or protocols, or fewer than two scenes.
    """
    protocol = _one_protocol(task, results)
    records = {task.identify(record): record for record in annotations}
    _require_fields(task, records)
    scenes = {key: str(record[task.scene_field]) for key, record in records.items()}
    types = {key: str(record[task.type_field]) if task.type_field else "overall" for key, record in records.items()}
    tables: dict[str, np.ndarray] = {}
    kinds: list[str] = []
    for model, runs in results.items():
        tables[model], _, kinds = by_type(_mean_scores(task, model, runs, set(records)), scenes, types)
    rows: dict[str, list[dict[str, Any]]] = {"tasks": [], "paired": [], "parity": []}
    head = {"task": task.name, "protocol": protocol}
    for name, columns, reduce in _measures(kinds, task.uncounted):
        count = sum(kind in {kinds[column] for column in columns} for kind in types.values())
        for model, table in tables.items():
            found = interval(table, reduce, draws, seed)
            rows["tasks"].append({**head, "model": model, "type": name, "value": found.value, **_ends(found, count)})
        for a, b in pairs:
            if a in tables and b in tables:
                found = paired(tables[a], tables[b], reduce, draws, seed)
                identity = {"metric": None, **head, "type": name, "a": a, "b": b}
                rows["paired"].append({**identity, "difference": found.value, **_ends(found, count)})
        if name == "overall" and margin is not None and all(model in tables for model in PARITY):
            student, teacher = (tables[model] for model in PARITY)
            claim = noninferiority(student, teacher, margin, count, reduce, draws, seed)
            rows["parity"].append({**head, "margin": margin, "verdict": claim.verdict, "needed_n": claim.needed_n})
    return rows


def _require_fields(task: Task, records: Mapping[str, Mapping[str, Any]]) -> None:
    for field in filter(None, (task.scene_field, task.type_field)):
        absent = [key for key, record in records.items() if field not in record]
        if absent:
            fault = f"{len(absent)} questions have no {field!r}, the first is {absent[0]!r}"
            raise UserError(f"{task.name}: {fault}; intervals resample by it, give the benchmark's own records")


def _ends(found: Interval, count: int) -> dict[str, Any]:
    return {"low": found.low, "high": found.high, "n": count}


def _measures(kinds: Sequence[str], uncounted: Sequence[str] = ()) -> list[tuple[str, list[int], Reduce]]:
    """(row type, columns of the statistics it reads, how) for `overall` and, where there are several, every type."""
    groups: dict[str, list[int]] = {}
    for column, kind in enumerate(kinds):
        groups.setdefault(DIRECTION if kind in DIRECTION_LEVELS else kind, []).append(column)
    counted = [columns for name, columns in groups.items() if name not in uncounted] or list(groups.values())
    every = ("overall", [column for columns in counted for column in columns], macro(counted))
    apart = [(name, columns, macro([columns])) for name, columns in groups.items() if name != "overall"]
    return [every, *apart]


def _mean_scores(task: Task, model: str, runs: Sequence[Mapping[str, Any]], known: set[str]) -> dict[str, float]:
    """Question id as text -> score in percent, averaged over the runs."""
    if not runs:
        raise UserError(f"{task.name}: {model} has no scored run; leave the model out or score its answers")
    scores: dict[str, list[float]] = {}
    for run in runs:
        if {str(key) for key in run["per_item"]} != known:
            raise UserError(f"{task.name}: {model} was scored on other questions than the annotations given; score it on these")
        for key, row in run["per_item"].items():
            scores.setdefault(str(key), []).append(100 * row[task.item_value])
    return {key: float(np.mean(values)) for key, values in scores.items()}


def _one_protocol(task: Task, results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    found = sorted({run["notes"]["protocol"] for runs in results.values() for run in runs})
    if len(found) != 1:
        raise UserError(
            f"{task.name}: one protocol for all models expected, found {found or 'no scored run'}; never compare across"
        )
    return found[0]
