"""Precisions judged by probes and answers: the rule with all that is known, the report, and one run on small rooms."""

from pathlib import Path

import pytest

from bench import precisions
from bench.precisions import Precisions, markdown, verdict
from export.variants import TABLE
from vega_artifact import UserError, read_json, write_json

SAME = {"difference": 0.0, "low": -0.001, "high": 0.001}


def row(precision: str, ms: float, cosine: float = 1.0, drop: float = 0.0, answers: str = "pass") -> dict:
    against = {"depth_r2": {"difference": -drop, "low": -drop - 0.001, "high": -drop + 0.001}}
    found = {"precision": precision, "bytes": 3_000_000, "cpu_ms": ms, "cosine": cosine, "probes": {"depth_r2": 0.8}}
    if precision == "fp32":
        return found | {"against": {}, "answers": None}
    return found | {"against": against, "answers": SAME | {"verdict": answers}}


class TestVerdict:
    def test_the_fastest_of_those_that_keep_the_quality(self) -> None:
        assert verdict([row("fp32", 6.0), row("int8", 3.0)], "int8_fp16", "cpu")["precision"] == "int8"

    @pytest.mark.parametrize(
        ("bad", "why"),
        [
            (row("int8", 3.0, cosine=0.99), "cosine 0.9900 is below 0.995"),
            (row("int8", 3.0, drop=0.02), "depth R² drops by 0.020, 0.01 allowed"),
            (row("int8", 3.0, answers="inconclusive"), "not shown to be as good as fp32 on the answers"),
        ],
    )
    def test_speed_does_not_buy_quality(self, bad: dict, why: str) -> None:
        found = verdict([row("fp32", 6.0), bad], "int8_fp16", "cpu")
        assert found["precision"] == "fp32" and why in found["why"]

    def test_a_better_probe_is_no_drop(self) -> None:
        assert verdict([row("fp32", 6.0), row("int8", 3.0, drop=-0.05)], "int8_fp16", "cpu")["precision"] == "int8"

    def test_what_is_not_meant_for_a_target_is_left_out(self) -> None:
        rows = [row("fp32", 6.0), row("fp16", 6.0), row("int8", 1.0)]
        assert verdict(rows, "int8", "tensorrt")["precision"] == "fp16"


def test_the_report_shows_differences_and_both_verdicts() -> None:
    rows = [row("fp32", 6.0), row("int8", 3.0, cosine=0.9996, drop=0.003)]
    advice = {"cpu": {"precision": "int8", "why": "the fastest"}}
    text = markdown({"rows": rows, "task": "ladder", "recommended": advice})
    assert "| fp32 | 3.00 | 6.00 | 1.00000 | 0.800 | – | – |" in text
    assert "| int8 | 3.00 | 3.00 | 0.99960 | −0.003 [−0.004, −0.002] | – | +0.00 [−0.00, +0.00]: pass |" in text
    assert "- For cpu: **int8**, the fastest." in text


def test_a_folder_without_variants_is_refused(tmp_path: Path) -> None:
    paths = {"train": tmp_path, "val": tmp_path, "test": tmp_path}
    with pytest.raises(UserError, match="no precisions.json in it; make it with `vega-edge export --precision all"):
        Precisions(exports=tmp_path, **paths).run()
    write_json(tmp_path / TABLE, {"rows": [{"folder": "int8", "precision": "int8"}]})
    with pytest.raises(UserError, match="fp32 and another precision are needed, found int8"):
        Precisions(exports=tmp_path, **paths).run()


def test_rows_join_probes_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(
        tmp_path / TABLE,
        {
            "rows": [
                {"folder": p, "precision": p, "bytes": 9, "cpu_ms": 1.0, "cosine": {"a": 1.0, "b": 0.999}}
                for p in ("fp32", "fp16")
            ]
        },
    )
    paired = [{"metric": "depth_r2", "a": "fp16", "b": "fp32", **SAME, "n": 3}]
    probed = {"probes": [{"model": p, "metric": "depth_r2", "value": 0.5} for p in ("fp32", "fp16")], "paired": paired}
    monkeypatch.setattr(Precisions, "_probe", lambda self, names: probed)
    monkeypatch.setattr(Precisions, "_ask", lambda self, names: {"fp16": SAME | {"verdict": "pass"}})
    monkeypatch.setattr(precisions, "FeatureCache", lambda path: type("Cache", (), {"fingerprint": "abc"}))
    paths = {"train": tmp_path, "val": tmp_path, "test": tmp_path}
    Precisions(exports=tmp_path, report=tmp_path / "report", **paths).run()
    found = read_json(tmp_path / "report" / "verdicts.json")
    assert [each["cosine"] for each in found["rows"]] == [0.999, 0.999] and found["rows"][0]["answers"] is None
    assert found["rows"][1]["against"] == {"depth_r2": SAME} and found["recommended"]["tensorrt"]["precision"] == "fp16"
