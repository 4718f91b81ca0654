"""VSI-Bench questions from ground truth: the eight tasks (ten question types) in the benchmark's own wording.

The second consumer of evidence beside the ladder. Truth rules follow the benchmark: distances between the closest points of
oriented boxes in metres with one decimal, sizes in whole centimetres, areas in square metres with one decimal, ambiguous
items dropped. Only objects visible in the frames are asked about, and "the CLASS" only of classes that exist once.

    python -c "from teacher.scenes import open_scenes; from teacher.scenes.questions import procedural_questions; \
               print(*procedural_questions(open_scenes('procedural:val?count=1')[0], 'vsibench'), sep='\\n')"
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, permutations, product
from typing import TYPE_CHECKING

from teacher.scenes.balance import spread
from teacher.scenes.evidence import Evidence
from teacher.scenes.geometry import box_distance, ground_distance, line_is_free, turn_angle

if TYPE_CHECKING:
    from teacher.scenes.clip import SceneObject

LETTERS = "ABCD"
APART = 0.3  # metres by which the closest candidate must win; also the shortest distance that is asked for
STANDING = 0.8  # metres between the places one stands at and looks at
CLEARANCE = 0.2  # metres a robot keeps from furniture that stands in the way
WALKABLE = 0.1  # metres; lower things (rugs) are walked over, things that start above a head are passed under
HEADROOM = 1.2
# Signed turning angle in degrees, left positive: answer -> (from, to). What lies between the sectors is ambiguous, dropped.
EASY = {"left": (15, 165), "right": (-165, -15)}
MEDIUM = {"left": (15, 120), "right": (-120, -15), "back": (150, 210)}
HARD = {"front-left": (15, 75), "back-left": (105, 165), "back-right": (-165, -105), "front-right": (-75, -15)}
TURNS = {"Turn Left": (60, 120), "Turn Right": (-120, -60), "Turn Back": (150, 210)}
CLOSEST = "Measuring from the closest point of each object, which of these objects ({{options}}) is the closest to the {t}?"
SEVERAL = "\nIf there are multiple instances of an object category, measure to the closest."
STANDPOINT = "If I am standing by the {p} and facing the {o}, is the {q} to "
DIRECTION = {
    "object_rel_direction_easy": (EASY, "the left or the right of the {o}?"),
    "object_rel_direction_medium": (
        MEDIUM,
        "my left, right, or back?\nAn object is to my back if I would have to turn at least 135 degrees in order to face it.",
    ),
    "object_rel_direction_hard": (
        HARD,
        "my front-left, front-right, back-left, or back-right?\nThe directions refer to the quadrants of a Cartesian plane "
        "(if I am standing at the origin and facing along the positive y-axis).",
    ),
}
ROUTE = (
    "You are a robot beginning at the {s} and facing the {o}. You want to navigate to the {e}. You will perform the following "
    "actions (Note: for each [please fill in], choose either 'turn back,' 'turn left,' or 'turn right.'): {actions} "
    "You have reached the final destination."
)
APPEARANCE = "What will be the first-time appearance order of the following categories in the video: "
ONE_TURN = "1. Go forward until the {o}. 2. [please fill in] 3. Go forward until the {e}."
TWO_TURNS = "1. [please fill in] 2. Go forward until the {x}. 3. [please fill in] 4. Go forward until the {e}."


@dataclass(frozen=True)
class Draft:
    """A question before it has an id: type, wording, the answer as text, and the options (None: a number is asked for)."""

    question_type: str
    question: str
    answer: str
    options: tuple[str, ...] | None = None

    def lettered(self) -> tuple[list[str] | None, str]:
        """(options as "A. left", ..., letter of the answer), or (None, the number)."""
        if self.options is None:
            return None, self.answer
        return [f"{letter}. {text}" for letter, text in zip(LETTERS, self.options)], LETTERS[self.options.index(self.answer)]


def sector(angle: float, sectors: Mapping[str, tuple[float, float]]) -> str | None:
    """The name of the sector (degrees, from -> to counter-clockwise) that holds `angle`; None between sectors."""
    return next((name for name, (low, high) in sectors.items() if (angle - low) % 360 <= high - low), None)


def _answer(draft: Draft) -> str:
    return draft.answer


def _placed(rng: random.Random, drafts: Iterable[Draft]) -> list[Draft]:
    """Shuffle the options (as many in each draft) such that the answers' letters take turns; {options} names them in order."""
    letters: list[int] = []
    placed = []
    for draft in drafts:
        options = [option for option in draft.options or () if option != draft.answer]
        rng.shuffle(options)
        letters = letters or rng.sample(range(len(options) + 1), len(options) + 1)
        options.insert(letters.pop(), draft.answer)
        question = draft.question.replace("{options}", ", ".join(options))
        placed.append(replace(draft, question=question, options=tuple(options)))
    return placed


def object_counting(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Classes with at least two instances, all visible (as in the benchmark)."""
    drafts = [
        Draft("object_counting", f"How many {name}(s) are in this room?", str(len(items)))
        for name, items in evidence.categories().items()
        if len(items) > 1
    ]
    return spread(rng, drafts, _answer, 2)


def object_abs_distance(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Closest-point distance of two objects, at least 30 cm."""
    pairs = list(combinations(evidence.unique(), 2))
    drafts = []
    for a, b in (rng.sample(pair, 2) for pair in rng.sample(pairs, len(pairs))):
        distance = box_distance(a, b)
        if distance >= APART:
            pair = f"the {a.name} and the {b.name}"
            question = f"Measuring from the closest point of each object, what is the distance between {pair} (in meters)?"
            drafts.append(Draft("object_abs_distance", question, f"{distance:.1f}"))
        if len(drafts) == 5:
            break
    return drafts


def object_size_estimation(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Longest box dimension in whole centimetres."""
    items = evidence.unique()
    wording = "What is the length of the longest dimension (length, width, or height) of the {}, measured in centimeters?"
    return [
        Draft("object_size_estimation", wording.format(item.name), str(round(100 * max(item.size))))
        for item in rng.sample(items, min(4, len(items)))
    ]


def room_size_estimation(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Floor area of the room, one decimal."""
    width, length, _ = evidence.room_size
    question = (
        "What is the size of this room (in square meters)?\n"
        "If multiple rooms are shown, estimate the size of the combined space."
    )
    return [Draft("room_size_estimation", question, f"{width * length:.1f}")]


def object_rel_distance(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Which of four classes is closest to a fifth: the closest wins by 30 cm, a class counts by its closest instance."""
    categories, targets = evidence.categories(), evidence.unique()
    drafts = []
    for target in rng.sample(targets, len(targets)):
        distances = {
            name: min(box_distance(target, item) for item in items) for name, items in categories.items() if name != target.name
        }
        for _ in range(4 if len(distances) >= 4 else 0):  # a few draws: most sets of four have a clear winner
            names = rng.sample(sorted(distances), 4)
            first, second = sorted(names, key=lambda name: distances[name])[:2]
            if distances[second] - distances[first] >= APART:
                several = any(len(categories[name]) > 1 for name in names)
                question = CLOSEST.format(t=target.name) + SEVERAL * several
                drafts.append(Draft("object_rel_distance", question, first, tuple(names)))
                break
    return _placed(rng, spread(rng, drafts, _answer, 4))


def object_rel_direction(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Where is the third object, standing by the first and facing the second: three levels, answers taken in turn."""
    by_level: dict[str, list[Draft]] = {level: [] for level in DIRECTION}
    for p, o, q in permutations(evidence.unique(), 3):
        if min(ground_distance(p, o), ground_distance(p, q)) < STANDING:
            continue
        angle = turn_angle(p, o, q)
        for level, (sectors, tail) in DIRECTION.items():
            answer = sector(angle, sectors)
            if answer is not None:
                question = (STANDPOINT + tail).format(p=p.name, o=o.name, q=q.name)
                by_level[level].append(Draft(level, question, answer, tuple(sectors)))
    return [draft for drafts in by_level.values() for draft in _placed(rng, spread(rng, drafts, _answer, 3))]


def route_planning(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Fill in one or two turns of a walk along free straight lines, each within 30 degrees of a quarter or a half turn."""
    places = [item for item in evidence.unique() if item.size[2] > WALKABLE]
    standing = [item for item in evidence.objects if item.size[2] > WALKABLE]
    obstacles = [item for item in standing if item.center[2] - item.size[2] / 2 < HEADROOM]

    def free(a: SceneObject, b: SceneObject) -> bool:
        others = [item for item in obstacles if item.id not in (a.id, b.id)]
        return ground_distance(a, b) >= STANDING and line_is_free(a, b, others, CLEARANCE)

    legs = {(a.id, b.id) for x, y in combinations(places, 2) if free(x, y) for a, b in ((x, y), (y, x))}
    one, two = [], []
    for start, stop, end in permutations(places, 3):
        if (start.id, stop.id) not in legs or (stop.id, end.id) not in legs:
            continue
        # At `stop` the robot looks away from `start`, so its turn is the angle from there plus half a circle.
        last = sector(turn_angle(stop, start, end) + 180, TURNS)
        if last is None:
            continue
        actions = ONE_TURN.format(o=stop.name, e=end.name)
        question = ROUTE.format(s=start.name, o=stop.name, e=end.name, actions=actions)
        one.append(Draft("route_planning", question, last, tuple(TURNS)))
        for facing in places:
            if facing.id in (start.id, stop.id, end.id) or ground_distance(start, facing) < STANDING:
                continue
            first = sector(turn_angle(start, facing, stop), TURNS)
            if first is not None:
                actions = TWO_TURNS.format(x=stop.name, e=end.name)
                question = ROUTE.format(s=start.name, o=facing.name, e=end.name, actions=actions)
                two.append(Draft("route_planning", question, f"{first}, {last}"))
    chosen = [replace(draft, options=_pairs_of_turns(rng, draft.answer)) for draft in spread(rng, two, _answer, 2)]
    return _placed(rng, spread(rng, one, _answer, 2)) + _placed(rng, chosen)


def _pairs_of_turns(rng: random.Random, answer: str) -> tuple[str, ...]:
    """The answer and three of the eight wrong pairs."""
    return answer, *rng.sample([pair for pair in map(", ".join, product(TURNS, repeat=2)) if pair != answer], 3)


def obj_appearance_order(evidence: Evidence, rng: random.Random) -> list[Draft]:
    """Order in which four classes first appear, each clearly and in a view of its own."""
    by_view: dict[int, list[str]] = {}
    for name, view in evidence.first_views().items():
        by_view.setdefault(view, []).append(name)
    drafts: dict[frozenset[str], Draft] = {}
    for _ in range(4 if len(by_view) >= 4 else 0):
        truth = [rng.choice(by_view[view]) for view in sorted(rng.sample(sorted(by_view), 4))]
        wrong = [order for order in permutations(truth) if list(order) != truth]
        question = APPEARANCE + ", ".join(rng.sample(truth, 4)) + "?"
        options = tuple(", ".join(order) for order in (truth, *rng.sample(wrong, 3)))
        drafts.setdefault(frozenset(truth), Draft("obj_appearance_order", question, options[0], options))
    return _placed(rng, list(drafts.values())[:3])


VSI: tuple[Callable[[Evidence, random.Random], list[Draft]], ...] = (
    object_counting,
    object_abs_distance,
    object_size_estimation,
    room_size_estimation,
    object_rel_distance,
    object_rel_direction,
    route_planning,
    obj_appearance_order,
)
NUMERIC_TYPES = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
CHOICE_TYPES = ("object_rel_distance", *DIRECTION, "route_planning", "obj_appearance_order")
VSI_TYPES = NUMERIC_TYPES + CHOICE_TYPES
