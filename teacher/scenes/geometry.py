"""Plane geometry of furniture: closest points between oriented boxes, turning angles, free walking lines.

First link of scenes -> questions: every spatial ground truth (distances, directions, routes) is computed here.
Boxes stand upright: they turn about world +z only, so a distance splits exactly into a footprint and a height part.

    python -m pytest tests/teacher/test_scene_geometry.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from teacher.scenes.clip import SceneObject

STRIDE = 0.1  # metres between the points at which a walking line is checked
_CORNER_SIGNS = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def _axes(box: SceneObject) -> np.ndarray:
    """(2,2) float64: rows are the box's own x and y axis in world x, y."""
    cosine, sine = math.cos(box.yaw), math.sin(box.yaw)
    return np.array([[cosine, sine], [-sine, cosine]])


def footprint(box: SceneObject) -> np.ndarray:
    """Corners of the box seen from above: (4,2) float64, world metres, counter-clockwise."""
    return np.asarray(box.center[:2]) + (_CORNER_SIGNS * np.asarray(box.size[:2]) / 2) @ _axes(box)


def distance_to_footprint(points: np.ndarray, box: SceneObject) -> np.ndarray:
    """Distance in metres from points (N,2) to the footprint, 0 inside: (N,) float64."""
    local = (np.asarray(points, dtype=np.float64) - np.asarray(box.center[:2])) @ _axes(box).T
    outside = np.maximum(np.abs(local) - np.asarray(box.size[:2]) / 2, 0.0)
    return np.hypot(outside[:, 0], outside[:, 1])


def _overlap(a: SceneObject, b: SceneObject) -> bool:
    """Separating-axis test of two footprints; touching counts as overlap."""
    corners_a, corners_b = footprint(a), footprint(b)
    for axis in (*_axes(a), *_axes(b)):
        shadow_a, shadow_b = corners_a @ axis, corners_b @ axis
        if shadow_a.max() < shadow_b.min() or shadow_b.max() < shadow_a.min():
            return False
    return True


def footprint_distance(a: SceneObject, b: SceneObject) -> float:
    """Metres between the closest points of two footprints, 0 when they overlap.

    Exact: two disjoint convex polygons are closest at a corner of one of them.
    """
    if _overlap(a, b):
        return 0.0
    return float(min(distance_to_footprint(footprint(a), b).min(), distance_to_footprint(footprint(b), a).min()))


def box_distance(a: SceneObject, b: SceneObject) -> float:
    """Metres between the closest points of two upright oriented boxes (VSI-Bench's rule), 0 when they touch or overlap."""
    gap = abs(a.center[2] - b.center[2]) - (a.size[2] + b.size[2]) / 2
    return math.hypot(footprint_distance(a, b), max(gap, 0.0))


def ground_distance(a: SceneObject, b: SceneObject) -> float:
    """Metres between the two box centres in the floor plane."""
    return math.hypot(a.center[0] - b.center[0], a.center[1] - b.center[1])


def turn_angle(at: SceneObject, facing: SceneObject, toward: SceneObject) -> float:
    """Degrees in (-180, 180] one turns at `at`, first facing `facing`, to face `toward`; positive is to the left.

    Uses box centres in the floor plane; world +z is up, so left is counter-clockwise seen from above.
    """
    first = math.atan2(facing.center[1] - at.center[1], facing.center[0] - at.center[0])
    second = math.atan2(toward.center[1] - at.center[1], toward.center[0] - at.center[0])
    return 180.0 - (180.0 - math.degrees(second - first)) % 360.0


def line_is_free(start: SceneObject, end: SceneObject, others: Iterable[SceneObject], clearance: float) -> bool:
    """True if the straight line between two box centres keeps `clearance` metres from every footprint in `others`."""
    count = math.ceil(ground_distance(start, end) / STRIDE) + 2
    line = np.linspace(start.center[:2], end.center[:2], count)
    return all(distance_to_footprint(line, box).min() >= clearance for box in others)
