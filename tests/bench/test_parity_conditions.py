"""The five rows: which tokens and readers each has, what a student of zeros gets, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import conditions, parity
from bench.conditions import Condition
from teacher import rerun
from teacher.cache import CacheWriter, FeatureCache
from teacher.scenes.scene_names import SceneNames
from teacher.streams import Pipeline
from tests.bench.students import student_of
from vega_artifact import UserError, read_json

ROOMS = tuple(f"room-{number}" for number in range(24))


def make_cache(path: Path, seed: int = 0, teacher: str = "t0", scenes: Sequence[str] = ROOMS, drop: str = "") -> FeatureCache:
    """Tokens whose first channel holds, in a noise of its own seed, the number of the scene."""
    writer = CacheWriter(path, {"scenes": "none", "seed": seed}, {"teacher": teacher}, list(scenes), 8)
    for number, scene in enumerate(scenes):
        fused = np.zeros((2, 128, 8, 8), np.float16)
        fused[:, 0] = number
        record = {"fused": fused, "semantic": fused / 2, "rgb": np.zeros((2, 16, 16, 3), np.uint8), "frame_ids": np.arange(2)}
        writer.add(scene, {name: value for name, value in record.items() if name != drop})
    writer.finish()
    return FeatureCache(path)


def questions(cache: FeatureCache) -> list[dict[str, Any]]:
    """Whose answer is the number of the room, which only the tokens tell; the second one asks about one view."""
    return [
        {
            "scene_id": scene,
            "question_id": f"{scene}/{view}",
            "question": f"Which room is this, {view}?",
            "answers": [str(number)],
            "type": "exists",
            "view": view,
        }
        for number, scene in enumerate(cache.scene_ids)
        for view in (None, 1)
    ]


class Echo:
    """A reader that says the number in its tokens."""

    def __init__(self) -> None:
        self.views: list[int | None] = []

    def answer(self, tokens: torch.Tensor | None, prompts: Sequence[str], *, views: Sequence[int | None]) -> list[str]:
        self.views += views
        assert tokens is None or tokens.dtype == torch.float32
        return ["nothing" if tokens is None else str(int(tokens[0, 0].mean())) for _ in prompts]


class Zeros(dict[str, np.ndarray]):
    """A fake student: tokens of the right shape that say nothing."""

    def __missing__(self, scene: str) -> np.ndarray:
        return np.zeros((2, 128, 8, 8), np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return make_cache(tmp_path_factory.mktemp("caches") / "test")


@pytest.fixture(scope="module")
def reseeded(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    return make_cache(tmp_path_factory.mktemp("caches") / "reseeded", seed=1)


def result_of(cache: FeatureCache, student: Any, readers: int = 2) -> dict[str, Any]:
    seeing = [Echo() for _ in range(readers)]
    tokens = conditions.Maps([cache], lambda home, scene: home.read(scene, "fused"))
    rows = {
        "teacher": Condition(tokens, seeing),
        "student_exported": Condition(tokens if student is None else student, seeing),
        "blind": Condition(None, [Echo() for _ in range(readers)]),
    }
    answers = conditions.ask("ladder", rows, questions(cache), SceneNames(cache))
    return parity.compare("ladder", answers, questions(cache), margin=1.0)


def test_a_student_of_zeros_fails(cache: FeatureCache) -> None:
    result = result_of(cache, Zeros())
    assert result["parity"][0]["verdict"] == "fail"
    values = {row["model"]: row["value"] for row in result["tasks"] if row["type"] == "overall"}
    assert values["teacher"] == 100 and values["blind"] == 0
    assert values["student_exported"] == pytest.approx(100 / len(ROOMS)), "zeros are the tokens of room 0 alone"


def test_the_teacher_against_itself_passes(cache: FeatureCache) -> None:
    result = result_of(cache, None)
    assert result["parity"][0]["verdict"] == "pass" and result["agreement"]["identical"] == 1


def test_readers_are_asked_scene_by_scene_and_told_the_view(cache: FeatureCache) -> None:
    echo = Echo()
    conditions.ask("ladder", {"teacher": Condition(Zeros(), [echo])}, questions(cache), SceneNames(cache))
    assert echo.views == [None, 1] * len(ROOMS)


def test_the_embedded_rows(cache: FeatureCache, reseeded: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "load_reader", lambda condition, seed: (condition, seed))
    monkeypatch.setattr(conditions, "exported_maps", lambda caches, export, stream: (export, stream))
    rows = conditions.embedded(cache, Path("export"), reseeded, seeds=(0, 2))
    assert {name: row.readers for name, row in rows.items()} == {
        "teacher": [("fused", 0), ("fused", 2)],
        "student_exported": [("fused", 0), ("fused", 2)],
        "semantic": [("semantic", 0), ("semantic", 2)],
        "blind": [("blind", 0), ("blind", 2)],
        "teacher_reseeded": [("fused", 0), ("fused", 2)],
    }
    assert rows["student_exported"].tokens == (Path("export"), "fused") and rows["blind"].tokens is None
    assert rows["semantic"].tokens is not None and rows["semantic"].tokens[ROOMS[0]].shape == (2, 128, 8, 8)


def test_every_embedded_reader_answers(cache: FeatureCache, reseeded: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "exported_maps", lambda caches, export, stream: Zeros())
    rows = conditions.embedded(cache, Path("export"), reseeded, seeds=(0,))
    asked = questions(cache)[:4]
    found = conditions.ask("ladder", rows, asked, SceneNames(cache))
    assert list(found) == ["teacher", "student_exported", "semantic", "blind", "teacher_reseeded"]
    assert all(set(run) == {record["question_id"] for record in asked} for runs in found.values() for run in runs)


def test_questions_about_other_scenes_are_counted(cache: FeatureCache) -> None:
    records = questions(cache)
    strangers = [record | {"scene_id": f"elsewhere-{number % 2}"} for number, record in enumerate(records[:3])]
    kept, left_out = conditions.askable("ladder", [*records[3:], *strangers], cache)
    assert kept == records[3:] and left_out == {"elsewhere-0": 2, "elsewhere-1": 1}
    with pytest.raises(UserError, match=r"no question is about a scene of it .*elsewhere-0"):
        conditions.askable("ladder", strangers, cache)


def test_measure_leaves_questions_answers_and_a_verdict(
    cache: FeatureCache, reseeded: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "made_up", lambda task, cache: questions(cache))
    tokens = conditions.Maps([cache], lambda home, scene: home.read(scene, "fused"))
    rows = {name: Condition(tokens, [Echo()]) for name in ("teacher", "student_exported")}
    monkeypatch.setattr(conditions, "embedded", lambda *given: rows)
    found = parity.measure("ladder", cache.path, student_of(tmp_path, "t0"), tmp_path, reseeded=reseeded.path)
    assert found["parity"][0] | {"needed_n": 0} == {
        "task": "ladder",
        "protocol": "ladder",
        "margin": 1.0,
        "verdict": "pass",
        "needed_n": 0,
    }
    assert found["left_out"] == {} and read_json(tmp_path / "questions.json") == questions(cache)
    student = tmp_path / "predictions" / "student_exported-0.jsonl"
    again = parity.saved("ladder", student, student, tmp_path / "questions.json", 1.0, None)
    assert again["tasks"][0]["value"] == found["tasks"][0]["value"]
    assert not (tmp_path / "submissions").exists(), "no other code scores the ladder"
    with pytest.raises(UserError, match=r"export: a student of teacher t7 \(run .*\), but .* is of teacher t0; give both"):
        parity.measure("ladder", cache.path, student_of(tmp_path / "other", "t7"), tmp_path, reseeded=reseeded.path)


def test_refusals(cache: FeatureCache, reseeded: FeatureCache, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embeded: no such reader; give 'embedded' alone, or folders"):
        conditions.conditions(["embeded"], cache, Path("export"), reseeded)
    with pytest.raises(UserError, match="no stream 'semantic' in it"):
        conditions.embedded(make_cache(tmp_path / "a", drop="semantic"), Path("export"), reseeded)
    with pytest.raises(UserError, match="the noise seed is that of"):
        conditions.embedded(cache, Path("export"), cache)
    with pytest.raises(UserError, match="made by teacher t1"):
        conditions.embedded(cache, Path("export"), make_cache(tmp_path / "b", seed=1, teacher="t1"))
    with pytest.raises(UserError, match="21 scenes of .* are not in it, the first is room-10"):
        conditions.embedded(cache, Path("export"), make_cache(tmp_path / "c", seed=1, scenes=ROOMS[:3]))


def test_a_cache_of_another_teacher_is_not_reseeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = {"name": "tiny", "weights": "x", "blocks": [6], "size": [64, 64], "grid": [8, 8], "dtype": "float32"}
    writer = CacheWriter(tmp_path / "a", {"scenes": "none", "seed": 0, "teacher": teacher}, {"teacher": "t0"}, ["r"], 1)
    writer.add("r", {"fused": np.zeros((1, 1, 1, 1), np.float16)})
    writer.finish()

    class Other(Pipeline):
        fingerprint = "t9"

        def __init__(self) -> None: ...

    monkeypatch.setattr(rerun, "load_pipeline", lambda name, **options: Other())
    with pytest.raises(UserError, match=r"made by teacher t0, but 'tiny' is now t9; .*--reseeded"):
        conditions.reseed(FeatureCache(tmp_path / "a"), tmp_path / "out")
