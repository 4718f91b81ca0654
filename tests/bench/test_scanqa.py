"""ScanQA and ladder scorers against golden vectors of the four reference code bases and against bad input."""

import json
from pathlib import Path

import pytest

from bench.tasks import captions, get_task, ladder, scanqa
from bench.tasks.answers import clean_answer
from vega_artifact import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "bench"
CORPORA = json.loads((GOLDEN / "scanqa.json").read_text())["corpora"]
TEXTS = json.loads((GOLDEN / "text_normalization.json").read_text())["cases"]
SCORED = ("main", "three_mixed")
needs_java = pytest.mark.skipif(not captions.has_java(), reason="METEOR and the PTB tokenizer need java")

# our name -> (name in the golden file, factor that turns it into percent)
NAMES = {
    "vega3d": {
        "em": ("EM_fraction", 100),
        "cider": ("CIDEr_x100", 1),
        "rouge_l": ("ROUGE-L_x100", 1),
        **{f"bleu{n}": (f"BLEU-{n}_x100", 1) for n in range(1, 5)},
    },
    "scanqa_official": {
        "cider": ("CIDEr", 1),
        "rouge_l": ("ROUGE_L", 1),
        **{f"bleu{n}": (f"Bleu_{n}", 1) for n in range(1, 5)},
    },
    "leo": {name: (name, 100) for name in ("em", "em_refined", "cider")} | {"rouge_l": ("rouge", 100)},
    "llava3d": {
        "em": ("[scanqa] EM1", 100),
        "em_refined": ("[scanqa] EM1_refined", 100),
        "cider": ("[scanqa] CIDEr", 100),
        "rouge_l": ("[scanqa] ROUGE_L", 100),
        **{f"bleu{n}": (f"[scanqa] Bleu_{n}", 100) for n in range(1, 5)},
    },
}


def score_corpus(name, protocol):
    cases = CORPORA[name]["cases"]
    return scanqa.score({case["question_id"]: case["prediction"] for case in cases}, cases, protocol)


def expected_aggregate(name, protocol):
    aggregate = CORPORA[name]["expected"][protocol]["aggregate"]
    return aggregate.get("eval_pycoco", aggregate)


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setenv("PATH", "")


def test_a_java_that_does_not_run_is_no_java(monkeypatch, tmp_path):
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not captions.has_java()
    with pytest.raises(UserError, match="no working `java`"):
        captions.ptb_tokenize(["a chair"])


@pytest.mark.parametrize("protocol", ["vega3d", "leo"])
@pytest.mark.parametrize("name", SCORED)
def test_text_metrics_without_java(name, protocol, no_java):
    result = score_corpus(name, protocol)
    golden = expected_aggregate(name, protocol)
    for metric, (key, factor) in NAMES[protocol].items():
        assert result["metrics"][metric] == pytest.approx(golden[key] * factor, abs=1e-9), metric
    assert "meteor" not in result["metrics"] and "java" in result["notes"]["missing"]["meteor"]
    if protocol == "leo":
        assert [result["metrics"][f"bleu{n}"] / 100 for n in range(1, 5)] == pytest.approx(golden["bleu_1to4"], abs=1e-11)


@pytest.mark.parametrize("protocol", list(scanqa.PROTOCOLS))
@pytest.mark.parametrize("name", SCORED)
def test_exact_match_labels_need_no_java(name, protocol, no_java):
    result = score_corpus(name, protocol)
    golden = CORPORA[name]["expected"][protocol]["per_sample"]
    rows = list(result["per_item"].values())
    assert [row["em"] for row in rows] == golden["em"]
    assert result["metrics"]["em"] == pytest.approx(100 * sum(golden["em"]) / len(rows), abs=1e-9)
    if "em_refined" in golden:
        assert [row["em_refined"] for row in rows] == golden["em_refined"]
    else:
        assert "em_refined" not in result["metrics"] and "em_refined" in result["notes"]["missing"]
    if scanqa.PROTOCOLS[protocol].ptb:
        assert set(result["notes"]["missing"]) >= {*captions.NGRAM_METRICS, "meteor"}
        assert not {*captions.NGRAM_METRICS, "meteor"} & set(result["metrics"])


@pytest.mark.parametrize("protocol", ["vega3d", "leo"])
def test_per_sample_values(protocol, no_java):
    rows = list(score_corpus("main", protocol)["per_item"].values())
    golden = CORPORA["main"]["expected"][protocol]["per_sample"]
    assert [row["cider"] for row in rows] == pytest.approx(golden["cider"], abs=1e-9)
    assert [row["rouge_l"] for row in rows] == pytest.approx(golden["rouge_l"], abs=1e-9)
    for n in range(4):
        assert [row[f"bleu{n + 1}"] for row in rows] == pytest.approx([values[n] for values in golden["bleu"]], abs=1e-9)


@needs_java
@pytest.mark.parametrize("protocol", ["scanqa_official", "llava3d"])
def test_text_metrics_on_ptb_tokens(protocol):
    cases = CORPORA["main"]["cases"]
    predictions = {case["question_id"]: case["prediction"] for case in cases}
    result = scanqa.score(predictions, cases, protocol, with_meteor=False)
    golden = expected_aggregate("main", protocol)
    for metric, (key, factor) in NAMES[protocol].items():
        assert result["metrics"][metric] == pytest.approx(golden[key] * factor, abs=1e-9), metric
    assert "meteor" not in result["metrics"] and result["notes"]["missing"]["meteor"] == "left out on request"


@needs_java
def test_ptb_tokens():
    assert captions.ptb_tokenize([case["text"] for case in TEXTS]) == [case["ptb"] for case in TEXTS]
    golden = CORPORA["main"]["expected"]["scanqa_official"]["ptb_tokenized"]
    assert captions.ptb_tokenize([case["prediction"] for case in CORPORA["main"]["cases"]]) == golden["prediction"]


def test_line_breaks_are_counted(no_java):
    annotations = [{"question_id": name, "answers": ["a red chair\n"]} for name in "ab"]
    notes = scanqa.score({"a": "a red\r\nchair", "b": "on wall"}, annotations)["notes"]
    assert notes["counts"] == {"line_breaks": 1} and notes["warnings"][0].startswith("1 predictions hold line breaks")


def test_what_the_references_reward_is_counted_and_left_out_of_strict(no_java):
    texts = {"a": "", "b": "s", "c": "on the wall", "d": "brown box", "e": "sofa"}
    answers = {"a": ["red"], "b": ["yes"], "c": ["wall"], "d": ["box", "brown box"], "e": ["chair"]}
    records = [{"question_id": name, "answers": answers[name]} for name in texts]
    leo = scanqa.score(texts, records, "leo")
    assert leo["metrics"]["em"] == 0 and leo["metrics"]["em_refined"] == pytest.approx(80)
    assert leo["notes"]["strict"]["em_refined"] == pytest.approx(40)
    rewarded = {"empty": 1, "empty_rewarded": 1, "partial_words_rewarded": 1, "late_exact_matches": 1}
    assert leo["notes"]["counts"] == rewarded and len(leo["notes"]["warnings"]) == 4
    llava = scanqa.score(texts, records, "llava3d")
    assert llava["metrics"]["em"] == pytest.approx(20) and "late_exact_matches" not in llava["notes"]["counts"]
    assert "strict" not in scanqa.score(texts, records, "vega3d")["notes"]


def test_clean_answer():
    assert [clean_answer(case["text"]) for case in TEXTS] == [case["clean_answer"] for case in TEXTS]
    golden = CORPORA["main"]["expected"]["leo"]["cleaned"]
    assert [clean_answer(case["prediction"]) for case in CORPORA["main"]["cases"]] == golden["prediction"]
    assert [clean_answer("9:30"), clean_answer("3.5"), clean_answer("None"), clean_answer("1,000")] == [
        "nine:30",
        "35",
        "zero",
        "one,000",
    ]


def test_official_scores_an_empty_answer_where_the_reference_divides_by_zero(no_java):
    assert CORPORA["main"]["expected"]["scanqa_official"]["aggregate"]["evals_json"] == {"error": "ZeroDivisionError"}
    result = score_corpus("main", "scanqa_official")
    assert result["per_item"]["val-scene9101-608"]["em"] == 0
    assert "1 predictions are empty" in result["notes"]["warnings"] and result["notes"]["counts"]["reference_fails"] == 1
    assert set(scanqa.OFFICIAL_ONLY) <= set(result["notes"]["missing"])


@pytest.mark.parametrize(
    ("predictions", "annotations", "message"),
    [
        ({}, [], "no annotations"),
        ({"a": "x"}, [{"question_id": "a", "answers": ["x"]}, {"question_id": "b", "answers": ["x"]}], "first is 'b'"),
        ({"a": "x"}, [{"question_id": "a", "answers": ["x"]}] * 2, "annotation id 'a' occurs 2"),
        ({"1": "x", 1: "y"}, [{"question_id": 1, "answers": ["x"]}], "prediction id '1' occurs 2"),
        ({"a": "x"}, [{"question_id": "a"}], "no field 'answers'"),
        ({"a": "x"}, [{"question_id": "a", "answers": "x"}], "non-empty list of texts"),
        ({"a": "x"}, [{"question_id": "a", "answers": []}], "non-empty list of texts"),
        ({"a": "x"}, [{"id": "a", "answers": ["x"]}], "wrong file"),
        ({"a": 3}, [{"question_id": "a", "answers": ["x"]}], "int, not text"),
    ],
)
def test_bad_records_are_named(predictions, annotations, message):
    with pytest.raises(UserError, match=message):
        scanqa.score(predictions, annotations)


def test_unknown_names_list_the_known():
    with pytest.raises(UserError, match=r"Did you mean 'leo'\? Known: leo, llava3d, scanqa_official, vega3d"):
        scanqa.score({"a": "x"}, [{"question_id": "a", "answers": ["x"]}], "loe")
    with pytest.raises(UserError, match="Known: ladder, multi3drefer, scan2cap, scanqa, scanrefer, sqa3d, vsibench"):
        get_task("scanq")


def test_ladder_macro_mean_and_distance():
    records = [
        {"question_id": "d0", "scene_id": "r0", "type": "camera_distance", "answers": ["2.0"]},
        {"question_id": "d1", "scene_id": "r1", "type": "camera_distance", "answers": ["2.0"]},
        {"question_id": "n0", "scene_id": "r0", "type": "nearer", "answers": ["the chair"]},
    ]
    result = ladder.score({"d0": "about 1.8 m", "d1": "far", "n0": "Chair."}, records)
    assert result["metrics"]["camera_distance"] == pytest.approx(45)  # 10 % off meets 9 of 10 thresholds; "far" none
    assert result["metrics"]["nearer"] == 100
    assert result["metrics"]["overall"] == pytest.approx(72.5)
    assert result["per_item"]["n0"] == {"score": 1.0, "type": "nearer", "scene": "r0", "prediction": "Chair."}


def test_ladder_refuses_a_distance_that_is_none():
    record = {"question_id": "d", "type": "camera_distance", "answers": ["near"]}
    with pytest.raises(UserError, match="no positive distance"):
        ladder.score({"d": "2"}, [record])
