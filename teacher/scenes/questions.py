"""Questions about scenes: made from ground truth or read from the benchmarks' own files, in one schema each.

From scenes to the readers and scorers of the bench. Two schemas, both the benchmarks' own:

- VSI-Bench: id (int), dataset, scene_name, question_type, question, options (list of "A. ..." or None), ground_truth (str);
- ScanQA: scene_id, question_id, question, answers, object_ids, object_names; procedural ones add `type`, a rung of the ladder,
  and `view`, the only frame that "this view" shows (from 0; None: all frames).

    python -c "from teacher.scenes import open_scenes; from teacher.scenes.questions import procedural_questions; \
               print(*procedural_questions(open_scenes('procedural:val?count=1')[0], 'vsibench'), sep='\\n')"
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from teacher.scenes.balance import in_turns
from teacher.scenes.evidence import Evidence
from teacher.scenes.question_files import load_questions, write_questions
from teacher.scenes.questions_ladder import LADDER, LADDER_TYPES
from teacher.scenes.questions_vsi import CHOICE_TYPES, NUMERIC_TYPES, VSI, VSI_TYPES
from vega_artifact import UserError, unknown_name

if TYPE_CHECKING:
    from teacher.scenes.clip import PosedClip

__all__ = [
    "CHOICE_TYPES",
    "LADDER_TYPES",
    "NUMERIC_TYPES",
    "VSI_TYPES",
    "load_questions",
    "procedural_questions",
    "scanqa_prompt",
    "vsi_prompt",
    "write_questions",
]

PRE_PROMPT = "These are frames of a video."
CHOICE_POST = "Answer with the option's letter from the given choices directly."
NUMERIC_POST = {
    "default": "Please answer the question using a single word or phrase.",
    "gemini_api": "Do not response anything other than a single number!",
    "gpt4v": "Do not response anything other than a single number!",
    "neo_ov": "Answer briefly and directly in one float number.",
}


def procedural_questions(
    clip: PosedClip, task: str = "vsibench", seed: int = 0, limit: int | None = None
) -> list[dict[str, Any]]:
    """Questions and answers about one clip from its ground truth, the same for the same (scene_id, seed).

    Args:
        clip: a PosedClip with depth, intrinsics, instances, objects and room_size.
        task: "vsibench" (ten question types) or "scanqa" (the spatial ladder).
        limit: at most so many; types take turns, so a limited set still has all of them. None: every question.

    Returns:
        Records in the schema of the task, types taking turns. A type the frames cannot answer without doubt is absent.

    Raises:
        UserError: an unknown task, a negative limit, or a clip without ground truth.
    """
    if task not in ("vsibench", "scanqa"):
        raise unknown_name("question task", task, ("vsibench", "scanqa"))
    if limit is not None and limit < 0:
        raise UserError(f"limit of questions per scene: {limit} given, expected 0 or more (or None for all)")
    evidence = Evidence(clip)
    records = _vsi_records(evidence, seed) if task == "vsibench" else _scanqa_records(evidence, seed)
    return records[:limit]


def _stream(scene_id: str, seed: int, name: str) -> random.Random:
    """One random stream per scene, seed and question type, so that a new type changes no other."""
    return random.Random(f"{scene_id}/{seed}/{name}")


def _vsi_records(evidence: Evidence, seed: int) -> list[dict[str, Any]]:
    scene = evidence.scene_id
    drafts = [draft for make in VSI for draft in make(evidence, _stream(scene, seed, make.__name__))]
    ordered = in_turns([[draft for draft in drafts if draft.question_type == name] for name in VSI_TYPES])
    # Ids are unique over scenes and seeds, and below 2^53 so that JSON readers keep every digit.
    base = int(hashlib.sha256(f"{scene}/{seed}".encode()).hexdigest()[:10], 16) * 1000
    records = []
    for number, draft in enumerate(ordered):
        options, truth = draft.lettered()
        records.append(
            {
                "id": base + number,
                "dataset": "procedural",
                "scene_name": scene,
                "question_type": draft.question_type,
                "question": draft.question,
                "options": options,
                "ground_truth": truth,
            }
        )
    return records


def _scanqa_records(evidence: Evidence, seed: int) -> list[dict[str, Any]]:
    scene = evidence.scene_id
    groups = [[(name, draft) for draft in make(evidence, _stream(scene, seed, name))] for name, make in LADDER.items()]
    return [
        {
            "scene_id": scene,
            "question_id": f"val-{scene}-{number}",
            "question": draft.question,
            "answers": list(draft.answers),
            "object_ids": [item.id for item in draft.objects],
            "object_names": [item.name for item in draft.objects],
            "type": name,
            "view": draft.view,
        }
        for number, (name, draft) in enumerate(in_turns(groups))
    ]


def vsi_prompt(record: Mapping[str, Any], profile: str = "default") -> str:
    """The text VSI-Bench harnesses show beside the frames.

    Args:
        record: a VSI-Bench record; `options` None or empty means that a number is asked for.
        profile: "default" (official, VEGA-3D, lmms-eval), or the wording for "gemini_api", "gpt4v", "neo_ov".
            The image labels ("Frame-1: ") of "neo_ov" go between images and are not part of this text.

    Source: vision-x-nyu/thinking-in-space@51e089c and lmms-eval 0.7.3, `tasks/vsibench/utils.py`.
    """
    if profile not in NUMERIC_POST:
        raise unknown_name("prompt profile", profile, NUMERIC_POST)
    if not record["options"]:
        return "\n".join((PRE_PROMPT, record["question"], NUMERIC_POST[profile]))
    return "\n".join((PRE_PROMPT, record["question"], "Options:", *record["options"], CHOICE_POST))


def scanqa_prompt(record: Mapping[str, Any]) -> str:
    """The human turn of VEGA-3D's ScanQA evaluation; `<image>` is where the visual tokens go.

    Source: H-EmbodVis/VEGA-3D@9c96924, `scripts/3d/preprocessing/process_scanqa.py`.
    """
    return f"<image> {record['question']} Answer the question simply."
