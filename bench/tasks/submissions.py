"""Submissions: saved answers in the layouts that the benchmarks' own scorers and harnesses read, and back again.

Beside the scorers: answers leave here for a leaderboard or another code base, and answers of other models come in to be scored.

    vsibench  lmms_eval  JSON lines as `lmms-eval --log_samples` leaves them (samples_vsibench.jsonl)
    scanqa    official   one list of {scene_id, question_id, answer_top10, bbox}: the ScanQA challenge and scripts/score.py
    scanqa    vega3d     JSON lines for `llava/eval/eval_scanqa.py` of VEGA-3D and Video-3D-LLM
    sqa3d     official   one list of {scene_id, situation, question, answer, agent_rot, agent_pos}: LLM/eval_sqa3d_llm.py
    sqa3d     vega3d     JSON lines for `llava/eval/eval_sqa3d.py`

    from bench.tasks.submissions import write_submission
    write_submission("predictions.json", "scanqa", {"val-scene0011-0": "brown"}, records, layout="official")
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tasks import get_task, vsibench
from bench.tasks.records import Item, join
from bench.tasks.sqa3d import question_type
from teacher.lessons import sqa3d_prompt
from teacher.scenes.questions import scanqa_prompt, vsi_prompt
from vega_artifact import UserError, read_json, unknown_name, write_json, write_text

Row = dict[str, Any]
NO_BOX = [[0.0, 0.0, 0.0]] * 8  # the challenge wants the corners of a box; a reader that only answers has none
MODEL = "vega-edge"


@dataclass(frozen=True)
class Layout:
    """A file format.

    Attributes:
        row: (item, its position in the annotations, model name) -> one entry of the file.
        text: entry -> the answer. key: entry -> what names its question; of: annotation -> the same name.
        lines: JSON lines, or else one JSON list.
    """

    row: Callable[[Item, int, str], Row]
    text: Callable[[Row], Any]
    key: Callable[[Row], Any]
    of: Callable[[Mapping[str, Any], int], Any]
    lines: bool


def write_submission(
    path: Path | str,
    task: str,
    predictions: Mapping[Any, str | None],
    annotations: Sequence[Mapping[str, Any]],
    layout: str,
    model: str = MODEL,
) -> None:
    """Write answers to all annotations, in their order; None becomes an empty text.

    Args:
        path: the file to write, all of it or nothing.
        task: "vsibench", "scanqa" or "sqa3d". layout: see the top of this file.
        predictions: question id -> text. annotations: the benchmark's own records.
        model: the name under which the layouts that have one keep it.

    Raises:
        UserError: unknown task or layout, a question without answer, duplicate ids, a record that lacks a field.
    """
    form = _layout(task, layout)
    items, _ = join(predictions, annotations, get_task(task).id_field, task, layout)
    rows = [_row(form, item, position, model, task) for position, item in enumerate(items)]
    if form.lines:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_json(path, rows)


def read_submission(path: Path | str, task: str, annotations: Sequence[Mapping[str, Any]], layout: str) -> dict[str, str]:
    """Answers of a file in one of the layouts: question id as text -> text.

    Raises:
        UserError: unknown task or layout, a broken file, an entry that belongs to no annotation or comes twice.
    """
    path, form, rules = Path(path), _layout(task, layout), get_task(task)
    names = {form.of(record, position): rules.identify(record) for position, record in enumerate(annotations)}
    found: dict[str, str] = {}
    for number, row in enumerate(_entries(path, form.lines)):
        try:
            name, text = names.get(form.key(row)), form.text(row)
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{path}: entry {number} is not in the {layout} layout of {task}; see bench/tasks/submissions.py"
            ) from None
        if name is None or name in found:
            fault = "belongs to no annotation" if name is None else f"answers {name!r} a second time"
            raise UserError(f"{path}: entry {number} {fault}; give the annotations these answers were made for")
        found[name] = text
    return found


def _layout(task: str, layout: str) -> Layout:
    if task not in LAYOUTS:
        raise unknown_name("task with submissions", task, LAYOUTS)
    if layout not in LAYOUTS[task]:
        raise unknown_name(f"{task} layout", layout, LAYOUTS[task])
    return LAYOUTS[task][layout]


def _row(form: Layout, item: Item, position: int, model: str, task: str) -> Row:
    try:
        return form.row(item, position, model)
    except KeyError as error:
        raise UserError(
            f"{task}: question {item.key!r} has no field {error}; this layout needs the benchmark's own records"
        ) from None


def _entries(path: Path, lines: bool) -> Iterator[Row]:
    if not lines:
        rows = read_json(path)
        if not isinstance(rows, list):
            raise UserError(f"{path}: a JSON list of answers expected, found a {type(rows).__name__}")
        yield from rows
        return
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        raise UserError(f"{path}: no such file, or not UTF-8 text; give the JSON lines of a prediction run") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}: line {number} is not valid JSON ({error}); the run that wrote it was cut off"
                ) from None


def _vsi_lmms(item: Item, position: int, model: str) -> Row:
    record = dict(item.record)
    metric = "accuracy" if record["question_type"] in vsibench.CHOICE_TYPES else "MRA:.5:.95:.05"
    value = vsibench.score({item.key: item.text}, [record], "lmms_eval")["per_item"][item.key]["score"]
    return {
        "doc_id": position,
        "target": str(record["ground_truth"]),
        "filtered_resps": [item.text],
        "vsibench_score": {**record, "prediction": item.text, metric: value},
        "input": vsi_prompt(record),
    }


def _scanqa_official(item: Item, position: int, model: str) -> Row:
    head = {name: item.record[name] for name in ("scene_id", "question_id")}
    return {**head, "answer_top10": [item.text], "bbox": NO_BOX}


def _vega3d(dataset: str, sample: Any, prompt: str, item: Item, model: str, kind: str) -> Row:
    answer = item.record["answers"][0]
    return {
        "dataset": dataset,
        "sample_id": sample,
        "prompt": prompt,
        "pred_response": item.text,
        "gt_response": answer["answer"] if isinstance(answer, Mapping) else answer,
        "model_id": model,
        "question_type": kind,
    }


def _scanqa_vega3d(item: Item, position: int, model: str) -> Row:
    sample = _scanqa_sample(item.record, position)
    return _vega3d("scanQA", sample, scanqa_prompt(item.record), item, model, "unknow")  # sic: the converter's word


def _scanqa_sample(record: Mapping[str, Any], position: int) -> str:
    return f"scanqa_{record['question_id']}_0"  # _0: of the items per question, the one with the first answer


def _sqa3d_vega3d(item: Item, position: int, model: str) -> Row:
    record = item.record
    kind = question_type(record["question"])
    return _vega3d("sqa3d", record["question_id"], f"<image> {sqa3d_prompt(record)}", item, model, kind)


def _sqa3d_official(item: Item, position: int, model: str) -> Row:
    record = item.record
    head = {name: record[name] for name in ("scene_id", "situation", "question")}
    return {**head, "answer": item.text, "agent_rot": record["rotation"], "agent_pos": record["position"]}


def _situation(row: Mapping[str, Any], rotation: str, position: str) -> str:
    """What the official script knows a question by: it has no id in its predictions."""
    named = [row["scene_id"], row["situation"], row["question"], row[rotation], row[position]]
    return json.dumps(named, sort_keys=True)


LAYOUTS: dict[str, dict[str, Layout]] = {
    "vsibench": {
        "lmms_eval": Layout(
            _vsi_lmms,
            text=lambda row: row["filtered_resps"][0],
            key=lambda row: str(row["vsibench_score"]["id"]),  # doc_id is a position, and the row order has changed before
            of=lambda record, position: str(record["id"]),
            lines=True,
        )
    },
    "scanqa": {
        "official": Layout(
            _scanqa_official,
            text=lambda row: row["answer_top10"][0],
            key=lambda row: row["question_id"],
            of=lambda record, position: record["question_id"],
            lines=False,
        ),
        "vega3d": Layout(
            _scanqa_vega3d,
            text=lambda row: row["pred_response"],
            key=lambda row: row["sample_id"].rsplit("_", 1)[0] + "_0",  # as their scorer looks answers up
            of=_scanqa_sample,
            lines=True,
        ),
    },
    "sqa3d": {
        "official": Layout(
            _sqa3d_official,
            text=lambda row: row["answer"],
            key=lambda row: _situation(row, "agent_rot", "agent_pos"),
            of=lambda record, position: _situation(record, "rotation", "position"),
            lines=False,
        ),
        "vega3d": Layout(
            _sqa3d_vega3d,
            text=lambda row: row["pred_response"],
            key=lambda row: str(row["sample_id"]),
            of=lambda record, position: str(record["question_id"]),
            lines=True,
        ),
    },
}
