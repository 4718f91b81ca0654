"""True boxes for ScanRefer and Multi3DRefer, which their official files lack, from VEGA-3D's converted files.

Between question files and the grounding scorers of the bench, which need `box` or `boxes` and `eval_type`. A converted item has
`video` ("scannet/SCENE"), `box` (six numbers, or a list of them) and metadata with question_type, ann_id and object_id; boxes
are centre and size in metres along the axes of the aligned scene.

    python -c "from teacher.scenes.question_files import load_questions as q; from teacher.scenes.grounding_boxes import *; \
               print(with_boxes(q('ScanRefer_filtered_val.json'), 'scanrefer_val_llava_style.json')[0]['box'])"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from teacher.scenes.question_schemas import schema_of
from vega_artifact import UserError, read_json

Key = tuple[str, tuple[str, ...], str]


def _key(scene: str, objects: object, annotation: object) -> Key:
    numbers = objects if isinstance(objects, list) else [objects]
    return scene, tuple(sorted(str(number) for number in numbers)), str(annotation)


def _converted(path: Path) -> dict[Key, tuple[Any, str]]:
    """(scene, objects, annotation) -> (box, type) of every item."""
    items = read_json(path)
    if not isinstance(items, list):
        raise UserError(f"{path}: a list of converted questions expected; give VEGA-3D's *_llava_style.json")
    found: dict[Key, tuple[Any, str]] = {}
    for number, item in enumerate(items):
        try:
            about = item["metadata"]
            key = _key(item["video"].rpartition("/")[2], about["object_id"], about["ann_id"])
            value = item["box"], str(about["question_type"])
        except (KeyError, TypeError, AttributeError):
            raise UserError(
                f"{path}: record {number} lacks video, box or metadata (question_type, ann_id, object_id); "
                "give the converted file of a grounding benchmark"
            ) from None
        if found.setdefault(key, value) != value:
            raise UserError(
                f"{path}: record {number} gives {key} another box or type than an earlier one; convert the files again"
            )
    return found


def with_boxes(records: Iterable[Mapping[str, Any]], path: Path | str) -> list[dict[str, Any]]:
    """The records with their true boxes and types from a converted file, checked.

    Args:
        records: of ScanRefer (each gets `box` and `eval_type`) or Multi3DRefer (each gets `boxes`). path: the converted file.

    Raises:
        UserError: an unreadable file, records without a converted item (how many, which first), or boxes that are none.
    """
    path = Path(path)
    found, rows, lost = _converted(path), [], []
    for record in records:
        schema = schema_of(record)
        many = schema.name == "multi3drefer"
        if not many and schema.name != "scanrefer":
            raise UserError(f"{path}: boxes are for questions of scanrefer and multi3drefer, not of {schema.name}")
        key = _key(record["scene_id"], record["object_ids" if many else "object_id"], record["ann_id"])
        if key not in found:
            lost.append(key)
            continue
        box, kind = found[key]
        added = {"boxes": box} if many else {"box": box, "eval_type": kind}
        rows.append(schema.check(f"{path}: {key}", {**record, **added}))
    if lost:
        raise UserError(
            f"{path}: {len(lost)} of {len(lost) + len(rows)} questions are not in it, the first is {lost[0]}; wrong split?"
        )
    return rows
