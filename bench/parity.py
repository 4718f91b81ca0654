"""Is the student as good as the teacher downstream? Two sets of answers to the same questions, a margin, a verdict.

From saved predictions of a reader and the benchmark's records to the "tasks", "paired" and "parity" rows of report.json.

    vega-edge bench parity --task vsibench --student student.json --teacher teacher.json --questions test.jsonl --margin 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.intervals import DRAWS, by_type, interval, macro, noninferiority, paired
from bench.tasks import get_task
from teacher.scenes.question_files import load_questions
from vega_artifact import UserError, read_json, unknown_name

DIRECTION = "object_rel_direction"  # its levels are averaged before the tasks are, as VSI-Bench does


def compare(
    task: str,
    student: Mapping[Any, str | None],
    teacher: Mapping[Any, str | None],
    questions: Sequence[Mapping[str, Any]],
    margin: float,
    protocol: str | None = None,
    names: tuple[str, str] = ("student_exported", "teacher"),
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Score both and test whether the student stays within `margin` percent points of the teacher, scenes resampled together.

    Args:
        task: a name from `bench.tasks`. student, teacher: question id -> answer text.
        questions: the benchmark's own records. protocol: None takes the task's first. names: models in the rows.

    Returns:
        {"tasks": rows, "paired": rows, "parity": [row], "bounds": one-sided 95 % bounds of the difference}.

    Raises:
        UserError: unknown task or protocol, unanswered questions, fewer than two scenes, or a margin not above 0.
    """
    rules = get_task(task)
    protocol = protocol or rules.protocols[0]
    if protocol not in rules.protocols:
        raise unknown_name(f"{task} protocol", protocol, rules.protocols)
    for record in questions:
        for field in filter(None, (rules.id_field, rules.scene_field, rules.type_field)):
            if field not in record:
                raise UserError(f"{task}: a question without {field!r}: {dict(record)!r:.80}; give the benchmark's own records")
    scenes = {str(record[rules.id_field]): str(record[rules.scene_field]) for record in questions}
    types = {str(record[rules.id_field]): str(record[rules.type_field]) if rules.type_field else "all" for record in questions}
    tables = []
    for predictions in (student, teacher):
        scored = rules.score(predictions, questions, protocol=protocol)["per_item"]
        values = {str(key): 100 * float(row[rules.item_value]) for key, row in scored.items()}
        table, _, kinds = by_type(values, scenes, types)
        tables.append(table)
    identity = {"task": task, "protocol": protocol, "type": "overall"}
    reduce, n = macro(groups(kinds)), len(scenes)
    rows = []
    for name, table in zip(names, tables):
        found = interval(table, reduce, draws)
        rows.append({**identity, "model": name, "value": found.value, "low": found.low, "high": found.high, "n": n})
    gap = paired(*tables, reduce, draws)
    verdict = noninferiority(*tables, margin, n, reduce, draws)
    ends = {"difference": gap.value, "low": gap.low, "high": gap.high, "n": n}
    claim = {"task": task, "protocol": protocol, "margin": margin, "verdict": verdict.verdict, "needed_n": verdict.needed_n}
    return {
        "tasks": rows,
        "paired": [{"metric": None, **identity, "a": names[0], "b": names[1], **ends}],
        "parity": [claim],
        "bounds": [verdict.lower, verdict.upper],
    }


def read_predictions(path: Path) -> dict[str, str | None]:
    """A JSON file {question id: answer}."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object from question id to answer expected, found a {type(found).__name__}")
    return found


def read_questions(task: str, path: Path) -> list[dict[str, Any]]:
    """The records of a task: the ladder's are ours and plain JSON, the others come in their benchmark's own files."""
    if get_task(task).name != "ladder":
        return load_questions(path)
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise UserError(f"{path}: a JSON list of ladder questions expected")
    return found


def groups(kinds: Sequence[str]) -> list[list[int]]:
    """Columns that are averaged before the overall mean: each question type alone, the direction levels together."""
    grouped: dict[str, list[int]] = {}
    for column, kind in enumerate(kinds):
        grouped.setdefault(DIRECTION if kind.startswith(DIRECTION) else kind, []).append(column)
    return list(grouped.values())


def table(result: Mapping[str, Any]) -> str:
    """The rows as text for a terminal."""
    lines = [f"{row['model']:<20}{row['value']:>7.2f} % [{row['low']:.2f}, {row['high']:.2f}]" for row in result["tasks"]]
    gap, claim = result["paired"][0], result["parity"][0]
    lines.append(
        f"{'difference':<20}{gap['difference']:>+7.2f} points [{gap['low']:+.2f}, {gap['high']:+.2f}], {gap['n']} questions"
    )
    needed = f", about {claim['needed_n']} questions would settle it" if claim["needed_n"] else ""
    return "\n".join([*lines, f"within {claim['margin']:g} points: {claim['verdict']}{needed}"])
