"""What belongs to the building: walls, floor, ceiling, skirting, doors, windows, pictures and rugs.

Part of the procedural rooms. Doors, windows and pictures are built flat against y = 0, looking along +y.

    python -c "import numpy as np; from teacher.scenes.fixtures import window; print(len(window(np.random.default_rng(0))))"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .furniture import METAL, box, plain, scaled, shade, wood
from .mesh import Material, Part

THICK = 0.1  # walls are boxes outside the room that overlap at the edges, so that no ray escapes


@dataclass(frozen=True)
class Surface:
    """Materials of one room's structure; `walls` has one for each of the four."""

    walls: tuple[Material, Material, Material, Material]
    floor: Material
    ceiling: Material
    skirting: Material

    @staticmethod
    def draw(rng: np.random.Generator) -> Surface:
        """Three like walls and often a fourth that differs, a floor, a light ceiling."""
        main = _wall(rng)
        walls = [main] * 4
        if rng.random() < 0.5:
            walls[int(rng.integers(4))] = _wall(rng)
        white = float(rng.uniform(0.9, 0.99))
        pale = plain((white, white, white * 0.98), contrast=0.9)
        trim = plain((0.9, 0.9, 0.88)) if rng.random() < 0.5 else wood(rng, (0.3, 0.5))
        return Surface((walls[0], walls[1], walls[2], walls[3]), _floor(rng), pale, trim)


def _wall(rng: np.random.Generator) -> Material:
    color = shade(rng, (0.0, 1.0), (0.05, 0.3), (0.68, 0.92))
    texture = str(rng.choice(["plain", "noise", "stripes", "brick", "dots", "tiles"], p=[0.35, 0.2, 0.15, 0.12, 0.08, 0.1]))
    if texture == "brick":
        return Material(shade(rng, (0.02, 0.06), (0.35, 0.55), (0.55, 0.7)), (0.78, 0.76, 0.72), "brick", 1.2)
    tile = {"stripes": 1.2, "dots": 0.9, "tiles": 1.4}.get(texture, 1.5)
    return Material(color, scaled(color, 0.86), texture, tile, (float(rng.random()), float(rng.random())))


def _floor(rng: np.random.Generator) -> Material:
    kind = str(rng.choice(["wood", "checker", "tiles", "noise"], p=[0.45, 0.15, 0.2, 0.2]))
    if kind == "wood":
        color = shade(rng, (0.06, 0.11), (0.35, 0.6), (0.5, 0.8))
        return Material(color, scaled(color, 0.6), "wood", 1.3)
    color = shade(rng, (0.0, 1.0), (0.05, 0.3), (0.5, 0.8))
    contrast = {"checker": 0.62, "tiles": 0.75, "noise": 0.75}[kind]
    return Material(color, scaled(color, contrast), kind, {"checker": 1.2, "tiles": 1.6, "noise": 0.8}[kind])


def shell(surface: Surface, size: tuple[float, float, float]) -> list[Part]:
    """Structure of a room of `size` metres, in world coordinates."""
    x, y, height = size
    wide, deep = x + 2 * THICK, y + 2 * THICK
    parts = [box(0, 0, -THICK, wide, deep, THICK, surface.floor), box(0, 0, height, wide, deep, THICK, surface.ceiling)]
    tall = height + 2 * THICK
    for k, (wall, sign) in enumerate(zip(surface.walls, (-1, 1, 1, -1), strict=True)):
        if k % 2 == 0:
            parts.append(box(0, sign * (y + THICK) / 2, -THICK, wide, THICK, tall, wall))
            parts.append(box(0, sign * (y / 2 - 0.01), 0, x, 0.02, 0.09, surface.skirting))
        else:
            parts.append(box(sign * (x + THICK) / 2, 0, -THICK, THICK, deep, tall, wall))
            parts.append(box(sign * (x / 2 - 0.01), 0, 0, 0.02, y, 0.09, surface.skirting))
    return parts


def door(rng: np.random.Generator) -> list[Part]:
    width, height = rng.uniform(0.85, 1.0), rng.uniform(2.0, 2.12)
    leaf = wood(rng, (0.35, 0.6)) if rng.random() < 0.6 else plain(shade(rng, (0.3, 0.65), (0.2, 0.5), (0.4, 0.7)))
    frame, inset = plain((0.92, 0.92, 0.9)), plain(scaled(leaf.color, 0.72))
    parts = [box(0, 0, 0, width, 0.05, height, leaf), box(0.4 * width, 0.045, 1.0, 0.04, 0.04, 0.14, plain(METAL))]
    parts += [box(0, 0.028, z, width * 0.6, 0.01, height * 0.34, inset) for z in (height * 0.1, height * 0.55)]
    parts += [box(sign * (width / 2 + 0.04), 0, 0, 0.08, 0.07, height + 0.08, frame) for sign in (-1, 1)]
    return parts + [box(0, 0, height, width, 0.07, 0.08, frame)]


def window(rng: np.random.Generator) -> list[Part]:
    width, height = rng.uniform(0.9, 1.8), rng.uniform(0.9, 1.25)
    frame = plain((0.96, 0.96, 0.95))
    sky = Material((0.72, 0.86, 1.0), (0.95, 0.98, 1.0), "noise", 2.5, (float(rng.random()), 0.0), glow=0.45)
    parts = [box(0, 0, 0, width, 0.03, height, sky)]
    parts += [box(sign * (width - 0.06) / 2, 0.01, 0, 0.06, 0.07, height, frame) for sign in (-1, 1)]
    parts += [box(0, 0.01, z, width, 0.07, 0.06, frame) for z in (0.0, height - 0.06)]
    bars = 1 if width < 1.3 else 2
    parts += [box((k + 1) * width / (bars + 1) - width / 2, 0.01, 0, 0.04, 0.05, height, frame) for k in range(bars)]
    return parts + [box(0, 0.03, -0.04, width + 0.1, 0.12, 0.04, frame)]


def picture(rng: np.random.Generator) -> list[Part]:
    width, height = rng.uniform(0.4, 0.95), rng.uniform(0.4, 0.75)
    first, second = shade(rng, (0, 1), (0.4, 0.9), (0.5, 0.95)), shade(rng, (0, 1), (0.3, 0.9), (0.2, 0.95))
    canvas = Material(first, second, str(rng.choice(["painting", "checker", "stripes", "dots"], p=[0.7, 0.1, 0.1, 0.1])), 0.7,
                      (float(rng.random()), float(rng.random())))  # fmt: skip
    frame = wood(rng, (0.2, 0.4)) if rng.random() < 0.6 else plain((0.12, 0.12, 0.13))
    return [box(0, 0, 0, width, 0.03, height, frame), box(0, 0.017, 0.04, width - 0.08, 0.006, height - 0.08, canvas)]


def rug(rng: np.random.Generator, most: float) -> list[Part]:
    """One flat slab centred on the origin, its longer side at most `most` metres or 2.6."""
    width = rng.uniform(1.2, max(1.3, min(2.6, most)))
    depth = width * rng.uniform(0.55, 0.9)
    color, second = shade(rng, (0, 1), (0.3, 0.7), (0.4, 0.75)), shade(rng, (0, 1), (0.1, 0.5), (0.6, 0.9))
    texture = str(rng.choice(["frame", "stripes", "checker", "noise"], p=[0.5, 0.2, 0.1, 0.2]))
    return [box(0, 0, 0, width, depth, 0.015, Material(color, second, texture, 0.0 if texture == "frame" else 0.6))]
