"""Choosing questions so that neither habits of rooms nor names of classes give the answers away.

Between the facts a clip offers (far more than are asked) and the questions asked about it. Every choice draws from the
random stream it is given, so a scene always gets the same questions.

    python -m pytest tests/teacher/test_questions.py -k lean
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import TypeVar

from teacher.scenes.furniture import FURNITURE

Item = TypeVar("Item")
DRAWS = 6.0  # different furniture classes in a typical procedural room; fits the frequencies in 300 rooms to about 0.05
SINGLES = {"door", *(name for name, kind in FURNITURE.items() if kind.most == 1)}  # no procedural room has two of these
# How much nearer to the camera a class tends to be, as log-odds: a Bradley-Terry fit to 14783 facts of 500 training rooms.
# Tables and chairs stand out in the room, pictures and windows hang on far walls.
NEARNESS = {
    "table": 2.4, "chair": 1.9, "bed": 1.7, "rug": 1.6, "stool": 1.5, "plant": 0.3, "sofa": 0.2, "lamp": 0.0, "wardrobe": 0.0,
    "cabinet": -0.2, "desk": -0.3, "trash bin": -0.5, "tv": -0.5, "sink": -1.1, "bookshelf": -1.1, "door": -1.2,
    "window": -1.2, "toilet": -1.7, "picture": -1.8,
}  # fmt: skip


def in_turns(groups: Sequence[Sequence[Item]]) -> list[Item]:
    """The first of every group, then the second of every group, and so on; items must not be None."""
    return [item for row in zip_longest(*groups) for item in row if item is not None]


def spread(rng: random.Random, items: Sequence[Item], answer: Callable[[Item], str], number: int) -> list[Item]:
    """Up to `number` items whose answers take turns, so that no answer is frequent only because rooms favour it."""
    groups: dict[str, list[Item]] = {}
    for item in rng.sample(items, len(items)):
        groups.setdefault(answer(item), []).append(item)
    return in_turns([groups[name] for name in rng.sample(sorted(groups), len(groups))])[:number]


def weighted(rng: random.Random, weights: Mapping[str, float], number: int) -> list[str]:
    """`number` different names, each with a chance in proportion to its weight (Efraimidis and Spirakis 2006)."""
    keys = {name: rng.random() ** (1 / weight) for name, weight in weights.items()}
    return sorted(keys, key=lambda name: -keys[name])[:number]


def presence(name: str) -> float:
    """Chance that a procedural room holds at least one piece of the furniture class."""
    return 1 - math.exp(-DRAWS * FURNITURE[name].weight / sum(kind.weight for kind in FURNITURE.values()))


def surprise(nearer: str, farther: str) -> float:
    """Share of "nearer before farther" facts to keep so that this order and its reverse are asked equally often.

    1 for an order that is the rarer one; classes the table does not know count as average.
    """
    return min(1.0, math.exp(NEARNESS.get(farther, 0.0) - NEARNESS.get(nearer, 0.0)))
