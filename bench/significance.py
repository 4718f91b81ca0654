"""Significance: tests and errors on single questions. McNemar, TOST, paired t, clustered errors, power, stability over repeats.

Beside bench/intervals.py, which resamples whole scenes and gives the verdict: these are the numbers that other harnesses print,
so that ours can be compared with theirs.

    python -c "from bench.significance import mcnemar; print(mcnemar([1] * 9 + [0], [0] * 9 + [1]))"

Sources: McNemar 1947; Schuirmann 1987 (TOST); Cameron & Miller 2015 (clustered standard errors); Miller 2024, arXiv 2411.00640
(paired differences, power); lmms-eval 0.7.3 `api/metrics.py` and statsmodels, whose numbers tests/golden/bench holds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from vega_artifact import UserError

POWER = 0.8


def mcnemar(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Exact McNemar test on paired right/wrong answers; never its chi-square form, which calls equal answers different.

    Returns:
        only_a, only_b: questions only that model answered rightly; p: two-sided exact binomial, 1 without any.
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape or not np.isin(np.concatenate([first, second]), (0, 1)).all():
        raise UserError(
            "McNemar's test compares two lists of 0/1 answers to the same questions; use paired() for graded scores"
        )
    only_a, only_b = int(np.sum(first > second)), int(np.sum(second > first))
    p = stats.binomtest(min(only_a, only_b), only_a + only_b).pvalue if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p": float(p)}


def tost(differences: Sequence[float], margin: float) -> float:
    """p of two one-sided t tests: small means the mean difference lies within +-margin (equivalence)."""
    values = np.asarray(differences, dtype=float)
    error = mean_stderr(values)
    if error == 0:
        return 0.0 if abs(values.mean()) < margin else 1.0
    above, below = (values.mean() + margin) / error, (values.mean() - margin) / error
    return float(max(stats.t.sf(above, len(values) - 1), stats.t.cdf(below, len(values) - 1)))


def paired_t(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Paired t test of a minus b.

    Returns:
        difference, stderr, low, high (95 %), t, p (two-sided). A difference without any spread has t = +-inf and p = 0, or,
        if it is 0, t = 0 and p = 1.
    """
    values = np.subtract(a, b).astype(float)
    difference, error, freedom = float(values.mean()), mean_stderr(values), len(values) - 1
    t = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    half = float(stats.t.ppf(0.975, freedom)) * error
    p = float(2 * stats.t.sf(abs(t), freedom))
    return {
        "difference": difference,
        "stderr": error,
        "low": difference - half,
        "high": difference + half,
        "t": t,
        "p": p,
    }


def mean_stderr(values: Sequence[float] | np.ndarray) -> float:
    """Standard error of a mean of independent values (n - 1 in the variance)."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        raise UserError(f"a standard error needs at least 2 values, found {len(values)}; ask more questions")
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def clustered_stderr(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]) -> float:
    """Standard error of a mean whose values are correlated within clusters (scenes); pass differences for a paired one."""
    values = np.asarray(values, dtype=float)
    _, index = np.unique(np.asarray([str(cluster) for cluster in clusters]), return_inverse=True)
    deviation = values - values.mean()
    within = np.sum(np.bincount(index, weights=deviation) ** 2) - np.sum(deviation**2)  # products of different items
    return float(math.sqrt(max(0.0, mean_stderr(values) ** 2 + within / len(values) ** 2)))


def required_n(effect: float, std_a: float = 0.5, std_b: float = 0.5, correlation: float = 0.5, alpha: float = 0.05) -> int:
    """Questions at which a paired two-sided test sees a difference of `effect` with 80 % power."""
    spread = _difference_std(std_a, std_b, correlation)
    return math.ceil(((quantile(1 - alpha / 2) + quantile(POWER)) * spread / effect) ** 2)


def power(
    effect: float, n: int, std_a: float = 0.5, std_b: float = 0.5, correlation: float = 0.5, alpha: float = 0.05
) -> float:
    """Probability that a paired two-sided test on `n` questions sees a true difference of `effect`."""
    reach = effect * math.sqrt(n) / _difference_std(std_a, std_b, correlation)
    return float(stats.norm.cdf(reach - quantile(1 - alpha / 2)))


def detectable(n: int, std_a: float = 0.5, std_b: float = 0.5, correlation: float = 0.5, alpha: float = 0.05) -> float:
    """The smallest difference that a paired two-sided test on `n` questions sees with 80 % power."""
    return (quantile(1 - alpha / 2) + quantile(POWER)) * _difference_std(std_a, std_b, correlation) / math.sqrt(n)


def stability(scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """How much repeats of the same questions (other seeds) agree.

    Args:
        scores: per question its score in every repeat.

    Returns:
        expected: mean of all scores; consensus: share of questions right in more than half of the repeats; variance: mean
        variance within a question (n - 1); consistency: share of questions with the same score in every repeat.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.shape[1] < 2:
        raise UserError(f"stability needs at least 2 repeats of every question, found scores of shape {table.shape}")
    return {
        "expected": float(table.mean()),
        "consensus": float((table.sum(1) > table.shape[1] / 2).mean()),
        "variance": float(table.var(axis=1, ddof=1).mean()),
        "consistency": float((table == table[:, :1]).all(axis=1).mean()),
    }


def quantile(probability: float) -> float:
    """Of the standard normal distribution."""
    return float(stats.norm.ppf(probability))


def _difference_std(std_a: float, std_b: float, correlation: float) -> float:
    return math.sqrt(std_a**2 + std_b**2 - 2 * correlation * std_a * std_b)
