"""SQA3D questions from ground truth: somebody stands by one thing, faces another, and asks about a third.

Beside the VSI and ladder questions, in SQA3D's schema with both its files joined (see `sqa3d_files.py`). Angles near the border
between two answers are not asked about.

    python -c "from teacher.scenes import open_scenes; from teacher.scenes.questions_situated import sqa3d; \
               print(*sqa3d(open_scenes('procedural:val?count=1')[0]), sep='\\n')"
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from itertools import permutations
from typing import TYPE_CHECKING, Any

from teacher.scenes.balance import in_turns, spread
from teacher.scenes.evidence import Evidence
from teacher.scenes.geometry import ground_distance, turn_angle
from teacher.scenes.questions_refer import closest
from teacher.scenes.questions_vsi import EASY, MEDIUM, STANDING, sector

if TYPE_CHECKING:
    from teacher.scenes.clip import PosedClip, SceneObject

PER_KIND = 3  # questions of one kind per room
AHEAD = {"yes": (-60, 60), "no": (120, 240)}  # degrees: in view without turning around, behind the back
Draft = tuple["SceneObject", "SceneObject", str, str]  # standing by, facing, question, answer


def _kinds(evidence: Evidence) -> Iterator[list[Draft]]:
    """Drafts by kind: is, which, can, what, how."""
    unique = evidence.unique()
    triples = [
        (p, o, q, turn_angle(p, o, q))
        for p, o, q in permutations(unique, 3)
        if min(ground_distance(p, o), ground_distance(p, q)) >= STANDING
    ]
    sides = [(p, o, q, side) for p, o, q, angle in triples if (side := sector(angle, EASY))]
    yield [(p, o, f"Is the {q.name} on my left?", "yes" if side == "left" else "no") for p, o, q, side in sides]
    turns = [(p, o, q, turn) for p, o, q, angle in triples if (turn := sector(angle, MEDIUM))]
    yield [(p, o, f"Which direction should I turn to face the {q.name}?", turn) for p, o, q, turn in turns]
    views = [(p, o, q, ahead) for p, o, q, angle in triples if (ahead := sector(angle, AHEAD))]
    yield [(p, o, f"Can I see the {q.name} without turning around?", ahead) for p, o, q, ahead in views]
    near = [(p, o, q, other) for p, o, q, _ in triples if (other := closest(q, evidence.objects)) in evidence.visible]
    yield [(p, o, f"What is the {q.name} closest to?", other.name) for p, o, q, other in near]
    counts = [(p, o, name, len(items)) for p, o, _, _ in triples[:1] for name, items in evidence.categories().items()]
    yield [(p, o, f"How many {name}s are in this room?", str(count)) for p, o, name, count in counts]


def sqa3d(clip: PosedClip, seed: int = 0) -> list[dict[str, Any]]:
    """SQA3D records about one clip, kinds taking turns, the same for the same (scene_id, seed).

    Returns:
        Records with scene_id, question_id (int, unique over scenes and seeds), situation, two alternative situations, question,
        answers (one text), position (metres, on the floor under the thing stood by) and rotation (quaternion of the turn about
        world +z from +x to where one looks).

    Raises:
        UserError: a clip without ground truth.
    """
    evidence, rng = Evidence(clip), random.Random(f"{clip.scene_id}/{seed}/sqa3d")
    groups = [spread(rng, drafts, lambda draft: draft[3], PER_KIND) for drafts in _kinds(evidence)]
    base = int(hashlib.sha256(f"{clip.scene_id}/{seed}/sqa3d".encode()).hexdigest()[:10], 16) * 1000  # below 2^53: JSON readers
    return [_record(clip.scene_id, base + number, *draft) for number, draft in enumerate(in_turns(groups))]


def _record(scene: str, number: int, by: SceneObject, facing: SceneObject, question: str, answer: str) -> dict[str, Any]:
    half = math.atan2(facing.center[1] - by.center[1], facing.center[0] - by.center[0]) / 2
    return {
        "scene_id": scene,
        "question_id": number,
        "situation": f"I am standing by the {by.name} and facing the {facing.name}.",
        "alternative_situation": [
            f"I stand next to the {by.name} and look at the {facing.name}.",
            f"The {facing.name} is in front of me and the {by.name} is beside me.",
        ],
        "question": question,
        "answers": [answer],
        "position": {"x": by.center[0], "y": by.center[1], "z": 0.0},
        "rotation": {"_x": 0.0, "_y": 0.0, "_z": math.sin(half), "_w": math.cos(half)},
    }
