"""Conditions: the five rows of a parity claim, each with the tokens it shows and the readers that see them.

    teacher            fused tokens from the cache              the readers trained on them
    student_exported   tokens of the exported file, put in      the same readers
                       their place through export/runtime
    semantic           semantic tokens alone                    readers trained on those, with the same budget
    blind              nothing                                  readers trained without tokens
    teacher_reseeded   the teacher under another noise seed     the readers of the first row: the noise floor

From a cache and an export to answers, which bench/parity.py scores.

    vega-edge bench parity --task ladder --teacher CACHE --student EXPORT
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from bench.downstream import QUESTIONS, prompt
from bench.maps import Maps, clips, exported_maps
from bench.tasks import get_task
from teacher.cache import FeatureCache
from teacher.extract import extract
from teacher.rerun import pipeline_of
from teacher.scenes.questions import procedural_questions
from teacher.scenes.scene_names import SceneNames
from teacher.tiny.bundle import READER_SEEDS, load_reader, load_semantic_tokens
from vega_artifact import UserError, read_manifest

SCHEMAS = {"ladder": "scanqa", "scanqa": "scanqa", "vsibench": "vsibench"}  # task -> whose prompts its questions get
STREAM = "fused"
EMBEDDED = "embedded"


class Answers(Protocol):
    """What a reader must be able to do; `teacher.reader.Reader` is one."""

    def answer(self, tokens: Tensor | None, prompts: Sequence[str], *, views: Sequence[int | None]) -> list[str]: ...


class Row(Protocol):
    """One row: `answer` gives the texts of all its readers, in their order, to questions about one scene of the cache."""

    @property
    def readers(self) -> Sequence[object]: ...

    def answer(self, scene: str, prompts: Sequence[str], views: Sequence[int | None]) -> list[list[str]]: ...


@dataclass(frozen=True)
class Condition:
    """A row whose readers all see the same tokens: scene_id -> float (T, C, gh, gw), None for blind."""

    tokens: Mapping[str, np.ndarray] | None
    readers: Sequence[Answers]

    def answer(self, scene: str, prompts: Sequence[str], views: Sequence[int | None]) -> list[list[str]]:
        """See `Row`."""
        tokens = None if self.tokens is None else as_stored(self.tokens[scene])
        return [reader.answer(tokens, prompts, views=views) for reader in self.readers]


def embedded(
    cache: FeatureCache, export: Path, reseeded: FeatureCache, seeds: Sequence[int] = READER_SEEDS
) -> dict[str, Condition]:
    """The five rows for the readers of the embedded bundle, in the order of the table.

    Args:
        cache: of an embedded teacher, with frames, "fused" and "semantic". reseeded: the same scenes under other noise.

    Raises:
        UserError: a stream is missing, or `reseeded` is not the same teacher on the same scenes with another seed.
    """
    for name in (STREAM, "semantic", "rgb"):
        if name not in cache.manifest["streams"]:
            raise UserError(f"{cache.path}: no stream {name!r} in it; the embedded readers need a cache of an embedded teacher")
    _check_reseeded(cache, reseeded)
    sighted = [load_reader("fused", seed) for seed in seeds]
    return {
        "teacher": Condition(Maps([cache], lambda home, scene: home.read(scene, STREAM)), sighted),
        "student_exported": Condition(exported_maps([cache], export, STREAM), sighted),
        "semantic": Condition(semantic_only(cache), [load_reader("semantic", seed) for seed in seeds]),
        "blind": Condition(None, [load_reader("blind", seed) for seed in seeds]),
        "teacher_reseeded": Condition(Maps([reseeded], lambda home, scene: home.read(scene, STREAM)), sighted),
    }


def conditions(readers: Sequence[str], cache: FeatureCache, export: Path, reseeded: FeatureCache) -> Mapping[str, Row]:
    """The rows for "embedded" readers, or for those in the folders of `vega-edge fit`."""
    check_readers(readers)
    if list(readers) == [EMBEDDED]:
        return embedded(cache, export, reseeded)
    _check_reseeded(cache, reseeded)
    from bench.fits import fitted

    return fitted(readers, cache, export, reseeded)


def check_readers(readers: Sequence[str]) -> None:
    """UserError for a reader that is neither embedded nor the folder of a finished fit; loads none."""
    for name in () if list(readers) == [EMBEDDED] else readers:
        if not Path(name).is_dir():
            raise UserError(f"{name}: no such reader; give {EMBEDDED!r} alone, or folders made by `vega-edge fit`")
        read_manifest(name, "fit")


def semantic_only(cache: FeatureCache) -> Maps:
    """Semantic tokens through the projector that the semantic-only readers were trained with."""
    project = load_semantic_tokens()
    return Maps([cache], lambda home, scene: project(torch.from_numpy(home.read(scene, "semantic").astype(np.float32))).numpy())


def _check_reseeded(cache: FeatureCache, other: FeatureCache) -> None:
    teachers = [found.manifest["parents"].get("teacher") for found in (cache, other)]
    if teachers[0] != teachers[1]:
        raise UserError(f"{other.path}: made by teacher {teachers[1]}, {cache.path} by {teachers[0]}; extract both with one")
    if cache.manifest["config"]["seed"] == other.manifest["config"]["seed"]:
        raise UserError(f"{other.path}: the noise seed is that of {cache.path}, so it shows no noise; extract it with another")
    if lacking := set(cache.scene_ids) - set(other.scene_ids):
        raise UserError(f"{other.path}: {len(lacking)} scenes of {cache.path} are not in it, the first is {min(lacking)}")


def reseed(cache: FeatureCache, out: Path) -> FeatureCache:
    """The scenes of a cache watched again by its teacher, under the next noise seed; resumes, reuses what is finished.

    Raises:
        UserError: the teacher is no longer the one that made the cache.
    """
    config: dict[str, Any] = cache.manifest["config"]
    pipeline = pipeline_of(cache, "extract the cache again, or give a cache of other noise by --reseeded")
    return extract(pipeline, config["scenes"], out, seed=config["seed"] + 1, store_frames=False)


def made_up(task: str, cache: FeatureCache) -> list[dict[str, Any]]:
    """Procedural questions about the rooms of a cache, for a task that is asked without a file of its own."""
    schema = schema_of(task)
    return [record for clip in clips(cache) for record in procedural_questions(clip, schema, limit=QUESTIONS)]


def askable(
    task: str, questions: Sequence[Mapping[str, Any]], cache: FeatureCache
) -> tuple[list[Mapping[str, Any]], dict[str, int]]:
    """Questions whose scene is in the cache, and how many were left out per scene that is not.

    Raises:
        UserError: none is left.
    """
    field, names = get_task(task).scene_field, SceneNames(cache)
    kept: list[Mapping[str, Any]] = []
    left_out: dict[str, int] = {}
    for record in questions:
        if names.find(record, field) is not None:
            kept.append(record)
        else:
            left_out[str(record.get(field))] = left_out.get(str(record.get(field)), 0) + 1
    if not kept:
        raise UserError(
            f"{cache.path}: no question is about a scene of it (it has {cache.scene_ids[0]}, ..., the questions {field} "
            f"{next(iter(left_out), 'nothing')}); extract the scenes that are asked about"
        )
    return kept, left_out


def ask(
    task: str, rows: Mapping[str, Row], questions: Sequence[Mapping[str, Any]], names: SceneNames
) -> dict[str, list[dict[str, str]]]:
    """The answers of every row: model -> one {question id: text} per reader; `names` finds each question's scene."""
    rules, schema = get_task(task), schema_of(task)
    scenes: dict[str, list[Mapping[str, Any]]] = {}
    for record in questions:
        scene = names.find(record, rules.scene_field)
        assert scene is not None, "only what `askable` kept is asked"
        scenes.setdefault(scene, []).append(record)
    found: dict[str, list[dict[str, str]]] = {model: [{} for _ in row.readers] for model, row in rows.items()}
    for scene, records in track(scenes.items(), description=f"{task}: asking about {len(scenes)} scenes"):
        asked = [rules.identify(record) for record in records]
        prompts, views = [prompt(record, schema) for record in records], [record.get("view") for record in records]
        for model, row in rows.items():
            for answers, texts in zip(found[model], row.answer(scene, prompts, views), strict=True):
                answers.update(zip(asked, texts, strict=True))
    return found


def as_stored(tokens: np.ndarray) -> Tensor:
    """Float32 of what a cache would hold, so that no row has a finer number format than the teacher's."""
    return torch.from_numpy(tokens.astype(np.float16).astype(np.float32))


def schema_of(task: str) -> str:
    """Whose prompts a task has; UserError for one that no reader is asked here."""
    name = get_task(task).name
    if name not in SCHEMAS:
        raise UserError(
            f"{name}: readers are asked {', '.join(SCHEMAS)} here; give files of saved answers as --teacher and --student"
        )
    return SCHEMAS[name]
