"""The downstream verdict: right numbers on hand-made answers, the files, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vega_edge
from bench import parity
from bench.schema import ROWS, check_rows
from bench.tasks import get_task
from bench.tasks.submissions import read_submission
from vega_artifact import UserError

LEVELS = ("easy", "medium", "hard")


def questions(scenes: int, each: int) -> list[dict[str, Any]]:
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


def answers(records: list[dict[str, Any]], wrong: float, seed: int) -> dict[str, str | None]:
    draws = np.random.default_rng(seed).random(len(records))
    return {str(record["id"]): "B" if draw < wrong else "A" for record, draw in zip(records, draws)}


def both(student: dict[str, str | None], teacher: dict[str, str | None]) -> parity.Answers:
    return {"teacher": [teacher], "student_exported": [student]}


def verdict(student: dict[str, str | None], teacher: dict[str, str | None], records: list[dict[str, Any]]) -> str:
    return parity.compare("vsibench", both(student, teacher), records, margin=2.0)["parity"][0]["verdict"]


def test_same_answers_pass_and_the_rows_fit_the_report() -> None:
    records = questions(scenes=20, each=6)
    given = answers(records, wrong=0.3, seed=0)
    result = parity.compare("vsibench", both(given, given), records, margin=2.0)
    assert result["parity"][0]["verdict"] == "pass" and result["paired"][0]["difference"] == 0
    assert result["agreement"]["identical"] == 1 and result["agreement"]["tost_p"] == 0
    for name in ("tasks", "paired", "parity"):
        check_rows(result[name], ROWS[name], name)


def test_overall_is_the_scorers_own() -> None:
    records = questions(scenes=20, each=7)  # the levels are not equally frequent
    given = answers(records, wrong=0.3, seed=1)
    result = parity.compare("vsibench", both(given, answers(records, 0.5, 2)), records, margin=2.0)
    expected = get_task("vsibench").score(given, records, protocol="official")["metrics"]["overall"]
    rows = {(row["model"], row["type"]): row["value"] for row in result["tasks"]}
    assert rows["student_exported", "overall"] == pytest.approx(expected)
    assert result["metrics"]["student_exported"]["overall"] == pytest.approx(expected)
    assert ("teacher", "object_rel_direction") in rows


def test_clearly_worse_fails_and_too_few_are_inconclusive() -> None:
    records = questions(scenes=60, each=10)
    good, bad = answers(records, 0.1, 0), answers(records, 0.5, 1)
    assert verdict(bad, good, records) == "fail"
    assert verdict(good, bad, records) == "pass"
    few = records[:30]
    unsure = parity.compare("vsibench", both(answers(few, 0.3, 2), answers(few, 0.3, 3)), few, margin=2.0)
    assert unsure["parity"][0]["verdict"] == "inconclusive"
    assert unsure["parity"][0]["needed_n"] > len(few)
    assert "would settle it" in parity.table(unsure)


def test_agreement_by_hand() -> None:
    """Two readers; student and teacher differ on one question of the first and on three of the second."""
    records = questions(scenes=2, each=4)
    right: dict[str, str | None] = {str(number): "A" for number in range(8)}
    first, second = right | {"0": "B"}, right | {"0": "B", "1": "C", "4": "B"}
    result = parity.compare("vsibench", {"teacher": [right, second], "student_exported": [first, right]}, records, margin=2.0)
    found = result["agreement"]
    assert found["identical"] == pytest.approx(12 / 16)
    assert found["flips"] == [
        {"only_student": 0, "only_teacher": 1, "n": 8, "p": 1.0},
        {"only_student": 3, "only_teacher": 0, "n": 8, "p": 0.25},
    ]
    assert "0 / 1 (p 1), 3 / 0 (p 0.25)" in parity.table(result)


def test_what_weakens_a_pass_is_said() -> None:
    records = questions(scenes=30, each=6)
    given, broken = answers(records, 0.2, 0), dict.fromkeys(answers(records, 0, 0), None)
    rows = {"teacher": [given], "student_exported": [given], "semantic": [given], "blind": [broken]}
    result = parity.compare("vsibench", rows, records, margin=2.0) | {"left_out": {"room-x": 3, "room-y": 1}}
    text = parity.table(result)
    assert "caution: semantic is not shown to lose more than 2 points" in text and "caution: blind" not in text
    assert "4 questions about 2 scenes that are not in the cache were not asked" in text
    assert "blind: 180 predictions are None" in text


def test_scores_that_are_no_number_count_as_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    records = questions(scenes=4, each=3)
    given = answers(records, 0.0, 0)
    rules = get_task("vsibench")

    def score(predictions: Any, annotations: Any, protocol: str) -> dict[str, Any]:
        found = rules.score(predictions, annotations, protocol)
        next(iter(found["per_item"].values()))["score"] = float("nan")
        return found

    monkeypatch.setattr(parity, "get_task", lambda name: replace(rules, score=score))
    result = parity.compare("vsibench", both(given, given), records, margin=2.0)
    overall = next(row["value"] for row in result["tasks"] if row["type"] == "overall")
    assert overall == pytest.approx(100 * (3 / 4 + 1 + 1) / 3)
    assert "1 scores are not finite and count as 0" in result["warnings"]["teacher"]


def test_answers_as_json_lines_and_back(tmp_path: Path) -> None:
    records = questions(scenes=2, each=2)
    given = answers(records, 0.5, 0) | {"3": "two\nlines\u2028here"}
    parity.write_predictions(tmp_path, "vsibench", {"teacher": [given, given]}, records)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher-0.jsonl", "teacher-1.jsonl"]
    assert parity.read_predictions(tmp_path / "teacher-1.jsonl", "vsibench") == given
    row = json.loads((tmp_path / "teacher-1.jsonl").read_text(encoding="utf-8").split("\n")[3])
    assert row == {**records[3], "prediction": given["3"], "model": "teacher", "reader": 1}


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("{]", "line 1 is no object"),
        ('{"id": 1}', "line 1 is no object"),
        ('{"id": 1, "prediction": "A"}\n' * 2, "line 2 answers"),
    ],
)
def test_damaged_json_lines(lines: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines)
    with pytest.raises(UserError, match=rf"a.jsonl: {complaint}"):
        parity.read_predictions(tmp_path / "a.jsonl", "vsibench")


def test_refusals() -> None:
    records = questions(scenes=4, each=3)
    given = both(answers(records, 0.3, 0), answers(records, 0.3, 0))
    with pytest.raises(UserError, match=r"unknown task 'vsi'.*vsibench"):
        parity.compare("vsi", given, records, margin=2.0)
    with pytest.raises(UserError, match="unknown vsibench protocol 'offical'.*'official'"):
        parity.compare("vsibench", given, records, margin=2.0, protocol="offical")
    with pytest.raises(UserError, match="margin"):
        parity.compare("vsibench", given, records, margin=0.0)
    with pytest.raises(UserError, match="no prediction"):
        parity.compare("vsibench", both({}, {}), records, margin=2.0)
    with pytest.raises(UserError, match="without 'scene_name'"):
        parity.compare("vsibench", given, [{"id": 1}], margin=2.0)
    with pytest.raises(UserError, match=r"'0' occurs 2 times"):
        parity.compare("vsibench", given, [*records, records[0]], margin=2.0)
    with pytest.raises(UserError, match="about 1 scene"):
        parity.compare("vsibench", given, records[:3], margin=2.0)


def test_saved_answers_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = questions(scenes=10, each=3)
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    (tmp_path / "a.json").write_text(json.dumps(answers(records, 0.2, 0)))
    (tmp_path / "list.json").write_text("[]")
    fixed = ["bench", "parity", "--task", "vsibench", "--margin", "2", "--out", str(tmp_path / "out")]
    command = [*fixed, "--teacher", str(tmp_path / "a.json")]
    asked = ["--questions", str(tmp_path / "q.jsonl")]
    assert vega_edge.main([*command, *asked, "--student", str(tmp_path / "a.json")]) == 0
    assert "student within 2 points of the teacher: pass" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "vsibench" / "parity.json").read_text())["parity"][0]["margin"] == 2.0
    submitted = tmp_path / "out" / "vsibench" / "submissions" / "lmms_eval" / "student_exported-0.jsonl"
    assert read_submission(submitted, "vsibench", records, "lmms_eval") == answers(records, 0.2, 0)
    assert vega_edge.main([*command, *asked, "--student", str(tmp_path / "list.json")]) == 2
    assert "list.json: a JSON object from question id to answer expected" in capsys.readouterr().err
    assert vega_edge.main([*command, "--student", str(tmp_path / "a.json")]) == 2
    assert "saved answers need the questions they answer" in capsys.readouterr().err
    assert vega_edge.main([*command, *asked, "--student", str(tmp_path)]) == 2
    assert f"{tmp_path}: no file, but the other side is one of saved answers" in capsys.readouterr().err
    missing = [*fixed, *asked, "--student", str(tmp_path / "a.json"), "--teacher", str(tmp_path / "b.json")]
    assert vega_edge.main(missing) == 2 and "b.json: no file, but" in capsys.readouterr().err


def test_answers_in_the_layouts_of_other_scorers(tmp_path: Path) -> None:
    records = questions(scenes=2, each=2)
    given = answers(records, 0.5, 0)
    parity.write_submissions(tmp_path, "vsibench", {"teacher": [given], "student_exported": [given, given]}, records)
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json*"))
    names = ("student_exported-0", "student_exported-1", "teacher-0")
    assert written == [f"lmms_eval/{name}.jsonl" for name in names]
    assert read_submission(tmp_path / written[1], "vsibench", records, "lmms_eval") == given
    scanqa = [{"question_id": "q", "scene_id": "s", "question": "What?", "answers": ["a chair"]}]
    parity.write_submissions(tmp_path / "scanqa", "scanqa", {"blind": [{"q": "a table"}]}, scanqa)
    line = json.loads((tmp_path / "scanqa" / "vega3d" / "blind-0.jsonl").read_text())
    assert line["pred_response"] == "a table" and line["model_id"] == "blind-0"
    top = json.loads((tmp_path / "scanqa" / "official" / "blind-0.json").read_text())
    assert top[0]["answer_top10"] == ["a table"]
