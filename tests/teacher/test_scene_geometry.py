"""Distances, turns and visibility behind the questions, against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from teacher.scenes.evidence import Evidence
from teacher.scenes.geometry import box_distance, distance_to_footprint, footprint, line_is_free, turn_angle
from teacher.scenes.questions_vsi import HARD, MEDIUM, sector
from tests.teacher.painted import box, painted


def test_geometry_axis_aligned_boxes_measure_faces_edges_and_heights():
    a = box(1, "a", (0, 0, 0.5), size=(1, 1, 1))
    assert box_distance(a, box(2, "b", (3, 0, 0.5), size=(1, 1, 1))) == pytest.approx(2.0)
    assert box_distance(a, box(2, "b", (4, 5, 0.5), size=(1, 1, 1))) == pytest.approx(5.0)  # edge to edge, 3-4-5
    assert box_distance(a, box(2, "b", (4, 0, 5.5), size=(1, 1, 1))) == pytest.approx(5.0)  # 3 across, 4 up
    assert box_distance(a, box(2, "b", (0.2, 0, 2.5), size=(1, 1, 1))) == pytest.approx(1.0)  # stacked with a gap
    assert box_distance(a, box(2, "b", (1, 0, 0.5), size=(1, 1, 1))) == 0.0


def test_geometry_rotated_boxes():
    tilted = box(1, "a", (0, 0, 0.5), size=(1, 1, 1), yaw=math.pi / 4)
    # A corner of the tilted square points along +x: at sqrt(1/2); the other's face is at 2.5.
    assert box_distance(tilted, box(2, "b", (3, 0, 0.5), size=(1, 1, 1))) == pytest.approx(2.5 - math.sqrt(0.5))
    # Two tilted squares on the diagonal look at one another with their faces.
    diagonal = box(2, "b", (3, 3, 0.5), size=(1, 1, 1), yaw=math.pi / 4)
    assert box_distance(tilted, diagonal) == pytest.approx(3 * math.sqrt(2) - 1)
    # A cross of two bars overlaps although no corner lies inside the other.
    bar = box(1, "bar", (0, 0, 0.5), size=(4, 0.2, 1), yaw=0.4)
    assert box_distance(bar, box(2, "bar", (0, 0, 0.5), size=(4, 0.2, 1), yaw=0.4 + math.pi / 2)) == 0.0


def test_geometry_distance_agrees_with_dense_sampling():
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (box(i, "x", tuple(rng.uniform(-2, 2, 3)), tuple(rng.uniform(0.2, 1.5, 3)), rng.uniform(-3, 3)) for i in (1, 2))
        clouds = []
        for item in (a, b):
            corners = footprint(item)
            u, v = (axis.ravel()[:, None] for axis in np.meshgrid(np.linspace(0, 1, 25), np.linspace(0, 1, 25)))
            clouds.append(corners[0] + u * (corners[1] - corners[0]) + v * (corners[3] - corners[0]))
        flat = np.linalg.norm(clouds[0][:, None] - clouds[1][None], axis=-1).min()
        gap = max(abs(a.center[2] - b.center[2]) - (a.size[2] + b.size[2]) / 2, 0)
        assert box_distance(a, b) == pytest.approx(math.hypot(flat, gap), abs=0.05)
        assert box_distance(a, b) == pytest.approx(box_distance(b, a))


def test_geometry_turns_are_positive_to_the_left():
    at, north = box(1, "at", (1, 1, 0)), box(2, "north", (1, 3, 0))
    assert turn_angle(at, north, box(3, "west", (-1, 1, 0))) == pytest.approx(90)
    assert turn_angle(at, north, box(3, "east", (3, 1, 0))) == pytest.approx(-90)
    assert turn_angle(at, north, box(3, "south", (1, -2, 0))) == pytest.approx(180)
    assert turn_angle(at, north, box(3, "north-east", (2, 2, 0))) == pytest.approx(-45)


def test_geometry_sectors_leave_out_what_is_ambiguous():
    assert [sector(angle, MEDIUM) for angle in (90, -90, 180, -175, 134, 3)] == ["left", "right", "back", "back", None, None]
    quadrants = ["front-left", "back-left", "back-right", "front-right"]
    assert [sector(angle, HARD) for angle in (45, 135, -135, -45)] == quadrants
    assert [sector(angle, HARD) for angle in (5, 88, 178, -92)] == [None] * 4


def test_geometry_free_line():
    a, b, post = box(1, "a", (0, 0, 0)), box(2, "b", (4, 0, 0)), box(3, "post", (2, 0.6, 0), size=(0.4, 0.4, 1))
    assert distance_to_footprint(np.array([[2.0, 0.0]]), post)[0] == pytest.approx(0.4)
    assert line_is_free(a, b, [post], clearance=0.3)
    assert not line_is_free(a, b, [post], clearance=0.5)


def test_evidence_measures_a_painted_rectangle():
    clip = painted((box(7, "chair", (0, 0, 0)),), [{7: (slice(18, 22), slice(30, 34), 2.0)}])
    (sighting,) = Evidence(clip).in_view(0)
    assert sighting.share == pytest.approx(16 / 1600)
    assert sighting.column == pytest.approx(32 / 40)
    # Columns 30..33 have slopes 10.5..13.5 / 40, rows +-0.5 and +-1.5 / 40; the median of 16 ray lengths, by hand:
    slopes = [(x / 40, y / 40) for x in (10.5, 11.5, 12.5, 13.5) for y in (-1.5, -0.5, 0.5, 1.5)]
    lengths = [2 * math.sqrt(1 + x**2 + y**2) for x, y in slopes]
    assert sighting.distance == pytest.approx(np.median(lengths), abs=1e-5)
    assert (sighting.near, sighting.far) == (2.0, 2.0)


def test_evidence_names_only_what_is_single_and_visible():
    objects = (box(1, "chair", (0, 0, 0)), box(2, "chair", (1, 0, 0)), box(3, "table", (2, 0, 0)), box(4, "bed", (3, 0, 0)))
    big, small = (slice(0, 8), slice(0, 8)), (slice(30, 31), slice(30, 32))  # 64 and 2 of 1600 pixels: seen, ambiguous
    clip = painted(objects, [{1: (*big, 2.0), 2: (*small, 3.0), 3: (slice(10, 20), slice(10, 20), 3.0)}, {1: (*big, 2.0)}])
    evidence = Evidence(clip)
    assert [sight.object.id for sight in evidence.in_view(0)] == [3]  # a glimpse of the second chair spoils "the chair"
    assert [sight.object.id for sight in evidence.in_view(1)] == [1]
    assert [item.id for item in evidence.visible] == [1, 3]
    assert [item.id for item in evidence.unique()] == [3]  # a second chair exists, the bed is nowhere seen
    assert set(evidence.categories()) == {"table"}  # chairs cannot be counted: one is not visible


def test_evidence_first_views_need_a_clear_entrance():
    objects = (box(1, "chair", (0, 0, 0)), box(2, "bed", (1, 0, 0)))
    big, sliver = (slice(0, 8), slice(0, 8)), (slice(20, 22), slice(20, 22))  # the sliver is 0.25 %: between unseen and seen
    clip = painted(objects, [{2: (*sliver, 3.0)}, {1: (*big, 2.0), 2: (slice(20, 30), slice(20, 30), 3.0)}])
    assert Evidence(clip).first_views() == {"chair": 1}


def test_evidence_ignores_objects_without_depth():
    clip = painted((box(1, "chair", (0, 0, 0)),), [{1: (slice(0, 8), slice(0, 8), 0.0)}])
    assert Evidence(clip).in_view(0) == []
