"""Official files of SQA3D, ScanRefer, Multi3DRefer and Scan2Cap: read with their oddities, refused with their faults."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from teacher.scenes.geometry import box_distance
from teacher.scenes.grounding_boxes import with_boxes
from teacher.scenes.question_files import examine, load_questions, write_questions
from teacher.scenes.questions_refer import TALLEST, multi3drefer, scanrefer, upright_box
from teacher.scenes.questions_situated import sqa3d
from tests.teacher.painted import FURNITURE, painted, room
from vega_artifact import UserError

QUESTION = {
    "scene_id": "scene9100_00",
    "situation": "I am standing by the stool.",
    "alternative_situation": ["a", "b"],
    "question": "Is the lamp on my left?",
    "question_id": 220602900001,
}
ANNOTATION = {
    "scene_id": "scene9100_00",
    "question_type": "N/A",
    "answer_type": "other",
    "question_id": 220602900001,
    "answers": [{"answer": "yes", "answer_confidence": "yes", "answer_id": 1}],
    "rotation": {"_x": 0, "_y": 0, "_z": 0.6, "_w": 0.8},
    "position": {"x": -1.5, "y": 0.4, "z": 0},
}
NAME = "v1_balanced_questions_val_scannetv2.json"
ANSWERS = "v1_balanced_sqa_annotations_val_scannetv2.json"


def write_sqa(folder, questions, annotations):
    (folder / NAME).write_text(json.dumps({"info": {}, "questions": questions}))
    (folder / ANSWERS).write_text(json.dumps({"info": {}, "annotations": annotations}))
    return folder / NAME


# --- SQA3D -----------------------------------------------------------------------------------------------------------


def test_sqa3d_joins_its_two_files_whatever_their_order(tmp_path):
    second = {**QUESTION, "question_id": 2}, {**ANNOTATION, "question_id": 2, "answers": [{"answer": "no"}]}
    path = write_sqa(tmp_path, [QUESTION, second[0]], [second[1], ANNOTATION])
    first, other = load_questions(path, "sqa3d")
    assert first["answers"] == ["yes"] and other["answers"] == ["no"] and other["question_id"] == 2
    assert first["position"] == ANNOTATION["position"] and first["alternative_situation"] == ["a", "b"]
    assert "question_type" not in first, "N/A in every record; scorers go by the words of the question"


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        ([QUESTION], [], f"{NAME}: record 0 lacks answers, position, rotation"),
        ([QUESTION], [{**ANNOTATION, "answers": None}], f"{ANSWERS}: record 0 lacks question_id or a list of answers"),
        ([QUESTION], [ANNOTATION, ANNOTATION], f"{ANSWERS}: record 1 repeats question_id"),
        ([QUESTION, QUESTION], [ANNOTATION], f"{NAME}: record 1 repeats question_id 220602900001 of record 0"),
        ([QUESTION], [ANNOTATION, {**ANNOTATION, "question_id": 5}], "1 annotations without question, the first is 5"),
        ([QUESTION], [{**ANNOTATION, "answers": []}], "has answers"),
        ([QUESTION], [{**ANNOTATION, "position": {"x": 1}}], "has position"),
        ([QUESTION], [{**ANNOTATION, "rotation": {**ANNOTATION["rotation"], "_w": math.nan}}], "has rotation"),
        ([{**QUESTION, "situation": " "}], [ANNOTATION], "has situation ' '; a text expected"),
        ([{**QUESTION, "question_id": "7"}], [{**ANNOTATION, "question_id": "7"}], "has question_id '7'; a whole number"),
    ],
)
def test_faulty_sqa3d_is_named(tmp_path, questions, annotations, message):
    path = write_sqa(tmp_path, questions, annotations)
    with pytest.raises(UserError, match=message):
        load_questions(path)


def test_sqa3d_without_its_second_file_says_which_one(tmp_path):
    path = write_sqa(tmp_path, [QUESTION], [ANNOTATION])
    (tmp_path / ANSWERS).write_text("[]")
    with pytest.raises(UserError, match="a list of 'annotations' expected"):
        load_questions(path)
    (tmp_path / ANSWERS).unlink()
    with pytest.raises(UserError, match=f"put {ANSWERS} beside it"):
        load_questions(path)
    with pytest.raises(UserError, match="named like v1_balanced_questions_val"):
        write_questions(tmp_path / "sqa3d.json", sqa3d(room()))


# --- ScanRefer, Scan2Cap, Multi3DRefer -------------------------------------------------------------------------------

REFER = {
    "scene_id": "s",
    "object_id": "4",
    "object_name": "trash_can",
    "ann_id": "0",
    "description": "a can",
    "token": ["a", "can"],
}
MULTI = {"scene_id": "s", "object_ids": [4], "object_name": "can", "ann_id": 0, "eval_type": "st_wo_d", "description": "a can"}


def test_scanrefer_reads_and_groups_into_scan2cap(tmp_path):
    records = [REFER, {**REFER, "ann_id": 1, "description": "the grey can"}, {**REFER, "object_id": 5}]
    write_questions(tmp_path / "ScanRefer_filtered_val.json", records)
    read = load_questions(tmp_path / "ScanRefer_filtered_val.json")
    assert [record["ann_id"] for record in read] == ["0", "1", "0"] and read[2]["object_id"] == "5"
    captions = load_questions(tmp_path / "ScanRefer_filtered_val.json", "scan2cap")
    assert [(row["id"], row["captions"]) for row in captions] == [
        ("s|4|trash_can", ["a can", "the grey can"]),
        ("s|5|trash_can", ["a can"]),
    ]
    with pytest.raises(UserError, match="holds questions of scanrefer, but those of vsibench"):
        load_questions(tmp_path / "ScanRefer_filtered_val.json", "vsibench")
    with pytest.raises(UserError, match="unknown question task 'scan2cp'. Did you mean 'scan2cap'"):
        load_questions(tmp_path / "ScanRefer_filtered_val.json", "scan2cp")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**REFER, "description": ""}, "has description ''"),
        ({**REFER, "object_id": "chair"}, "has object_id 'chair'"),
        ({**REFER, "box": [0, 0, 0, 1, 1]}, "has box .*six finite numbers"),
        ({**MULTI, "eval_type": "many"}, "unknown eval_type 'many'; known: zt_w_d"),
        ({**MULTI, "eval_type": "zt_w_d"}, "eval_type 'zt_w_d' but names 1 objects"),
        ({**MULTI, "eval_type": "mt"}, "eval_type 'mt' but names 1 objects"),
        ({**MULTI, "object_ids": ["4"]}, "has object_ids"),
        ({**MULTI, "object_ids": [4, 4], "eval_type": "mt"}, "has object_ids"),
        ({**MULTI, "boxes": []}, "has boxes .*each of 1 objects"),
        ({**MULTI, "boxes": [[0, 0, 0, 1, 1, math.inf]]}, "has boxes"),
    ],
)
def test_faulty_references_are_named(tmp_path, record, message):
    (tmp_path / "refer.json").write_text(json.dumps([MULTI if "object_ids" in record else REFER, {**record, "ann_id": 1}]))
    with pytest.raises(UserError, match=f"refer.json: record 1 .*{message}"):
        load_questions(tmp_path / "refer.json")


def test_all_faults_of_a_file_are_counted(tmp_path):
    (tmp_path / "m.json").write_text(
        json.dumps([MULTI, MULTI, {**MULTI, "ann_id": 1}, 7, {**MULTI, "ann_id": 2, "eval_type": "x"}])
    )
    found = examine(tmp_path / "m.json")
    assert found.schema.name == "multi3drefer" and [record["ann_id"] for record in found.records] == [0, 1]
    assert [fault.split(": ")[1][:8] for fault in found.faults] == ["record 1", "record 3", "record 4"]
    assert "repeats scene_id 's', object_ids [4], ann_id 0 of record 0" in found.faults[0]


# --- procedural ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "name"), [(sqa3d, NAME), (scanrefer, "r.json"), (multi3drefer, "m.json"), (multi3drefer, "m.parquet")]
)
def test_procedural_records_read_back(tmp_path, make, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    records = make(room("one")) + make(room("two"))
    write_questions(tmp_path / name, records)
    assert load_questions(tmp_path / name) == records and len(records) > 10
    assert make(room("one")) == records[: len(records) // 2], "the same for the same scene"


def test_situated_questions_follow_from_the_floor_plan():
    by_name = {item.name: item for item in FURNITURE if item.name != "stool"}
    records = sqa3d(room())
    assert {record["question"].split()[0] for record in records} == {"Is", "Which", "Can", "What", "How"}
    for record in records:
        by, facing = (
            by_name[name] for name in record["situation"][len("I am standing by the ") : -1].split(" and facing the ")
        )
        look = np.subtract(facing.center, by.center)[:2]
        turn = 2 * math.atan2(record["rotation"]["_z"], record["rotation"]["_w"])
        np.testing.assert_allclose([math.cos(turn), math.sin(turn)], look / np.hypot(*look), atol=1e-9)
        assert (record["position"]["x"], record["position"]["y"]) == by.center[:2]
        if record["question"].startswith("Is the "):
            target = np.subtract(by_name[record["question"][7:-12]].center, by.center)[:2]
            assert record["answers"] == ["yes" if look[0] * target[1] - look[1] * target[0] > 0 else "no"]
        if record["question"].startswith("What"):
            item = by_name[record["question"][12:-12]]
            others = sorted((o for o in FURNITURE if o.id != item.id), key=lambda o: box_distance(item, o))
            assert (
                record["answers"] == [others[0].name] and box_distance(item, others[1]) - box_distance(item, others[0]) >= 0.3
            )


def test_references_mean_what_they_say():
    objects = {item.id: item for item in FURNITURE}
    for record in scanrefer(room()):
        item = objects[int(record["object_id"])]
        same = [other for other in FURNITURE if other.name == item.name]
        assert record["box"] == upright_box(item) and record["object_name"] == item.name.replace(" ", "_")
        assert (record["eval_type"] == "unique") == (len(same) == 1)
        if record["eval_type"] == "multiple":
            landmark = next(other for other in FURNITURE if record["description"].endswith(f"the {other.name}."))
            assert item == min(same, key=lambda other: box_distance(landmark, other))
    kinds: dict[str, list] = {}
    for record in multi3drefer(room()):
        kinds.setdefault(record["eval_type"], []).append(record)
        assert record["boxes"] == [upright_box(objects[number]) for number in record["object_ids"]]
    assert set(kinds) == {"zt_wo_d", "zt_w_d", "st_wo_d", "st_w_d", "mt"}
    assert [record["object_ids"] for record in kinds["mt"]] == [[6, 7]], "both stools"
    names = {item.name for item in FURNITURE}
    assert not names & {record["object_name"] for record in kinds["zt_wo_d"]}
    assert all(
        max(item.size[2] for item in FURNITURE) < TALLEST and record["object_name"] in names for record in kinds["zt_w_d"]
    )


def test_what_stands_closest_counts_things_nobody_saw():
    """A chair outside every view still makes "closest to the lamp" false."""
    lamp, table, hidden = FURNITURE[2], FURNITURE[1], FURNITURE[5]
    seen = {lamp.id: (slice(2, 12), slice(1, 11), 2.0), table.id: (slice(2, 12), slice(20, 30), 2.0)}
    alone = painted((lamp, table), [seen])
    assert any("closest to the lamp" in record["description"] for record in scanrefer(alone))
    beside = type(hidden)(hidden.id, "chair", (lamp.center[0] + 0.4, lamp.center[1], 0.3), hidden.size, 0.0)
    crowd = painted((lamp, table, beside), [seen])
    texts = {
        record["object_name"]: [r["description"] for r in scanrefer(crowd) if r["object_name"] == record["object_name"]]
        for record in scanrefer(crowd)
    }
    assert not any("closest to the table" in text for text in texts["lamp"])


# --- true boxes ------------------------------------------------------------------------------------------------------

BOX = [0.1, 0.2, 0.3, 1, 1, 2]


def converted(object_id: object, box: object, kind: str = "unique", ann_id: int = 0) -> dict:
    about = {"dataset": "scanrefer", "question_type": kind, "ann_id": ann_id, "object_id": object_id}
    return {"id": 0, "video": "scannet/s", "conversations": [], "box": box, "metadata": about}


def test_boxes_come_from_the_converted_file(tmp_path):
    path = tmp_path / "scanrefer_val_llava_style.json"
    path.write_text(json.dumps([converted("5", [9] * 6), converted("4", BOX), converted([6, 4], [BOX, [9] * 6], "mt", 3)]))
    (record,) = with_boxes([REFER], path)
    assert record == {**REFER, "box": BOX, "eval_type": "unique"}
    several = {**MULTI, "object_ids": [4, 6], "eval_type": "mt", "ann_id": 3}
    assert with_boxes([several], path)[0]["boxes"] == [BOX, [9] * 6]


@pytest.mark.parametrize(
    ("items", "record", "message"),
    [
        ([converted("5", BOX)], REFER, r"1 of 1 questions are not in it, the first is \('s', \('4',\), '0'\)"),
        ([converted("4", BOX[:5])], REFER, "has box .*six finite numbers"),
        ([converted("4", BOX), converted("4", [9] * 6)], REFER, "record 1 gives .* another box"),
        ([{"id": 0, "video": "scannet/s", "box": BOX}], REFER, "record 0 lacks video, box or metadata"),
        ({"questions": []}, REFER, "a list of converted questions expected"),
        ([converted("4", BOX)], {"scene_id": "s", "question_id": "q"}, "not of scanqa"),
    ],
)
def test_boxes_that_do_not_fit_are_named(tmp_path, items, record, message):
    (tmp_path / "converted.json").write_text(json.dumps(items))
    with pytest.raises(UserError, match=f"converted.json: .*{message}"):
        with_boxes([record], tmp_path / "converted.json")
