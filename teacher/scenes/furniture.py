"""Furniture built from boxes, cylinders and spheres: one function per class, typical sizes with variation.

Part of the procedural rooms. A piece stands on z = 0 around the origin, its back towards -y, its front towards +y.

    python -c "from teacher.scenes.furniture import FURNITURE; print(sorted(FURNITURE))"
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .mesh import Color, Material, Part

Range = tuple[float, float]
METAL: Color = (0.55, 0.56, 0.58)


def shade(rng: np.random.Generator, hue: Range, saturation: Range, value: Range) -> Color:
    """A random sRGB colour out of three HSV ranges; hues may run past 1."""
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))


def scaled(color: Color, factor: float) -> Color:
    """The colour made darker or lighter, kept in 0..1."""
    red, green, blue = (min(1.0, channel * factor) for channel in color)
    return red, green, blue


def plain(color: Color, texture: str = "plain", contrast: float = 0.7, tile: float = 0.5, glow: float = 0.0) -> Material:
    """A material whose second colour is the first made darker by `contrast`."""
    return Material(color, scaled(color, contrast), texture, tile, glow=glow)


def wood(rng: np.random.Generator, value: Range = (0.4, 0.7)) -> Material:
    color = shade(rng, (0.06, 0.1), (0.45, 0.65), value)
    return Material(color, scaled(color, 0.72), "grain", 0.7, (rng.random(), rng.random()))


def fabric(rng: np.random.Generator, color: Color) -> Material:
    texture = ("plain", "noise", "stripes", "dots", "checker")[rng.integers(5)]
    return Material(color, scaled(color, 0.8), texture, 0.25)


def box(
    x: float, y: float, z: float, width: float, depth: float, height: float, material: Material, shape: str = "box"
) -> Part:
    """A part whose footprint is centred on (x, y) and whose underside is at `z`."""
    return Part(shape, (x, y, z + height / 2), (width, depth, height), material)


def legs(width: float, depth: float, height: float, thick: float, material: Material) -> list[Part]:
    """Four legs just inside the footprint."""
    x, y = (width - thick) / 2, (depth - thick) / 2
    return [box(sx * x, sy * y, 0, thick, thick, height, material) for sx in (-1, 1) for sy in (-1, 1)]


def sofa(rng: np.random.Generator) -> list[Part]:
    width, depth, back = rng.uniform(1.5, 2.3), rng.uniform(0.8, 0.95), rng.uniform(0.75, 0.9)
    color = shade(rng, (0.54, 0.68), (0.45, 0.8), (0.4, 0.8))
    cover, seat = fabric(rng, color), plain(scaled(color, 1.2))
    arm, count = rng.uniform(0.14, 0.2), 2 if width < 1.9 else 3
    inner = width - 2 * arm
    parts = [
        box(0, 0.1, 0.06, inner, depth - 0.2, 0.24, cover),
        box(0, -depth / 2 + 0.11, 0.06, width, 0.22, back - 0.06, cover),
    ]
    parts += [box(sign * (width - arm) / 2, 0.1, 0, arm, depth - 0.2, 0.6, cover) for sign in (-1, 1)]
    for k in range(count):
        x = (k - (count - 1) / 2) * inner / count
        parts.append(box(x, 0.1, 0.3, inner / count - 0.03, depth - 0.22, 0.14, seat))
    return parts


def chair(rng: np.random.Generator) -> list[Part]:
    width, depth, seat, back = (
        rng.uniform(0.42, 0.52),
        rng.uniform(0.42, 0.52),
        rng.uniform(0.43, 0.48),
        rng.uniform(0.82, 1.02),
    )
    material = plain(shade(rng, (-0.02, 0.07), (0.65, 0.9), (0.6, 0.9)))
    frame = wood(rng, (0.25, 0.45)) if rng.random() < 0.6 else plain(METAL)
    parts = legs(width, depth, seat, 0.045, frame) + [box(0, 0, seat, width, depth, 0.05, material)]
    posts = [box(sign * (width - 0.045) / 2, -depth / 2 + 0.022, seat, 0.045, 0.045, back - seat, frame) for sign in (-1, 1)]
    return parts + posts + [box(0, -depth / 2 + 0.022, seat + 0.18, width - 0.09, 0.03, back - seat - 0.2, material)]


def table(rng: np.random.Generator) -> list[Part]:
    material, height = wood(rng, (0.45, 0.7)), rng.uniform(0.7, 0.78)
    if rng.random() < 0.35:
        across = rng.uniform(0.9, 1.3)
        foot = box(0, 0, 0, across * 0.5, across * 0.5, 0.05, material, "cylinder")
        stem = box(0, 0, 0.05, 0.12, 0.12, height - 0.1, material, "cylinder")
        return [foot, stem, box(0, 0, height - 0.05, across, across, 0.05, material, "cylinder")]
    width, depth = rng.uniform(1.0, 1.8), rng.uniform(0.7, 1.0)
    return legs(width, depth, height - 0.05, 0.08, material) + [box(0, 0, height - 0.05, width, depth, 0.05, material)]


def bed(rng: np.random.Generator) -> list[Part]:
    width, depth, head, frame = rng.uniform(1.0, 1.8), rng.uniform(1.95, 2.15), rng.uniform(0.85, 1.15), wood(rng, (0.3, 0.6))
    sheet = plain((0.92, 0.91, 0.88))
    color = shade(rng, (0.88, 0.98), (0.35, 0.65), (0.7, 0.95))
    blanket = Material(color, scaled(color, 0.75), ("plain", "checker", "stripes", "dots")[rng.integers(4)], 0.5)
    parts = [box(0, 0.03, 0.08, width, depth - 0.06, 0.22, frame), box(0, -depth / 2 + 0.03, 0, width, 0.06, head, frame)]
    parts += [box(0, 0.03, 0.3, width - 0.06, depth - 0.12, 0.2, sheet)]
    parts += [box(0, 0.32, 0.34, width - 0.01, depth - 0.66, 0.19, blanket)]
    pillows = (-0.25, 0.25) if width > 1.3 else (0.0,)
    return parts + [box(x * width, -depth / 2 + 0.3, 0.5, min(0.6, width * 0.42), 0.36, 0.11, sheet) for x in pillows]


def wardrobe(rng: np.random.Generator) -> list[Part]:
    width, depth, height = rng.uniform(0.95, 1.7), rng.uniform(0.55, 0.65), rng.uniform(1.85, 2.2)
    color = shade(rng, (0.08, 0.13), (0.12, 0.35), (0.7, 0.92))
    body, door = plain(scaled(color, 0.75)), Material(color, scaled(color, 0.9), "grain", 0.9)
    count = 2 if width < 1.35 else 3
    parts = [box(0, -0.02, 0, width, depth - 0.04, height, body)]
    for k in range(count):
        x = (k - (count - 1) / 2) * width / count
        parts.append(box(x, depth / 2 - 0.03, 0.08, width / count - 0.03, 0.02, height - 0.12, door))
        parts.append(
            box(x + (0.35 if k % 2 == 0 else -0.35) * width / count, depth / 2 - 0.01, 0.95, 0.03, 0.02, 0.25, plain(METAL))
        )
    return parts


def cabinet(rng: np.random.Generator) -> list[Part]:
    width, depth, height = rng.uniform(0.8, 1.5), rng.uniform(0.4, 0.5), rng.uniform(0.75, 1.0)
    color = shade(rng, (0.44, 0.52), (0.3, 0.6), (0.45, 0.75))
    body, front = plain(scaled(color, 0.75)), plain(color)
    columns, rows = (2 if width < 1.2 else 3), int(rng.integers(2, 4))
    parts = [
        box(0, -0.02, 0.06, width, depth - 0.04, height - 0.06, body),
        box(0, -0.03, 0, width - 0.1, depth - 0.12, 0.06, body),
    ]
    for k in range(columns * rows):
        x = (k % columns - (columns - 1) / 2) * width / columns
        tall = (height - 0.12) / rows
        z = 0.09 + (k // columns) * tall
        parts.append(box(x, depth / 2 - 0.035, z, width / columns - 0.04, 0.03, tall - 0.03, front))
        parts.append(box(x, depth / 2 - 0.01, z + tall / 2, 0.1, 0.02, 0.025, plain((0.9, 0.85, 0.6))))
    return parts


def bookshelf(rng: np.random.Generator) -> list[Part]:
    width, depth, height = rng.uniform(0.7, 1.2), rng.uniform(0.28, 0.36), rng.uniform(1.5, 2.05)
    frame, shelves = wood(rng, (0.28, 0.42)), 5 if height > 1.75 else 4
    parts = [box(sign * (width - 0.03) / 2, 0, 0, 0.03, depth, height, frame) for sign in (-1, 1)]
    parts.append(box(0, -depth / 2 + 0.01, 0, width - 0.06, 0.02, height, frame))
    parts += [box(0, 0, k * (height - 0.03) / shelves, width - 0.06, depth, 0.03, frame) for k in range(shelves + 1)]
    gap = (height - 0.03) / shelves
    for k in range(shelves):
        first = shade(rng, (0.0, 1.0), (0.5, 0.8), (0.5, 0.9))
        second = shade(rng, (0.0, 1.0), (0.4, 0.8), (0.3, 0.9))
        books = Material(first, second, "books", 0.8, (rng.random(), 0.0))
        filled = rng.uniform(0.6, 0.98) * (width - 0.06)
        x = (width - 0.06 - filled) / 2 * (-1) ** int(rng.integers(2))
        parts.append(box(x, -0.02, k * gap + 0.03, filled, depth - 0.1, gap * rng.uniform(0.62, 0.8), books))
    return parts


def lamp(rng: np.random.Generator) -> list[Part]:
    height, across = rng.uniform(1.4, 1.75), rng.uniform(0.32, 0.45)
    metal, cone = plain((0.2, 0.2, 0.22)), plain(shade(rng, (0.12, 0.16), (0.3, 0.6), (0.95, 1.0)), glow=0.75)
    tall = rng.uniform(0.26, 0.36)
    base, pole = (
        box(0, 0, 0, 0.28, 0.28, 0.04, metal, "cylinder"),
        box(0, 0, 0.04, 0.035, 0.035, height - tall, metal, "cylinder"),
    )
    return [base, pole, box(0, 0, height - tall, across, across, tall, cone, "shade")]


def desk(rng: np.random.Generator) -> list[Part]:
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.58, 0.72), rng.uniform(0.71, 0.77)
    color = shade(rng, (0.1, 0.14), (0.2, 0.4), (0.75, 0.9))
    top, side = Material(color, scaled(color, 0.8), "grain", 0.8), plain(scaled(color, 0.6))
    drawers = width * 0.3
    parts = [
        box(0, 0, height - 0.04, width, depth, 0.04, top),
        box(-width / 2 + 0.03, 0, 0, 0.04, depth - 0.04, height - 0.04, side),
    ]
    parts.append(box((width - drawers) / 2 - 0.02, 0, 0, drawers, depth - 0.06, height - 0.04, side))
    parts.append(box(0, -depth / 2 + 0.05, 0.3, width - 0.1, 0.02, height - 0.34, side))
    for k in range(3):
        tall = (height - 0.1) / 3
        parts.append(
            box((width - drawers) / 2 - 0.02, depth / 2 - 0.025, 0.04 + k * tall, drawers - 0.04, 0.02, tall - 0.03, top)
        )
    return parts


def stool(rng: np.random.Generator) -> list[Part]:
    across, height = rng.uniform(0.34, 0.42), rng.uniform(0.45, 0.7)
    seat = plain(shade(rng, (0.74, 0.82), (0.45, 0.75), (0.5, 0.8)))
    inner = across * 0.78
    return legs(inner, inner, height - 0.06, 0.04, wood(rng, (0.3, 0.6))) + [
        box(0, 0, height - 0.06, across, across, 0.06, seat, "cylinder")
    ]


def plant(rng: np.random.Generator) -> list[Part]:
    pot, height = rng.uniform(0.28, 0.42), rng.uniform(0.7, 1.5)
    clay = plain(shade(rng, (0.03, 0.06), (0.5, 0.7), (0.55, 0.75)))
    color = shade(rng, (0.27, 0.38), (0.55, 0.85), (0.35, 0.65))
    leaves = Material(color, scaled(color, 0.5), "leaves", 0.5, (rng.random(), rng.random()))
    parts = [
        box(0, 0, 0, pot, pot, pot * 0.9, clay, "pot"),
        box(0, 0, pot * 0.8, 0.05, 0.05, height * 0.5, wood(rng, (0.3, 0.4)), "cylinder"),
    ]
    crown, low = rng.uniform(0.4, 0.6), pot * 1.1
    for k in range(4):
        angle, big = k * np.pi / 2 + rng.uniform(-0.4, 0.4), crown * rng.uniform(0.65, 0.9)
        z = low + (height - low - big) * (k / 3 if height - low > big else 0)
        parts.append(box(0.12 * np.cos(angle), 0.12 * np.sin(angle), max(z, low * 0.8), big, big, big, leaves, "sphere"))
    return parts


def tv(rng: np.random.Generator) -> list[Part]:
    width, depth, low, screen = rng.uniform(1.2, 1.7), rng.uniform(0.36, 0.44), rng.uniform(0.38, 0.5), rng.uniform(0.9, 1.25)
    tall, board = screen * 0.58, plain(shade(rng, (0.55, 0.65), (0.05, 0.2), (0.25, 0.4)))
    bezel = plain((0.06, 0.06, 0.07))
    glass = Material((0.10, 0.13, 0.22), (0.25, 0.33, 0.48), "painting", 1.5, (rng.random(), rng.random()), glow=0.25)
    parts = [
        box(0, 0, 0, width, depth, low, board),
        box(0, -0.05, low, 0.3, 0.16, 0.03, bezel),
        box(0, -0.06, low, 0.08, 0.05, 0.12, bezel),
    ]
    parts += [
        box(0, -0.06, low + 0.08, screen, 0.06, tall, bezel),
        box(0, -0.025, low + 0.11, screen - 0.06, 0.012, tall - 0.06, glass),
    ]
    front = plain((0.5, 0.5, 0.53))
    return parts + [
        box(sign * width / 4, depth / 2 + 0.005, 0.05, width / 2 - 0.05, 0.01, low - 0.1, front) for sign in (-1, 1)
    ]


def toilet(rng: np.random.Generator) -> list[Part]:
    width, depth = rng.uniform(0.36, 0.42), rng.uniform(0.64, 0.72)
    white, lid = plain((0.95, 0.95, 0.96)), plain((0.8, 0.84, 0.88))
    bowl = depth - 0.2
    parts = [box(0, -depth / 2 + 0.09, 0.34, width, 0.18, 0.42, white), box(0, -depth / 2 + 0.09, 0.76, width, 0.18, 0.03, lid)]
    parts += [
        box(0, (depth - bowl) / 2, 0, width, bowl, 0.4, white, "bowl"),
        box(0, -0.12, 0, width * 0.55, depth * 0.55, 0.36, white),
    ]
    return parts + [box(0, (depth - bowl) / 2, 0.4, width, bowl, 0.035, lid, "cylinder")]


def sink(rng: np.random.Generator) -> list[Part]:
    width, depth, height = rng.uniform(0.5, 0.7), rng.uniform(0.42, 0.52), rng.uniform(0.8, 0.9)
    white, hollow = plain((0.93, 0.94, 0.96)), plain((0.42, 0.5, 0.56))
    parts = [box(0, -0.06, 0, 0.2, 0.2, height - 0.16, white, "cylinder"), box(0, 0, height - 0.18, width, depth, 0.16, white)]
    parts.append(box(0, 0.04, height - 0.018, width * 0.78, depth * 0.66, 0.006, hollow, "cylinder"))
    tap = [
        box(0, -depth / 2 + 0.06, height - 0.02, 0.035, 0.035, 0.2, plain(METAL)),
        box(0, -depth / 2 + 0.12, height + 0.15, 0.035, 0.15, 0.03, plain(METAL)),
    ]
    return parts + tap


def trash_bin(rng: np.random.Generator) -> list[Part]:
    across, height = rng.uniform(0.26, 0.36), rng.uniform(0.32, 0.55)
    color = shade(rng, (0.17, 0.22), (0.45, 0.8), (0.5, 0.8))
    inside = box(0, 0, height - 0.004, across * 0.86, across * 0.86, 0.005, plain((0.1, 0.1, 0.1)), "cylinder")
    return [box(0, 0, 0, across, across, height - 0.002, Material(color, scaled(color, 0.7), "stripes", 0.2), "pot"), inside]


@dataclass(frozen=True)
class Kind:
    """How a class is built and placed: against a wall or free, how often, and how many of it a room may hold."""

    build: Callable[[np.random.Generator], list[Part]]
    wall: bool
    weight: float
    most: int


FURNITURE: dict[str, Kind] = {
    "sofa": Kind(sofa, True, 1.0, 2), "chair": Kind(chair, False, 1.6, 4), "table": Kind(table, False, 1.2, 2),
    "bed": Kind(bed, True, 0.8, 2), "wardrobe": Kind(wardrobe, True, 0.8, 2), "cabinet": Kind(cabinet, True, 1.0, 3),
    "bookshelf": Kind(bookshelf, True, 1.0, 3), "lamp": Kind(lamp, False, 1.0, 3), "desk": Kind(desk, True, 0.9, 2),
    "stool": Kind(stool, False, 1.0, 4), "plant": Kind(plant, False, 1.0, 3), "tv": Kind(tv, True, 0.9, 1),
    "toilet": Kind(toilet, True, 0.6, 1), "sink": Kind(sink, True, 0.6, 2), "trash bin": Kind(trash_bin, False, 0.8, 2),
}  # fmt: skip
