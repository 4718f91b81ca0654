"""How much of a teacher's features is its noise: the floor between two draws, and what averaging several gains.

A setting is watched once per draw, each with a noise seed of its own; groups of k draws that share none are then scored like
any model. Differences below the floor are no differences between settings. Place in the chain: run by `vega-edge select` at
the winner; bench/search.py stores and scores.

    vega-edge select --quick
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.search import METRICS, StoredMaps, score, watch
from bench.validation import Rooms

if TYPE_CHECKING:
    from teacher.features import FeatureTeacher

FIRST_SEED = 1000  # away from the seeds people choose, so that no draw is one of the search's own


def compare_draws(
    teacher: FeatureTeacher, block: int, rooms: Rooms, folder: Path, counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Score averages of k draws at one setting.

    Args:
        teacher: set to a single draw; block: which of its blocks.
        folder: where the features of each draw are kept; what is there is reused.
        counts: the k to compare; as many draws are made as the largest of them.

    Returns:
        Rows {draws, groups, metric: mean over the groups, "score", "floor": {metric or score: mean absolute difference between
        two groups}, "noise_share": see `noise_share`}; the last two are None where all draws are in one group. Empty for a
        teacher that takes no noise.
    """
    if teacher.sigma == 0:
        return []
    names = [room.scene_id for room in rooms.all]
    folders = [folder / f"draw{number}" for number in range(max(counts))]
    for number, place in enumerate(folders):
        watch(teacher, enumerate(rooms.all), place, [block], seed=FIRST_SEED + number)
    groups = {
        count: [folders[start : start + count] for start in range(0, len(folders) - count + 1, count)] for count in counts
    }
    maps = {
        f"{count} draws, group {number}": StoredMaps(group, block, names)
        for count in counts
        for number, group in enumerate(groups[count])
    }
    scores = score(maps, rooms)
    judge = [room.scene_id for room in rooms.judge]
    rows = []
    for count in counts:
        keys = [f"{count} draws, group {number}" for number in range(len(groups[count]))]
        rows.append(_row(count, [scores[key] for key in keys], [maps[key] for key in keys], judge))
    return rows


def _row(
    count: int, scores: Sequence[Mapping[str, float]], maps: Sequence[Mapping[str, np.ndarray]], judge: Sequence[str]
) -> dict[str, Any]:
    found = {name: float(np.mean([row[name] for row in scores])) for name in (*METRICS, "score")}
    row: dict[str, Any] = {"draws": count, "groups": len(scores), **found, "floor": None, "noise_share": None}
    if len(scores) > 1:
        row["floor"] = {
            name: float(np.mean([abs(a[name] - b[name]) for a, b in combinations(scores, 2)])) for name in (*METRICS, "score")
        }
        row["noise_share"] = noise_share(maps[0], maps[1], judge)
    return row


def noise_share(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], scenes: Sequence[str]) -> float:
    """Share of the features' variance that is noise: half the mean squared difference over the mean variance of both.

    Two sets that differ in their noise alone share the rest, so their difference has twice the variance of the noise. 0 for
    equal sets, 1 for independent ones; a mean that all tokens share does not count.
    """
    difference = variance = count = 0.0
    total: np.ndarray | float = 0.0
    for name in scenes:
        a, b = (np.asarray(maps[name], dtype=np.float64).transpose(0, 2, 3, 1) for maps in (first, second))
        difference += np.square(a - b).sum() / 2
        variance += (np.square(a).sum() + np.square(b).sum()) / 2
        total = total + (a + b).reshape(-1, a.shape[-1]).sum(0) / 2
        count += a[..., 0].size
    variance -= float(np.square(total).sum()) / count
    return float(difference / variance) if variance > 0 else 0.0
