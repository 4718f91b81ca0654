"""Scan2Cap scorer against golden vectors, grouped from ScanRefer's records, and bad input."""

import json
from pathlib import Path

import pytest

from bench.tasks import scan2cap
from vega_artifact import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "bench" / "scan2cap.json").read_text())
CASES, EXPECTED = GOLDEN["cases"], GOLDEN["expected"]["vega3d"]
RECORDS = [
    {"scene_id": case["scene"], "object_id": str(case["sample_id"]), "object_name": "x", "ann_id": str(n), "description": text}
    for case in CASES
    for n, text in enumerate(case["gt_response"])
]
GIVEN = {f"{case['scene']}|{case['sample_id']}|x": case["pred_response"] for case in CASES}


def test_golden():
    result = scan2cap.score(GIVEN, RECORDS, with_meteor=False)
    for name, key in (("cider", "CIDEr_x100"), ("bleu4", "BLEU-4_x100"), ("rouge_l", "ROUGE-L_x100")):
        assert result["metrics"][name] == pytest.approx(EXPECTED["aggregate"][key], abs=1e-9), name
    rows = list(result["per_item"].values())
    for name in ("cider", "rouge_l"):
        assert [row[name] for row in rows] == pytest.approx(EXPECTED["per_sample"][name], abs=1e-9)
    assert [[row[f"bleu{n}"] for n in range(1, 5)] for row in rows] == [
        pytest.approx(values, abs=1e-9) for values in EXPECTED["per_sample"]["bleu"]
    ]
    assert "meteor" in result["notes"]["missing"] and result["notes"]["n"] == len(CASES) < len(RECORDS)


def test_sentences():
    assert [scan2cap.sentence(case["pred_response"]) for case in CASES] == EXPECTED["normalized"]["prediction"]
    cleaned = [[scan2cap.sentence(text) for text in case["gt_response"]] for case in CASES]
    assert cleaned == EXPECTED["normalized"]["references"]


def test_an_object_without_caption_counts_and_is_counted():
    empty = dict.fromkeys(GIVEN, "")
    notes = scan2cap.score(empty, RECORDS, with_meteor=False)["notes"]
    assert notes["n"] == 3 and notes["counts"] == {"empty": 3}
    with pytest.raises(UserError, match="3 of 3 annotations have no prediction"):
        scan2cap.score({}, RECORDS)


def test_captions_listed_or_one_by_one_are_the_same():
    head = ("scene_id", "object_id", "object_name")
    listed = [
        {"scene_id": case["scene"], "object_id": str(case["sample_id"]), "object_name": "x", "captions": case["gt_response"]}
        for case in CASES
    ]
    assert [{name: record[name] for name in (*head, "captions")} for record in scan2cap.objects(RECORDS)] == listed
    found = [scan2cap.score(GIVEN, records, with_meteor=False)["metrics"] for records in (RECORDS, listed)]
    assert found[0] == found[1]


def test_bad_input():
    with pytest.raises(UserError, match="no text under 'description'"):
        scan2cap.score(GIVEN, [{**RECORDS[0], "description": None}])
    with pytest.raises(UserError, match="no 'object_name'"):
        scan2cap.score(GIVEN, [{"scene_id": "s", "object_id": "1", "description": "a chair"}])
    with pytest.raises(UserError, match="unknown Scan2Cap protocol"):
        scan2cap.score(GIVEN, RECORDS, "official")
