"""Triangles with everything the shader needs: unit boxes, cylinders and spheres, placed, turned and coloured.

Part of the room renderer: furniture and rooms are lists of `Part`, `build_mesh` turns them into flat tables per triangle.

    python -c "from teacher.scenes.mesh import unit_shape; print(unit_shape('cylinder').points.shape)"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from .textures import TILE, texture_bank

Color = tuple[float, float, float]
Vector = tuple[float, float, float]

SEGMENTS = 14  # round enough at 128 pixels
RADII = {"cylinder": (0.5, 0.5), "shade": (0.5, 0.3), "pot": (0.36, 0.5), "bowl": (0.28, 0.5)}


@dataclass(frozen=True)
class Material:
    """A surface: two sRGB colours in 0..1 mixed by a texture.

    Attributes:
        tile: metres per repeat of the texture; 0 stretches one repeat over the face.
        shift: where in the tile the surface starts, so that two pictures differ.
        glow: light the surface sends out by itself, relative to its colour.
    """

    color: Color
    second: Color
    texture: str = "plain"
    tile: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    glow: float = 0.0


@dataclass(frozen=True)
class Part:
    """A unit shape scaled to `size` metres around `center`, in the frame of the thing it belongs to."""

    shape: str
    center: Vector
    size: Vector
    material: Material


@dataclass(frozen=True)
class Shape:
    """Template in [-0.5, 0.5]: points and normals (n, 3, 3), uv (n, 3, 2), axes (n, 2) whose extents scale u and v."""

    points: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    axes: np.ndarray


@dataclass(frozen=True)
class Mesh:
    """Per-triangle tables, columns ordered for row-wise gathers.

    Attributes:
        points: float32 (n, 3, 3) world metres.
        surface: float32 (3 * 5, n): normal and uv at the first vertex, then their change along u, then along v.
        paint: float32 (8, n): linear colour (3), change to the second colour (3), glow, texels per metre.
        texture: int32 (n,);  owner: int16 (n,) object id.
    """

    points: np.ndarray
    surface: np.ndarray
    paint: np.ndarray
    texture: np.ndarray
    owner: np.ndarray


def _quads(corners: np.ndarray) -> np.ndarray:
    """(n, 4, k) corner values to (2n, 3, k) triangles."""
    return np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])


def _box() -> Shape:
    points, normals, uv, axes = [], [], [], []
    for axis in range(3):
        first, second = [a for a in range(3) if a != axis]
        for sign in (-0.5, 0.5):
            quad = np.zeros((4, 3))
            quad[:, axis] = sign
            quad[:, [first, second]] = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
            points.append(quad)
            normals.append(np.tile(2 * sign * np.eye(3)[axis], (4, 1)))
            uv.append(quad[:, [first, second]])
            axes.append((first, second))
    return Shape(_quads(np.array(points)), _quads(np.array(normals)), _quads(np.array(uv)), np.array(axes * 2))


def _tube(bottom: float, top: float) -> Shape:
    """Cylinder or frustum with caps; u runs along the arc."""
    angle = 2 * np.pi * np.arange(SEGMENTS + 1) / SEGMENTS
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    slope = bottom - top
    sides, sides_n, sides_uv, caps, caps_n, caps_uv = [], [], [], [], [], []
    for k in range(SEGMENTS):
        pair = ((k, bottom, -0.5), (k + 1, bottom, -0.5), (k + 1, top, 0.5), (k, top, 0.5))
        sides.append([(*(ring[i] * r), z) for i, r, z in pair])
        sides_n.append([(*ring[i], slope) for i, _, _ in pair])
        sides_uv.append([(angle[i] / 2, z) for i, _, z in pair])
        for radius, z in ((bottom, -0.5), (top, 0.5)):
            triangle = [(0.0, 0.0, z), (*(ring[k] * radius), z), (*(ring[k + 1] * radius), z)]
            caps.append(triangle)
            caps_n.append([(0.0, 0.0, 2 * z)] * 3)
            caps_uv.append([p[:2] for p in triangle])
    points = np.concatenate([_quads(np.array(sides)), np.array(caps)])
    normals = np.concatenate([_quads(np.array(sides_n)), np.array(caps_n)])
    uv = np.concatenate([_quads(np.array(sides_uv)), np.array(caps_uv)])
    axes = np.array([(0, 2)] * (2 * SEGMENTS) + [(0, 1)] * (2 * SEGMENTS))
    return Shape(points, normals, uv, axes)


def _sphere() -> Shape:
    rows = 7
    around = 2 * np.pi * np.arange(SEGMENTS + 1) / SEGMENTS
    up = np.pi * np.arange(rows + 1) / rows
    points, uv = [], []
    for i in range(rows):
        for k in range(SEGMENTS):
            corners = ((i, k), (i + 1, k), (i + 1, k + 1), (i, k + 1))
            points.append(
                [(np.sin(up[a]) * np.cos(around[b]), np.sin(up[a]) * np.sin(around[b]), np.cos(up[a])) for a, b in corners]
            )
            uv.append([(around[b] / 2, up[a] / 2) for a, b in corners])
    normals = _quads(np.array(points))
    return Shape(normals / 2, normals, _quads(np.array(uv)), np.tile((0, 2), (len(normals), 1)))


@cache
def unit_shape(name: str) -> Shape:
    """Template by name: "box", "sphere", or one of `RADII`."""
    if name == "box":
        return _box()
    return _sphere() if name == "sphere" else _tube(*RADII[name])


def bounds(parts: Iterable[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest corner (3,) of the parts in their own frame."""
    low = np.min([np.subtract(p.center, np.multiply(p.size, 0.5)) for p in parts], axis=0)
    high = np.max([np.add(p.center, np.multiply(p.size, 0.5)) for p in parts], axis=0)
    return low, high


def _part_tables(part: Part, yaw: float, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """World points (n, 3, 3), normals (n, 3, 3) and uv (n, 3, 2) of one part."""
    shape, size, material = unit_shape(part.shape), np.array(part.size), part.material
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
    points = (shape.points * size + np.array(part.center)) @ turn + origin
    normals = (shape.normals / size) @ turn
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    if material.tile > 0:
        uv = shape.uv * (size[shape.axes] / material.tile)[:, None, :] + np.array(material.shift)
    else:
        uv = shape.uv + 0.5
    return points, normals, uv


def build_mesh(things: Iterable[tuple[int, float, np.ndarray, Iterable[Part]]]) -> Mesh:
    """Flat tables for (owner id, yaw, origin (3,), parts) of every thing in the scene."""
    points, attributes, paint, texture, owner = [], [], [], [], []
    names = texture_bank().names
    for number, yaw, origin, parts in things:
        for part in parts:
            where, normals, uv = _part_tables(part, yaw, origin)
            material, count = part.material, len(where)
            color, second = np.square(material.color), np.square(material.second)  # gamma 2: the shader ends with a square root
            density = TILE / (material.tile or max(part.size))
            points.append(where)
            attributes.append(np.concatenate([normals, uv], axis=-1))
            paint.append(np.tile([*color, *(second - color), material.glow, density], (count, 1)))
            texture.append(np.full(count, names[material.texture], np.int32))
            owner.append(np.full(count, number, np.int16))
    corner = np.concatenate(attributes)
    surface = np.concatenate([corner[:, 0], corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]], axis=1)
    return Mesh(
        points=np.ascontiguousarray(np.concatenate(points), np.float32),
        surface=np.ascontiguousarray(surface.T, np.float32),
        paint=np.ascontiguousarray(np.concatenate(paint).T, np.float32),
        texture=np.concatenate(texture),
        owner=np.concatenate(owner),
    )
