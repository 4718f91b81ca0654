"""Is the student as good as the teacher downstream? Five rows of answers to the same questions, a margin, a verdict.

From answers (bench/conditions.py, or saved ones) and the benchmark's records to the "tasks", "paired" and "parity" rows of
report.json, a table, and the answers themselves (bench/predictions.py).

    vega-edge bench parity --task vsibench --teacher CACHE --student EXPORT --questions test.jsonl
    vega-edge bench parity --task vsibench --teacher teacher.json --student student.json --questions test.jsonl
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.intervals import DRAWS
from bench.predictions import Answers, Records, read_predictions, read_questions, write_predictions, write_submissions
from bench.significance import mcnemar, tost
from bench.tasks import Task, get_task
from bench.tasks.rows import task_rows
from teacher.scenes.scene_names import SceneNames
from vega_artifact import UserError, unknown_name, write_json

if TYPE_CHECKING:
    from bench.live import Live

STUDENT, TEACHER = "student_exported", "teacher"


def compare(
    task: str, answers: Answers, questions: Records, margin: float, protocol: str | None = None, draws: int = DRAWS
) -> dict[str, Any]:
    """Score all models and test whether the student stays within `margin` points of the teacher, scenes resampled together.

    Args:
        task: a name from `bench.tasks`. answers: at least of "teacher" and "student_exported".
        questions: the benchmark's own records. margin: percent points. protocol: None takes the task's first.

    Returns:
        {"tasks", "paired", "parity": rows of bench/schema.py, every model compared with the teacher; "agreement": see
        `agreement`; "metrics": model -> metric -> percent, mean over readers; "warnings": model -> sentences}.

    Raises:
        UserError: unknown task or protocol, unanswered or repeated questions, fewer than two scenes, a margin not above 0.
    """
    rules = get_task(task)
    protocol = check_claim(rules, margin, protocol)
    check_questions(rules, questions, protocol)
    warnings: dict[str, list[str]] = {}
    scored = {
        model: [_score(rules, run, questions, protocol, warnings.setdefault(model, [])) for run in runs]
        for model, runs in answers.items()
    }
    pairs = [(model, TEACHER) for model in answers if model != TEACHER]
    rows = task_rows(rules, scored, questions, margin, pairs, draws)
    return {
        **rows,
        "agreement": agreement(rules, scored, questions, margin),
        "metrics": {model: _mean_metrics(runs) for model, runs in scored.items()},
        "warnings": {model: sorted(set(found)) for model, found in warnings.items() if found},
    }


def check_claim(rules: Task, margin: float, protocol: str | None = None) -> str:
    """The protocol that is meant; UserError for an unknown one, or a margin that is not above 0."""
    if not margin > 0:
        raise UserError(f"the margin of a parity claim must be above 0, found {margin}")
    protocol = protocol or rules.protocols[0]
    if protocol not in rules.protocols:
        raise unknown_name(f"{rules.name} protocol", protocol, rules.protocols)
    return protocol


def check_questions(rules: Task, questions: Records, protocol: str) -> None:
    """Everything that can be wrong with the questions, found before anything is asked.

    Raises:
        UserError: see `compare`.
    """
    for record in questions:
        for field in filter(None, (rules.scene_field, rules.type_field)):
            if field not in record:
                raise UserError(
                    f"{rules.name}: a question without {field!r}: {dict(record)!r:.80}; give the benchmark's records"
                )
    if len(scenes := {str(record[rules.scene_field]) for record in questions}) < 2:
        raise UserError(f"{rules.name}: the questions are about {len(scenes)} scene; an interval over scenes needs at least 2")
    nothing = {rules.identify(record): "" for record in questions}
    rules.score(nothing, questions, protocol=protocol, **_options(rules))


def _options(rules: Task) -> dict[str, Any]:
    return (
        {"with_meteor": False} if rules.name == "scanqa" else {}
    )  # Java starts for ten seconds, for every reader of every row


def _score(
    rules: Task, run: Mapping[str, str | None], questions: Records, protocol: str, warnings: list[str]
) -> dict[str, Any]:
    """One reader's answers scored; a score that is no number counts as 0, and a warning says so."""
    found = rules.score(run, questions, protocol=protocol, **_options(rules))
    broken = [row for row in found["per_item"].values() if not math.isfinite(row[rules.item_value])]
    for row in broken:
        row[rules.item_value] = 0.0
    warnings += found["notes"]["warnings"]
    warnings += [f"{len(broken)} scores are not finite and count as 0"] if broken else []
    return found


def _mean_metrics(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {name: float(np.mean([run["metrics"][name] for run in runs])) for name in runs[0]["metrics"]}


def agreement(
    rules: Task, scored: Mapping[str, Sequence[Mapping[str, Any]]], questions: Records, margin: float
) -> dict[str, Any]:
    """How far student and teacher agree question by question.

    Returns:
        identical: share of equal answers; flips: of every reader, questions only one of the two answered rightly with McNemar's
        exact p, over the questions scored 0 or 1; tost_p: equivalence within +-margin of the mean score, one value per scene,
        since questions of one scene are not independent.
    """
    scenes = {rules.identify(record): str(record[rules.scene_field]) for record in questions}
    identical, flips = [], []
    differences: dict[str, list[float]] = {}
    for student, teacher in zip(scored[STUDENT], scored[TEACHER], strict=True):
        pairs = {str(key): (row, teacher["per_item"][key]) for key, row in student["per_item"].items()}
        identical += [a["prediction"] == b["prediction"] for a, b in pairs.values()]
        values = {key: (a[rules.item_value], b[rules.item_value]) for key, (a, b) in pairs.items()}
        for key, (a, b) in values.items():
            differences.setdefault(scenes[key], []).append(100 * (a - b))
        binary = [pair for pair in values.values() if set(pair) <= {0.0, 1.0}]
        test = mcnemar([a for a, _ in binary], [b for _, b in binary])
        flips.append({"only_student": test["only_a"], "only_teacher": test["only_b"], "n": len(binary), "p": test["p"]})
    means = [float(np.mean(found)) for found in differences.values()]
    return {"identical": float(np.mean(identical)), "flips": flips, "tost_p": tost(means, margin)}


def saved(
    task: str,
    teacher: Path,
    student: Path,
    questions: Path | None,
    margin: float,
    protocol: str | None,
    out: Path | None = None,
) -> dict[str, Any]:
    """The verdict on two files of saved answers; no model is needed. With `out`, submissions are written there."""
    if questions is None:
        raise UserError("saved answers need the questions they answer: give the benchmark's own file as --questions")
    answers = {TEACHER: [read_predictions(teacher, task)], STUDENT: [read_predictions(student, task)]}
    records = read_questions(task, questions)
    result = compare(task, answers, records, margin, protocol)
    if out is not None:
        write_submissions(out / "submissions", task, answers, records)
    return result


def measure(
    task: str,
    teacher: Path | Live,
    student: Path,
    out: Path,
    questions: Path | None = None,
    readers: Sequence[str] = ("embedded",),
    reseeded: Path | None = None,
    margin: float = 1.0,
    protocol: str | None = None,
    run: Path | None = None,
) -> dict[str, Any]:
    """Ask all five rows, and compare.

    Args:
        teacher: a cache with frames, or a teacher that makes one now. student: an export of a student of that teacher.
        questions: None makes them from the ground truth of the scenes. run: the student's run; None looks beside the export.
        readers: "embedded", or folders of `vega-edge fit`. reseeded: a cache of other noise; None extracts it below `out`.

    Returns:
        What `compare` returns and "left_out": questions per scene that is not in the cache. Questions, answers (predictions/)
        and answers in the layouts of other scorers (submissions/) lie in `out`.
    """
    from bench import conditions
    from bench.lineage import check_student
    from teacher.cache import FeatureCache

    conditions.schema_of(task)
    conditions.check_readers(readers)
    protocol = check_claim(get_task(task), margin, protocol)
    given = None if questions is None else read_questions(task, questions)
    if isinstance(teacher, Path):
        cache = FeatureCache(teacher)
        check_student(student, cache.manifest["parents"]["teacher"], teacher, run)
    else:
        cache = teacher.cache(student, run)
    records = conditions.made_up(task, cache) if given is None else given
    asked, left_out = conditions.askable(task, records, cache)
    check_questions(get_task(task), asked, protocol)
    noise = FeatureCache(reseeded) if reseeded else conditions.reseed(cache, out / "reseeded")
    answers = conditions.ask(task, conditions.conditions(readers, cache, student, noise), asked, SceneNames(cache))
    write_json(out / "questions.json", asked)
    write_predictions(out / "predictions", task, answers, asked)
    write_submissions(out / "submissions", task, answers, asked)
    return compare(task, answers, asked, margin, protocol) | {"left_out": left_out}


def table(result: Mapping[str, Any]) -> str:
    """Rows, verdict and what weakens it, as text for a terminal."""
    gaps = {(row["type"], row["a"]): row for row in result["paired"]}
    overall = [row for row in result["tasks"] if row["type"] == "overall"]
    lines = [f"{'tokens':<18}{'score %':>9}  {'95 % interval':<18}minus teacher (points)"]
    for row in overall:
        gap = gaps.get(("overall", row["model"]))
        against = f"{gap['difference']:+.2f} [{gap['low']:+.2f}, {gap['high']:+.2f}]" if gap else "-"
        lines.append(f"{row['model']:<18}{row['value']:>9.2f}  {_ends(row):<18}{against}")
    return "\n".join([*lines, *_types(result), *_claim(result, overall[0]["n"]), *_doubts(result, gaps)])


def _ends(row: Mapping[str, Any]) -> str:
    return f"[{row['low']:.2f}, {row['high']:.2f}]"


def _types(result: Mapping[str, Any]) -> list[str]:
    """One line per question type, the models side by side in the order of the table."""
    kinds: dict[str, list[str]] = {}
    for row in result["tasks"]:
        if row["type"] != "overall":
            kinds.setdefault(f"  {row['type']} ({row['n']})", []).append(f"{row['value']:6.1f}")
    width = max(map(len, kinds), default=0)
    return ["by type, in the order of the rows above:"] * bool(kinds) + [
        f"{kind:<{width}}  {' '.join(values)}" for kind, values in kinds.items()
    ]


def _claim(result: Mapping[str, Any], count: int) -> list[str]:
    claim, shared = result["parity"][0], result["agreement"]
    flips = ", ".join(f"{flip['only_student']} / {flip['only_teacher']} (p {flip['p']:.2g})" for flip in shared["flips"])
    needed = f"; about {claim['needed_n']} questions would settle it" if claim["needed_n"] else ""
    return [
        f"equal answers {100 * shared['identical']:.1f} %; right in student / teacher only, per reader: {flips}; "
        f"equivalence (TOST over scenes) p {shared['tost_p']:.2g}",
        f"{claim['task']}, protocol {claim['protocol']}, {count} questions: student within {claim['margin']:g} points of the "
        f"teacher: {claim['verdict']}{needed}",
    ]


def _doubts(result: Mapping[str, Any], gaps: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """What a reader of the verdict must know: easy questions, noise, questions that were not asked, odd answers."""
    lines, margin = [], result["parity"][0]["margin"]
    for model in ("semantic", "blind"):
        gap = gaps.get(("overall", model))
        if gap and gap["high"] > -margin:
            lines.append(f"caution: {model} is not shown to lose more than {margin:g} points either, so parity proves little")
    left_out = result.get("left_out") or {}
    if left_out:
        lines.append(
            f"{sum(left_out.values())} questions about {len(left_out)} scenes that are not in the cache were not asked"
        )
    return lines + [f"{model}: {text}" for model, found in result["warnings"].items() for text in found]
