"""Scan2Cap scorer: captions of one object each, by the rules of VEGA-3D's eval_scan2cap.py.

End of the downstream chain (reader -> answers -> score -> intervals -> report). This is not the "C@0.5" of other papers, which
matches boxes first: here a question already names the object (its box is the proposal that overlaps it by 0.5 or more), and an
object without such a proposal is answered by an empty text and still counts.

    python -c "from bench.tasks import scan2cap; print(scan2cap.score({'scene0011_00|2|chair': 'a red chair'}, \
               [{'scene_id': 'scene0011_00', 'object_id': '2', 'object_name': 'chair', 'description': 'A chair.'}])['metrics'])"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.tasks.captions import caption_metrics
from bench.tasks.records import identify, join
from teacher.scenes.question_schemas import instances
from vega_artifact import UserError, unknown_name

PROTOCOLS = ("vega3d",)
ID_FIELDS = ("scene_id", "object_id", "object_name")


def score(
    predictions: Mapping[Any, str | None],
    annotations: Sequence[Mapping[str, Any]],
    protocol: str = "vega3d",
    with_meteor: bool = True,
) -> dict[str, Any]:
    """Score object captions.

    Args:
        predictions: "scene_id|object_id|object_name" -> raw generated text, "" where the object had no box to ask about.
        annotations: ScanRefer's own records (scene_id, object_id, object_name, description), whose descriptions of one
            object are its references, or records that list these under `captions`. Score a split as a whole: CIDEr
            depends on which objects are in it.
        with_meteor: False leaves METEOR out, whose Java process takes seconds to start.

    Returns:
        metrics: percent (CIDEr times 100): cider, bleu1..bleu4, rouge_l, meteor.
        per_item: id -> {the same names: value as the libraries give it, "scene", "prediction"}.
        notes: n (objects), hashes, counts, warnings, missing.

    Raises:
        UserError: unknown protocol, an object without caption, a record without description.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("Scan2Cap protocol", protocol, PROTOCOLS)
    items, notes = join(predictions, objects(annotations), ID_FIELDS, "scan2cap", protocol)
    notes["missing"] = {}
    texts = [sentence(item.text) for item in items]
    answers = [[sentence(answer) for answer in item.record["captions"]] for item in items]
    scores = caption_metrics(texts, answers, notes, ptb=False, with_meteor=with_meteor)
    rows = {
        item.key: {name: values[index] for name, (_, values) in scores.items()}
        | {"scene": item.record["scene_id"], "prediction": item.text}
        for index, item in enumerate(items)
    }
    return {"metrics": {name: 100 * value for name, (value, _) in scores.items()}, "per_item": rows, "notes": notes}


def objects(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per object with its reference `captions`; UserError for a record without them or without description."""
    for record in annotations:
        key = identify(record, ID_FIELDS, "scan2cap")
        texts = record.get("captions", [record.get("description")])
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"scan2cap: a record of {key!r} has no text under 'description'; give ScanRefer's own records")
    grouped = [dict(record) for record in annotations if "captions" in record]
    return grouped + instances(record for record in annotations if "captions" not in record)


def sentence(text: str) -> str:
    """Lower case between the markers "sos" and "eos", full stops and commas set apart by spaces."""
    return f"sos {text.replace('.', ' . ').replace(',', ' , ').lower()} eos"
