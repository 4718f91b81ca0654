"""Rows of report.json made from scored answers: values agree with the scorers, differences are paired, verdicts follow."""

import random

import pytest

from bench import schema
from bench.tasks import get_task
from bench.tasks.rows import task_rows
from bench.tasks.vsibench import CHOICE_TYPES, NUMERIC_TYPES
from vega_artifact import UserError

RECORDS = [
    {
        "id": index,
        "scene_name": f"room{index % 12}",
        "question_type": kind,
        "ground_truth": "4" if kind in NUMERIC_TYPES else "A",
    }
    for index, kind in enumerate((*CHOICE_TYPES, *NUMERIC_TYPES) * 24)
]
TASK = get_task("vsibench")


def answers(rate, seed=0):
    rng = random.Random(seed)
    return {record["id"]: record["ground_truth"] if rng.random() < rate else "B 9" for record in RECORDS}


def scored(rate, seed=0, protocol="official"):
    return TASK.score(answers(rate, seed), RECORDS, protocol)


@pytest.fixture(scope="module")
def results():
    return {"teacher": [scored(0.8, 1), scored(0.8, 2)], "student_exported": [scored(0.8, 3)], "blind": [scored(0.3, 4)]}


def test_values_are_those_of_the_scorer(results):
    rows = task_rows(TASK, results, RECORDS)
    for name in ("tasks", "paired", "parity"):
        schema.check_rows(rows[name], schema.ROWS[name], name)
    blind = {row["type"]: row for row in rows["tasks"] if row["model"] == "blind"}
    metrics = results["blind"][0]["metrics"]
    assert {kind: row["value"] for kind, row in blind.items()} == pytest.approx(metrics)
    assert all(row["low"] < row["value"] < row["high"] for row in blind.values())
    assert (blind["overall"]["n"], blind["object_rel_direction"]["n"], blind["route_planning"]["n"]) == (240, 72, 24)
    teacher = next(row for row in rows["tasks"] if row["model"] == "teacher" and row["type"] == "overall")
    assert teacher["value"] == pytest.approx(sum(run["metrics"]["overall"] for run in results["teacher"]) / 2)  # mean of seeds


def test_differences_and_parity(results):
    rows = task_rows(TASK, results, RECORDS, margin=0.5)
    found = {(row["a"], row["b"]): row for row in rows["paired"] if row["type"] == "overall"}
    assert set(found) == {("teacher", "blind"), ("student_exported", "teacher"), ("student_exported", "blind")}
    assert found["teacher", "blind"]["low"] > 0
    assert found["student_exported", "teacher"]["low"] < 0 < found["student_exported", "teacher"]["high"]
    (parity,) = rows["parity"]
    assert parity["verdict"] == "inconclusive" and parity["needed_n"] > len(RECORDS)
    assert task_rows(TASK, results, RECORDS, margin=50)["parity"][0] == {
        **parity,
        "margin": 50,
        "verdict": "pass",
        "needed_n": None,
    }


def test_an_answer_by_answer_copy_passes_any_margin(results):
    copied = {"teacher": results["teacher"], "student_exported": results["teacher"]}
    rows = task_rows(TASK, copied, RECORDS, margin=0.01)
    assert rows["parity"][0]["verdict"] == "pass"
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in rows["paired"])


def test_a_task_without_types_has_one_row_per_model():
    records = [{"question_id": f"q{i}", "scene_id": f"r{i % 4}", "answers": ["red"]} for i in range(40)]
    task = get_task("scanqa")
    run = task.score({f"q{i}": "red" if i % 4 else "blue" for i in range(40)}, records, with_meteor=False)
    (row,) = task_rows(task, {"teacher": [run]}, records)["tasks"]
    assert (row["type"], row["value"], row["n"]) == ("overall", pytest.approx(run["metrics"]["em"]), 40)


def test_mixed_runs_are_refused(results):
    with pytest.raises(UserError, match="one protocol for all models expected"):
        task_rows(TASK, {"teacher": results["teacher"], "blind": [scored(0.3, protocol="vega3d")]}, RECORDS)
    with pytest.raises(UserError, match="blind was scored on other questions"):
        part = TASK.score({record["id"]: "A" for record in RECORDS[:50]}, RECORDS[:50])
        task_rows(TASK, {"teacher": results["teacher"], "blind": [part]}, RECORDS)
    with pytest.raises(UserError, match="blind has no scored run"):
        task_rows(TASK, {"teacher": results["teacher"], "blind": []}, RECORDS)
