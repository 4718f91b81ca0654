"""Question files of the benchmarks and ours: read back as written, and every kind of fault named with file and record."""

from __future__ import annotations

import json
import sys

import pytest

from teacher.scenes.questions import load_questions, procedural_questions, write_questions
from tests.teacher.painted import room
from vega_artifact import UserError

VSI_OK = {
    "id": 1,
    "dataset": "arkitscenes",
    "scene_name": "s",
    "question_type": "route_planning",
    "question": "Which way?",
    "options": ["A. Turn Left", "B. Turn Right"],
    "ground_truth": "A",
}


@pytest.mark.parametrize(("task", "name"), [("vsibench", "q.jsonl"), ("vsibench", "q.json"), ("scanqa", "q.json")])
def test_written_questions_read_back(tmp_path, task, name):
    records = procedural_questions(room(), task)
    write_questions(tmp_path / name, records)
    assert load_questions(tmp_path / name) == records


def test_official_oddities_are_read(tmp_path):
    vsi = {
        **VSI_OK,
        "scene_name": 41069025,
        "question_type": "object_counting",
        "options": None,
        "ground_truth": "4",
        "pruned": True,
    }
    (tmp_path / "test.jsonl").write_text(json.dumps(vsi) + "\n\n")
    assert load_questions(tmp_path / "test.jsonl") == [{**vsi, "scene_name": "41069025"}]
    hidden = {"scene_id": "scene0707_00", "question_id": "test-scene0707-0", "question": "What color?", "object_id": [4]}
    (tmp_path / "test.json").write_text(json.dumps([hidden]))
    assert load_questions(tmp_path / "test.json")[0]["object_ids"] == [4]


SCANQA_OK = {"scene_id": "s", "question_id": "val-s-0", "question": "q", "answers": ["a"]}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "non-empty list"),
        ({"info": 1}, "non-empty list"),
        ([3], "record 0 is not an object"),
        ([SCANQA_OK, {"question_id": "val-s-1", "question": "q"}], "record 1 lacks scene_id"),
        ([SCANQA_OK, SCANQA_OK], "record 1 repeats question_id 'val-s-0' of record 0"),
        ([{**SCANQA_OK, "answers": []}], "record 0 has answers"),
        ([{**SCANQA_OK, "question_id": 5}], "record 0 has question_id 5"),
        ([VSI_OK, {**VSI_OK, "id": 2}, VSI_OK], "record 2 repeats id 1 of record 0"),
        ([{key: VSI_OK[key] for key in VSI_OK if key != "options"}], "record 0 lacks options"),
        ([{**VSI_OK, "question_type": "route"}], "unknown question_type 'route'; known: .*route_planning"),
        ([{**VSI_OK, "id": "1"}], "record 0 has id '1'"),
        ([{**VSI_OK, "ground_truth": "C"}], "ground_truth 'C'; one of A, B"),
        ([{**VSI_OK, "options": ["x", "y"]}], "record 0 has options"),
        ([{**VSI_OK, "question_type": "room_size_estimation", "ground_truth": "big"}], "ground_truth 'big'; a number"),
    ],
)
def test_faulty_records_are_named(tmp_path, records, message):
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=f"faulty.json: .*{message}"):
        load_questions(path)


def test_faulty_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no-such\.jsonl: no such file"):
        load_questions(tmp_path / "no-such.jsonl")
    (tmp_path / "cut.jsonl").write_text(json.dumps(VSI_OK) + '\n{"id": 2, "data')
    with pytest.raises(UserError, match=r"cut\.jsonl: line 2 is not valid JSON"):
        load_questions(tmp_path / "cut.jsonl")
    (tmp_path / "q.csv").write_text("id")
    with pytest.raises(UserError, match=r"q.csv: unknown kind"):
        load_questions(tmp_path / "q.csv")
    with pytest.raises(UserError, match=r"out.csv: questions are written as"):
        write_questions(tmp_path / "out.csv", [VSI_OK])
    (tmp_path / "q.parquet").write_bytes(b"not parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"q\.parquet: reading parquet needs pyarrow"):
        load_questions(tmp_path / "q.parquet")


def test_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records = procedural_questions(room())
    parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "q.parquet")
    assert load_questions(tmp_path / "q.parquet") == records
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"bad\.parquet: not a readable parquet"):
        load_questions(tmp_path / "bad.parquet")
