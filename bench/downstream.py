"""The reader's answers under every condition: teacher tokens, the exported student's tokens, semantic only, blind.

The same trained reader, prompts and decoding see the tokens of the teacher and, put in their place, those of the exported
student, of the untrained student and of the teacher under another noise seed. Semantic-only and blind readers were trained
with the same budget. Three reader seeds each.

    from bench.downstream import answer_all, questions_of, rows
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from bench.tasks import get_task
from bench.tasks.rows import task_rows
from teacher.launch import end_with_parent
from teacher.scenes import PosedClip
from teacher.scenes.questions import procedural_questions, scanqa_prompt, vsi_prompt
from vega_artifact import read_json, write_json

Maps = Mapping[str, np.ndarray]
TASKS = {"ladder": "scanqa", "vsibench": "vsibench"}  # task of the scorer -> schema of the questions
PROTOCOLS = {"ladder": "ladder", "vsibench": "official", "scanqa": "vega3d"}
MARGIN = 1.0  # percent points the student may lose
QUESTIONS = 24  # per room and task


def questions_of(clips: Sequence[PosedClip]) -> dict[str, list[dict[str, Any]]]:
    """Schema -> records of all rooms, from ground truth."""
    found: dict[str, list[dict[str, Any]]] = {schema: [] for schema in TASKS.values()}
    for clip in clips:
        for schema, records in found.items():
            records += procedural_questions(clip, schema, limit=QUESTIONS)
    return found


def chance(questions: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Percent a random guesser gets per choice type: one over the number of options."""
    shares: dict[str, list[float]] = {}
    for record in questions["vsibench"]:
        if record["options"]:
            kind = record["question_type"]
            kind = "object_rel_direction" if kind.startswith("object_rel_direction") else kind
            shares.setdefault(kind, []).append(100 / len(record["options"]))
    halves = ("nearer", "left_of", "in_front_of", "higher", "first_seen", "exists")
    return {"vsibench": {kind: float(np.mean(s)) for kind, s in shares.items()}, "ladder": dict.fromkeys(halves, 50.0)}


def answer_all(
    tokens: Mapping[str, Maps | None],
    conditions: Mapping[str, str],
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    folder: Path,
) -> dict[str, list[dict[str, str]]]:
    """Answers of every model and reader seed: model -> one {question id: answer} per seed.

    Args:
        tokens: model -> scene_id -> (T, C, gh, gw), or None for blind.
        conditions: model -> which readers answer ("fused", "semantic", "blind").
        folder: finished answers are kept here and reused.
    """
    jobs = [(model, seed) for model in tokens for seed in seeds]
    missing = [job for job in jobs if not _path(folder, *job).exists()]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        running = []
        for model, seed in missing:
            maps = tokens[model]
            scenes = sorted({record["scene_id"] for record in questions["scanqa"]})
            arrays = None if maps is None else {scene: np.asarray(maps[scene], dtype=np.float16) for scene in scenes}
            running.append(pool.submit(_answer_job, arrays, conditions[model], seed, questions, _path(folder, model, seed)))
        for job in track(running, description="reader answers", disable=None if running else True):
            job.result()
    return {model: [read_json(_path(folder, model, seed)) for seed in seeds] for model in tokens}


def rows(
    answers: Mapping[str, Sequence[Mapping[str, str]]], questions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Scores of all models as rows of the report: the ladder per rung, VSI-Bench per type, ScanQA's own exact match."""
    found: dict[str, list[dict[str, Any]]] = {"tasks": [], "paired": [], "parity": []}
    for name, schema in {**TASKS, "scanqa": "scanqa"}.items():
        task, records = get_task(name), list(questions[schema])
        ids = {str(record[task.id_field]) for record in records}
        options = {"with_meteor": False} if name == "scanqa" else {}
        scored = {
            model: [
                task.score({key: run[key] for key in ids}, records, protocol=PROTOCOLS[name], **options)
                for run in answers[model]
            ]
            for model in answers
        }
        for key, value in task_rows(task, scored, records, margin=MARGIN).items():
            found[key] += value
    return found


def prompt(record: Mapping[str, Any], schema: str) -> str:
    """The benchmark's exact prompt, without the image placeholder that the visual tokens replace."""
    return scanqa_prompt(dict(record)).removeprefix("<image>").strip() if schema == "scanqa" else vsi_prompt(dict(record))


def _path(folder: Path, model: str, seed: int) -> Path:
    return folder / f"{model}-{seed}.json"


def _answer_job(
    tokens: Mapping[str, np.ndarray] | None,
    condition: str,
    seed: int,
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    path: Path,
) -> None:
    """One model and seed, in its own process with one thread."""
    torch.set_num_threads(1)
    from teacher.tiny.bundle import load_reader

    reader = load_reader(condition, seed)
    found: dict[str, str] = {}
    for scene, records in _by_scene(questions).items():
        visual = None if tokens is None else torch.from_numpy(tokens[scene].astype(np.float32))
        asked = [prompt(record, schema) for schema, record in records]
        texts = reader.answer(visual, asked, views=[record.get("view") for _, record in records])
        for (schema, record), text in zip(records, texts, strict=True):
            found[str(record["question_id" if schema == "scanqa" else "id"])] = text
    write_json(path, found)


def _by_scene(questions: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    scenes: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for schema, records in questions.items():
        for record in records:
            scenes.setdefault(record["scene_id" if schema == "scanqa" else "scene_name"], []).append((schema, record))
    return scenes
