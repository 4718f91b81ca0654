"""Submissions: what other code reads from our files, reading them back, and files that do not fit."""

import json
from pathlib import Path

import pytest

from bench.tasks import get_task
from bench.tasks.submissions import LAYOUTS, read_submission, write_submission
from vega_artifact import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "bench"
CORPORA = {task: json.loads((GOLDEN / f"{task}.json").read_text())["corpora"] for task in ("scanqa", "sqa3d")}
VSI = {"dataset": "scannet", "scene_name": "scene0011_00", "question": "How many chairs?", "options": None}
RECORDS = {
    "vsibench": [
        VSI | {"id": 7, "question_type": "object_counting", "ground_truth": "4"},
        VSI | {"id": 3, "question_type": "route_planning", "ground_truth": "B", "options": ["A. left", "B. right"]},
    ],
    "scanqa": CORPORA["scanqa"]["three_mixed"]["cases"],
    "sqa3d": [case | {"answers": [case["answer"]]} for case in CORPORA["sqa3d"]["main"]["cases"]],
}
TEXTS = ["a\nchair", "B. right", "„ü“\u2028|||", "", *"defghijk"]
ALL = [(task, layout) for task, layouts in LAYOUTS.items() for layout in layouts]


def answers(task):
    return dict(zip(map(get_task(task).identify, RECORDS[task]), TEXTS))


def entries(path):
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def write(folder, task, layout):
    path = folder / ("out.jsonl" if LAYOUTS[task][layout].lines else "out.json")
    write_submission(path, task, answers(task), RECORDS[task], layout, model="m")
    return path


@pytest.mark.parametrize(("task", "layout"), ALL)
def test_round_trip(task, layout, tmp_path):
    path = write(tmp_path, task, layout)
    assert len(entries(path)) == len(RECORDS[task])
    assert read_submission(path, task, RECORDS[task], layout) == answers(task)


def test_scanqa_official(tmp_path):
    first = entries(write(tmp_path, "scanqa", "official"))[0]
    assert set(first) == {"scene_id", "question_id", "answer_top10", "bbox"}
    assert first["answer_top10"] == ["a\nchair"] and [len(corner) for corner in first["bbox"]] == [3] * 8


@pytest.mark.parametrize("task", ["scanqa", "sqa3d"])
def test_vega3d_lines_carry_the_converted_prompts(task, tmp_path):
    converted = CORPORA[task]["main"]["converted"]["val_llava_style" if task == "scanqa" else "test_llava_style"]
    turns = {item["id"]: item for item in converted}
    lines = entries(write(tmp_path, task, "vega3d"))
    asked = [line for line in lines if line["sample_id"] in turns]
    assert asked
    for line in asked:
        item = turns[line["sample_id"]]
        assert line["prompt"] == item["conversations"][0]["value"] and line["gt_response"] == item["conversations"][1]["value"]
        assert line["question_type"] == item["metadata"]["question_type"] and line["dataset"] == item["metadata"]["dataset"]
        assert line["model_id"] == "m"


def test_sqa3d_official_fields(tmp_path):
    first = entries(write(tmp_path, "sqa3d", "official"))[0]
    record = RECORDS["sqa3d"][0]
    assert first["agent_rot"] == record["rotation"] and first["agent_pos"] == record["position"]
    assert set(first) == {"scene_id", "situation", "question", "answer", "agent_rot", "agent_pos"}


def test_vsibench_as_lmms_eval_logs_it(tmp_path):
    path = tmp_path / "samples_vsibench.jsonl"
    write_submission(path, "vsibench", {7: "about four", "3": "b"}, RECORDS["vsibench"], "lmms_eval")
    number, choice = entries(path)
    assert (number["doc_id"], number["target"], number["filtered_resps"]) == (0, "4", ["about four"])
    assert number["vsibench_score"]["MRA:.5:.95:.05"] == pytest.approx(1) and choice["vsibench_score"]["accuracy"] == 1
    assert choice["vsibench_score"]["prediction"] == "b" and choice["input"].endswith("given choices directly.")


def test_none_is_written_as_empty_text(tmp_path):
    path = tmp_path / "out.json"
    write_submission(path, "scanqa", dict.fromkeys(answers("scanqa")), RECORDS["scanqa"], "official")
    assert set(read_submission(path, "scanqa", RECORDS["scanqa"], "official").values()) == {""}


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "out.json"
    with pytest.raises(UserError, match="Did you mean 'official'"):
        write_submission(path, "scanqa", answers("scanqa"), RECORDS["scanqa"], "oficial")
    with pytest.raises(UserError, match="unknown task with submissions 'ladder'"):
        write_submission(path, "ladder", {}, [], "official")
    with pytest.raises(UserError, match="annotations have no prediction"):
        write_submission(path, "scanqa", {}, RECORDS["scanqa"], "official")
    bare = [{name: value for name, value in record.items() if name != "position"} for record in RECORDS["sqa3d"]]
    with pytest.raises(UserError, match="no field 'position'"):
        write_submission(path, "sqa3d", answers("sqa3d"), bare, "official")
    assert not path.exists()


def test_broken_files_are_named(tmp_path):
    path = write(tmp_path, "scanqa", "official")
    with pytest.raises(UserError, match="entry 2 belongs to no annotation"):
        read_submission(path, "scanqa", RECORDS["scanqa"][:2], "official")
    rows = entries(path)
    path.write_text(json.dumps([rows[0], rows[0]]))
    with pytest.raises(UserError, match="entry 1 answers 'val-scene9100-600' a second time"):
        read_submission(path, "scanqa", RECORDS["scanqa"], "official")
    path.write_text(json.dumps([{"question_id": "val-scene9100-600"}]))
    with pytest.raises(UserError, match="entry 0 is not in the official layout of scanqa"):
        read_submission(path, "scanqa", RECORDS["scanqa"], "official")
    path.write_text("{}")
    with pytest.raises(UserError, match="a JSON list of answers expected"):
        read_submission(path, "scanqa", RECORDS["scanqa"], "official")
    path.write_text('{"sample_id"')
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        read_submission(path, "scanqa", RECORDS["scanqa"], "vega3d")
    with pytest.raises(UserError, match="no such file"):
        read_submission(tmp_path / "none.jsonl", "scanqa", RECORDS["scanqa"], "vega3d")
