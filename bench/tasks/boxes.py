"""Boxes: axis-aligned overlap in the two arithmetics the grounding scorers use, and what a grounding prediction may look like.

Between a model's boxes or proposal scores and bench/tasks/scanrefer.py and multi3drefer.py. A true IoU of one half is a miss in
float64 with 1e-8 in the denominator and a hit in float32, so each protocol keeps its own arithmetic.

    python -c "from bench.tasks.boxes import iou; print(iou([0, 0, 0, 1, 1, 1], [0.5, 0, 0, 1, 1, 1]))"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vega_artifact import UserError

EPSILON = 1e-8  # VEGA-3D and ScanRefer, float64
EPSILON32 = np.finfo(np.float32).eps  # M3DRef-CLIP, float32


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Overlap of two boxes (cx, cy, cz, dx, dy, dz) in metres, float64, as VEGA-3D and ScanRefer compute it."""
    return _iou(*_corners(a), *_corners(b), np.float64(EPSILON))


def iou32(a: Sequence[float], b: Sequence[float]) -> float:
    """The same in float32 from corners that were rounded to float32, as M3DRef-CLIP computes it."""
    low_a, high_a, low_b, high_b = (corner.astype(np.float32) for corner in (*_corners(a), *_corners(b)))
    return _iou(low_a, high_a, low_b, high_b, EPSILON32)


def _iou(low_a: np.ndarray, high_a: np.ndarray, low_b: np.ndarray, high_b: np.ndarray, epsilon: np.floating) -> float:
    shared = np.prod(np.maximum(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0))
    return float(shared / (np.prod(high_a - low_a) + np.prod(high_b - low_b) - shared + epsilon))


def _corners(box: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    centre, half = np.array(box[:3], dtype=np.float64), np.array(box[3:], dtype=np.float64) / 2
    return centre - half, centre + half


def is_box(value: Any) -> bool:
    """Six finite numbers with sizes that are not negative (two negative sizes would make a volume)."""
    try:
        box = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return box.shape == (6,) and bool(np.isfinite(box).all()) and bool((box[3:] >= 0).all())


def truth_boxes(boxes: Any, key: Any, task: str) -> list[Sequence[float]]:
    """The true boxes of a record, checked; UserError naming the question."""
    if not isinstance(boxes, Sequence) or not all(is_box(box) for box in boxes):
        raise UserError(
            f"{task}: question {key!r} needs true boxes of six finite numbers (centre, size, in metres), found {boxes!r:.80}"
        )
    return list(boxes)


def proposals(value: Any, key: Any, task: str) -> tuple[np.ndarray, list[Sequence[float]]] | None:
    """Scores (N+1,), the last for "no such object", and N boxes of a {"scores", "objects"} prediction; None for other kinds.

    Raises:
        UserError: not one score more than objects.
    """
    if not isinstance(value, Mapping):
        return None
    scores, objects = value.get("scores", ()), list(value.get("objects", ()))
    if len(scores) != len(objects) + 1:
        raise UserError(
            f"{task}: the prediction of {key!r} has {len(scores)} scores for {len(objects)} objects; "
            "one more expected, the last for 'no such object'"
        )
    return np.asarray(scores, dtype=np.float64), objects


def converted_records(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records to score against, out of VEGA-3D's converted ScanRefer or Multi3DRefer file, the one that carries true boxes.

    Args:
        items: id, video ("scannet/SCENE"), box (six numbers, or a list of such), metadata (question_type, ann_id, object_id).

    Returns:
        scene_id, ann_id, eval_type, and object_id with box (ScanRefer) or object_ids with boxes (Multi3DRefer).
    """
    records = []
    for item in items:
        meta = item.get("metadata")
        if not isinstance(meta, Mapping) or not {"box", "video"} <= set(item) or not {"ann_id", "object_id"} <= set(meta):
            raise UserError(
                f"{item.get('id')!r}: no converted grounding item; video, box and metadata (ann_id, object_id) expected"
            )
        several = isinstance(meta["object_id"], list)
        target = {"object_ids" if several else "object_id": meta["object_id"], "boxes" if several else "box": item["box"]}
        head = {"scene_id": str(item["video"]).rsplit("/", 1)[-1], "ann_id": meta["ann_id"]}
        records.append(head | {"eval_type": meta.get("question_type")} | target)
    return records


def averages(
    rows: Sequence[Mapping[str, Any]], names: Iterable[str], types: Sequence[str], dtype: DTypeLike = np.float64
) -> dict[str, float]:
    """Percent: the mean of each named value over all rows, and as "<name>_<type>" over those of each type that is present."""
    found = {}
    for name in names:
        found[name] = 100 * float(np.mean([row[name] for row in rows], dtype=dtype))
        for kind in types:
            values = [row[name] for row in rows if row["type"] == kind]
            if values:
                found[f"{name}_{kind}"] = 100 * float(np.mean(values, dtype=dtype))
    return found
