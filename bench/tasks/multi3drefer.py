"""Multi3DRefer scorer: F1 of the set of boxes found for a description that means none, one or several objects.

End of the downstream chain (reader -> answers -> score -> intervals -> report). Boxes are matched to the true ones so that the
summed overlap is greatest (Hungarian, float32); both protocols then agree but for the last digits:

    vega3d  float64 mean over all queries (VEGA-3D@9c96924 `eval_multi3drefer.py`)
    m3dref  overlap and mean in float32 (M3DRef-CLIP@babfcc4)

    python -c "from bench.tasks import multi3drefer; print(multi3drefer.score({'s||0': []}, [{'scene_id': 's', \
               'object_ids': [], 'ann_id': 0, 'eval_type': 'zt_w_d', 'boxes': []}])['metrics'])"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bench.tasks.boxes import averages, iou, iou32, is_box, proposals, truth_boxes
from bench.tasks.records import Item, count, field, join_values
from vega_artifact import UserError, unknown_name

OVERLAP = {"vega3d": iou, "m3dref": iou32}
PROTOCOLS = tuple(OVERLAP)
ID_FIELDS = ("scene_id", "object_ids", "ann_id")
TYPES = ("zt_wo_d", "zt_w_d", "st_wo_d", "st_w_d", "mt")
LEVELS = {"f1_25": 0.25, "f1_50": 0.5}
TEMPERATURE = 0.07
THRESHOLD = 0.4  # on cumulative probability: 0.3 to 0.6 moves F1 by one to four points


def score(
    predictions: Mapping[Any, Any],
    annotations: Sequence[Mapping[str, Any]],
    protocol: str = "vega3d",
    threshold: float = THRESHOLD,
) -> dict[str, Any]:
    """Score sets of boxes found for Multi3DRefer's descriptions.

    Args:
        predictions: "scene_id|object_ids|ann_id" ("scene0011_00|3,5|0") -> a list of boxes [cx, cy, cz, dx, dy, dz] in metres
            (empty: no such object), or {"scores": [N+1], "objects": [N boxes]}, from which `select` takes them; None for
            no answer.
        annotations: Multi3DRefer's records (scene_id, object_ids, ann_id, eval_type) with the true `boxes`, an empty list
            for zero targets.
        threshold: of `select`, 0..1.

    Returns:
        metrics: percent: f1_25, f1_50, and f1_25_mt, ... for the types present.
        per_item: id -> {"f1_25", "f1_50" (0..1), "type", "scene", "prediction" (the boxes)}.
        notes: n, hashes, threshold, warnings, and counts of None, NaN scores and unusable boxes. A None or NaN prediction
            scores 0 even where nothing was to be found; an unusable box counts as one that meets nothing.

    Raises:
        UserError: unknown protocol or type, missing or duplicate ids, a record without boxes, a threshold outside 0..1.
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("Multi3DRefer protocol", protocol, PROTOCOLS)
    if not 0 < threshold <= 1:
        raise UserError(f"multi3drefer: the threshold is a probability above 0 and up to 1, not {threshold}")
    items, notes = join_values(predictions, annotations, ID_FIELDS, "multi3drefer", protocol)
    rows = {item.key: _row(item, protocol, threshold) for item in items}
    chosen = list(rows.values())
    count(notes, "nan_scores", sum(row.pop("nan") for row in chosen), "predictions have NaN among their scores and count as 0")
    unusable = sum(not is_box(box) for row in chosen for box in row["prediction"])
    count(notes, "unusable", unusable, "predicted boxes are unusable (six finite numbers expected) and meet nothing")
    metrics = averages(chosen, LEVELS, TYPES, np.float32 if protocol == "m3dref" else np.float64)
    return {"metrics": metrics, "per_item": rows, "notes": notes | {"threshold": threshold}}


def select(scores: np.ndarray, threshold: float = THRESHOLD) -> list[int]:
    """Which objects the scores mean: best first until their probability reaches the threshold; none if the last score wins.

    Args:
        scores: (N+1,) one per object and, last, that of "no such object", which also takes its share of the probability.
    """
    if int(np.argmax(scores)) == len(scores) - 1:
        return []
    weights = np.exp((scores - scores.max()) / TEMPERATURE)
    order = np.argsort(-scores[:-1], kind="stable")
    reached = np.cumsum(weights[order] / weights.sum()) >= threshold
    number = int(np.argmax(reached)) + 1 if reached.any() else len(order)
    return [int(index) for index in order[:number]]


def f1(boxes: Sequence[Any], truth: Sequence[Sequence[float]], protocol: str = "vega3d") -> list[float]:
    """F1 at each of LEVELS, 0..1: 1 where both sets are empty, 0 where one is."""
    if not boxes or not truth:
        return [float(not boxes and not truth)] * len(LEVELS)
    from scipy.optimize import linear_sum_assignment

    overlap = OVERLAP[protocol]
    table = np.array([[overlap(box, true) if is_box(box) else 0.0 for true in truth] for box in boxes], dtype=np.float32)
    matched = table[linear_sum_assignment(-table)]
    return [2 * int((matched >= level).sum()) / (len(boxes) + len(truth)) for level in LEVELS.values()]


def _row(item: Item, protocol: str, threshold: float) -> dict[str, Any]:
    kind = field(item, "eval_type", "multi3drefer")
    if kind not in TYPES:
        raise unknown_name("Multi3DRefer eval_type", str(kind), TYPES)
    truth = truth_boxes(field(item, "boxes", "multi3drefer"), item.key, "multi3drefer")
    found, boxes = proposals(item.value, item.key, "multi3drefer"), item.value
    nan = found is not None and bool(np.isnan(found[0]).any())
    if found is not None:
        scores, objects = found
        boxes = None if nan else [objects[index] for index in select(scores, threshold)]
    if boxes is not None and not isinstance(boxes, list):
        raise UserError(f"multi3drefer: the prediction of {item.key!r} is {type(boxes).__name__}, not a list of boxes")
    values = [0.0] * len(LEVELS) if boxes is None else f1(boxes, truth, protocol)
    head = {"type": kind, "scene": item.record["scene_id"], "prediction": boxes or [], "nan": nan}
    return dict(zip(LEVELS, values)) | head
