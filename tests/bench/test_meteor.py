"""METEOR against the values of the original jar, for every scorer that reports it; all by one Java process."""

import json
from pathlib import Path

import pytest

from bench.tasks import scan2cap, scanqa, sqa3d
from bench.tasks.java import has_java
from bench.tasks.meteor import _process, meteor
from vega_artifact import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "bench"
SCANQA = {  # protocol -> (name in the golden file, factor that turns it into percent)
    "vega3d": ("METEOR_x100", 1),
    "scanqa_official": ("METEOR", 1),
    "leo": ("meteor", 100),
    "llava3d": ("[scanqa] METEOR", 100),
}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not has_java(), reason="METEOR needs java")]


def read(name):
    return json.loads((GOLDEN / name).read_text())


@pytest.mark.parametrize("protocol", SCANQA)
@pytest.mark.parametrize("name", ["main", "three_mixed"])
def test_scanqa(name, protocol):
    corpus = read("scanqa.json")["corpora"][name]
    result = scanqa.score({case["question_id"]: case["prediction"] for case in corpus["cases"]}, corpus["cases"], protocol)
    aggregate = corpus["expected"][protocol]["aggregate"]
    key, factor = SCANQA[protocol]
    assert result["metrics"]["meteor"] == pytest.approx(aggregate.get("eval_pycoco", aggregate)[key] * factor, abs=1e-9)
    per_sample = corpus["expected"][protocol]["per_sample"].get("meteor")
    if per_sample:
        assert [row["meteor"] for row in result["per_item"].values()] == pytest.approx(per_sample, abs=1e-9)


def test_sqa3d():
    corpus = read("sqa3d.json")["corpora"]["main"]
    result = sqa3d.score({case["question_id"]: case["prediction"] for case in corpus["cases"]}, corpus["cases"], "leo")
    assert result["metrics"]["meteor"] == pytest.approx(
        100 * corpus["expected"]["leo"]["aggregate"]["meteor_overall"], abs=1e-9
    )


def test_scan2cap():
    golden = read("scan2cap.json")
    records = [
        {"scene_id": case["scene"], "object_id": case["sample_id"], "object_name": "x", "captions": case["gt_response"]}
        for case in golden["cases"]
    ]
    given = {f"{case['scene']}|{case['sample_id']}|x": case["pred_response"] for case in golden["cases"]}
    result, expected = scan2cap.score(given, records), golden["expected"]["vega3d"]
    assert result["metrics"]["meteor"] == pytest.approx(expected["aggregate"]["METEOR_x100"], abs=1e-9)
    assert [row["meteor"] for row in result["per_item"].values()] == pytest.approx(expected["per_sample"]["meteor"], abs=1e-9)


def test_line_breaks_do_not_shift_the_lines():
    value, items = meteor(["a red\r\nchair", "on wall\n"], [["a red chair"], ["on the\nwall"]])
    plain = meteor(["a red chair", "on wall"], [["a red chair"], ["on the wall"]])
    assert (value, items) == plain and items[0] == pytest.approx(1)


def test_a_process_that_died_is_named_and_forgotten():
    _process().close()
    with pytest.raises(UserError, match="stopped early"):
        meteor(["a chair"], [["a chair"]])
    assert _process.cache_info().currsize == 0  # the next call starts a fresh one
