"""Question files: the benchmarks' own and ours, read with every record checked, written so that they read back the same.

Beside the procedural questions: real ScanQA v1.0 JSON and VSI-Bench jsonl/parquet come in here, and both schemas go out.

    python -c "from teacher.scenes.questions import load_questions; print(len(load_questions('ScanQA_v1.0_val.json')))"
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from teacher.scenes.questions_vsi import CHOICE_TYPES, VSI_TYPES
from vega_artifact import UserError, canonical, read_json, write_json, write_text

VSI_KEYS = ("id", "dataset", "scene_name", "question_type", "question", "options", "ground_truth")
SCANQA_KEYS = ("scene_id", "question_id", "question")  # the hidden test set has neither answers nor, in one half, objects
KNOWN_SUFFIXES = ".json, .jsonl or .parquet"


def load_questions(path: Path | str) -> list[dict[str, Any]]:
    """Read ScanQA records (.json) or VSI-Bench records (.jsonl, .parquet, .json), in file order.

    Kept as they are, except: `scene_name` becomes text (ARKitScenes names are all digits), `object_id` becomes `object_ids`,
    missing options become None. Further keys stay.

    Raises:
        UserError: no such file, unknown suffix, empty file, a record with missing keys, a wrong value or a duplicate id, or
            a parquet file without pandas and pyarrow.
    """
    path = Path(path)
    records = _read(path)
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: a non-empty list of questions expected; give a ScanQA v1.0 or VSI-Bench file")
    if not isinstance(records[0], dict):
        raise UserError(f"{path}: record 0 is not an object; give a ScanQA v1.0 or VSI-Bench file")
    vsi = "question_type" in records[0] or "scene_name" in records[0]
    keys, check, identity = (VSI_KEYS, _check_vsi, "id") if vsi else (SCANQA_KEYS, _check_scanqa, "question_id")
    checked: list[dict[str, Any]] = []
    seen: dict[Any, int] = {}
    for number, record in enumerate(records):
        where = f"{path}: record {number}"
        missing = [key for key in keys if key not in record] if isinstance(record, dict) else list(keys)
        if missing:
            raise UserError(f"{where} lacks {', '.join(missing)}; every record needs {', '.join(keys)}")
        record = check(where, dict(record))
        if record[identity] in seen:
            earlier = seen[record[identity]]
            raise UserError(f"{where} repeats {identity} {record[identity]!r} of record {earlier}; ids must be unique")
        seen[record[identity]] = number
        checked.append(record)
    return checked


def _read(path: Path) -> Any:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix == ".json":
        return read_json(path)
    if path.suffix != ".jsonl":
        raise UserError(f"{path}: unknown kind of question file; {KNOWN_SUFFIXES} expected")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() would also split at U+2028 inside a text
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); fetch the file again") from None
    return [_parse(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {number} is not valid JSON ({error}); fetch or make the file again") from None


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pyarrow (pip install pyarrow); or use the benchmark's .jsonl") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}); fetch it again") from None


def _check_vsi(where: str, record: dict[str, Any]) -> dict[str, Any]:
    if record["question_type"] not in VSI_TYPES:
        raise UserError(f"{where} has unknown question_type {record['question_type']!r}; known: {', '.join(VSI_TYPES)}")
    if isinstance(record["id"], bool) or not isinstance(record["id"], int):
        raise UserError(f"{where} has id {record['id']!r}; a whole number expected")
    record["scene_name"], truth = str(record["scene_name"]), str(record["ground_truth"])
    record["ground_truth"], record["options"] = truth, list(record["options"] or ()) or None
    if record["question_type"] in CHOICE_TYPES:
        letters = _letters(where, record["options"])
        if truth not in letters:
            raise UserError(f"{where} has ground_truth {truth!r}; one of {', '.join(letters)} expected")
    elif not _is_number(truth):
        raise UserError(f"{where} has ground_truth {truth!r}; a number expected for {record['question_type']}")
    return record


def _letters(where: str, options: Sequence[str] | None) -> list[str]:
    """The letters of "A. left", "B. right", ...; they must run from A without a gap."""
    letters = [chr(ord("A") + number) for number in range(len(options or ()))]
    if len(letters) < 2 or any(not str(option).startswith(f"{letter}. ") for letter, option in zip(letters, options or ())):
        raise UserError(f"{where} has options {options!r}; at least two expected, as 'A. ...', 'B. ...'")
    return letters


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_scanqa(where: str, record: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(record["question_id"], str):
        raise UserError(f"{where} has question_id {record['question_id']!r}; a text expected, such as 'val-scene0011-0'")
    if "object_id" in record and "object_ids" not in record:
        record["object_ids"] = record.pop("object_id")
    answers = record.get("answers", [""])
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{where} has answers {answers!r}; a non-empty list of texts expected (or no `answers` at all)")
    return record


def write_questions(path: Path | str, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as .json (one list) or .jsonl (one record a line, as VSI-Bench ships); all of it or nothing."""
    path, rows = Path(path), [canonical(record) for record in records]
    if path.suffix == ".json":
        write_json(path, rows)
    elif path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        raise UserError(f"{path}: questions are written as .json or .jsonl; give one of these suffixes")
