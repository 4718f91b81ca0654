"""The one schema of `report.json`: what each field means, and a validator that names the first wrong row.

Place in the chain: every benchmark writes flat rows, `bench/report.py` draws them, anything else may read them.
    python -m bench.schema                      # print the documented schema as Markdown
    python -m bench.schema DIR/report.json      # check a file; exit code 2 and one sentence when it is wrong
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vega_artifact import UserError, read_json

SCHEMA = 1
STAGES = ("teacher", "cache", "run", "export")
MODELS = (
    "teacher",
    "teacher_reseeded",
    "teacher_random",
    "student",
    "student_exported",
    "student_undistilled",
    "teacher_fused",
    "student_exported_fused",
    "student_undistilled_fused",
    "semantic",
    "raw_patches",
    "blind",
)
METRICS = (
    "depth_r2",
    "depth_delta1",
    "correspondence_recall",
    "correspondence_recall_centred",
    "voxel_consistency",
    "voxel_consistency_centred",
)
VERDICTS = ("pass", "fail", "inconclusive")


class Field(NamedTuple):
    """One field of a row: what is allowed (in words and as a test) and what it means."""

    allowed: str
    accepts: Callable[[Any], bool]
    meaning: str


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_count, value))


def is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{8,64}", value) is not None


def number(meaning: str) -> Field:
    return Field("a finite number", is_number, meaning)


def positive(meaning: str) -> Field:
    return Field("a number above 0", lambda value: is_number(value) and value > 0, meaning)


def count(meaning: str) -> Field:
    return Field("a whole number >= 1", is_count, meaning)


def text(meaning: str) -> Field:
    return Field("a non-empty text", is_text, meaning)


def one_of(names: tuple[str, ...], meaning: str) -> Field:
    return Field(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names, meaning)


def optional(field: Field) -> Field:
    return Field(f"{field.allowed} or null", lambda value: value is None or field.accepts(value), field.meaning)


MODEL = one_of(MODELS, "whose tokens were measured; `teacher_reseeded` is the noise floor, `student_exported` the file")
LOW = number("lower end of the 95 % interval (scenes resampled with replacement)")
HIGH = number("upper end of the 95 % interval")
TASK = text("downstream benchmark, e.g. `scanqa`, `vsibench`")
PROTOCOL = text("scoring protocol, e.g. `official`, `vega3d`")
TYPE = text("`overall` or one question type of the task")

ROWS: dict[str, dict[str, Field]] = {
    "probes": {
        "model": MODEL,
        "metric": one_of(METRICS, "probe metric, as a fraction; higher is better"),
        "value": number("the metric over all test scenes"),
        "low": LOW,
        "high": HIGH,
        "scenes": count("number of test scenes"),
    },
    "tasks": {
        "task": TASK,
        "protocol": PROTOCOL,
        "model": MODEL,
        "type": TYPE,
        "value": number("score in percent"),
        "low": LOW,
        "high": HIGH,
        "n": count("number of questions"),
    },
    "paired": {
        "metric": optional(one_of(METRICS, "the probe metric compared; null when a task is compared")),
        "task": optional(text("the task compared; null when a probe metric is compared")),
        "protocol": optional(text("its protocol; null for a probe metric")),
        "type": optional(text("its question type; null for a probe metric")),
        "a": one_of(MODELS, "the difference is a minus b"),
        "b": one_of(MODELS, "the difference is a minus b"),
        "difference": number("a minus b, in the unit of the metric (fraction) or task (percent points)"),
        "low": LOW,
        "high": HIGH,
        "n": count("scenes (probe metric) or questions (task)"),
    },
    "parity": {
        "task": TASK,
        "protocol": PROTOCOL,
        "margin": positive("student minus teacher must stay above minus this, in percent points"),
        "verdict": one_of(
            VERDICTS, "by the one-sided 95 % bounds of student minus teacher: lower above -margin, upper below it, or neither"
        ),
        "needed_n": optional(count("questions that would settle an inconclusive verdict; null when settled")),
    },
    "latency": {
        "model": MODEL,
        "backend": text("what ran it, e.g. `torch`, `onnxruntime`, `tensorrt`"),
        "precision": text("e.g. `fp32`, `fp16`, `int8`"),
        "batch": count("images per call"),
        "size": Field("[height, width] in pixels", is_size, "input size"),
        "p50_ms": positive("median milliseconds per call"),
        "p90_ms": positive("90th percentile"),
        "p99_ms": positive("99th percentile"),
        "n": count("timed calls"),
    },
}
HEAD: dict[str, Field] = {
    "schema": Field(f"{SCHEMA}", lambda value: value == SCHEMA and not isinstance(value, bool), "version of this schema"),
    "created": text("when, ISO 8601"),
    "machine": Field(
        "a mapping with at least one entry", lambda value: isinstance(value, dict) and bool(value), "what was measured on"
    ),
    "stages": Field(
        "a mapping", lambda value: isinstance(value, dict), f"stage -> manifest fingerprint; at least {', '.join(STAGES)}"
    ),
}
NUMERIC = {"value", "low", "high", "scenes", "n", "difference", "needed_n", "margin", "verdict", "p50_ms", "p90_ms", "p99_ms"}


def validate(report: Any, where: str | Path = "report.json") -> dict[str, Any]:
    """Check `report` against the schema and return it unchanged.

    Raises:
        UserError: naming the first wrong row and field, what was expected and what was found.
    """
    if not isinstance(report, dict):
        raise UserError(f"{where}: an object expected, found {type(report).__name__}; write it by `vega-edge bench`")
    check_fields(report, {**HEAD, **{name: Field("a list of rows", is_list, "") for name in ROWS}}, f"{where}: ")
    for stage in STAGES:
        if stage not in report["stages"]:
            raise UserError(f"{where}: stages.{stage} is missing; give the fingerprint from that stage's manifest.json")
    for stage, value in report["stages"].items():
        if not is_fingerprint(value):
            raise UserError(f"{where}: stages.{stage}: 8-64 hex digits expected, found {value!r}; copy it from manifest.json")
    for name, fields in ROWS.items():
        check_rows(report[name], fields, f"{where}: {name}")
    return report


def is_list(value: Any) -> bool:
    return isinstance(value, list)


def check_rows(rows: list[Any], fields: Mapping[str, Field], place: str) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for index, row in enumerate(rows):
        here = f"{place}[{index}]"
        if not isinstance(row, dict):
            raise UserError(f"{here}: a flat object expected, found {type(row).__name__}; one row is one measurement")
        check_fields(row, fields, f"{here}.")
        check_order(row, here)
        key = tuple(str(row[name]) for name in fields if name not in NUMERIC)
        if key in seen:
            raise UserError(f"{here}: repeats row {seen[key]} ({', '.join(key)}); keep one measurement per row")
        seen[key] = index


def check_fields(row: Mapping[str, Any], fields: Mapping[str, Field], prefix: str) -> None:
    for name, field in fields.items():
        if name not in row:
            raise UserError(f"{prefix}{name} is missing; {field.allowed} expected")
        if not field.accepts(row[name]):
            raise UserError(f"{prefix}{name}: {field.allowed} expected, found {row[name]!r}; correct what wrote it")
    for name in row:
        if name not in fields:
            raise UserError(f"{prefix}{name}: no such field in schema {SCHEMA}; known: {', '.join(fields)}")


def check_order(row: Mapping[str, Any], here: str) -> None:
    """What single fields cannot say: intervals and percentiles in order, a comparison of one thing only."""
    if "low" in row and row["low"] > row["high"]:
        raise UserError(f"{here}: low {row['low']} is above high {row['high']}; an interval is [low, high]")
    if "p50_ms" in row and not row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]:
        raise UserError(f"{here}: p50_ms <= p90_ms <= p99_ms expected, found {row['p50_ms']}, {row['p90_ms']}, {row['p99_ms']}")
    if "difference" in row:
        task_fields = [row[name] is None for name in ("task", "protocol", "type")]
        if len(set(task_fields)) > 1 or task_fields[0] == (row["metric"] is None):
            raise UserError(f"{here}: either metric or all of task, protocol and type must be set, and the other null")


def load(path: Path | str) -> dict[str, Any]:
    """Read and validate one report.json."""
    return validate(read_json(path), path)


def describe() -> str:
    """The schema as Markdown, one table per kind of row."""
    lines = ["# report.json, schema 1", "", "All rows are flat; unknown fields, NaN and repeated rows are errors.", ""]
    for name, fields in {"(top level)": HEAD, **ROWS}.items():
        lines += [f"## {name}", "", "| field | allowed | meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | {field.allowed} | {field.meaning} |" for key, field in fields.items()]
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    try:
        print(f"{arguments[0]}: schema {load(arguments[0])['schema']}, valid" if arguments else describe())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
