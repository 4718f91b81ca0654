"""Records: predictions joined to annotation records by id, never by position, with everything odd about them noted.

First step of every scorer in bench/tasks:

    python -c "from bench.tasks.records import join; print(join({'7': 'B'}, [{'id': 7}], 'id', 'vsibench', 'official')[1])"

Benchmarks without an id of their own are joined by several fields: ScanRefer's "scene0011_00|2|0" is scene_id|object_id|ann_id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vega_artifact import UserError, fingerprint


@dataclass(frozen=True)
class Item:
    """One question. `key` is the id exactly as the predictions spell it, `value` the prediction as given, `text` the answer
    ("" where it was None, or where the task predicts boxes)."""

    key: Hashable
    text: str
    record: Mapping[str, Any]
    value: Any = None


def join(
    predictions: Mapping[Any, str | None],
    annotations: Sequence[Mapping[str, Any]],
    id_field: str | tuple[str, ...],
    task: str,
    protocol: str,
) -> tuple[list[Item], dict[str, Any]]:
    """Pair every annotation with its answer text, in annotation order; ids are compared as text (JSON keys are text).

    Returns:
        The items and the notes every scorer starts from: protocol, n, hashes of both inputs, and how many predictions were
        empty, None or belong to no annotation, as numbers under "counts" and as sentences under "warnings".

    Raises:
        UserError: no annotations, a record without id, a duplicate id, an annotation without prediction, a prediction
            that is no text.
    """
    items, notes = join_values(predictions, annotations, id_field, task, protocol)
    items = [Item(item.key, _text(item.value, str(item.key), task), item.record, item.value) for item in items]
    empty = sum(item.value is not None and not item.text.strip() for item in items)
    count(notes, "empty", empty, "predictions are empty")
    return items, notes


def join_values(
    predictions: Mapping[Any, Any],
    annotations: Sequence[Mapping[str, Any]],
    id_field: str | tuple[str, ...],
    task: str,
    protocol: str,
) -> tuple[list[Item], dict[str, Any]]:
    """As `join`, for predictions of any type (boxes): they stand in `Item.value`, unchecked."""
    if not annotations:
        raise UserError(f"{task}: no annotations to score; give the benchmark's records as a non-empty list")
    known = [identify(record, id_field, task) for record in annotations]
    _refuse_duplicates(known, task, "annotation")
    _refuse_duplicates([str(key) for key in predictions], task, "prediction")
    given = {str(key): (key, text) for key, text in predictions.items()}
    missing = [name for name in known if name not in given]
    if missing:
        raise UserError(
            f"{task}: {len(missing)} of {len(known)} annotations have no prediction, the first is {missing[0]!r}; "
            "answer every question, or score the subset of annotations that was asked"
        )
    items = [Item(given[name][0], "", record, given[name][1]) for name, record in zip(known, annotations)]
    notes: dict[str, Any] = {
        "task": task,
        "protocol": protocol,
        "n": len(items),
        "predictions_sha256": fingerprint({name: given[name][1] for name in known}),
        "annotations_sha256": fingerprint(list(annotations)),
        "counts": {},
        "warnings": [],
    }
    count(notes, "none", sum(item.value is None for item in items), "predictions are None and count as 0")
    count(notes, "unasked", len(given) - len(known), "predictions belong to no annotation and are ignored")
    return items, notes


def count(notes: dict[str, Any], name: str, number: int, sentence: str) -> None:
    """Note `number` affected items under notes["counts"][name] and as "<number> <sentence>" among the warnings; 0 is silent."""
    if number:
        notes["counts"][name] = number
        notes["warnings"].append(f"{number} {sentence}")


def identify(record: Mapping[str, Any], id_field: str | tuple[str, ...], task: str) -> str:
    """The id of a record as text; several fields are joined by "|", lists by ",". UserError naming the missing field."""
    names = (id_field,) if isinstance(id_field, str) else id_field
    for name in names:
        if name not in record:
            raise UserError(f"{task}: an annotation has no {name!r} (its fields: {', '.join(record)}); wrong file?")
    values = [record[name] for name in names]
    return "|".join(",".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)


def field(item: Item, name: str, task: str) -> Any:
    """A required field of the record; UserError naming the question and the field when it is absent."""
    if name not in item.record:
        raise UserError(f"{task}: question {item.key!r} has no field {name!r}; the benchmark's own records carry it")
    return item.record[name]


def answers_of(item: Item, task: str) -> list[str]:
    """The reference answers of a ScanQA-style record; UserError when they are absent (hidden test split) or no texts."""
    answers = field(item, "answers", task)
    if isinstance(answers, str) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{task}: question {item.key!r} needs 'answers' as a non-empty list of texts, found {answers!r}")
    return list(answers)


def _refuse_duplicates(names: Sequence[str], task: str, kind: str) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise UserError(f"{task}: {kind} id {name!r} occurs {count} times; ids must be unique, merge or drop the copies")


def _text(value: Any, name: str, task: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{task}: the prediction of {name!r} is {type(value).__name__}, not text")
    return value or ""
