"""Lessons: question files as a reader is taught them, prompt by prompt with the benchmark's exact wording, scene by scene.

From question files and a cache to `teacher.fit`. One lesson per reference answer, as VEGA-3D trains (spec/vega3d.md 5.3).

    python -c "from teacher.lessons import read_lessons; \
               print(read_lessons(['ScanQA_v1.0_train.json'], {'scene0000_00'}).told())"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from teacher.scenes.question_files import load_questions
from teacher.scenes.question_schemas import schema_of
from teacher.scenes.questions import scanqa_prompt, vsi_prompt
from teacher.scenes.scene_names import SceneNames
from vega_artifact import UserError


class Lesson(NamedTuple):
    """A question as a reader meets it; `view` is the only frame it may look at, None for all."""

    prompt: str
    answer: str
    view: int | None = None


@dataclass
class Lessons:
    """Lessons by scene, and what was left out: questions whose scene is missing, questions without a usable answer."""

    scenes: dict[str, list[Lesson]] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    unanswered: int = 0

    def told(self) -> str:
        """One line for the user; nothing is left out silently."""
        count = sum(map(len, self.scenes.values()))
        left = f"; left out: {sum(self.missing.values())} questions about {len(self.missing)} scenes that are not in the cache"
        empty = f"; left out: {self.unanswered} answers that are empty or absent" if self.unanswered else ""
        return f"{count} lessons about {len(self.scenes)} scenes{left if self.missing else ''}{empty}"


def read_lessons(paths: Iterable[Path | str], scenes: Iterable[str]) -> Lessons:
    """Lessons of one or several files of ScanQA, SQA3D or VSI-Bench about the scenes there are tokens of.

    Args:
        scenes: a cache, or the ids of its scenes; lessons are filed under these, whatever the questions call them.

    Raises:
        UserError: an unreadable file, questions that are not answered in words, or no lesson left (says why).
    """
    found, names = Lessons(), SceneNames(scenes)
    for path in paths:
        records = load_questions(path)
        schema = schema_of(records[0])
        if schema.name not in PROMPTS:
            known = ", ".join(PROMPTS)
            raise UserError(f"{path}: questions of {schema.name} are not answered in words; a reader is fitted on {known}")
        for record in records:
            scene = names.find(record, schema.scene)
            if scene is None:
                asked = str(record[schema.scene])
                found.missing[asked] = found.missing.get(asked, 0) + 1
                continue
            prompt, answers = PROMPTS[schema.name](record), _answers(record)
            found.unanswered += sum(not answer for answer in answers) or not answers
            lessons = [Lesson(prompt, answer, record.get("view")) for answer in answers if answer]
            if lessons:
                found.scenes.setdefault(scene, []).extend(lessons)
    if not found.scenes:
        raise UserError(f"{', '.join(map(str, paths))}: nothing to learn from, {found.told()}")
    return found


def sqa3d_prompt(record: Mapping[str, Any]) -> str:
    """The human turn of VEGA-3D's SQA3D evaluation without the image placeholder. Source: H-EmbodVis/VEGA-3D@9c96924."""
    return f"{record['situation']} {record['question']} Answer the question using a single word or phrase."


def _scanqa(record: Mapping[str, Any]) -> str:
    return scanqa_prompt(record).removeprefix("<image>").strip()


def _answers(record: Mapping[str, Any]) -> list[str]:
    """Reference answers on one line each; newlines would end up in what the reader says."""
    raw = [record["ground_truth"]] if "ground_truth" in record else record.get("answers", [])
    return [" ".join(str(answer).split()) for answer in raw]


PROMPTS: dict[str, Callable[[Mapping[str, Any]], str]] = {"scanqa": _scanqa, "sqa3d": sqa3d_prompt, "vsibench": vsi_prompt}
