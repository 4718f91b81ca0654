"""Scores of the study: from what `vega-edge bench probe --sums` wrote per run to differences from the base with intervals.

A metric is a function of sums over rooms, so pooling rooms and seeds is adding, and resampling them is a matrix product.

    python -m pytest tests/distill/test_study.py -q

Source: Efron & Tibshirani 1993 (percentile bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vega_artifact import UserError, read_json

DRAWS = 10_000
MODEL = "student"  # the row of the probes that is read


def depth_r2(sums: np.ndarray) -> np.ndarray:
    """(..., 5) count, sum and squares of log depth, squared residuals, hits -> R2; NaN where nothing varies."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - sums[..., 3] / (sums[..., 2] - sums[..., 1] ** 2 / sums[..., 0])


def recall(sums: np.ndarray) -> np.ndarray:
    """(..., 2) matches found, matches there are -> recall; NaN where there are none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] / sums[..., 1]


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"depth_r2": depth_r2, "correspondence_recall_centred": recall}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval, and the value of every seed."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


def scores(files: Mapping[str, Sequence[Path]], base: Mapping[str, Sequence[Path]] | None) -> dict[str, dict[str, Any]]:
    """stream -> metric -> {value, low, high, seeds}, and beside it under "difference" the same less the base.

    Args:
        files: stream -> one file per seed.
        base: the same of the base; None: this is the base.

    Returns:
        streams and metrics that the files do not carry are absent.
    """
    found: dict[str, dict[str, Any]] = {}
    for stream, paths in files.items():
        for metric in METRICS:
            if (table := read_sums(paths, metric)) is None:
                continue
            row = asdict(estimate(table, metric))
            if base is not None and stream in base and (other := read_sums(base[stream], metric)) is not None:
                row["difference"] = asdict(difference(table, other, metric))
            found.setdefault(stream, {})[metric] = row
    return found


def read_sums(paths: Sequence[Path], metric: str, model: str = MODEL) -> np.ndarray | None:
    """Sums of a metric of a model, float64 (seeds, rooms, K), from one file per seed; None where the rooms do not carry it.

    Raises:
        UserError: a file without sums, or files about different rooms.
    """
    tables, rooms = [], None
    for path in paths:
        found = read_json(path)
        if "sums" not in found:
            raise UserError(f"{path}: no sums per room in it; delete it, the study makes it again")
        if metric not in found["sums"]:
            return None
        table = found["sums"][metric][model]
        if rooms is not None and list(table) != rooms:
            raise UserError(f"{path}: about other rooms than {paths[0]}; delete both, the study makes them again")
        rooms = list(table)
        tables.append(list(table.values()))
    return np.array(tables, dtype=np.float64)


def estimate(table: np.ndarray, metric: str) -> Estimate:
    """A metric of one variant from its sums (seeds, rooms, K); rooms and seeds are resampled."""
    reduce = METRICS[metric]
    return _estimate(reduce(_resampled(table, _rooms(table.shape[1]), 1)), reduce(table.sum((0, 1))), reduce(table.sum(1)))


def difference(variant: np.ndarray, base: np.ndarray, metric: str) -> Estimate:
    """Variant minus base; every draw takes the same rooms for both, and seeds of each of them.

    Args:
        variant, base: (seeds, rooms, K), rooms in the same order; numbers of seeds may differ.

    Raises:
        UserError: different numbers of rooms.
    """
    if variant.shape[1:] != base.shape[1:]:
        raise UserError(f"the base was scored on {base.shape[1]} rooms, the variant on {variant.shape[1]}; score both alike")
    reduce, weights = METRICS[metric], _rooms(base.shape[1])
    drawn = reduce(_resampled(variant, weights, 1)) - reduce(_resampled(base, weights, 2))
    value = reduce(variant.sum((0, 1))) - reduce(base.sum((0, 1)))
    return _estimate(drawn, value, reduce(variant.sum(1)) - reduce(base.sum((0, 1))))


def kept(variant: np.ndarray, teacher: np.ndarray, floor: np.ndarray, metric: str) -> Estimate:
    """Part of what the teacher has above a floor that a variant has, too; every draw takes the same rooms for all three.

    Args:
        variant: (seeds, rooms, K). teacher, floor: (1, rooms, K), rooms in the same order.

    Returns:
        1 where the variant is as good as the teacher; NaN draws, where the teacher does not rise above the floor, are left out.
    """
    reduce, weights = METRICS[metric], _rooms(floor.shape[1])
    ours, theirs, least = (reduce(_resampled(table, weights, 1)) for table in (variant, teacher, floor))
    whole, top, bottom = (reduce(table.sum((0, 1))) for table in (variant, teacher, floor))
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.where(theirs > least, (ours - least) / (theirs - least), np.nan)
    seeds = (reduce(variant.sum(1)) - bottom) / (top - bottom)
    return _estimate(drawn, (whole - bottom) / (top - bottom), seeds)


def _estimate(drawn: np.ndarray, value: np.ndarray, seeds: np.ndarray) -> Estimate:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Estimate(float(value), float(low), float(high), tuple(map(float, seeds)))


@lru_cache(maxsize=4)
def _rooms(count: int) -> np.ndarray:
    """float64 (draws, rooms): how often each draw takes each room."""
    if count < 2:
        raise UserError(f"an interval needs at least 2 rooms, found {count}; give more --judged")
    return np.random.default_rng([0, count]).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)


def _resampled(table: np.ndarray, rooms: np.ndarray, stream: int) -> np.ndarray:
    """(draws, K): sums over the rooms and the seeds that each draw takes; `stream` keeps two variants' seeds apart."""
    count = len(table)
    seeds = np.random.default_rng([stream, count]).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    return np.einsum("dk,kdc->dc", seeds.astype(float), rooms @ table)
