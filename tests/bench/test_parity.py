"""The downstream verdict: right numbers on hand-made answers, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import vega_edge
from bench import parity
from bench.intervals import by_type, macro
from bench.schema import ROWS, check_rows
from bench.tasks import get_task
from vega_artifact import UserError

LEVELS = ("easy", "medium", "hard")


def questions(scenes: int, each: int) -> list[dict]:
    """VSI-style direction questions whose answer is always A."""
    return [
        {
            "id": scene * each + number,
            "dataset": "procedural",
            "scene_name": f"room-{scene}",
            "question_type": f"object_rel_direction_{LEVELS[number % 3]}",
            "question": "Where is the chair?",
            "options": ["A. left", "B. right"],
            "ground_truth": "A",
        }
        for scene in range(scenes)
        for number in range(each)
    ]


def answers(records: list[dict], wrong: float, seed: int) -> dict[str, str]:
    draws = np.random.default_rng(seed).random(len(records))
    return {str(record["id"]): "B" if draw < wrong else "A" for record, draw in zip(records, draws)}


def test_same_answers_pass_and_the_rows_fit_the_report() -> None:
    records = questions(scenes=20, each=6)
    given = answers(records, wrong=0.3, seed=0)
    result = parity.compare("vsibench", given, given, records, margin=2.0)
    assert result["parity"][0]["verdict"] == "pass"
    assert result["paired"][0]["difference"] == 0
    for name in ("tasks", "paired", "parity"):
        check_rows(result[name], ROWS[name], name)


def test_overall_is_the_scorers_own() -> None:
    records = questions(scenes=20, each=7)  # the levels are not equally frequent
    given = answers(records, wrong=0.3, seed=1)
    result = parity.compare("vsibench", given, answers(records, 0.5, 2), records, margin=2.0)
    expected = get_task("vsibench").score(given, records, protocol="official")["metrics"]["overall"]
    assert result["tasks"][0]["value"] == pytest.approx(expected)
    assert result["tasks"][0]["model"] == "student_exported"


def test_clearly_worse_fails_and_too_few_are_inconclusive() -> None:
    records = questions(scenes=60, each=10)
    good, bad = answers(records, 0.1, 0), answers(records, 0.5, 1)
    assert parity.compare("vsibench", bad, good, records, margin=2.0)["parity"][0]["verdict"] == "fail"
    assert parity.compare("vsibench", good, bad, records, margin=2.0)["parity"][0]["verdict"] == "pass"
    few = records[:30]
    unsure = parity.compare("vsibench", answers(few, 0.3, 2), answers(few, 0.3, 3), few, margin=2.0)
    assert unsure["parity"][0]["verdict"] == "inconclusive"
    assert unsure["parity"][0]["needed_n"] > len(few)
    assert "would settle it" in parity.table(unsure)


def test_direction_levels_are_one_group() -> None:
    kinds = ["object_counting", *(f"object_rel_direction_{level}" for level in LEVELS), "route_planning"]
    assert parity.groups(kinds) == [[0], [1, 2, 3], [4]]
    scores = {"a": 100.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 0.0}
    table, _, found = by_type(scores, dict.fromkeys(scores, "room"), dict(zip(scores, kinds)))
    assert macro(parity.groups(found))(table.sum(0)) == pytest.approx(100 / 3)


def test_refusals() -> None:
    records = questions(scenes=4, each=3)
    given = answers(records, 0.3, 0)
    with pytest.raises(UserError, match=r"unknown task 'vsi'.*vsibench"):
        parity.compare("vsi", given, given, records, margin=2.0)
    with pytest.raises(UserError, match="unknown vsibench protocol 'offical'.*'official'"):
        parity.compare("vsibench", given, given, records, margin=2.0, protocol="offical")
    with pytest.raises(UserError, match="margin"):
        parity.compare("vsibench", given, given, records, margin=0.0)
    with pytest.raises(UserError, match="no prediction"):
        parity.compare("vsibench", {}, given, records, margin=2.0)
    with pytest.raises(UserError, match="without 'scene_name'"):
        parity.compare("vsibench", given, given, [{"id": 1}], margin=2.0)


def test_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = questions(scenes=10, each=3)
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    (tmp_path / "a.json").write_text(json.dumps(answers(records, 0.2, 0)))
    (tmp_path / "list.json").write_text("[]")
    command = [
        "bench",
        "parity",
        "--task",
        "vsibench",
        "--questions",
        str(tmp_path / "q.jsonl"),
        "--teacher",
        str(tmp_path / "a.json"),
    ]
    assert vega_edge.main([*command, "--student", str(tmp_path / "a.json"), "--out", str(tmp_path / "out.json")]) == 0
    assert "within 2 points: pass" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["parity"][0]["margin"] == 2.0
    assert vega_edge.main([*command, "--student", str(tmp_path / "list.json")]) == 2
    assert "list.json: a JSON object from question id to answer expected" in capsys.readouterr().err
