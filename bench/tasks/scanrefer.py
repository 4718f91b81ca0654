"""ScanRefer scorer: the share of descriptions whose box overlaps the true one by 0.25 and by 0.5.

End of the downstream chain (reader -> answers -> score -> intervals -> report). Three protocols:

    vega3d, scanrefer_official  float64, 1e-8 in the denominator (VEGA-3D@9c96924, daveredrum/ScanRefer@9d74830)
    m3dref                      float32, so that an overlap of exactly one half is a hit (M3DRef-CLIP@babfcc4)

    python -c "from bench.tasks import scanrefer; print(scanrefer.score({'s|2|0': [0, 0, 0, 1, 1, 1]}, [{'scene_id': 's', \
               'object_id': '2', 'ann_id': '0', 'eval_type': 'unique', 'box': [0.1, 0, 0, 1, 1, 1]}])['metrics'])"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.tasks.boxes import averages, iou, iou32, is_box, proposals, truth_boxes
from bench.tasks.records import Item, count, field, join_values
from vega_artifact import unknown_name

OVERLAP = {"vega3d": iou, "m3dref": iou32, "scanrefer_official": iou}
PROTOCOLS = tuple(OVERLAP)
ID_FIELDS = ("scene_id", "object_id", "ann_id")
TYPES = ("unique", "multiple")
LEVELS = {"acc25": 0.25, "acc50": 0.5}


def score(predictions: Mapping[Any, Any], annotations: Sequence[Mapping[str, Any]], protocol: str = "vega3d") -> dict[str, Any]:
    """Score boxes found for ScanRefer's descriptions.

    Args:
        predictions: "scene_id|object_id|ann_id" -> a box [cx, cy, cz, dx, dy, dz] in metres (scene axes after alignment), or
            {"scores": [N+1], "objects": [N boxes]}, where the best-scored object is taken and the last score, "no such
            object", is passed over; None for no answer.
        annotations: ScanRefer's records with eval_type ("unique" or "multiple") and the true `box`, as the converted files
            of VEGA-3D carry it.

    Returns:
        metrics: percent: acc25, acc50, and acc25_unique, ... for the types present.
        per_item: id -> {"iou", "acc25", "acc50" (0/1), "type", "scene", "prediction" (the box, None without a usable one)}.
        notes: n, hashes, warnings, and counts of NaN scores and unusable boxes, all of which score 0.

    Raises:
        UserError: unknown protocol or type, missing or duplicate ids, a record without a true box.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("ScanRefer protocol", protocol, PROTOCOLS)
    items, notes = join_values(predictions, annotations, ID_FIELDS, "scanrefer", protocol)
    rows = {item.key: _row(item, protocol) for item in items}
    chosen = list(rows.values())
    count(notes, "nan_scores", sum(row.pop("nan") for row in chosen), "predictions have NaN among their scores and count as 0")
    given = [item.value is not None and rows[item.key]["prediction"] is None for item in items]
    count(notes, "unusable", sum(given), "predictions hold no usable box and count as 0")
    metrics = averages(chosen, LEVELS, TYPES)
    return {"metrics": metrics, "per_item": rows, "notes": notes}


def _row(item: Item, protocol: str) -> dict[str, Any]:
    kind = field(item, "eval_type", "scanrefer")
    if kind not in TYPES:
        raise unknown_name("ScanRefer eval_type", str(kind), TYPES)
    (truth,) = truth_boxes([field(item, "box", "scanrefer")], item.key, "scanrefer")
    found, box = proposals(item.value, item.key, "scanrefer"), item.value
    nan = found is not None and bool(np.isnan(found[0]).any())
    if found is not None:
        scores, objects = found
        box = objects[int(np.argmax(scores[:-1]))] if objects and not nan else None
    box = box if is_box(box) else None
    overlap = 0.0 if box is None else OVERLAP[protocol](box, truth)
    hits = {name: float(overlap >= level) for name, level in LEVELS.items()}
    return {"iou": overlap, **hits, "type": kind, "scene": item.record["scene_id"], "prediction": box, "nan": nan}
