"""Rows of readers that `vega-edge fit` made: the student's streams stand where the teacher's stood, before the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import conditions, fits
from bench.maps import Maps
from teacher.cache import CacheWriter, FeatureCache
from teacher.fit import FitConfig, fit
from teacher.scenes.scene_names import SceneNames
from teacher.tutor import Parts
from vega_artifact import UserError, write_json

ROOMS = ("room-0", "room-1")


def make_cache(path: Path, seed: int) -> FeatureCache:
    writer = CacheWriter(path, {"scenes": "none", "seed": seed}, {"teacher": "t0"}, list(ROOMS), 2)
    for number, room in enumerate(ROOMS):
        random = np.random.default_rng([seed, number])
        steady = np.random.default_rng(number)
        record = {
            "semantic": steady.normal(size=(2, 128, 8, 8)).astype(np.float16),
            "generative": random.normal(size=(2, 128, 8, 8)).astype(np.float16),
            "rgb": np.zeros((2, 16, 16, 3), np.uint8),
            "frame_ids": np.arange(2),
        }
        writer.add(room, record)
    writer.finish()
    return FeatureCache(path)


def questions() -> list[dict[str, Any]]:
    return [
        {"scene_id": room, "question_id": f"{room}-0", "question": "Is there a chair?", "answers": ["yes"]} for room in ROOMS
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two caches of different noise, and a fit of one step for every kind of row."""
    root = tmp_path_factory.mktemp("fits")
    found: dict[str, Any] = {"cache": make_cache(root / "cache", 0), "reseeded": make_cache(root / "reseeded", 1)}
    write_json(root / "questions.json", questions())
    for fusion in ("add", "semantic", "blind"):
        language = "full" if fusion == "blind" else "frozen"
        config = FitConfig(parts=Parts(fusion=fusion, language=language), steps=1, accumulate=1)
        found[fusion] = str(fit(root / "cache", [root / "questions.json"], root / fusion, config))
    return found


@pytest.fixture
def exported(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that gives the teacher's streams, the generative one doubled."""

    def maps(caches: Any, export: Path, stream: str) -> Maps:
        factor = 2 if stream == "generative" else 1
        return Maps(caches, lambda home, scene: factor * home.read(scene, stream).astype(np.float32))

    monkeypatch.setattr(fits, "exported_maps", maps)


def tokens(row: Any, scene: str) -> np.ndarray:
    """What the reader of a row is shown of a scene; empty when it is blind."""
    found = row.tutor.tokens(row.streams(scene))
    return np.empty(0) if found is None else found.detach().numpy()


@pytest.mark.usefixtures("exported")
def test_all_rows_answer_and_differ_where_their_streams_do(made: dict[str, Any]) -> None:
    folders = [made["blind"], made["add"], made["semantic"]]
    rows = conditions.conditions(folders, made["cache"], Path("export"), made["reseeded"])
    assert list(rows) == ["teacher", "student_exported", "semantic", "blind", "teacher_reseeded"]
    shown = {name: tokens(row, "room-0") for name, row in rows.items()}
    assert all(found.shape == (2, 128, 8, 8) for name, found in shown.items() if name != "blind")
    assert shown["blind"].size == 0
    for name in ("student_exported", "semantic", "teacher_reseeded"):
        assert not np.allclose(shown["teacher"], shown[name])
    assert rows["teacher"].readers[0] is rows["student_exported"].readers[0] is rows["teacher_reseeded"].readers[0]
    answers = conditions.ask("scanqa", rows, questions(), SceneNames(made["cache"]))
    assert all(set(run) == {"room-0-0", "room-1-0"} for runs in answers.values() for run in runs)


def test_the_streams_of_the_teacher_give_the_teachers_row(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def maps(caches: Any, export: Path, stream: str) -> Maps:
        return Maps(caches, lambda home, scene: home.read(scene, stream))

    monkeypatch.setattr(fits, "exported_maps", maps)
    rows = fits.fitted([made["add"]], made["cache"], Path("export"), made["cache"])
    assert list(rows) == ["teacher", "student_exported", "teacher_reseeded"]
    teacher, student, again = (tokens(row, "room-1") for row in rows.values())
    np.testing.assert_array_equal(teacher, student)
    np.testing.assert_array_equal(teacher, again)


def test_refusals(made: dict[str, Any]) -> None:
    given = (made["cache"], Path("export"), made["reseeded"])
    with pytest.raises(UserError, match="a second fused fit"):
        fits.fitted([made["add"], made["add"]], *given)
    with pytest.raises(UserError, match="no fit of fused tokens among them"):
        fits.fitted([made["semantic"], made["blind"]], *given)
