"""Question files: the benchmarks' own and ours, read with every record checked, written so that they read back the same.

Beside the procedural questions. In come the official files of ScanQA v1.0 and VSI-Bench (jsonl, parquet or json), SQA3D
(questions; the annotations beside them), ScanRefer, Multi3DRefer and Scan2Cap (ScanRefer grouped by object);
the same go out.

    python -c "from teacher.scenes.questions import load_questions; print(len(load_questions('ScanQA_v1.0_val.json')))"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher.scenes.question_schemas import SCHEMAS, Schema, instances, schema_of
from teacher.scenes.sqa3d_files import join_sqa3d, write_sqa3d
from vega_artifact import UserError, atomic_write, canonical, read_json, unknown_name, write_json, write_text

KNOWN_SUFFIXES = ".json, .jsonl or .parquet"
NEEDS_ARROW = "parquet needs pyarrow (pip install pyarrow); or use the benchmark's .jsonl"
OFFICIAL = "give a file of ScanQA v1.0, VSI-Bench, SQA3D, ScanRefer or Multi3DRefer"


@dataclass(frozen=True)
class Examined:
    """What is in a question file: the good records in file order, and one sentence for every bad one."""

    schema: Schema
    records: list[dict[str, Any]]
    faults: list[str]


def load_questions(path: Path | str, task: str | None = None) -> list[dict[str, Any]]:
    """Read the records of any of the six benchmarks, in file order.

    Kept as they are, except: `scene_name` becomes text (ARKitScenes names are all digits), `object_id` of ScanQA becomes
    `object_ids`, missing options become None, SQA3D's answers are joined in as texts. Further keys stay.

    Args:
        task: the benchmark the records must be of; None takes any. "scan2cap" groups ScanRefer's by object.

    Raises:
        UserError: no such file, unknown suffix, empty file, a record with missing keys, a wrong value or a duplicate id,
            records of another benchmark, or a parquet file without pyarrow.
    """
    found = examine(path)
    if found.faults:
        raise UserError(found.faults[0])
    if task not in (None, *SCHEMAS):
        raise unknown_name("question task", str(task), SCHEMAS)
    if task == "scan2cap" and found.schema.name == "scanrefer":
        return instances(found.records)
    if task not in (None, found.schema.name):
        raise UserError(f"{path}: holds questions of {found.schema.name}, but those of {task} were asked for")
    return found.records


def examine(path: Path | str) -> Examined:
    """Read a file to its end whatever is wrong with its records.

    Raises:
        UserError: the file itself cannot be read, or what is in it is no list of questions.
    """
    path = Path(path)
    records = _read(path)
    if isinstance(records, dict) and isinstance(records.get("questions"), list):
        records = join_sqa3d(path, records)
    if not isinstance(records, list) or not records:
        raise UserError(f"{path}: a non-empty list of questions expected; {OFFICIAL}")
    if not isinstance(records[0], dict):
        raise UserError(f"{path}: record 0 is not an object; {OFFICIAL}")
    found = Examined(schema_of(records[0]), [], [])
    seen: dict[Any, int] = {}
    for number, record in enumerate(records):
        try:
            found.records.append(_checked(f"{path}: record {number}", number, record, found.schema, seen))
        except UserError as error:
            found.faults.append(str(error))
    return found


def _checked(where: str, number: int, record: Any, schema: Schema, seen: dict[Any, int]) -> dict[str, Any]:
    missing = [key for key in schema.keys if key not in record] if isinstance(record, dict) else list(schema.keys)
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; every record needs {', '.join(schema.keys)}")
    record = schema.check(where, dict(record))
    earlier = seen.setdefault(schema.key(record), number)
    if earlier != number:
        named = ", ".join(f"{field} {record[field]!r}" for field in schema.identity)
        raise UserError(f"{where} repeats {named} of record {earlier}; ids must be unique")
    return record


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
        raise UserError(f"{path}: reading {NEEDS_ARROW}") from None
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error}); fetch it again") from None


def write_questions(path: Path | str, records: Iterable[Mapping[str, Any]]) -> None:
    """Write records as .json (one list; SQA3D: its two files), .jsonl or .parquet (as VSI-Bench ships); all of it or nothing.

    Raises:
        UserError: another suffix, or parquet without pyarrow.
    """
    path, rows = Path(path), [canonical(record) for record in records]
    if path.suffix == ".json" and rows and schema_of(rows[0]).name == "sqa3d":
        write_sqa3d(path, rows)
    elif path.suffix == ".json":
        write_json(path, rows)
    elif path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        _write_parquet(path, rows)
    else:
        raise UserError(f"{path}: questions are written as {KNOWN_SUFFIXES}; give one of these suffixes")


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: writing {NEEDS_ARROW}") from None
    atomic_write(path, lambda temporary: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary))
