"""ScanRefer and Multi3DRefer descriptions from ground truth: which object is meant, or which objects, or none.

Beside the VSI and ladder questions; Scan2Cap is ScanRefer the other way round. Objects are named by what can be checked in the
frames: the only one of its class, or the one of several that is closest to a landmark by 30 cm.

    python -c "from teacher.scenes import open_scenes; from teacher.scenes.questions_refer import scanrefer; \
               print(*scanrefer(open_scenes('procedural:val?count=1')[0]), sep='\\n')"
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from teacher.scenes.evidence import Evidence
from teacher.scenes.furniture import FURNITURE
from teacher.scenes.geometry import box_distance

if TYPE_CHECKING:
    from teacher.scenes.clip import PosedClip, SceneObject

CLEARLY = 0.3  # metres by which the closest object must be closer than the next
ABSENT = 2  # descriptions of absent things per room
TALLEST = 3  # metres; no procedural room is higher


def upright_box(item: SceneObject) -> list[float]:
    """Centre and size of the box along the world's axes, as grounding truths are given: six numbers, metres."""
    corners = item.corners()
    low, high = corners.min(axis=0), corners.max(axis=0)
    return [round(float(value), 6) for value in (*(low + high) / 2, *(high - low))]


def closest(target: SceneObject, others: Sequence[SceneObject]) -> SceneObject | None:
    """The one of `others` closest to `target`, if it is so by 30 cm; truth needs all that could be closer, seen or not."""
    ranked = sorted((item for item in others if item.id != target.id), key=lambda item: box_distance(target, item))
    if not ranked:
        return None
    clear = len(ranked) == 1 or box_distance(target, ranked[1]) - box_distance(target, ranked[0]) >= CLEARLY
    return ranked[0] if clear else None


def _singles(evidence: Evidence) -> Iterator[tuple[SceneObject, str]]:
    """Objects that are the only one of their class, each with one or two descriptions."""
    unique = evidence.unique()
    for item in unique:
        yield item, f"This is the only {item.name} in the room. It is about {item.size[2]:.1f} meters tall."
        if (landmark := closest(item, evidence.objects)) in unique:
            yield item, f"There is one {item.name} in the room. Of all things it is closest to the {landmark.name}."


def _picked(evidence: Evidence) -> Iterator[tuple[SceneObject, str]]:
    """Objects of classes that are there several times, each told by a landmark."""
    for name, items in evidence.categories().items():
        for landmark in evidence.unique() if len(items) > 1 else ():
            if item := closest(landmark, items):
                yield item, f"Of all the {name}s in the room, this is the one closest to the {landmark.name}."


def scanrefer(clip: PosedClip) -> list[dict[str, Any]]:
    """ScanRefer records about one clip, with the `eval_type` its label script adds and the true `box` a scorer needs.

    Args:
        clip: a PosedClip with depth, intrinsics, instances, objects and room_size.

    Raises:
        UserError: a clip without ground truth.
    """
    evidence = Evidence(clip)
    records: list[dict[str, Any]] = []
    for kind, pairs in (("unique", _singles(evidence)), ("multiple", _picked(evidence))):
        for item, description in pairs:
            earlier = sum(record["object_id"] == str(item.id) for record in records)
            records.append(
                {
                    "scene_id": clip.scene_id,
                    "object_id": str(item.id),
                    "object_name": item.name.replace(" ", "_"),
                    "ann_id": str(earlier),
                    "description": description,
                    "token": re.findall(r"[a-z]+|\d+\.\d+|\d+|[.,]", description.lower()),
                    "eval_type": kind,
                    "box": upright_box(item),
                }
            )
    return records


def multi3drefer(clip: PosedClip, seed: int = 0) -> list[dict[str, Any]]:
    """Multi3DRefer records about one clip: zero, one or many targets, with and without distractors; with true `boxes`.

    Raises:
        UserError: a clip without ground truth.
    """
    evidence, rng = Evidence(clip), random.Random(f"{clip.scene_id}/{seed}/multi3drefer")
    present = {item.name for item in clip.objects}
    absent = [name for name in sorted(FURNITURE) if name not in present]
    several = {name: items for name, items in evidence.categories().items() if len(items) > 1}
    drafts: list[tuple[str, str, list[SceneObject], str]] = []
    drafts += [("st_wo_d", item.name, [item], text) for item, text in _singles(evidence)]
    drafts += [("st_w_d", item.name, [item], text) for item, text in _picked(evidence)]
    drafts += [("mt", name, items, f"These are all the {name}s in the room.") for name, items in several.items()]
    for name in rng.sample(absent, min(ABSENT, len(absent))):
        drafts.append(("zt_wo_d", name, [], f"There is one {name} in the room."))
    for name in rng.sample(sorted(present), min(ABSENT, len(present))):
        drafts.append(("zt_w_d", name, [], f"This is the {name} that is more than {TALLEST} meters tall."))
    return [
        {
            "scene_id": clip.scene_id,
            "object_ids": sorted(item.id for item in items),
            "object_name": name.replace(" ", "_"),
            "ann_id": number,
            "eval_type": kind,
            "description": description,
            "boxes": [upright_box(item) for item in sorted(items, key=lambda item: item.id)],
        }
        for number, (kind, name, items, description) in enumerate(drafts)
    ]
