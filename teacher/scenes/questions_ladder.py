"""The spatial ladder: easy ScanQA-style questions, rung by rung from one view to the whole room.

VSI-Bench asks for relations a small reader cannot work out even from true geometry; these questions show what the tokens
hold before they show how clever the reader is. "This view" is the frame `view` of the record. Balance comes by construction:
either member of a pair may be named first, pairs whose order changes between views are asked in both, and orders that the
names alone suggest are thinned out (`balance.py`). Only `higher` stays predictable from names: a window is above a stool in
every room.

    python -c "from teacher.scenes import open_scenes; from teacher.scenes.questions import procedural_questions; \
               print(*procedural_questions(open_scenes('procedural:val?count=1')[0], 'scanqa'), sep='\\n')"
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import TYPE_CHECKING

from teacher.scenes.balance import SINGLES, presence, spread, surprise, weighted
from teacher.scenes.evidence import Evidence, Sighting
from teacher.scenes.furniture import FURNITURE

if TYPE_CHECKING:
    from teacher.scenes.clip import SceneObject

NEARER_RATIO = 1.15  # a person judges distances in a picture to about 15 %
SIDEWAYS = 0.12  # of the picture width between the middles of two objects
HIGHER = 0.25  # metres between box centres
CLOSE_UP = 0.5  # metres; nearer objects fill the view and their distance is guesswork


@dataclass(frozen=True)
class Draft:
    """A question before it has an id: wording, reference answers, the objects it speaks of (empty: an absent one).

    `view` is the frame that "this view" means, counted from 0; None: the question is about the whole clip.
    """

    question: str
    answers: tuple[str, ...]
    objects: tuple[SceneObject, ...] = ()
    view: int | None = None


@dataclass(frozen=True)
class Order:
    """A fact "winner before loser" (nearer, further left, higher, earlier), in one view or (None) in the room."""

    winner: SceneObject
    loser: SceneObject
    view: int | None = None


def _ask(orders: Sequence[Order], rng: random.Random, count: int) -> list[tuple[Order, bool]]:
    """Choose up to `count` facts and who is named first: (fact, winner is named first).

    Pairs won by one object in one view and by the other in another view come first, once each way with the same
    object named first; other pairs come once, the winner named first every second time.
    """
    pairs: dict[frozenset[int], dict[int, list[Order]]] = {}
    for order in orders:
        pairs.setdefault(frozenset((order.winner.id, order.loser.id)), {}).setdefault(order.winner.id, []).append(order)
    groups = list(pairs.values())
    rng.shuffle(groups)
    groups.sort(key=lambda group: -len(group))
    chosen: list[tuple[Order, bool]] = []
    winner_first = rng.random() < 0.5
    for group in groups:
        if len(chosen) + len(group) > count:
            continue
        for facts in group.values():
            chosen.append((rng.choice(facts), winner_first))
            winner_first = not winner_first
    rng.shuffle(chosen)
    return chosen


def _named(order: Order, winner_first: bool) -> tuple[SceneObject, SceneObject]:
    return (order.winner, order.loser) if winner_first else (order.loser, order.winner)


def _which(wording: str, orders: Sequence[Order], rng: random.Random, count: int) -> list[Draft]:
    """Questions answered by the class of the winner; `wording` has slots x, y.

    "Which" and not "whether": that a small reader can point at one of two things it has found says what it found; to say
    "yes" it would also have to know which of them was named first, and none of ours learned that (docs/log.md).
    """
    drafts = []
    for order, winner_first in _ask(orders, rng, count):
        x, y = _named(order, winner_first)
        drafts.append(Draft(wording.format(x=x.name, y=y.name), (order.winner.name,), (x, y), order.view))
    return drafts


def _in_views(evidence: Evidence, before: Callable[[Sighting, Sighting], bool]) -> list[Order]:
    """Every fact `before(winner, loser)` between two nameable objects of one view, over all views."""
    orders = []
    for view in range(len(evidence.shares)):
        for a, b in combinations(evidence.in_view(view), 2):
            if before(a, b):
                orders.append(Order(a.object, b.object, view))
            elif before(b, a):
                orders.append(Order(b.object, a.object, view))
    return orders


def _unexpected(orders: Sequence[Order], rng: random.Random) -> list[Order]:
    """Facts about depth, thinned until the classes of a pair no longer tell which is nearer."""
    return [order for order in orders if rng.random() < surprise(order.winner.name, order.loser.name)]


def nearer(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Which is nearer: median ray distances of the visible surfaces at least 15 % apart."""
    orders = _unexpected(_in_views(evidence, lambda a, b: a.distance * NEARER_RATIO < b.distance), rng)
    return _which("In this view, which is nearer to the camera, the {x} or the {y}?", orders, rng, 6)


def camera_distance(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Metres, one decimal: median length of the rays from the camera to the visible pixels of the object."""
    sightings = [sight for view in range(len(evidence.shares)) for sight in evidence.in_view(view) if sight.distance > CLOSE_UP]
    rng.shuffle(sightings)
    return [
        Draft(
            f"In this view, how far is the {sight.object.name} from the camera in meters?",
            (f"{sight.distance:.1f}",),
            (sight.object,),
            sight.view,
        )
        for sight in sightings[:5]
    ]


def left_of(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Left in the picture: mean columns of the visible pixels at least 12 % of the width apart."""
    orders = _in_views(evidence, lambda a, b: a.column + SIDEWAYS < b.column)
    return _which("In this view, which is to the left, the {x} or the {y}?", orders, rng, 5)


def in_front_of(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """In front: nine tenths of the visible surface lie at lower depth than nine tenths of the other's, 15 % apart."""
    orders = _in_views(evidence, lambda a, b: a.far < b.near and (a.near + a.far) * NEARER_RATIO < b.near + b.far)
    orders = _unexpected(orders, rng)
    return _which("In this view, which is in front, the {x} or the {y}?", orders, rng, 5)


def higher(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Which box centre is higher above the floor, by at least 25 cm."""
    orders = [Order(a, b) for a, b in permutations(evidence.unique(), 2) if a.center[2] > b.center[2] + HIGHER]
    return _which("Which is higher in the room, the {x} or the {y}?", orders, rng, 2)


def first_seen(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Which of two clearly appears in an earlier view."""
    first = evidence.first_views()
    items = [item for item in evidence.unique() if item.name in first]
    orders = [Order(a, b) for a, b in permutations(items, 2) if first[a.name] < first[b.name]]
    return _which("Which is seen first in the video, the {x} or the {y}?", orders, rng, 4)


def exists(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """As many furniture classes that are visible as ones the room lacks.

    Weights 1 - p (there) and p (lacking), p the chance of the class, make yes and no equally frequent for every class.
    """
    present = {item.name: item for item in evidence.visible if item.name in FURNITURE}
    absent = sorted(set(FURNITURE) - {item.name for item in evidence.objects})
    each = min(2, len(present), len(absent))
    there = weighted(rng, {name: 1 - presence(name) for name in present}, each)
    lacking = weighted(rng, {name: presence(name) for name in absent}, each)
    drafts = [Draft(_is_there(name), ("yes",), (present[name],)) for name in there]
    drafts += [Draft(_is_there(name), ("no",)) for name in lacking]
    rng.shuffle(drafts)
    return drafts


def _is_there(name: str) -> str:
    return f"Is there {'an' if name[0] in 'aeiou' else 'a'} {name} in the room?"


def count(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """How many instances of a class, all of them visible; the numbers that occur take turns."""
    drafts = [
        Draft(f"How many {plural(name)} are in the room?", (str(len(items)),), tuple(items))
        for name, items in evidence.categories().items()
        if name not in SINGLES
    ]
    return spread(rng, drafts, lambda draft: draft.answers[0], 3)


def plural(name: str) -> str:
    """English plural of a furniture class: bookshelf -> bookshelves, couch -> couches."""
    if name.endswith("shelf"):
        return name[:-1] + "ves"
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


LADDER: dict[str, Callable[[Evidence, random.Random], list[Draft]]] = {
    "nearer": nearer,
    "camera_distance": camera_distance,
    "left_of": left_of,
    "in_front_of": in_front_of,
    "higher": higher,
    "first_seen": first_seen,
    "exists": exists,
    "count": count,
}
LADDER_TYPES = tuple(LADDER)
