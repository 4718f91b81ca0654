"""The study of score against rooms: true coordinates are true, every condition is trained alike, a second call reuses all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import rooms_chart
from bench.rooms_study import CONDITIONS, RoomsStudy, main
from teacher.scenes import open_scenes
from teacher.tiny import fit, oracle, rooms
from vega_artifact import read_json

SMALL = rooms.RoomsConfig(videos=1, tours=3, val_tours=2, questions=24)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work folder of a few rooms, made in this process: starting others costs more than all of it."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            rooms, "in_parallel", lambda make, count, given, label: (make(given[0], i, *given[1:]) for i in range(count))
        )
        rooms.render(folder, SMALL)
        yield folder


@pytest.fixture(scope="module")
def study(work: Path) -> Iterator[RoomsStudy]:
    """Finished, with readers of two steps on as little as can be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit.FitConfig, "__init__", _short(fit.FitConfig.__init__))
        done = RoomsStudy(work=work, out=work / "out", rooms=(2, 3), steps=2, jobs=0)
        done.run()
        yield done


def _short(make):  # a config with less in a step
    def __init__(self, **changes):
        make(self, **{"rooms": 1, "ladder_questions": 2, "vsi_questions": 1, "recover_steps": 2, **changes})

    return __init__


def test_coordinates_of_the_oracle_are_those_of_the_scene(work: Path) -> None:
    found = oracle.oracle_stream(work, "val")
    clip = open_scenes(rooms.tour_uri("val", 2, SMALL))[1]
    places = np.nanmean(rooms.cells(clip.world_points().astype(np.float32)), axis=3)  # (T, gh, gw, 3) metres
    waves = found[1].astype(np.float64).reshape(8, 8, 2, 8, 8, 8)  # view, number, sine or cosine, period, cell
    angle = np.arctan2(waves[:, 5:, 0, 6], waves[:, 5:, 1, 6]) / (2 * np.pi) * oracle.PERIODS[6]
    np.testing.assert_allclose(np.moveaxis(angle, 1, -1), places, atol=0.03)


def test_every_condition_has_a_row_per_number_of_rooms(study: RoomsStudy) -> None:
    rows = read_json(study.out / "study.json")
    overall = {(row["model"], row["rooms"], row["task"]) for row in rows["tasks"] if row["type"] == "overall"}
    assert overall == {(name, count, task) for name in CONDITIONS for count in (2, 3) for task in ("ladder", "vsibench")}
    assert {(row["a"], row["b"]) for row in rows["paired"]} == {
        ("fused", "semantic"), ("oracle", "semantic"), ("semantic", "blind"), ("fused", "blind")
    }  # fmt: skip
    assert rows["settings"] == {"rooms": [2, 3], "steps": 2}


def test_a_second_call_trains_nothing(study: RoomsStudy) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (study.work / "study").iterdir()}
    study.run()
    assert {path: path.stat().st_mtime_ns for path in (study.work / "study").iterdir()} == kept


def test_table_claims_only_what_has_an_interval_and_enough_questions() -> None:
    row = {
        "rooms": 9,
        "task": "ladder",
        "type": "far",
        "a": "fused",
        "b": "semantic",
        "difference": 2.0,
        "low": 1.0,
        "high": 3.0,
    }
    text = {
        n: rooms_chart.markdown(
            {"tasks": [_score(model, n) for model in rooms_chart.COLOURS], "paired": [{**row, "n": n}]}, steps=5
        )
        for n in (99, 100)
    }
    assert "| +2.0 [+1.0, +3.0] |" in text[99] and "| **+2.0 [+1.0, +3.0]** |" in text[100]


def _score(model: str, n: int) -> dict:
    return {"rooms": 9, "task": "ladder", "type": "far", "model": model, "value": 50.0, "low": 40.0, "high": 60.0, "n": n}


def test_more_rooms_than_there_are(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--work", str(work), "--out", str(work / "x"), "--rooms", "99", "--steps", "2", "--jobs", "0"]
    assert main(arguments) == 2
    assert "3 training rooms, 99 asked for; give fewer --rooms" in capsys.readouterr().err
