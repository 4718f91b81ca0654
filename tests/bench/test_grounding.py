"""ScanRefer and Multi3DRefer scorers against golden vectors, and on NaN scores, odd boxes and bad records."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench.tasks import get_task, multi3drefer, scanrefer
from bench.tasks.boxes import converted_records, iou, iou32
from bench.tasks.rows import task_rows
from vega_artifact import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "bench"
REFER = json.loads((GOLDEN / "scanrefer.json").read_text())
MULTI = json.loads((GOLDEN / "multi3drefer.json").read_text())
UNIT, HALF, FAR = [0, 0, 0, 1, 1, 1], [1 / 3, 0, 0, 1, 1, 1], [9, 0, 0, 1, 1, 1]
HITS = {"vega3d": "vega3d_hit", "m3dref": "m3dref_hit", "scanrefer_official": "vega3d_hit"}


def refer(number=0, **fields):
    record = {"scene_id": "s", "object_id": "2", "ann_id": str(number), "eval_type": "unique", "box": UNIT}
    return record | fields


def multi(number=0, boxes=(UNIT,), kind="st_wo_d"):
    return {"scene_id": "s", "object_ids": list(range(len(boxes))), "ann_id": number, "eval_type": kind, "boxes": list(boxes)}


def multi_id(record):
    return get_task("multi3drefer").identify(record)


def test_overlaps():
    for case in REFER["cases"]:
        pair, expected = (case["pred_response"], case["gt_response"]), case["expected"]
        assert iou(*pair) == pytest.approx(expected["iou_vega3d_float64"], abs=1e-12)
        assert iou32(*pair) == expected["iou_m3dref_float32"]


@pytest.mark.parametrize("protocol", scanrefer.PROTOCOLS)
def test_scanrefer(protocol):
    records = [refer(i, eval_type=case["question_type"], box=case["gt_response"]) for i, case in enumerate(REFER["cases"])]
    result = scanrefer.score({f"s|2|{i}": case["pred_response"] for i, case in enumerate(REFER["cases"])}, records, protocol)
    rows = result["per_item"].values()
    assert [[row["acc25"], row["acc50"]] for row in rows] == [case["expected"][HITS[protocol]] for case in REFER["cases"]]
    found = result["metrics"]
    for level, name in (("0.25", "acc25"), ("0.5", "acc50")):
        for kind in ("overall", "unique", "multiple"):
            if protocol == "vega3d":
                golden = REFER["aggregate"]["vega3d_x100"][f"{kind.replace('overall', 'all')} iou@{level}"]
            elif protocol == "m3dref":
                golden = 100 * REFER["aggregate"]["m3dref_fraction"][f"iou@{level}"][kind]
            else:
                golden = 100 * REFER["aggregate"]["scanrefer_official_fraction"][kind][f"acc@{level}iou"]
            assert found[name if kind == "overall" else f"{name}_{kind}"] == pytest.approx(golden, abs=1e-9)


def test_scanrefer_takes_the_best_object_and_passes_over_no_object():
    predictions = {
        "s|2|0": {"scores": [0.1, 0.3, 0.9], "objects": [FAR, UNIT]},
        "s|2|1": {"scores": [0.5, 0.3, 0.1], "objects": [FAR, UNIT]},
        "s|2|2": {"scores": [0.5], "objects": []},
        "s|2|3": {"scores": [float("nan"), 0.3, 0.1], "objects": [UNIT, UNIT]},
        "s|2|4": [0, 0, 0, -1, -1, 1],
        "s|2|5": None,
    }
    result = scanrefer.score(predictions, [refer(i) for i in range(6)])
    assert [row["acc50"] for row in result["per_item"].values()] == [1, 0, 0, 0, 0, 0]
    assert result["notes"]["counts"] == {"none": 1, "nan_scores": 1, "unusable": 3}
    assert result["metrics"]["acc50"] == pytest.approx(100 / 6)


@pytest.mark.parametrize("threshold", [0.3, 0.4, 0.6])
def test_multi3drefer(threshold):
    cases = MULTI["cases"]
    records = [multi(i, case["gt_response"], case["question_type"]) for i, case in enumerate(cases)]
    given = {multi_id(record): {name: case[name] for name in ("scores", "objects")} for record, case in zip(records, cases)}
    result = multi3drefer.score(given, records, threshold=threshold)
    for key, value in MULTI["aggregate"]["vega3d_fraction"][f"threshold_{threshold}"].items():
        kind, level = key.split(" IoU")
        name = f"f1_{level}" if kind == "all" else f"f1_{level}_{kind}"
        assert result["metrics"][name] == pytest.approx(100 * value, abs=1e-9), key
    if threshold == 0.4:
        rows = list(result["per_item"].values())
        assert [[row["f1_25"], row["f1_50"]] for row in rows] == [case["expected"]["f1"] for case in cases]
        chosen = [[case["objects"].index(box) for box in row["prediction"]] for case, row in zip(cases, rows)]
        assert chosen == [case["expected"]["selected_indices"] for case in cases]


def test_multi3drefer_as_m3dref():
    cases = MULTI["cases"]
    records = [multi(i, case["gt_response"], case["question_type"]) for i, case in enumerate(cases)]
    chosen = [[case["objects"][index] for index in case["expected"]["selected_indices"]] for case in cases]
    result = multi3drefer.score(dict(zip(map(multi_id, records), chosen)), records, "m3dref")
    assert [[row["f1_25"], row["f1_50"]] for row in result["per_item"].values()] == [
        case["expected"]["m3dref_f1"] for case in cases
    ]
    for level, name in (("0.25", "f1_25"), ("0.5", "f1_50")):
        golden = MULTI["aggregate"]["m3dref_fraction_on_vega3d_selection"][f"f1@{level}"]
        for kind, value in golden.items():
            key = name if kind == "overall" else f"{name}_{kind}"
            if value == "NaN":  # no query of this type
                assert key not in result["metrics"]
            else:
                assert result["metrics"][key] == pytest.approx(100 * value, abs=1e-9)


def test_an_overlap_of_one_half_is_a_hit_in_multi3drefer_only():
    assert multi3drefer.f1([HALF], [UNIT]) == [1, 1]
    assert scanrefer.score({"s|2|0": HALF}, [refer()])["metrics"]["acc50"] == 0


def test_nothing_found_is_right_where_nothing_was_meant_but_no_answer_is_not():
    records = [multi(i, (), "zt_w_d") for i in range(4)] + [multi(4)]
    nan = {"scores": [float("nan"), 0.2], "objects": [UNIT]}
    given = dict(zip(map(multi_id, records), ([], None, nan, [UNIT], [UNIT, [1, 2]])))
    result = multi3drefer.score(given, records)
    assert [row["f1_50"] for row in result["per_item"].values()] == pytest.approx([1, 0, 0, 0, 2 / 3])
    assert result["notes"]["counts"] == {"none": 1, "nan_scores": 1, "unusable": 1}
    assert result["notes"]["threshold"] == 0.4


def test_selection_reaches_the_threshold():
    scores = np.log([0.5, 0.3, 0.15, 0.05]) * multi3drefer.TEMPERATURE
    assert multi3drefer.select(scores, 0.4) == [0]
    assert multi3drefer.select(scores, 0.7) == [0, 1]
    assert multi3drefer.select(scores, 0.99) == [0, 1, 2]  # never reached: all of them
    assert multi3drefer.select(scores[::-1], 0.4) == []


def test_rows_of_the_report():
    task = get_task("scanrefer")
    records = [refer(i, scene_id=f"s{i % 3}") for i in range(6)]
    boxes = {f"s{i % 3}|2|{i}": HALF if i % 2 else UNIT for i in range(6)}
    (row,) = task_rows(task, {"teacher": [task.score(boxes, records)]}, records)["tasks"]
    assert (row["type"], row["value"], row["n"]) == ("overall", pytest.approx(50), 6)
    with pytest.raises(UserError, match="1 questions have no 'question_type', the first is '1'"):
        task_rows(get_task("vsibench"), {"teacher": [{"notes": {"protocol": "official"}}]}, [{"id": 1, "scene_name": "s"}])


def test_converted_files_carry_the_boxes():
    meta = {"dataset": "scanrefer", "question_type": "unique", "ann_id": "0", "object_id": "2"}
    item = {"id": 0, "video": "scannet/scene0011_00", "conversations": [], "box": UNIT, "metadata": meta}
    several = item | {"box": [UNIT, FAR], "metadata": meta | {"object_id": [2, 3], "question_type": "mt", "ann_id": 4}}
    assert scanrefer.score({"scene0011_00|2|0": UNIT}, converted_records([item]))["metrics"]["acc50_unique"] == 100
    result = multi3drefer.score({"scene0011_00|2,3|4": [UNIT]}, converted_records([several]))
    assert result["metrics"]["f1_50_mt"] == pytest.approx(100 * 2 / 3)
    with pytest.raises(UserError, match="no converted grounding item"):
        converted_records([item | {"metadata": {}}])


@pytest.mark.parametrize(
    ("fields", "prediction", "message"),
    [
        ({"box": [0, 0, 0, 1, 1]}, UNIT, "six finite numbers"),
        ({"box": [0, 0, 0, 1, 1, float("nan")]}, UNIT, "six finite numbers"),
        ({"eval_type": "uniq"}, UNIT, "Did you mean 'unique'"),
        ({}, {"scores": [1, 2], "objects": [UNIT, FAR]}, "2 scores for 2 objects"),
    ],
)
def test_bad_scanrefer_input_is_named(fields, prediction, message):
    with pytest.raises(UserError, match=message):
        scanrefer.score({"s|2|0": prediction}, [refer(**fields)])


def test_bad_multi3drefer_input_is_named():
    record = multi()
    given = {multi_id(record): [UNIT]}
    without = {name: value for name, value in record.items() if name != "boxes"}
    for records, options, message in (
        ([without], {}, "no field 'boxes'"),
        ([record | {"boxes": [UNIT[:3]]}], {}, "six finite numbers"),
        ([record | {"eval_type": "st"}], {}, "unknown Multi3DRefer eval_type 'st'"),
        ([record, record], {}, "annotation id 's|0|0' occurs 2 times"),
        ([record], {"threshold": 0}, "threshold is a probability"),
        ([record], {"protocol": "vega"}, "Did you mean 'vega3d'"),
    ):
        with pytest.raises(UserError, match=message.replace("|", r"\|")):
            multi3drefer.score(given, records, **options)
    with pytest.raises(UserError, match="is str, not a list of boxes"):
        multi3drefer.score({multi_id(record): "a box"}, [record])
    with pytest.raises(UserError, match="no prediction, the first is 's|0|0'".replace("|", r"\|")):
        multi3drefer.score({}, [record])
