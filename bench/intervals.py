"""Intervals: how sure a difference is. Scene-level bootstrap and the non-inferiority verdict.

Between scores (bench/tasks, bench/probes) and report.json. Everything here works on sufficient statistics per scene: a metric
is `reduce(sums over scenes)`, so that resampling scenes is one matrix product, which two models share to be resampled together.

    python -c "import numpy as np; from bench.intervals import interval; print(interval(np.c_[np.arange(9.), np.ones(9)]))"

Sources: Efron & Tibshirani 1993 (percentile bootstrap); Koehn 2004 (paired, the same draws for both). Tests on single questions
stand in bench/significance.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from bench.significance import POWER, quantile
from vega_artifact import UserError

DRAWS = 10_000
LEVEL = 0.95

Reduce = Callable[[np.ndarray], np.ndarray]  # (..., K) sums over scenes -> (...) metric; NaN where it is undefined


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % percentile interval; `n` counts the scenes that carried it."""

    value: float
    low: float
    high: float
    n: int


def ratio(sums: np.ndarray) -> np.ndarray:
    """(..., 2) [numerator, denominator] -> their quotient; NaN for an empty denominator."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def macro(groups: Sequence[Sequence[int]]) -> Reduce:
    """Mean over groups of the mean over columns of sum / count, each level over what a draw still holds.

    The layout is that of `by_type`: (..., 2 * types) with the sums first, then the counts. VSI-Bench's overall is
    macro([[0], [1], ..., [easy, medium, hard]]).
    """

    def reduce(sums: np.ndarray) -> np.ndarray:
        half = sums.shape[-1] // 2
        means = ratio(np.stack([sums[..., :half], sums[..., half:]], axis=-1))
        return _nanmean([_nanmean([means[..., column] for column in group]) for group in groups])

    return reduce


def _nanmean(values: Sequence[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values)
    present = np.isfinite(stacked)
    return ratio(np.stack([np.where(present, stacked, 0).sum(0), present.sum(0)], axis=-1))


def by_type(
    scores: Mapping[Any, float], scenes: Mapping[Any, str], types: Mapping[Any, str]
) -> tuple[np.ndarray, list[str], list[str]]:
    """Per-question scores as sufficient statistics.

    Args:
        scores, scenes, types: question id -> score, scene, question type.

    Returns:
        float64 (S, 2 * types): sums of scores per type, then counts; the scene names (S); the type names, both sorted, so two
        models scored on the same questions get rows and columns that match.
    """
    names, kinds = sorted({scenes[key] for key in scores}), sorted({types[key] for key in scores})
    row, column = {name: index for index, name in enumerate(names)}, {kind: index for index, kind in enumerate(kinds)}
    table = np.zeros((len(names), 2 * len(kinds)))
    for key, value in scores.items():
        table[row[scenes[key]], column[types[key]]] += value
        table[row[scenes[key]], len(kinds) + column[types[key]]] += 1
    return table, names, kinds


def interval(statistics: np.ndarray, reduce: Reduce = ratio, draws: int = DRAWS, seed: int = 0) -> Interval:
    """A metric of one model and its interval under resampling of scenes.

    Args:
        statistics: (S, K) per scene; a row of zeros is a scene on which the metric is undefined.

    Raises:
        UserError: fewer than two scenes, or a metric that is undefined on all of them.
    """
    return _summary(statistics, reduce(_resample(statistics, draws, seed)), reduce(statistics.sum(0)))


def paired(a: np.ndarray, b: np.ndarray, reduce: Reduce = ratio, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The difference a minus b; every draw takes the same scenes for both.

    Args:
        a, b: (S, K) with the same scenes in the same order.
    """
    _same_scenes(a, b)
    drawn = reduce(_resample(a, draws, seed)) - reduce(_resample(b, draws, seed))
    return _summary(a, drawn, reduce(a.sum(0)) - reduce(b.sum(0)))


def retained(
    student: np.ndarray, teacher: np.ndarray, baseline: np.ndarray, reduce: Reduce = ratio, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The share of the teacher's gain over a baseline that the student keeps: (student - baseline) / (teacher - baseline).

    Where some draws have a teacher that gains next to nothing the share is meaningless; a wide interval then says so.

    Raises:
        UserError: the teacher is exactly as good as the baseline.
    """
    _same_scenes(student, teacher)
    _same_scenes(student, baseline)

    def share(drawn: Sequence[np.ndarray]) -> np.ndarray:
        kept, gain, floor = (reduce(sums) for sums in drawn)
        return ratio(np.stack([(kept - floor) * np.sign(gain - floor), abs(gain - floor)], axis=-1))

    tables = (student, teacher, baseline)
    drawn = share([_resample(table, draws, seed) for table in tables])
    return _summary(student, drawn, share([table.sum(0) for table in tables]))


@lru_cache(maxsize=4)
def _weights(scenes: int, draws: int, seed: int) -> np.ndarray:
    """float64 (draws, scenes): how often each draw takes each scene."""
    return np.random.default_rng([seed, scenes]).multinomial(scenes, np.full(scenes, 1 / scenes), size=draws).astype(float)


def _resample(statistics: np.ndarray, draws: int, seed: int) -> np.ndarray:
    if len(statistics) < 2:
        raise UserError(f"an interval over scenes needs at least 2 scenes, found {len(statistics)}; evaluate on more")
    return _weights(len(statistics), draws, seed) @ statistics


def _summary(statistics: np.ndarray, drawn: np.ndarray, value: np.ndarray) -> Interval:
    if not np.isfinite(value):
        raise UserError(
            "the metric is undefined on every scene (no item carries it); check that the scenes have what it measures"
        )
    low, high = np.nanpercentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(value), float(low), float(high), int(np.any(statistics != 0, axis=1).sum()))


def _same_scenes(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise UserError(f"paired statistics must come from the same scenes and types, found {a.shape} and {b.shape}")


@dataclass(frozen=True)
class Verdict:
    """Non-inferiority of a to b.

    Attributes:
        verdict: "pass" when the one-sided 95 % lower bound of a - b lies above -margin, "fail" when the upper one lies below
            it, else "inconclusive".
        lower, upper: the two one-sided 95 % bounds.
        needed_n: questions at which an a that equals b would pass with 80 % power, at the spread and clustering seen here;
            None once the verdict is settled.
    """

    verdict: str
    lower: float
    upper: float
    needed_n: int | None


def noninferiority(
    a: np.ndarray, b: np.ndarray, margin: float, n: int, reduce: Reduce = ratio, draws: int = DRAWS, seed: int = 0
) -> Verdict:
    """Is a no worse than b by more than `margin`, resampling scenes together?

    Args:
        a, b: (S, K) sufficient statistics of the same scenes.
        margin: in the unit of the metric, above 0.
        n: number of questions behind the statistics; `needed_n` is counted in them.
    """
    if not margin > 0:
        raise UserError(f"the margin of a parity claim must be above 0, found {margin}")
    _same_scenes(a, b)
    drawn = reduce(_resample(a, draws, seed)) - reduce(_resample(b, draws, seed))
    lower, upper = np.nanpercentile(drawn, [100 * (1 - LEVEL), 100 * LEVEL])
    verdict = "pass" if lower > -margin else "fail" if upper < -margin else "inconclusive"
    needed = None
    if verdict == "inconclusive":
        needed = max(1, math.ceil(n * ((quantile(LEVEL) + quantile(POWER)) * float(np.nanstd(drawn)) / margin) ** 2))
    return Verdict(verdict, float(lower), float(upper), needed)
