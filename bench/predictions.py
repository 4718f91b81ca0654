"""Predictions: saved answers and the questions they answer, in and out of files.

Beside bench/parity.py, which compares them. Every question goes out as it was asked, with its answer, and the answers again in
the layouts of bench/tasks/submissions.py, for the benchmarks' own scorers and leaderboards.

    from bench.predictions import read_predictions
    read_predictions(Path("runs/parity/vsibench/predictions/teacher-0.jsonl"), "vsibench")
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.tasks import get_task
from bench.tasks.submissions import LAYOUTS, write_submission
from teacher.scenes.question_files import load_questions
from vega_artifact import UserError, read_json, write_text

Answers = Mapping[str, Sequence[Mapping[str, str | None]]]  # model -> one {question id: text} per reader
Records = Sequence[Mapping[str, Any]]


def read_predictions(path: Path, task: str) -> dict[str, str | None]:
    """{question id: answer} from a JSON object of just that, or from JSON lines as `write_predictions` leaves them."""
    if path.suffix != ".jsonl":
        found = read_json(path)
        if not isinstance(found, dict):
            raise UserError(f"{path}: a JSON object from question id to answer expected, found a {type(found).__name__}")
        return found
    answers: dict[str, str | None] = {}
    for number, line in enumerate(filter(str.strip, path.read_text(encoding="utf-8").split("\n")), 1):
        try:
            row = json.loads(line)
            name, text = get_task(task).identify(row), row["prediction"]
        except (json.JSONDecodeError, KeyError, TypeError, UserError):
            raise UserError(
                f"{path}: line {number} is no object with an id and a 'prediction'; write the answers again"
            ) from None
        if name in answers:
            raise UserError(f"{path}: line {number} answers question {name!r} again; keep one answer per question")
        answers[name] = text
    return answers


def write_predictions(folder: Path, task: str, answers: Answers, questions: Records) -> None:
    """One file per model and reader, `<model>-<reader>.jsonl`: every question as it was asked, with its "prediction"."""
    for model, runs in answers.items():
        for number, run in enumerate(runs):
            rows = [
                {**record, "prediction": run[get_task(task).identify(record)], "model": model, "reader": number}
                for record in questions
            ]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(folder / f"{model}-{number}.jsonl", text)


def write_submissions(folder: Path, task: str, answers: Answers, questions: Records) -> None:
    """`<layout>/<model>-<reader>.json` (or .jsonl) in every layout the task's own scorers take; a task without any has none."""
    for layout, form in LAYOUTS.get(task, {}).items():
        suffix = ".jsonl" if form.lines else ".json"
        for model, runs in answers.items():
            for number, run in enumerate(runs):
                path = folder / layout / f"{model}-{number}{suffix}"
                write_submission(path, task, run, questions, layout, f"{model}-{number}")


def read_questions(task: str, path: Path) -> list[dict[str, Any]]:
    """The records of a task: the ladder's are ours and plain JSON, the others come in their benchmark's own files."""
    if get_task(task).name != "ladder":
        return load_questions(path)
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise UserError(f"{path}: a JSON list of ladder questions expected")
    return found
