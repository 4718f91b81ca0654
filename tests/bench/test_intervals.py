"""Intervals by hand, and by what a bootstrap must do; the golden statistics are compared in test_statistics.py."""

import numpy as np
import pytest
from scipy import stats

from bench import intervals
from vega_artifact import UserError


def means(values):
    """One item per scene."""
    return np.column_stack([values, np.ones(len(values))])


def test_interval_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = intervals.interval(means(values))
    half = 1.96 * values.std() / 20
    assert (found.value, found.n) == (pytest.approx(values.mean()), 400)
    assert (found.low, found.high) == (
        pytest.approx(values.mean() - half, abs=0.01),
        pytest.approx(values.mean() + half, abs=0.01),
    )


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    found = [intervals.interval(means(rng.normal(0, 1, 40)), draws=1000) for _ in range(300)]
    assert 0.90 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.98


def test_scenes_and_not_items_are_resampled():
    """100 items of one scene that agree are one piece of evidence: the interval is that of 20 scenes, not of 2,000 items."""
    effect = np.random.default_rng(2).normal(0, 1, 20)
    once = intervals.interval(means(effect))
    repeated = intervals.interval(100 * means(effect))
    assert (repeated.low, repeated.high) == (pytest.approx(once.low), pytest.approx(once.high))


def test_pairing_removes_what_both_models_share():
    rng = np.random.default_rng(3)
    scene = rng.normal(0, 10, 50)
    a, b = means(scene + 0.5 + rng.normal(0, 0.1, 50)), means(scene)
    found = intervals.paired(a, b)
    assert 0.4 < found.low < found.value < found.high < 0.6
    assert intervals.interval(a).low < 0 < intervals.interval(a).high
    back = intervals.paired(b, a)
    assert (back.low, back.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    same = intervals.paired(a, a)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_seed_decides_and_nothing_else():
    table = means(np.random.default_rng(4).normal(size=30))
    np.random.default_rng().normal()
    first, again, other = intervals.interval(table), intervals.interval(table), intervals.interval(table, seed=1)
    assert first == again and first.value == other.value and first.low != other.low


def test_macro_by_hand():
    """VSI-Bench's overall: 3 easy, 1 medium, 0 hard questions are levels of one task; counting is another."""
    scores = {1: 1.0, 2: 0.0, 3: 0.5, 4: 1.0, 5: 0.2}
    types = {1: "easy", 2: "easy", 3: "easy", 4: "medium", 5: "counting"}
    scenes = {1: "r0", 2: "r0", 3: "r1", 4: "r1", 5: "r2"}
    table, names, kinds = intervals.by_type(scores, scenes, types)
    assert (names, kinds) == (["r0", "r1", "r2"], ["counting", "easy", "medium"])
    assert table.tolist() == [[0, 1, 0, 0, 2, 0], [0, 0.5, 1, 0, 1, 1], [0.2, 0, 0, 1, 0, 0]]
    found = intervals.interval(table, intervals.macro([[0], [1, 2]]))
    assert found.value == pytest.approx((0.2 + (0.5 + 1.0) / 2) / 2)
    assert np.isfinite([found.low, found.high]).all()  # draws that lose a type average the rest


def test_retained_by_hand():
    scene = np.random.default_rng(5).normal(0, 1, 60)
    found = intervals.retained(means(scene + 0.9), means(scene + 1.0), means(scene))
    assert (found.value, found.low, found.high) == pytest.approx((0.9, 0.9, 0.9))


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"), [(0.0, 0.01, "pass"), (-1.0, 0.01, "fail"), (0.0, 3.0, "inconclusive")]
)
def test_verdicts(shift, spread, verdict):
    noise = np.random.default_rng(6).normal(0, spread, 40)
    found = intervals.noninferiority(means(shift + noise), means(np.zeros(40)), margin=0.1, n=40)
    assert found.verdict == verdict and (found.needed_n is None) == (verdict != "inconclusive")


def test_needed_n_is_where_an_equal_model_passes_four_times_in_five():
    noise = np.random.default_rng(7).normal(0, 1, 50)
    needed = intervals.noninferiority(means(noise - noise.mean()), means(np.zeros(50)), margin=0.2, n=50).needed_n
    expected = ((stats.norm.ppf(0.95) + stats.norm.ppf(0.8)) * noise.std() / 0.2) ** 2
    assert needed == pytest.approx(expected, rel=0.05)
    lower = stats.norm.ppf(0.05) * noise.std() / np.sqrt(needed) + np.random.default_rng(8).normal(
        0, noise.std() / np.sqrt(needed), 4000
    )
    assert np.mean(lower > -0.2) == pytest.approx(0.8, abs=0.03)


def test_bad_input():
    with pytest.raises(UserError, match="at least 2 scenes, found 1"):
        intervals.interval(means([1.0]))
    with pytest.raises(UserError, match="undefined on every scene"):
        intervals.interval(np.zeros((3, 2)))
    with pytest.raises(UserError, match="same scenes"):
        intervals.paired(means([1.0, 2.0]), means([1.0, 2.0, 3.0]))
    with pytest.raises(UserError, match="above 0"):
        intervals.noninferiority(means([1.0, 2.0]), means([1.0, 2.0]), margin=0, n=2)
