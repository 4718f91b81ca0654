"""SQA3D's two files, questions and annotations, joined into one record per question and split again.

Beside the other question files: `load_questions` comes here for a file with a "questions" list. Names as released:

    sqa_task/balanced/v1_balanced_questions_val_scannetv2.json         scene, situation, question
    sqa_task/balanced/v1_balanced_sqa_annotations_val_scannetv2.json   answers, position, rotation

    python -c "from teacher.scenes.question_files import load_questions as f; f('v1_balanced_questions_val_scannetv2.json')"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vega_artifact import UserError, read_json, write_json

ASKED = ("scene_id", "situation", "alternative_situation", "question", "question_id")
NAMES = "v1_balanced_questions_{split}_scannetv2.json"


def annotations_path(questions: Path) -> Path:
    """The file with the answers to a file of questions."""
    return questions.with_name(questions.name.replace("questions", "sqa_annotations"))


def join_sqa3d(path: Path, content: Mapping[str, Any]) -> list[Any]:
    """Records with the fields of both files; `answers` as texts.

    Args:
        path: the file of questions. content: what is in it.

    Raises:
        UserError: no file of annotations beside it, entries without id, an id twice, or ids that are in one file only.
    """
    other = annotations_path(path)
    if other == path or not other.exists():
        raise UserError(f"{path}: SQA3D keeps its answers in a second file; put {other.name} beside it, names unchanged")
    answers = read_json(other)
    rows = answers.get("annotations") if isinstance(answers, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{other}: a list of 'annotations' expected; give SQA3D's own file")
    found: dict[Any, Mapping[str, Any]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("answers"), list) or "question_id" not in row:
            raise UserError(f"{other}: record {number} lacks question_id or a list of answers; fetch the file again")
        if found.setdefault(row["question_id"], row) is not row:
            raise UserError(f"{other}: record {number} repeats question_id {row['question_id']!r}; ids must be unique")
    joined = [_joined(record, found) for record in content["questions"]]
    if unasked := found.keys() - {record.get("question_id") for record in joined if isinstance(record, dict)}:
        raise UserError(
            f"{other}: {len(unasked)} annotations without question, the first is {min(unasked)!r}; the two files differ"
        )
    return joined


def _joined(record: Any, found: Mapping[Any, Mapping[str, Any]]) -> Any:
    """The question with its answers, position and rotation; without them if no annotation has its id (the schema names it)."""
    if not isinstance(record, dict) or record.get("question_id") not in found:
        return record
    row = found[record["question_id"]]
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in row["answers"]]
    placed = {name: row[name] for name in ("position", "rotation") if name in row}
    return {**record, "answers": texts, **placed}


def write_sqa3d(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write the two files; UserError when `path` is not named so that the second name follows from it."""
    if annotations_path(path) == path:
        raise UserError(
            f"{path}: SQA3D's file of questions is named like {NAMES.format(split='val')}, the answers' name follows"
        )
    records = list(records)
    head = {
        "info": {"version": "1.0"},
        "license": {},
        "data_type": "scannet",
        "data_subtype": "balanced",
        "task_type": "Open-Ended",
    }
    write_json(path, {**head, "questions": [{name: record[name] for name in ASKED} for record in records]})
    rows = [
        {
            "scene_id": record["scene_id"],
            "question_type": "N/A",
            "answer_type": "other",
            "question_id": record["question_id"],
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(record["answers"], 1)
            ],
            "rotation": record["rotation"],
            "position": record["position"],
        }
        for record in records
    ]
    write_json(annotations_path(path), {**head, "annotations": rows})
