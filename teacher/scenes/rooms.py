"""Seeded rooms: walls, floor, ceiling, fixtures and furniture that stands on the floor without overlapping.

Part of the procedural scenes: a `Room` is what the mesh builder, the camera walk and the ground truth read. The room is
centred on the world origin, the floor is z = 0. Wall k looks into the room along +y turned by k * 90 degrees.

    python -c "import numpy; from teacher.scenes.rooms import make_room as m; print(m(numpy.random.default_rng(0)).size)"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .clip import SceneObject
from .fixtures import Surface, door, picture, rug, shell, window
from .furniture import FURNITURE
from .mesh import Part, bounds

CELL = 0.05  # metres, raster of the floor plan
SILL = 0.16  # metres kept from walls sideways: window sills and door knobs stick out
MIN_PIECES, MAX_PIECES = 5, 10
COVER, FULL_COVER = 0.28, 0.36  # of the floor by drawn furniture, and with small things that fill up; the camera needs the rest
SMALL = ("chair", "stool", "plant", "lamp", "trash bin")
FIXTURES = ("door", "window", "picture", "rug")


@dataclass(frozen=True)
class Piece:
    """A named thing: parts in its own frame, turned by `yaw` and moved to `origin`."""

    name: str
    parts: tuple[Part, ...]
    yaw: float
    origin: tuple[float, float, float]

    def described(self, number: int) -> SceneObject:
        """The ground-truth box of this piece under the id `number`."""
        low, high = bounds(self.parts)
        x, y, z = (float(middle) for middle in (low + high) / 2)
        width, depth, height = (float(extent) for extent in high - low)
        cos, sin = float(np.cos(self.yaw)), float(np.sin(self.yaw))
        ox, oy, oz = (float(place) for place in self.origin)
        center = (cos * x - sin * y + ox, sin * x + cos * y + oy, z + oz)
        return SceneObject(number, self.name, center, (width, depth, height), float(self.yaw))


@dataclass(frozen=True)
class Room:
    """size: x, y, height in metres; shell: structure; pieces: objects, ids 1.. in order; solid: (x, y) raster of furniture."""

    size: tuple[float, float, float]
    shell: tuple[Part, ...]
    pieces: tuple[Piece, ...]
    solid: np.ndarray


class FloorPlan:
    """Raster of what stands where, and what hangs on which wall."""

    def __init__(self, size: tuple[float, float, float]):
        self.size = size
        shape = tuple(int(np.ceil(extent / CELL)) for extent in size[:2])
        self.taken = np.zeros(shape, bool)  # furniture and the space it or a door needs
        self.solid = np.zeros(shape, bool)  # furniture alone
        self.hung: list[list[tuple[float, float, float, float]]] = [[], [], [], []]

    def cells(self, x: float, y: float, width: float, depth: float, yaw: float) -> tuple[np.ndarray, np.ndarray] | None:
        """Raster cells under a turned rectangle; None when it sticks out of the room."""
        along = np.linspace(-width / 2, width / 2, int(width / CELL * 1.6) + 2)
        across = np.linspace(-depth / 2, depth / 2, int(depth / CELL * 1.6) + 2)
        u, v = (grid.ravel() for grid in np.meshgrid(along, across))
        px = np.cos(yaw) * u - np.sin(yaw) * v + x + self.size[0] / 2
        py = np.sin(yaw) * u + np.cos(yaw) * v + y + self.size[1] / 2
        if px.min() < 0 or py.min() < 0 or px.max() > self.size[0] or py.max() > self.size[1]:
            return None
        i, j = (px / CELL).astype(np.int64), (py / CELL).astype(np.int64)
        return np.minimum(i, self.taken.shape[0] - 1), np.minimum(j, self.taken.shape[1] - 1)

    def free(self, x: float, y: float, width: float, depth: float, yaw: float) -> bool:
        cells = self.cells(x, y, width, depth, yaw)
        return cells is not None and not self.taken[cells].any()

    def claim(self, x: float, y: float, width: float, depth: float, yaw: float, solid: bool) -> None:
        cells = self.cells(x, y, width, depth, yaw)
        if cells is not None:
            self.taken[cells] = True
            if solid:
                self.solid[cells] = True

    def on_wall(self, wall: int, along: float, inward: float) -> tuple[float, float, float]:
        """(x, y, yaw) of the point `along` wall k and `inward` metres before it, looking into the room."""
        yaw = wall * np.pi / 2
        back = -(self.size[1] if wall % 2 == 0 else self.size[0]) / 2 + inward
        return np.cos(yaw) * along - np.sin(yaw) * back, np.sin(yaw) * along + np.cos(yaw) * back, yaw

    def half_length(self, wall: int) -> float:
        return (self.size[0] if wall % 2 == 0 else self.size[1]) / 2

    def wall_free(self, wall: int, low: float, high: float, bottom: float, top: float) -> bool:
        if max(-low, high) > self.half_length(wall) - 0.03:
            return False
        return all(high < a or low > b or top < c or bottom > d for a, b, c, d in self.hung[wall])

    def hang(self, wall: int, low: float, high: float, bottom: float, top: float) -> None:
        self.hung[wall].append((low - 0.05, high + 0.05, bottom - 0.05, top + 0.05))


def _hang(plan: FloorPlan, rng: np.random.Generator, name: str, parts: list[Part], bottom: float, keep: float) -> Piece | None:
    """Put a flat thing on some free stretch of wall; `keep` metres of floor before it stay free of furniture."""
    low, high = bounds(parts)
    width, depth, height = high - low
    for _ in range(12):
        wall = int(rng.integers(4))
        room = plan.half_length(wall) - width / 2 - 0.05
        if room <= 0:
            continue
        along = rng.uniform(-room, room)
        if not plan.wall_free(wall, along - width / 2, along + width / 2, bottom, bottom + height):
            continue
        plan.hang(wall, along - width / 2, along + width / 2, bottom, bottom + height)
        if keep:
            kx, ky, yaw = plan.on_wall(wall, along, keep / 2)
            plan.claim(kx, ky, width, keep, yaw, solid=False)
        x, y, yaw = plan.on_wall(wall, along, depth / 2)
        return Piece(name, tuple(parts), yaw, (x, y, bottom))
    return None


def _against_wall(plan: FloorPlan, rng: np.random.Generator, width: float, depth: float, height: float):
    """A free (x, y, yaw) with the back to a wall, or None."""
    gap = rng.uniform(0.03, 0.08)  # clears the skirting board
    for _ in range(24):
        wall = int(rng.integers(4))
        room = plan.half_length(wall) - width / 2 - SILL
        if room <= 0:
            continue
        along = rng.uniform(-room, room)
        x, y, yaw = plan.on_wall(wall, along, gap + depth / 2)
        fits = plan.wall_free(wall, along - width / 2, along + width / 2, 0.0, height)
        if fits and plan.free(x, y, width + 0.06, depth + 2 * gap - 0.01, yaw):
            plan.hang(wall, along - width / 2, along + width / 2, 0.0, height)
            return x, y, yaw
    return None


def _standing(plan: FloorPlan, rng: np.random.Generator, name: str, width: float, depth: float):
    """A free (x, y, yaw) anywhere: tables and chairs out in the room, small things rather near the walls."""
    for _ in range(30):
        wall = int(rng.integers(4))
        reach = (plan.size[1] if wall % 2 == 0 else plan.size[0]) - depth
        inward = rng.uniform(SILL, 0.4) if name in ("plant", "lamp", "trash bin") else rng.uniform(0.25, max(0.3, reach / 2))
        side = plan.half_length(wall) - width / 2 - SILL
        x, y, yaw = plan.on_wall(wall, rng.uniform(-side, side), inward + depth / 2)
        yaw += rng.normal(0, 0.5) if name in ("chair", "stool") else rng.normal(0, 0.08)
        if plan.free(x, y, width + 0.12, depth + 0.12, yaw):
            return x, y, yaw
    return None


def _at_table(plan: FloorPlan, rng: np.random.Generator, tables: list[Piece], width: float, depth: float):
    """A free (x, y, yaw) beside one of the tables or in front of a desk, facing it."""
    for _ in range(8):
        host = tables[int(rng.integers(len(tables)))]
        box = host.described(0)
        side = 0 if host.name == "desk" else int(rng.integers(4))
        reach, length = (box.size[1], box.size[0]) if side % 2 == 0 else (box.size[0], box.size[1])
        out, shift = reach / 2 + depth / 2 + 0.1, rng.uniform(-0.5, 0.5) * max(0.0, length - width)
        angle = host.yaw + side * np.pi / 2
        x = host.origin[0] + np.cos(angle) * shift - np.sin(angle) * out
        y = host.origin[1] + np.sin(angle) * shift + np.cos(angle) * out
        yaw = angle + np.pi + rng.normal(0, 0.12)
        if plan.free(x, y, width + 0.04, depth + 0.04, yaw):
            return x, y, yaw
    return None


def _choose(rng: np.random.Generator, count: int) -> list[str]:
    """Class names for one room; three in ten draws repeat a class that is there already."""
    names, weights = list(FURNITURE), np.array([kind.weight for kind in FURNITURE.values()])
    chosen: list[str] = []
    while len(chosen) < count:
        again = chosen and rng.random() < 0.3
        name = chosen[int(rng.integers(len(chosen)))] if again else str(rng.choice(names, p=weights / weights.sum()))
        if chosen.count(name) < FURNITURE[name].most:
            chosen.append(name)
    return chosen


def _place(
    plan: FloorPlan, rng: np.random.Generator, name: str, parts: list[Part], placed: list[Piece], cover: float
) -> Piece | None:
    """Find a spot for one piece of furniture and claim it, unless more than `cover` of the floor would be taken."""
    low, high = bounds(parts)
    width, depth, height = (float(extent) for extent in high - low)
    if plan.solid.mean() + width * depth / (plan.size[0] * plan.size[1]) > cover:
        return None
    tables = [piece for piece in placed if piece.name in ("table", "desk")]
    spot = _at_table(plan, rng, tables, width, depth) if name == "chair" and tables and rng.random() < 0.75 else None
    if spot is None and FURNITURE[name].wall:
        spot = _against_wall(plan, rng, width, depth, height)
    elif spot is None:
        spot = _standing(plan, rng, name, width, depth)
    if spot is None:
        return None
    x, y, yaw = spot
    plan.claim(x, y, width, depth, yaw, solid=True)
    middle = (low + high) / 2  # parts may be lopsided; the box, not their origin, sits at (x, y)
    ox = x - (np.cos(yaw) * middle[0] - np.sin(yaw) * middle[1])
    oy = y - (np.sin(yaw) * middle[0] + np.cos(yaw) * middle[1])
    return Piece(name, tuple(parts), float(yaw), (float(ox), float(oy), 0.0))


def _furnish(plan: FloorPlan, rng: np.random.Generator) -> list[Piece]:
    """Place furniture, the bulky first, until enough stands or a third of the floor is covered; small things fill up."""
    wanted = int(np.clip(round(rng.normal(4.2, 1.0) + 0.14 * plan.size[0] * plan.size[1]), MIN_PIECES, MAX_PIECES))
    drawn = [(name, FURNITURE[name].build(rng)) for name in _choose(rng, wanted + 4)]
    footprint = [float(np.prod((bounds(parts)[1] - bounds(parts)[0])[:2])) for _, parts in drawn]
    first = [drawn[k] for k in sorted(range(wanted), key=lambda k: -footprint[k])]
    small = [str(name) for name in rng.permutation(np.repeat(SMALL, 4))]
    fill = [(name, FURNITURE[name].build(rng)) for name in small]
    placed: list[Piece] = []
    for turn, (name, parts) in enumerate(first + drawn[wanted:] + fill):
        filling = turn >= len(drawn)
        if len(placed) >= (MIN_PIECES if filling else wanted):
            continue
        if sum(piece.name == name for piece in placed) < FURNITURE[name].most:
            piece = _place(plan, rng, name, parts, placed, FULL_COVER if filling else COVER)
            placed += [piece] if piece is not None else []
    return placed


def _rugs(plan: FloorPlan, rng: np.random.Generator) -> list[Piece]:
    """Up to two rugs that do not overlap each other; furniture may stand on them."""
    pieces: list[Piece] = []
    for _ in range(int(rng.integers(0, 3))):
        parts = rug(rng, 0.6 * min(plan.size[:2]))
        width, depth, _ = bounds(parts)[1] * 2
        yaw = rng.integers(2) * np.pi / 2
        wide, deep = (width, depth) if yaw == 0 else (depth, width)
        if wide > plan.size[0] - 0.4 or deep > plan.size[1] - 0.4:
            continue
        x = rng.uniform(-1, 1) * (plan.size[0] - wide - 0.3) / 2
        y = rng.uniform(-1, 1) * (plan.size[1] - deep - 0.3) / 2
        reach = [np.hypot(x - other.origin[0], y - other.origin[1]) for other in pieces]
        if all(distance > 1.5 * max(wide, deep) for distance in reach):
            pieces.append(Piece("rug", tuple(parts), float(yaw), (float(x), float(y), 0.0)))
    return pieces


def make_room(rng: np.random.Generator) -> Room:
    """Draw one room: 3-7 m by 3-7 m, 2.4-3 m high, a door, windows, pictures, rugs and 5-10 pieces of furniture."""
    size = (float(rng.uniform(3, 7)), float(rng.uniform(3, 7)), float(rng.uniform(2.4, 3.0)))
    surface = Surface.draw(rng)
    plan = FloorPlan(size)
    hung = [_hang(plan, rng, "door", door(rng), 0.0, 0.9)]
    hung += [_hang(plan, rng, "window", window(rng), rng.uniform(0.85, 1.05), 0.0) for _ in range(int(rng.integers(1, 3)))]
    furniture = _furnish(plan, rng)
    hung += [_hang(plan, rng, "picture", picture(rng), rng.uniform(1.2, 1.5), 0.0) for _ in range(int(rng.integers(1, 5)))]
    pieces = furniture + [piece for piece in hung if piece is not None] + _rugs(plan, rng)
    return Room(size, tuple(shell(surface, size)), tuple(pieces), plan.solid)
