"""SQA3D scorer against golden vectors of four code bases, its question types, and bad input."""

import json
from pathlib import Path

import pytest

from bench.tasks import sqa3d
from vega_artifact import UserError

CORPUS = json.loads((Path(__file__).parents[1] / "golden" / "bench" / "sqa3d.json").read_text())["corpora"]["main"]
CASES = CORPUS["cases"]
LLAVA = {"em": "EM", "em_refined": "EM_refined"}


def run(protocol):
    return sqa3d.score({case["question_id"]: case["prediction"] for case in CASES}, CASES, protocol, with_meteor=False)


def test_vega3d():
    result, golden = run("vega3d"), CORPUS["expected"]["vega3d"]
    aggregate = {"em" if name == "all" else f"em_{name}": value for name, value in golden["aggregate_x100"].items()}
    assert result["metrics"] == pytest.approx(aggregate, abs=1e-9)
    rows = list(result["per_item"].values())
    assert [row["em"] for row in rows] == golden["per_sample"]["em"]
    assert [row["type"] for row in rows] == golden["per_sample"]["question_type"]


@pytest.mark.parametrize("protocol", ["leo", "llava3d"])
def test_refined_matches_per_type(protocol):
    result, golden = run(protocol), CORPUS["expected"][protocol]["aggregate"]
    for name in ("em", "em_refined"):
        overall = f"{name}_overall" if protocol == "leo" else f"[sqa3d] {'EM1_refined' if 'refined' in name else 'EM1'}"
        assert result["metrics"][name] == pytest.approx(100 * golden[overall], abs=1e-9)
        for number, kind in enumerate(sqa3d.TYPES):
            key = f"{name}_type{number}" if protocol == "leo" else f"[sqa3d] {LLAVA[name]}_type{number}"
            assert result["metrics"][f"{name}_{kind}"] == pytest.approx(100 * golden[key], abs=1e-9), kind
    assert result["notes"]["counts"] == {"empty": 1, "empty_rewarded": 1, "partial_words_rewarded": 1}
    assert result["notes"]["strict"]["em_refined"] == pytest.approx(100 * 8 / 12)


def test_leo_text_metrics_and_labels():
    result, golden = run("leo"), CORPUS["expected"]["leo"]
    for name, key in (("cider", "cider_overall"), ("bleu4", "bleu_overall"), ("rouge_l", "rouge_overall")):
        assert result["metrics"][name] == pytest.approx(100 * golden["aggregate"][key], abs=1e-9), name
    rows = list(result["per_item"].values())
    assert [row["em"] for row in rows] == golden["per_sample"]["em"]
    assert [row["em_refined"] for row in rows] == golden["per_sample"]["em_refined"]
    assert [sqa3d.TYPES.index(row["type"]) for row in rows] == golden["per_sample"]["sqa_type"]
    assert result["notes"]["missing"].keys() == {"meteor"} and "cider" not in run("llava3d")["metrics"]


def test_official_lenient():
    result, golden = run("sqa3d_official_lenient"), CORPUS["expected"]["sqa3d_official_lenient"]
    assert [row["accuracy"] for row in result["per_item"].values()] == golden["per_sample"]
    assert result["metrics"]["accuracy"] == pytest.approx(100 * golden["aggregate"], abs=1e-9)
    assert result["notes"]["counts"]["empty_rewarded"] == 1
    assert result["notes"]["strict"]["accuracy"] == pytest.approx(50)


def test_all_empty_answers_score_full_marks_only_where_published_rules_say_so():
    empty = {case["question_id"]: "" for case in CASES}
    for protocol, metric in (("leo", "em_refined"), ("llava3d", "em_refined"), ("sqa3d_official_lenient", "accuracy")):
        result = sqa3d.score(empty, CASES, protocol, with_meteor=False)
        assert result["metrics"][metric] == 100 and result["notes"]["strict"][metric] == 0
        assert result["notes"]["counts"] == {"empty": 12, "empty_rewarded": 12} and result["metrics"]["em"] == 0
    assert sqa3d.score(empty, CASES)["metrics"]["em"] == 0


@pytest.mark.parametrize(
    ("question", "kind"),
    [("  What is it?", "what"), ("Island or wall?", "is"), ("WHICH one?", "which"), ("Am I near?", "others"), ("", "others")],
)
def test_question_types_are_literal_prefixes(question, kind):
    assert sqa3d.question_type(question) == kind


def test_answers_as_the_benchmark_writes_them():
    record = {"question_id": 7, "question": "Is it on?", "scene_id": "scene0011_00"}
    answers = [{"answer": "yes", "answer_confidence": "yes", "answer_id": 1}]
    for given in ({"answers": answers}, {"answers": ["yes"]}, {"answer": "yes"}):
        result = sqa3d.score({"7": "Yes."}, [record | given])
        assert result["metrics"] == {"em": 100, "em_is": 100}
        assert result["per_item"]["7"]["scene"] == "scene0011_00"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question_id": 1, "question": "Is it?"}, "needs 'answers'"),
        ({"question_id": 1, "question": "Is it?", "answers": []}, "needs 'answers'"),
        ({"question_id": 1, "question": "Is it?", "answers": [{"answer": "yes"}, {"text": "no"}]}, "needs 'answers'"),
        ({"question_id": 1, "answers": ["yes"]}, "no field 'question'"),
    ],
)
def test_bad_records_are_named(record, message):
    with pytest.raises(UserError, match=message):
        sqa3d.score({1: "yes"}, [record])


def test_unknown_protocol():
    with pytest.raises(UserError, match="Did you mean 'llava3d'"):
        sqa3d.score({1: "yes"}, [{"question_id": 1, "question": "Is it?", "answers": ["yes"]}], "llava-3d")
