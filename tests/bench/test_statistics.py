"""Statistics on single questions against golden values (lmms-eval 0.7.3, statsmodels) and by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench import significance
from vega_artifact import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "bench" / "statistics.json").read_text())
paired_cases = pytest.mark.parametrize("case", GOLDEN["paired"], ids=lambda case: case["name"])


@paired_cases
def test_standard_errors(case):
    expected = case["expected"]["lmms_eval_0_7_3"]
    difference = np.subtract(case["student"], case["teacher"])
    assert significance.mean_stderr(case["teacher"]) == pytest.approx(expected["mean_stderr_teacher"], abs=1e-12)
    for name, values in (("teacher", case["teacher"]), ("student", case["student"]), ("of_difference", difference)):
        found = significance.clustered_stderr(values, case["cluster"])
        assert found == pytest.approx(expected[f"clustered_stderr_{name}"], abs=1e-12)
    assert significance.mean_stderr(difference) == pytest.approx(
        expected["paired_ttest_student_minus_teacher"]["se_diff"], abs=1e-12
    )


@paired_cases
def test_tost(case):
    difference = np.subtract(case["student"], case["teacher"])
    for margin in (0.02, 0.05, 0.1):
        expected = case["expected"]["statsmodels"][f"tost_paired_margin_{margin}"]["p"]
        assert significance.tost(difference, margin) == pytest.approx(expected, abs=1e-12)


@paired_cases
def test_mcnemar(case):
    expected = case["expected"]["statsmodels"]
    if "mcnemar_exact_p" not in expected:
        with pytest.raises(UserError, match="graded scores"):
            significance.mcnemar(case["teacher"], case["student"])
        return
    found = significance.mcnemar(case["teacher"], case["student"])
    (_, only_teacher), (only_student, _) = expected["table_teacher_rows_student_cols_correct_first"]
    assert (found["only_a"], found["only_b"]) == (only_teacher, only_student)
    assert found["p"] == pytest.approx(expected["mcnemar_exact_p"], abs=1e-12)


def test_mcnemar_by_hand():
    found = significance.mcnemar([1] * 9 + [0], [0] * 9 + [1])
    assert found == {"only_a": 9, "only_b": 1, "p": pytest.approx(2 * 11 / 1024)}


@pytest.mark.parametrize("case", GOLDEN["power"])
def test_required_n(case):
    arguments = {key: value for key, value in case["args"].items() if key != "current_n"}
    assert significance.required_n(arguments.pop("effect_size"), **arguments) == case["expected"]["min_n"]


@paired_cases
def test_paired_t(case):
    expected = case["expected"]["lmms_eval_0_7_3"]["paired_ttest_student_minus_teacher"]
    found = significance.paired_t(case["student"], case["teacher"])
    names = {
        "difference": "mean_diff",
        "stderr": "se_diff",
        "low": "ci_lower",
        "high": "ci_upper",
        "t": "t_stat",
        "p": "p_value",
    }
    assert found == pytest.approx({ours: expected[theirs] for ours, theirs in names.items()}, abs=1e-12)


def test_paired_t_without_spread():
    found = significance.paired_t([1.0, 2.0], [0.0, 1.0])
    assert (found["difference"], found["t"], found["p"]) == (1.0, math.inf, 0.0)


@pytest.mark.parametrize("case", [case for case in GOLDEN["power"] if "current_n" in case["args"]])
def test_power_and_what_can_be_seen(case):
    given = dict(case["args"])
    effect, n = given.pop("effect_size"), given.pop("current_n")
    assert round(significance.power(effect, n, **given), 4) == case["expected"]["current_power"]
    assert round(significance.detectable(n, **given), 4) == case["expected"]["min_detectable_effect"]


def test_power_at_the_required_n_is_what_was_asked_for():
    assert significance.power(0.03, significance.required_n(0.03)) == pytest.approx(0.8, abs=1e-3)


def test_stability():
    expected = GOLDEN["stability"]["expected"]
    found = significance.stability(GOLDEN["stability"]["scores"])
    assert found == pytest.approx(
        {
            "expected": expected["expected_accuracy"],
            "consensus": expected["consensus_accuracy"],
            "variance": expected["internal_variance"],
            "consistency": expected["consistency_rate"],
        },
        abs=1e-12,
    )


def test_too_little_to_say_anything():
    with pytest.raises(UserError, match="at least 2 values, found 1"):
        significance.tost([0.1], 1.0)
    with pytest.raises(UserError, match="at least 2 repeats"):
        significance.stability([[1.0], [0.0]])
