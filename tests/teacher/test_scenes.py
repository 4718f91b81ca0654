"""Procedural rooms and the clip: geometry that agrees with itself, determinism, disjoint splits, bad input."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from teacher.scenes import PosedClip, SceneObject, open_scenes
from teacher.scenes.camera import CLEARANCE
from teacher.scenes.furniture import FURNITURE
from teacher.scenes.procedural import ProceduralConfig, build_room, procedural_clip
from teacher.scenes.render import Caster
from teacher.scenes.rooms import FIXTURES, MAX_PIECES, MIN_PIECES, make_room
from teacher.scenes.textures import texture_bank
from vega_artifact import UserError

SOURCE = "procedural:test?count=6&size=64"


@pytest.fixture(scope="module")
def clips() -> list[PosedClip]:
    return list(open_scenes(SOURCE))


def digest(clip: PosedClip) -> str:
    arrays = (clip.rgb, clip.depth, clip.instances, clip.camera_to_world, clip.frame_ids)
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays) + repr(clip.objects).encode()).hexdigest()


def in_box(points: np.ndarray, thing: SceneObject) -> np.ndarray:
    """Distance of world points (N, 3) outside the object's box: 0 or less = inside."""
    offset = points - np.array(thing.center)
    cos, sin = np.cos(thing.yaw), np.sin(thing.yaw)
    local = np.stack([cos * offset[:, 0] + sin * offset[:, 1], -sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]], axis=1)
    return (np.abs(local) - np.array(thing.size) / 2).max(axis=1)


def separation(first: SceneObject, second: SceneObject) -> float:
    """Largest gap between two boxes over the separating axes; negative = they intersect."""
    a, b = first.corners(), second.corners()
    gaps = []
    for thing in (first, second):
        for angle in (thing.yaw, thing.yaw + np.pi / 2):
            axis = np.array([np.cos(angle), np.sin(angle), 0.0])
            gaps.append(max((b @ axis).min() - (a @ axis).max(), (a @ axis).min() - (b @ axis).max()))
    gaps.append(max(b[:, 2].min() - a[:, 2].max(), a[:, 2].min() - b[:, 2].max()))
    return max(gaps)


def reprojection(clip: PosedClip, source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat pixels of `source` that `target` sees too, as (source index, target index)."""
    height, width = clip.rgb.shape[1:3]
    pose = np.linalg.inv(clip.camera_to_world[target])
    local = clip.world_points()[source].reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]
    pixels = local @ clip.intrinsics.T
    column, row = (np.floor(pixels[:, k] / np.maximum(pixels[:, 2], 1e-6)) for k in (0, 1))
    inside = (pixels[:, 2] > 0.05) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    found = np.flatnonzero(inside)
    where = (row[found] * width + column[found]).astype(int)
    same = np.abs(clip.depth[target].ravel()[where] - local[found, 2]) < 0.04 * local[found, 2] + 0.02
    return found[same], where[same]


# --- rooms ---------------------------------------------------------------------------------------------------------


def test_every_pixel_has_exact_ground_truth(clips):
    for clip in clips:
        assert (clip.depth > 0).all()
        half = np.array([clip.room_size[0] / 2, clip.room_size[1] / 2, clip.room_size[2]])
        points = clip.world_points().reshape(-1, 3)
        assert (
            (np.abs(points[:, :2]) <= half[:2] + 1e-3).all()
            and (points[:, 2] > -1e-3).all()
            and (points[:, 2] < half[2] + 1e-3).all()
        )
        for thing in clip.objects:
            mine = points[clip.instances.ravel() == thing.id]
            assert len(mine) == 0 or in_box(mine, thing).max() < 2e-3, f"{clip.scene_id}: {thing.name}"
        structure = points[clip.instances.ravel() == 0]
        on_shell = np.minimum(
            np.abs(half[:2] - np.abs(structure[:, :2])).min(axis=1), np.minimum(structure[:, 2], half[2] - structure[:, 2])
        )
        assert on_shell.max() < 0.03  # walls, floor, ceiling, and 2 cm of skirting


def test_poses_are_upright_cameras_inside_free_space(clips):
    for clip in clips:
        rotation, place = clip.camera_to_world[:, :3, :3], clip.camera_to_world[:, :3, 3]
        np.testing.assert_allclose(
            rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-12
        )
        np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
        assert (rotation[:, 2, 1] < 0).all() and np.abs(rotation[:, 2, 0]).max() < 1e-12  # y looks down, never rolled
        assert 1.1 < place[:, 2].min() and place[:, 2].max() < 1.8
        for thing in clip.objects:
            if thing.name not in FIXTURES:
                assert in_box(place * (1, 1, 0) + (0, 0, thing.center[2]), thing).min() > 0.1


def test_neighbouring_frames_overlap_and_the_tour_sees_the_room(clips):
    shared, seen = [], []
    for clip in clips:
        pixels = clip.depth[0].size
        shared += [len(reprojection(clip, t, t + 1)[0]) / pixels for t in range(len(clip.rgb) - 1)]
        seen += [thing.id in clip.instances for thing in clip.objects if thing.name not in FIXTURES]
    assert 0.4 < np.mean(shared) < 0.65
    assert np.mean([0.25 < value < 0.8 for value in shared]) > 0.9
    assert np.mean(seen) > 0.9


def test_one_surface_point_looks_alike_from_two_frames(clips):
    errors, controls = [], []
    for clip in clips:
        source, target = reprojection(clip, 2, 3)
        first, second = clip.rgb[2].reshape(-1, 3).astype(float), clip.rgb[3].reshape(-1, 3).astype(float)
        errors.append(np.abs(first[source] - second[target]).mean())
        controls.append(np.abs(first - second).mean())
    assert np.mean(errors) < 0.3 * np.mean(controls)


def test_furniture_stands_on_the_floor_without_overlapping():
    counts, names, repeats = [], set(), 0
    for seed in range(40):
        room = make_room(np.random.default_rng(seed))
        boxes = [piece.described(number) for number, piece in enumerate(room.pieces, 1)]
        furniture = [box for box in boxes if box.name not in FIXTURES]
        counts.append(len(furniture))
        names |= {box.name for box in boxes}
        repeats += len({box.name for box in furniture}) < len(furniture)
        for box in boxes:
            corners = np.abs(box.corners())
            assert (corners[:, 0] <= room.size[0] / 2).all() and (corners[:, 1] <= room.size[1] / 2).all()
        for box in furniture:
            assert box.name in FURNITURE and abs(box.corners()[:, 2].min()) < 1e-9
        solid = [box for box in boxes if box.name != "rug"]
        for first, second in itertools.combinations(solid, 2):
            touching = 0.1 if {first.name, second.name} & set(FIXTURES) else 0.0  # a window sill may reach over a chair
            assert separation(first, second) > -touching, f"seed {seed}: {first.name} in {second.name}"
    assert (
        min(counts) >= MIN_PIECES - 1 and np.mean([count >= MIN_PIECES for count in counts]) > 0.9 and max(counts) <= MAX_PIECES
    )
    assert names == set(FURNITURE) | set(FIXTURES) and repeats > 10


def test_room_sizes_spread_over_the_whole_range():
    sizes = np.array([make_room(np.random.default_rng(seed)).size for seed in range(60)])
    assert (sizes[:, :2] >= 3).all() and (sizes[:, :2] <= 7).all() and (sizes[:, 2] >= 2.4).all() and (sizes[:, 2] <= 3).all()
    area = sizes[:, 0] * sizes[:, 1]
    assert np.percentile(area, 10) < 18 and np.percentile(area, 90) > 33


def test_shadow_needs_an_obstacle():
    room, caster, lighting, _ = build_room(ProceduralConfig("test"), 0)
    assert isinstance(caster, Caster)
    lamp = np.array([lighting.key.position], np.float32)
    up = np.array([[0, 0, 0.1]], np.float32)
    assert not caster.blocked(lamp, up)[0]
    assert caster.blocked(lamp, up + np.float32([0, 0, room.size[2]]))[0]  # the ceiling is in between


def test_texture_mip_levels_average_the_tile():
    bank = texture_bank()
    line = np.linspace(0, 1, 500, dtype=np.float32)
    for name, index in bank.names.items():
        texture = np.full(500, index, np.int32)
        fine = bank.sample(texture, line, line, np.ones(500, np.float32))
        coarse = bank.sample(texture, line, line, np.full(500, 1e6, np.float32))
        tile = bank.values[index * bank.stride : index * bank.stride + 256 * 256]
        assert 0 <= fine.min() and fine.max() <= 1
        np.testing.assert_allclose(coarse, tile.mean(), atol=1e-3, err_msg=name)


# --- determinism and splits ----------------------------------------------------------------------------------------


def test_same_bytes_again_and_in_a_fresh_process(clips):
    assert digest(open_scenes(SOURCE)[2]) == digest(clips[2])
    code = (
        "import sys; sys.path[:0] = ['.', 'tests/teacher']; from test_scenes import digest, SOURCE, open_scenes;"
        "print(digest(open_scenes(SOURCE)[2]))"
    )
    root = Path(__file__).parents[2]
    fresh = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert fresh.stdout.strip() == digest(clips[2])


def test_a_frame_does_not_depend_on_its_companions():
    whole = procedural_clip(ProceduralConfig("val", frames=900, size=8), 3)
    for config in (ProceduralConfig("val", size=8), ProceduralConfig("val", frames=17, span=0.2, size=8)):
        part = procedural_clip(config, 3)
        assert len(part.frame_ids) == config.frames and (np.diff(part.frame_ids) > 0).all()
        np.testing.assert_array_equal(part.rgb, whole.rgb[part.frame_ids])
        np.testing.assert_array_equal(part.depth, whole.depth[part.frame_ids])
        assert np.ptp(part.frame_ids) <= config.span * 900


def test_splits_and_seeds_never_share_a_room():
    sizes = {
        (split, seed, index): procedural_clip(ProceduralConfig(split, seed=seed, size=8, frames=1), index).room_size
        for split in ("train", "val", "test")
        for seed in (1, 2)
        for index in range(4)
    }
    assert len(set(sizes.values())) == len(sizes)


def test_count_and_size_leave_the_rooms_as_they_are(clips):
    other = open_scenes("procedural:test?count=3&size=32")
    assert other[2].objects == clips[2].objects and other[2].scene_id == clips[2].scene_id == "procedural-test-s1-00002"
    np.testing.assert_array_equal(other[2].camera_to_world, clips[2].camera_to_world)


# --- sources -------------------------------------------------------------------------------------------------------


def test_uri_is_resolved_and_identifies_the_content():
    source = open_scenes("procedural:test?size=64&count=6")
    assert source.uri == "procedural:test?count=6&seed=1&frames=8&size=64&span=1.0"
    assert source.fingerprint == open_scenes(source.uri).fingerprint == open_scenes(SOURCE).fingerprint
    assert source.fingerprint != open_scenes("procedural:test?size=64&count=6&seed=2").fingerprint
    assert len(source) == len(set(source.scene_ids)) == 6 and source[-1].scene_id == source.scene_ids[5]
    assert digest(pickle.loads(pickle.dumps(source))[0]) == digest(source[0])
    with pytest.raises(IndexError, match="6 scenes"):
        source[6]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("procedurl:test", "procedural.*Known: arkitscenes, folder, procedural, scannet, scannetpp, video"),
        ("test", "unknown kind of scenes"),
        ("procedural:tset", "Did you mean 'test'.*Known: test, train, val"),
        ("procedural:test?frame=3", "Did you mean 'frames'.*Known: count, frames, seed, size, span"),
        ("procedural:test?count=many", "count must be int, found 'many'"),
        ("procedural:test?count=2&count=3", "given twice"),
        ("procedural:test?count=0", "count >= 1"),
        ("procedural:test?span=1.5", "span <= 1"),
        ("procedural:test?span=nan", "span <= 1"),
        ("procedural:test?frames=200&span=0.1", "frames must be 1 to 90"),
        ("scannet:/no/such/folder", "no such folder"),
        ("video:/no/such/*.mp4", "no such video"),
        ("video:/no/such/*.mp4?frames=-1", "must not be negative"),
    ],
)
def test_bad_uri_names_what_is_known(uri, message):
    with pytest.raises(UserError, match=message):
        open_scenes(uri)


# --- the clip itself -----------------------------------------------------------------------------------------------


def test_resized_keeps_the_geometry(clips):
    clip, small = clips[0], clips[0].resized(32, 32)
    assert small.rgb.shape == (8, 32, 32, 3) and small.depth.shape == small.instances.shape == (8, 32, 32)
    np.testing.assert_allclose(small.intrinsics[:2], clip.intrinsics[:2] / 2)
    assert abs(small.rgb.mean() - clip.rgb.mean()) < 1  # averaged, not picked
    flat = np.ptp(clip.depth.reshape(8, 32, 2, 32, 2), axis=(2, 4)) < 0.02  # where nearest depth is good to 2 cm
    centre = clip.world_points().reshape(8, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert flat.mean() > 0.15 and np.abs(small.world_points() - centre)[flat].max() < 0.05
    assert clip.resized(64, 64) is clip and clip.resized(96, 80).rgb.shape == (8, 96, 80, 3)
    with pytest.raises(UserError, match="cannot resize"):
        clip.resized(0, 32)


def test_world_points_mark_unknown_depth(clips):
    depth = clips[0].depth.copy()
    depth[0, :5] = 0
    points = replace(clips[0], depth=depth).world_points()
    assert np.isnan(points[0, :5]).all() and np.isfinite(points[0, 5:]).all()
    with pytest.raises(UserError, match="no geometry"):
        replace(clips[0], depth=None).world_points()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intrinsics": None}, "depth without intrinsics"),
        ({"depth": np.full((8, 64, 64), np.nan, np.float32)}, "depth holds NaN"),
        ({"depth": np.full((8, 64, 64), -1, np.float32)}, "must not be negative"),
        ({"depth": np.zeros((8, 32, 32), np.float32)}, r"depth must be float32 \(8, 64, 64\)"),
        ({"camera_to_world": np.full((8, 4, 4), np.inf)}, "camera_to_world holds NaN or infinite"),
        ({"rgb": np.zeros((8, 64, 64, 3), np.float32)}, "rgb must be uint8"),
        ({"rgb": np.zeros((0, 64, 64, 3), np.uint8)}, "not empty"),
        ({"frame_ids": np.arange(7)}, "frame_ids"),
    ],
)
def test_inconsistent_clip_is_refused_by_name(clips, change, message):
    with pytest.raises(UserError, match=message) as caught:
        replace(clips[0], **change)
    assert "procedural-test-s1-00000" in str(caught.value)


def test_camera_clearance_is_what_the_walk_promises():
    room, _, _, walk = build_room(ProceduralConfig("test", seed=3), 1)
    place = walk.poses(np.linspace(0, 1, 50))[:, :3, 3]
    wall = np.minimum(room.size[0] / 2 - np.abs(place[:, 0]), room.size[1] / 2 - np.abs(place[:, 1]))
    assert wall.min() > CLEARANCE - 0.1
