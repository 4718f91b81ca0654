"""Spatial ladder scorer: easy spatial questions in ScanQA's record layout, one score per rung.

End of the downstream chain (reader -> answers -> score -> intervals -> report). The questions come from
teacher/scenes/questions.py; a rung shows what the tokens hold before ScanQA shows how clever the reader is.

    python -c "from bench.tasks import ladder; print(ladder.score({'q': '2.1'}, [{'question_id': 'q', 'answers': ['2.0'], \
               'type': 'camera_distance'}]))"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.tasks.answers import clean_answer
from bench.tasks.records import Item, answers_of, field, join
from bench.tasks.vsibench import first_number, relative_accuracy
from vega_artifact import UserError, unknown_name

PROTOCOLS = ("ladder",)
NUMERIC_TYPES = ("camera_distance",)
# In procedural rooms a class has almost one height, so the names decide which stands higher (a blind guess: 97 %).
UNCOUNTED = ("higher",)


def score(
    predictions: Mapping[Any, str | None], annotations: Sequence[Mapping[str, Any]], protocol: str = "ladder"
) -> dict[str, Any]:
    """Score answers to ladder questions.

    Args:
        predictions: question_id -> generated text.
        annotations: records with question_id, type and answers (scene_id is passed on). `camera_distance` is scored
            by mean relative accuracy of the first number in the text, every other type by equality after `clean_answer`.

    Returns:
        metrics: percent, one per type and `overall`, their unweighted mean without the types in UNCOUNTED.
        per_item: id -> {"score": 0..1, "type", "scene", "prediction"}; notes: n, hashes, warnings.

    Raises:
        UserError: unknown protocol, missing or duplicate ids, a record without answers or type, a distance that is no
            positive number.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("ladder protocol", protocol, PROTOCOLS)
    items, notes = join(predictions, annotations, "question_id", "ladder", protocol)
    rows = {item.key: _score_item(item) for item in items}
    types = sorted({row["type"] for row in rows.values()})
    metrics = {kind: 100 * float(np.mean([row["score"] for row in rows.values() if row["type"] == kind])) for kind in types}
    counted = [value for kind, value in metrics.items() if kind not in UNCOUNTED] or list(metrics.values())
    return {"metrics": {"overall": sum(counted) / len(counted), **metrics}, "per_item": rows, "notes": notes}


def _score_item(item: Item) -> dict[str, Any]:
    kind, answers = field(item, "type", "ladder"), answers_of(item, "ladder")
    if kind in NUMERIC_TYPES:
        value = _distance(item, answers[0])
    else:
        value = float(clean_answer(item.text) in {clean_answer(answer) for answer in answers})
    return {"score": value, "type": kind, "scene": item.record.get("scene_id"), "prediction": item.text}


def _distance(item: Item, answer: str) -> float:
    truth, predicted = first_number(answer), first_number(item.text)
    if truth is None or truth <= 0:
        raise UserError(f"ladder: the answer {answer!r} of question {item.key!r} is no positive distance in metres")
    return 0.0 if predicted is None else relative_accuracy(predicted, truth)
