"""Questions of rooms, answers kept and reused, and answers as rows; no model but the smallest reader."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import downstream, schema
from teacher.scenes import open_scenes
from vega_artifact import UserError, read_json, write_json

Questions = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def questions() -> Questions:
    source = open_scenes("procedural:val?count=5&frames=4&size=64&seed=2")
    return downstream.questions_of([source[index] for index in range(5)])


def truth(questions: Questions) -> dict[str, str]:
    found = {record["question_id"]: record["answers"][0] for record in questions["scanqa"]}
    return found | {str(record["id"]): record["ground_truth"] for record in questions["vsibench"]}


def test_questions_are_of_every_room_in_both_schemas(questions: Questions) -> None:
    assert set(questions) == {"scanqa", "vsibench"}
    for records, scene, key in ((questions["scanqa"], "scene_id", "question_id"), (questions["vsibench"], "scene_name", "id")):
        per_room = {name: sum(record[scene] == name for record in records) for name in {record[scene] for record in records}}
        assert len(per_room) == 5 and 0 < min(per_room.values()) and max(per_room.values()) <= downstream.QUESTIONS
        assert len({str(record[key]) for record in records}) == len(records)


def test_prompts_are_the_benchmarks_own_without_the_image_mark(questions: Questions) -> None:
    record = questions["scanqa"][0]
    assert downstream.prompt(record, "scanqa") == f"{record['question']} Answer the question simply."
    choice = next(record for record in questions["vsibench"] if record["options"])
    text = downstream.prompt(choice, "vsibench")
    assert text.startswith("These are frames of a video.\n") and all(option in text for option in choice["options"])
    assert text.endswith("Answer with the option's letter from the given choices directly.")


def test_chance_is_one_over_the_options() -> None:
    def record(kind: str, options: list[str] | None) -> dict[str, Any]:
        return {"question_type": kind, "options": options}

    found = downstream.chance(
        {
            "vsibench": [
                record("route_planning", ["A. x", "B. y", "C. z", "D. w"]),
                record("route_planning", ["A. x", "B. y"]),
                record("object_rel_direction_easy", ["A. left", "B. right"]),
                record("object_rel_direction_hard", ["A. a", "B. b", "C. c", "D. d"]),
                record("room_size_estimation", None),
            ]
        }
    )
    assert found["vsibench"] == {"route_planning": 37.5, "object_rel_direction": 37.5}
    assert set(found["ladder"].values()) == {50.0} and "camera_distance" not in found["ladder"]


def test_true_answers_score_100_and_wrong_ones_do_not(questions: Questions) -> None:
    right = truth(questions)
    wrong = dict.fromkeys(right, "zeppelin")
    rows = downstream.rows({"teacher": [right, wrong], "student_exported": [right], "blind": [wrong]}, questions)
    for kind in ("tasks", "paired", "parity"):
        schema.check_rows(rows[kind], schema.ROWS[kind], kind)
    overall = {(row["task"], row["model"]): row["value"] for row in rows["tasks"] if row["type"] == "overall"}
    for task in ("ladder", "vsibench", "scanqa"):
        assert overall[task, "student_exported"] == pytest.approx(100)
        assert overall[task, "blind"] == pytest.approx(0)
        assert overall[task, "teacher"] == pytest.approx(50), "the mean over reader seeds"
    gaps = {(row["task"], row["a"], row["b"]): row for row in rows["paired"] if row["type"] == "overall"}
    assert gaps["ladder", "student_exported", "teacher"]["difference"] == pytest.approx(50)
    assert {row["task"]: row["verdict"] for row in rows["parity"]} == dict.fromkeys(downstream.PROTOCOLS, "pass")
    assert {row["task"]: row["protocol"] for row in rows["tasks"]} == downstream.PROTOCOLS


def test_a_question_without_answer_is_refused(questions: Questions) -> None:
    short = truth(questions)
    del short[str(questions["vsibench"][3]["id"])]
    with pytest.raises(KeyError, match=str(questions["vsibench"][3]["id"])):
        downstream.rows({"teacher": [short]}, questions)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A job sets the threads of its process, which here is that of all tests."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_a_job_answers_every_question_once(questions: Questions, tmp_path: Path) -> None:
    downstream._answer_job(None, "blind", 0, questions, tmp_path / "blind-0.json")
    found = read_json(tmp_path / "blind-0.json")
    assert found.keys() == truth(questions).keys()
    assert all(isinstance(text, str) for text in found.values())


@pytest.mark.usefixtures("one_thread")
def test_a_job_gives_each_room_its_own_tokens(questions: Questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms = sorted({record["scene_id"] for record in questions["scanqa"]})
    tokens = {room: np.full((1, 1, 1, 1), index, np.float16) for index, room in enumerate(rooms)}

    class Echo:
        def answer(self, visual: torch.Tensor, prompts: list[str], views: list[int | None]) -> list[str]:
            assert visual.dtype == torch.float32
            return [f"{int(visual)}|{text}" for text in prompts]

    monkeypatch.setattr("teacher.tiny.bundle.load_reader", lambda condition, seed: Echo())
    downstream._answer_job(tokens, "fused", 0, questions, tmp_path / "a.json")
    found = read_json(tmp_path / "a.json")
    for schema_name, key, scene in (("scanqa", "question_id", "scene_id"), ("vsibench", "id", "scene_name")):
        for record in questions[schema_name]:
            expected = f"{rooms.index(record[scene])}|{downstream.prompt(record, schema_name)}"
            assert found[str(record[key])] == expected


def test_finished_answers_are_reused_and_tokens_not_even_read(questions: Questions, tmp_path: Path) -> None:
    class Never(dict[str, np.ndarray]):
        def __getitem__(self, scene: str) -> np.ndarray:
            raise AssertionError("the answers are there already")

    for seed in (0, 1):
        write_json(tmp_path / f"teacher-{seed}.json", {"q": f"answer {seed}"})
    found = downstream.answer_all({"teacher": Never()}, {"teacher": "fused"}, questions, (0, 1), tmp_path)
    assert found == {"teacher": [{"q": "answer 0"}, {"q": "answer 1"}]}


@pytest.mark.usefixtures("one_thread")
def test_a_reader_that_is_not_in_the_bundle_is_named(questions: Questions, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"readers/fused-77.safetensors: missing from the embedded bundle"):
        downstream._answer_job({}, "fused", 77, questions, tmp_path / "x.json")
    assert list(tmp_path.iterdir()) == []
