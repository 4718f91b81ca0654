"""Records: predictions joined to annotation records by id, never by position, with everything odd about them noted.

First step of every scorer in bench/tasks:

    python -c "from bench.tasks.records import join; print(join({'7': 'B'}, [{'id': 7}], 'id', 'vsibench', 'official')[1])"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vega_artifact import UserError, fingerprint


@dataclass(frozen=True)
class Item:
    """One question. `key` is the id exactly as the predictions spell it, `text` the answer ("" where it was None)."""

    key: Hashable
    text: str
    record: Mapping[str, Any]


def join(
    predictions: Mapping[Any, str | None], annotations: Sequence[Mapping[str, Any]], id_field: str, task: str, protocol: str
) -> tuple[list[Item], dict[str, Any]]:
    """Pair every annotation with its prediction, in annotation order; ids are compared as text (JSON keys are text).

    Returns:
        The items and the notes every scorer starts from: protocol, n, hashes of both inputs, and under "warnings" how many
        predictions were empty, None or belong to no annotation.

    Raises:
        UserError: no annotations, a record without id, a duplicate id, an annotation without prediction, a prediction
            that is no text.
    """
    if not annotations:
        raise UserError(f"{task}: no annotations to score; give the benchmark's records as a non-empty list")
    known = [_id(record, id_field, task) for record in annotations]
    _refuse_duplicates(known, task, "annotation")
    _refuse_duplicates([str(key) for key in predictions], task, "prediction")
    given = {str(key): (key, text) for key, text in predictions.items()}
    missing = [name for name in known if name not in given]
    if missing:
        raise UserError(
            f"{task}: {len(missing)} of {len(known)} annotations have no prediction, the first is {missing[0]!r}; "
            "answer every question, or score the subset of annotations that was asked"
        )
    items = [Item(given[name][0], _text(given[name][1], name, task), record) for name, record in zip(known, annotations)]
    notes: dict[str, Any] = {
        "task": task,
        "protocol": protocol,
        "n": len(items),
        "predictions_sha256": fingerprint({name: given[name][1] for name in known}),
        "annotations_sha256": fingerprint(list(annotations)),
        "warnings": [],
    }
    absent = sum(given[name][1] is None for name in known)
    empty = sum(not item.text.strip() for item in items) - absent
    for count, what in (
        (absent, "predictions are None and count as 0"),
        (empty, "predictions are empty"),
        (len(given) - len(known), "predictions belong to no annotation and are ignored"),
    ):
        if count:
            notes["warnings"].append(f"{count} {what}")
    return items, notes


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


def _id(record: Mapping[str, Any], id_field: str, task: str) -> str:
    if id_field not in record:
        raise UserError(f"{task}: an annotation has no {id_field!r} (its fields: {', '.join(record)}); wrong file?")
    return str(record[id_field])


def _refuse_duplicates(names: Sequence[str], task: str, kind: str) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if count > 1:
        raise UserError(f"{task}: {kind} id {name!r} occurs {count} times; ids must be unique, merge or drop the copies")


def _text(value: Any, name: str, task: str) -> str:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{task}: the prediction of {name!r} is {type(value).__name__}, not text")
    return value or ""
