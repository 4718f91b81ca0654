"""Questions from ground truth: hand-computed geometry, answers re-derived from painted views, faulty files."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from teacher.scenes.clip import PosedClip, SceneObject
from teacher.scenes.evidence import Evidence
from teacher.scenes.geometry import box_distance, distance_to_footprint, footprint, line_is_free, turn_angle
from teacher.scenes.questions import (
    CHOICE_TYPES,
    LADDER_TYPES,
    NUMERIC_TYPES,
    VSI_TYPES,
    load_questions,
    procedural_questions,
    scanqa_prompt,
    vsi_prompt,
    write_questions,
)
from teacher.scenes.questions_ladder import plural
from teacher.scenes.questions_vsi import HARD, MEDIUM, sector
from vega_artifact import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "bench"
ROOT = Path(__file__).parents[2]
VSI_OK = {
    "id": 1,
    "dataset": "arkitscenes",
    "scene_name": "s",
    "question_type": "route_planning",
    "question": "Which way?",
    "options": ["A. Turn Left", "B. Turn Right"],
    "ground_truth": "A",
}
SIDE = 40  # pixels; focal length 40 as well, so a pixel's ray has slope (pixel + 0.5 - 20) / 40


def box(number: int, name: str, center: tuple[float, float, float], size=(0.5, 0.5, 0.8), yaw: float = 0.0) -> SceneObject:
    return SceneObject(id=number, name=name, center=center, size=size, yaw=yaw)


def painted(objects: tuple[SceneObject, ...], views: list[dict[int, tuple[slice, slice, float]]], scene="painted") -> PosedClip:
    """A clip whose view t shows object i as the rectangle (rows, columns) at constant depth; a wall 9 m away elsewhere."""
    instances = np.zeros((len(views), SIDE, SIDE), dtype=np.int16)
    depth = np.full((len(views), SIDE, SIDE), 9.0, dtype=np.float32)
    for t, view in enumerate(views):
        for number, (rows, columns, metres) in view.items():
            instances[t, rows, columns], depth[t, rows, columns] = number, metres
    return PosedClip(
        scene_id=scene,
        rgb=np.zeros((len(views), SIDE, SIDE, 3), dtype=np.uint8),
        depth=depth,
        intrinsics=np.array([[40.0, 0, 20], [0, 40.0, 20], [0, 0, 1]]),
        camera_to_world=np.tile(np.eye(4), (len(views), 1, 1)),
        frame_ids=np.arange(len(views)),
        instances=instances,
        objects=objects,
        room_size=(4.0, 5.0, 2.5),
    )


FURNITURE = (
    box(1, "chair", (1.0, 1.0, 0.4)),
    box(2, "table", (3.0, 1.1, 0.4), yaw=0.3),
    box(3, "lamp", (3.1, 3.0, 0.9), size=(0.3, 0.3, 1.8)),
    box(4, "bed", (1.1, 3.2, 0.3), size=(1.0, 1.2, 0.6)),
    box(5, "picture", (2.0, 4.9, 1.6), size=(0.6, 0.04, 0.5)),
    box(6, "stool", (0.5, 2.2, 0.25), size=(0.3, 0.3, 0.5)),
    box(7, "stool", (3.6, 2.2, 0.25), size=(0.3, 0.3, 0.5)),
    box(8, "rug", (2.2, 2.2, 0.01), size=(1.6, 1.2, 0.02)),
)


def room(scene: str = "painted") -> PosedClip:
    """Eight objects over five views; object 1 and 2 change sides and order, first views are all clear."""
    tile = [(slice(2 + 13 * r, 12 + 13 * r), slice(1 + 13 * c, 11 + 13 * c)) for r in range(3) for c in range(3)]
    views = [
        {1: (*tile[0], 2.0), 2: (*tile[2], 4.0)},
        {1: (*tile[2], 5.0), 2: (*tile[0], 3.0), 3: (*tile[4], 1.5)},
        {4: (*tile[3], 2.5), 3: (*tile[5], 3.5), 6: (*tile[7], 2.0)},
        {5: (*tile[1], 4.5), 4: (*tile[6], 1.8), 7: (*tile[8], 2.2), 6: (*tile[3], 4.0)},
        {8: (*tile[7], 2.6), 5: (*tile[2], 3.3), 1: (*tile[3], 1.2)},
    ]
    return painted(FURNITURE, views, scene)


# ---- geometry -------------------------------------------------------------------------------------------------------------


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
            u, v = (axis.ravel()[:, None] for axis in np.meshgrid(np.linspace(0, 1, 41), np.linspace(0, 1, 41)))
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


# ---- evidence -------------------------------------------------------------------------------------------------------------


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


def test_clip_without_ground_truth_is_refused():
    clip = PosedClip("video", np.zeros((2, 8, 8, 3), dtype=np.uint8), None, None, None, np.arange(2), None)
    with pytest.raises(UserError, match=r"video.*instances, depth"):
        procedural_questions(clip)


# ---- the ladder -----------------------------------------------------------------------------------------------------------


def test_ladder_covers_every_type_in_the_scanqa_schema():
    records = procedural_questions(room(), "scanqa")
    assert {record["type"] for record in records} == set(LADDER_TYPES)
    assert [record["question_id"] for record in records] == [f"val-painted-{k}" for k in range(len(records))]
    for record in records:
        assert set(record) == {"scene_id", "question_id", "question", "answers", "object_ids", "object_names", "type"}
        assert record["object_names"] == [FURNITURE[number - 1].name for number in record["object_ids"]]
        assert all(name in record["question"] or plural(name) in record["question"] for name in record["object_names"])


def test_ladder_answers_follow_from_the_painted_views():
    clip, ids = room(), {item.name: item.id for item in FURNITURE}
    told = Counter()
    for seed in range(5):
        for record in procedural_questions(clip, "scanqa", seed=seed):
            kind, answer, names = record["type"], record["answers"][0], record["object_names"]
            view = re.match(r"In view (\d)", record["question"])
            if view and len(names) == 2:
                masks = [clip.instances[int(view[1]) - 1] == number for number in record["object_ids"]]
                depth = [clip.depth[int(view[1]) - 1][mask].mean() for mask in masks]
                column = [np.nonzero(mask)[1].mean() for mask in masks]
                expected = {
                    "nearer": names[int(depth[0] > depth[1])],
                    "left_of": "yes" if column[0] < column[1] else "no",
                    "in_front_of": "yes" if depth[0] < depth[1] else "no",
                }[kind]
            elif kind == "higher":
                expected = max(names, key=lambda name: FURNITURE[ids[name] - 1].center[2])
            elif kind == "first_seen":
                expected = min(names, key=lambda name: np.argmax((clip.instances == ids[name]).any(axis=(1, 2))))
            elif kind == "count":
                expected = str(sum(item.name == names[0] for item in FURNITURE))
            elif kind == "exists":
                expected = "yes" if names else "no"
            else:
                mask = clip.instances[int(view[1]) - 1] == record["object_ids"][0]
                flat = clip.depth[int(view[1]) - 1][mask].mean()
                assert flat - 0.05 <= float(answer) <= 1.25 * flat + 0.05  # a ray is up to 1.22 times its depth at 53 degrees
                continue
            assert answer == expected, record
            told[kind] += 1
    assert min(told.values()) >= 4


def test_ladder_asks_swapping_pairs_both_ways():
    """Chair and table change places between view 1 and 2, so classes alone must not give the answer away."""
    objects = FURNITURE[:2]
    left, right = (slice(0, 12), slice(0, 12)), (slice(0, 12), slice(28, 40))
    clip = painted(objects, [{1: (*left, 2.0), 2: (*right, 4.0)}, {1: (*right, 4.0), 2: (*left, 2.0)}])
    records = procedural_questions(clip, "scanqa")
    assert sorted(record["answers"][0] for record in records if record["type"] == "nearer") == ["chair", "table"]
    for kind in ("left_of", "in_front_of"):
        asked = [record for record in records if record["type"] == kind]
        assert sorted(record["answers"][0] for record in asked) == ["no", "yes"]
        assert len({record["question"][len("In view 1") :] for record in asked}) == 1


def test_ladder_leaves_out_what_is_too_close_to_call():
    left, middle = (slice(0, 12), slice(14, 18)), (slice(20, 32), slice(16, 20))
    clip = painted(FURNITURE[:2], [{1: (*left, 2.0), 2: (*middle, 2.2)}])
    types = {record["type"] for record in procedural_questions(clip, "scanqa")}
    assert types == {"camera_distance", "exists", "count"}


# ---- VSI-Bench ------------------------------------------------------------------------------------------------------------


def many_rooms(count: int) -> list[dict]:
    return [record for number in range(count) for record in procedural_questions(room(f"room-{number}"), "vsibench")]


def heading(start: str, end: str) -> np.ndarray:
    where = {item.name: np.array(item.center[:2]) for item in FURNITURE}
    return (where[end] - where[start]) / np.linalg.norm(where[end] - where[start])


def answer_text(record: dict) -> str:
    return record["options"]["ABCD".index(record["ground_truth"])][3:]


def test_vsi_covers_every_type_in_the_schema():
    records = procedural_questions(room())
    assert {record["question_type"] for record in records} == set(VSI_TYPES)
    assert len({record["id"] for record in records}) == len(records)
    for record in records:
        assert list(record) == ["id", "dataset", "scene_name", "question_type", "question", "options", "ground_truth"]
        assert isinstance(record["id"], int) and record["id"] < 2**53
        assert record["dataset"] == "procedural" and record["scene_name"] == "painted"
        if record["question_type"] in NUMERIC_TYPES:
            assert record["options"] is None and float(record["ground_truth"]) > 0
        else:
            assert [option[:3] for option in record["options"]] == ["A. ", "B. ", "C. ", "D. "][: len(record["options"])]
            assert len(set(record["options"])) == len(record["options"])


def test_vsi_numbers_are_true():
    by_name = {item.name: item for item in FURNITURE}
    for record in many_rooms(5):
        question, truth = record["question"], record["ground_truth"]
        if record["question_type"] == "object_counting":
            assert (question, truth) == ("How many stool(s) are in this room?", "2")
        elif record["question_type"] == "room_size_estimation":
            assert truth == "20.0"
        elif record["question_type"] == "object_size_estimation":
            assert (
                truth
                == {"chair": "80", "table": "80", "lamp": "180", "bed": "120", "picture": "60", "rug": "160"}[
                    re.search(r"of the (\w+), measured", question)[1]
                ]
            )
        elif record["question_type"] == "object_abs_distance":
            a, b = re.search(r"between the (\w+) and the (\w+) \(in meters\)", question).groups()
            assert truth == f"{box_distance(by_name[a], by_name[b]):.1f}" and float(truth) >= 0.3
    # Once without the code under test: lamp face at y 2.85, x 2.95..3.25; bed face at x 1.6, y 2.6..3.8.
    assert box_distance(by_name["lamp"], by_name["bed"]) == pytest.approx(2.95 - 1.6)


def test_vsi_directions_are_true():
    """Re-derived with dot and cross products instead of angles."""
    seen = Counter()
    for record in many_rooms(12):
        if not record["question_type"].startswith("object_rel_direction"):
            continue
        p, o, q = re.search(r"standing by the (\w+) and facing the (\w+), is the (\w+) to", record["question"]).groups()
        ahead, there = heading(p, o), heading(p, q)
        left, front = ahead[0] * there[1] - ahead[1] * there[0], float(ahead @ there)
        side = "left" if left > 0 else "right"
        expected = {
            "easy": side,
            "medium": "back" if front < math.cos(math.radians(135)) else side,
            "hard": f"{'front' if front > 0 else 'back'}-{side}",
        }[record["question_type"].rsplit("_", 1)[1]]
        assert answer_text(record) == expected, record
        seen[expected] += 1
    assert set(seen) == {"left", "right", "back", "front-left", "front-right", "back-left", "back-right"}


def test_vsi_routes_arrive():
    """Walk the route: each turn must bring the heading within 30 degrees of the next leg."""
    turn = {"Turn Left": np.array([[0, -1], [1, 0]]), "Turn Right": np.array([[0, 1], [-1, 0]]), "Turn Back": -np.eye(2)}
    lengths = Counter()
    for record in many_rooms(12):
        if record["question_type"] != "route_planning":
            continue
        robot = r"at the (\w+) and facing the (\w+)\. You want to navigate to the (\w+)\."
        start, facing, end = re.search(robot, record["question"]).groups()
        steps = re.findall(r"\d\. (\[please fill in\]|Go forward until the \w+)", record["question"].split("): ")[1])
        turns, at, ahead = iter(answer_text(record).split(", ")), start, heading(start, facing)
        for step in steps:
            if step.startswith("["):
                ahead = turn[next(turns)] @ ahead
            else:
                place = step.rsplit(" ", 1)[1]
                assert heading(at, place) @ ahead > math.cos(math.radians(30.1)), record
                ahead, at = heading(at, place), place
        assert at == end and next(turns, None) is None
        lengths[len(record["options"])] += 1
    assert lengths[3] and lengths[4]


def test_vsi_relative_distance_and_order_are_true():
    clip = room()
    first = {item.name: int(np.argmax((clip.instances == item.id).any(axis=(1, 2)))) for item in reversed(FURNITURE)}
    checked = Counter()
    for record in many_rooms(8):
        if record["question_type"] == "object_rel_distance":
            names = re.search(r"objects \((.*?)\)", record["question"])[1].split(", ")
            asked = re.search(r"closest to the (\w+)\?", record["question"])[1]
            target = next(item for item in FURNITURE if item.name == asked)
            near = {name: min(box_distance(item, target) for item in FURNITURE if item.name == name) for name in names}
            order = sorted(names, key=near.get)
            assert [option[3:] for option in record["options"]] == names
            assert answer_text(record) == order[0] and near[order[1]] - near[order[0]] >= 0.3
            assert ("multiple instances" in record["question"]) == ("stool" in names)
        elif record["question_type"] == "obj_appearance_order":
            names = answer_text(record).split(", ")
            views = [first[name] for name in names]
            assert views == sorted(set(views))
            assert all(sorted(option[3:].split(", ")) == sorted(names) for option in record["options"])
        else:
            continue
        checked[record["question_type"]] += 1
    assert min(checked.values()) >= 8


def test_answers_lean_to_no_letter():
    """A constant letter, or a constant yes, must score close to chance."""
    records = [record for record in many_rooms(60) if record["question_type"] in CHOICE_TYPES]
    for size in (2, 3, 4):
        letters = Counter(record["ground_truth"] for record in records if len(record["options"]) == size)
        total = sum(letters.values())
        spread = 3.5 * math.sqrt((1 / size) * (1 - 1 / size) / total)  # three and a half standard deviations
        assert total > 100 and all(abs(letters[letter] / total - 1 / size) < spread for letter in "ABCD"[:size]), letters
    ladder = [record for number in range(40) for record in procedural_questions(room(f"room-{number}"), "scanqa")]
    for kind in ("left_of", "in_front_of", "exists"):
        answers = Counter(record["answers"][0] for record in ladder if record["type"] == kind)
        assert abs(answers["yes"] / sum(answers.values()) - 0.5) < 0.1, (kind, answers)
    for kind in ("nearer", "higher", "first_seen"):
        named_first = [record["answers"][0] == record["object_names"][0] for record in ladder if record["type"] == kind]
        assert abs(np.mean(named_first) - 0.5) < 0.1, kind


# ---- determinism, limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["vsibench", "scanqa"])
def test_questions_depend_on_scene_and_seed_only(task):
    whole = procedural_questions(room(), task)
    assert procedural_questions(room(), task) == whole
    assert procedural_questions(room(), task, seed=1) != whole
    assert [r["question"] for r in procedural_questions(room("other"), task)] != [r["question"] for r in whole]
    assert procedural_questions(room(), task, limit=7) == whole[:7]
    kinds = [record.get("type") or record["question_type"] for record in whole[:8]]
    assert len(set(kinds)) == 8  # types take turns, so a limited set still has many


def test_questions_are_the_same_in_another_process():
    code = (
        "import sys, json; sys.path.insert(0, 'tests/teacher'); from test_questions import room, procedural_questions as ask; "
        "print(json.dumps([ask(room(), 'vsibench'), ask(room(), 'scanqa')]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONHASHSEED": "123"},
    )  # fmt: skip
    assert json.loads(found.stdout) == [procedural_questions(room(), task) for task in ("vsibench", "scanqa")]


def test_unknown_task_and_limit():
    with pytest.raises(UserError, match="vsibench"):
        procedural_questions(room(), "vsi")
    with pytest.raises(UserError, match="limit"):
        procedural_questions(room(), limit=-1)


# ---- prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_equal_the_benchmarks_own():
    for item in json.loads((GOLDEN / "vsibench.json").read_text())["prompts"]:
        for harness in item["expected_prompt"].values():
            for profile, text in harness.items():
                assert vsi_prompt(item["doc"], profile) == text
    corpus = json.loads((GOLDEN / "scanqa.json").read_text())["corpora"]["main"]
    converted = {item["id"]: item["conversations"][0]["value"] for item in corpus["converted"]["val_llava_style"]}
    asked = [case for case in corpus["cases"] if f"scanqa_{case['question_id']}_0" in converted]
    assert len(asked) >= 3
    for case in asked:
        assert scanqa_prompt(case) == converted[f"scanqa_{case['question_id']}_0"]


def test_numeric_prompts():
    record = {"question": "How many chair(s) are in this room?", "options": None}
    start = "These are frames of a video.\nHow many chair(s) are in this room?\n"
    assert vsi_prompt(record) == start + "Please answer the question using a single word or phrase."
    assert vsi_prompt(record, "gpt4v") == start + "Do not response anything other than a single number!"
    assert vsi_prompt(record, "neo_ov") == start + "Answer briefly and directly in one float number."
    with pytest.raises(UserError, match="neo_ov"):
        vsi_prompt(record, "neo")


# ---- files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "name"), [("vsibench", "q.jsonl"), ("vsibench", "q.json"), ("scanqa", "q.json")])
def test_written_questions_read_back(tmp_path, task, name):
    records = procedural_questions(room(), task)
    write_questions(tmp_path / name, records)
    assert load_questions(tmp_path / name) == records


def test_official_oddities_are_read(tmp_path):
    vsi = {
        **VSI_OK,
        "scene_name": 41069025,
        "question_type": "object_counting",
        "options": None,
        "ground_truth": "4",
        "pruned": True,
    }
    (tmp_path / "test.jsonl").write_text(json.dumps(vsi) + "\n\n")
    assert load_questions(tmp_path / "test.jsonl") == [{**vsi, "scene_name": "41069025"}]
    hidden = {"scene_id": "scene0707_00", "question_id": "test-scene0707-0", "question": "What color?", "object_id": [4]}
    (tmp_path / "test.json").write_text(json.dumps([hidden]))
    assert load_questions(tmp_path / "test.json")[0]["object_ids"] == [4]


SCANQA_OK = {"scene_id": "s", "question_id": "val-s-0", "question": "q", "answers": ["a"]}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "non-empty list"),
        ({"info": 1}, "non-empty list"),
        ([3], "record 0 is not an object"),
        ([SCANQA_OK, {"question_id": "val-s-1", "question": "q"}], "record 1 lacks scene_id"),
        ([SCANQA_OK, SCANQA_OK], "record 1 repeats question_id 'val-s-0' of record 0"),
        ([{**SCANQA_OK, "answers": []}], "record 0 has answers"),
        ([{**SCANQA_OK, "question_id": 5}], "record 0 has question_id 5"),
        ([VSI_OK, {**VSI_OK, "id": 2}, VSI_OK], "record 2 repeats id 1 of record 0"),
        ([{key: VSI_OK[key] for key in VSI_OK if key != "options"}], "record 0 lacks options"),
        ([{**VSI_OK, "question_type": "route"}], "unknown question_type 'route'; known: .*route_planning"),
        ([{**VSI_OK, "id": "1"}], "record 0 has id '1'"),
        ([{**VSI_OK, "ground_truth": "C"}], "ground_truth 'C'; one of A, B"),
        ([{**VSI_OK, "options": ["x", "y"]}], "record 0 has options"),
        ([{**VSI_OK, "question_type": "room_size_estimation", "ground_truth": "big"}], "ground_truth 'big'; a number"),
    ],
)
def test_faulty_records_are_named(tmp_path, records, message):
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=f"faulty.json: .*{message}"):
        load_questions(path)


def test_faulty_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no-such\.jsonl: no such file"):
        load_questions(tmp_path / "no-such.jsonl")
    (tmp_path / "cut.jsonl").write_text(json.dumps(VSI_OK) + '\n{"id": 2, "data')
    with pytest.raises(UserError, match=r"cut\.jsonl: line 2 is not valid JSON"):
        load_questions(tmp_path / "cut.jsonl")
    (tmp_path / "q.csv").write_text("id")
    with pytest.raises(UserError, match=r"q.csv: unknown kind"):
        load_questions(tmp_path / "q.csv")
    with pytest.raises(UserError, match=r"out.csv: questions are written as"):
        write_questions(tmp_path / "out.csv", [VSI_OK])
    (tmp_path / "q.parquet").write_bytes(b"not parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"q\.parquet: reading parquet needs pyarrow"):
        load_questions(tmp_path / "q.parquet")


def test_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records = procedural_questions(room())
    parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "q.parquet")
    assert load_questions(tmp_path / "q.parquet") == records
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"bad\.parquet: not a readable parquet"):
        load_questions(tmp_path / "bad.parquet")
