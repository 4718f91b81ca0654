"""3D probes: golden VEGA-3D values, a wall whose geometry is known by hand, and what no score may be fooled by."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import consistency, correspondence, schema
from bench.correspondence import recall_statistics, unit
from bench.geometry import CellGeometry
from bench.probes import METRICS, evaluate
from teacher.scenes.clip import PosedClip
from vega_artifact import UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "bench" / "feature_probes.json").read_text())
SIZE, FOCAL, GRID = 32, 20.0, 8
CELL = (
    2.0 * (SIZE / GRID) / FOCAL
)  # 0.4 m: width of a cell on a wall 2 m away, so right answers are a cell and its 4 neighbours


def wall(scene_id="wall", shifts=(0.0, CELL), depth=2.0):
    """Frames of a wall straight ahead, the camera stepping sideways along it; `depth` may be an image."""
    frames = len(shifts)
    poses = np.tile(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]]), (frames, 1, 1))
    poses[:, 0, 3] = shifts
    return PosedClip(
        scene_id=scene_id,
        rgb=np.zeros((frames, SIZE, SIZE, 3), np.uint8),
        depth=np.broadcast_to(np.float32(depth), (frames, SIZE, SIZE)).astype(np.float32),
        intrinsics=np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]]),
        camera_to_world=poses,
        frame_ids=np.arange(frames),
    )


def surface_tokens(steps, channels=64, seed=0):
    """(T, N, C): a random vector for every 0.4 m of wall, so the same place looks the same from everywhere."""
    paint = np.random.default_rng(seed).normal(size=(GRID, GRID + max(steps), channels)).astype(np.float32)
    return np.stack([paint[:, step : step + GRID].reshape(-1, channels) for step in steps])


def to_maps(tokens):
    return tokens.transpose(0, 2, 1).reshape(len(tokens), -1, GRID, GRID)


# geometry


def test_cells_of_a_wall():
    geometry = CellGeometry.of(wall(), GRID, GRID)
    assert geometry.valid.all() and geometry.log_depth == pytest.approx(np.log(2))
    assert geometry.mean_xyz[0, 0] == pytest.approx([-1.4, 2.0, 1.4], abs=1e-6)  # upper left cell; 3.2 m of wall, world z up
    assert geometry.mean_xyz[1, 0] == pytest.approx([-1.0, 2.0, 1.4], abs=1e-6)


def test_visible_correspondences_by_hand():
    geometry = CellGeometry.of(wall(), GRID, GRID)
    assert len(geometry.queries) == 2 * 8 * 7  # one column of each view is out of sight of the other
    first = geometry.queries[:, 0] == 0
    assert sorted(set(geometry.queries[first, 1] % GRID)) == [1, 2, 3, 4, 5, 6, 7]
    middle = np.flatnonzero((geometry.queries == [0, 3 * GRID + 4, 1]).all(1))[0]
    here = 3 * GRID + 3
    assert np.flatnonzero(geometry.right[middle]).tolist() == [here - GRID, here - 1, here, here + 1, here + GRID]
    assert not geometry.far.any()
    assert CellGeometry.of(wall(shifts=(0, 2 * CELL)), GRID, GRID).far.all()


def test_occluded_and_unknown_places_are_not_asked():
    clip = wall(shifts=(0.0, 0.0))
    clip.depth[1, :16] = 1.0  # something stands before the upper half of the wall in the second view
    geometry = CellGeometry.of(clip, GRID, GRID)
    assert (geometry.queries[:, 1] >= 4 * GRID).all() and len(geometry.queries) == 2 * 32
    clip.depth[1, :16] = 0.0
    geometry = CellGeometry.of(clip, GRID, GRID)
    assert (geometry.queries[:, 1] >= 4 * GRID).all() and not geometry.candidates[1, : 4 * GRID].any()
    assert np.isnan(geometry.log_depth[1, : 4 * GRID]).all() and geometry.valid[0].all()


def test_mean_log_depth_ignores_unknown_pixels():
    clip = wall(shifts=(0.0,))
    clip.depth[0, :4, :4] = [[1, 0, 0, 0], [4, 0, 0, 0], [0] * 4, [0] * 4]  # 2 of 16 pixels known: above a tenth
    clip.depth[0, :4, 4:8] = [[1, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]  # 1 of 16: below
    geometry = CellGeometry.of(clip, GRID, GRID)
    assert geometry.log_depth[0, 0] == pytest.approx(np.log(2)) and not geometry.valid[0, 1]


# correspondence


def test_identical_features_in_both_views_score_one():
    geometry = CellGeometry.of(wall(shifts=(0, CELL, 2 * CELL)), GRID, GRID)
    tokens = surface_tokens((0, 1, 2))
    for centre in (None, tokens.mean((0, 1))):
        everything, far, _ = recall_statistics(tokens, geometry, centre)
        assert everything[0] == everything[1] == len(geometry.queries) and far[0] == far[1] == 2 * 8 * 6
    assert consistency.scene_consistency(tokens, geometry)[0] == pytest.approx([1, 1], abs=1e-6)


def test_staying_at_the_same_cell_is_no_far_match():
    geometry = CellGeometry.of(wall(shifts=(0, 2 * CELL)), GRID, GRID)
    position = np.tile(np.eye(GRID * GRID, dtype=np.float32), (2, 1, 1))
    assert recall_statistics(position, geometry)[correspondence.FAR].tolist() == [0, 2 * 8 * 6]


def test_chance_by_hand_and_what_scores_it():
    geometry = CellGeometry.of(wall(), GRID, GRID)
    chance = (
        1 + 1.75 + 13 / 7
    ) / 64  # a cell, its upper and lower neighbours, its left and right ones in seven of eight columns
    constant = np.full((2, 64, 16), 3.7, dtype=np.float32)
    for tokens, centre in ((np.zeros_like(constant), None), (constant, None), (constant, constant.mean((0, 1)))):
        everything, _, random = recall_statistics(tokens, geometry, centre)
        assert everything[0] / everything[1] == pytest.approx(chance) and random[0] / random[1] == pytest.approx(chance)
    rng = np.random.default_rng(0)
    runs = [recall_statistics(rng.normal(size=(2, 64, 64)), geometry)[0] for _ in range(60)]
    assert np.mean([hits / queries for hits, queries in runs]) == pytest.approx(chance, abs=0.01)


def test_a_common_offset_changes_raw_but_not_centred_scores():
    geometry = CellGeometry.of(wall(), GRID, GRID)
    tokens = surface_tokens((0, 1)) + np.random.default_rng(1).normal(size=(2, 64, 64)).astype(np.float32)
    moved = tokens + 50
    centred = [recall_statistics(t, geometry, t.mean((0, 1), dtype=np.float64)) for t in (tokens, moved)]
    assert centred[0].tolist() == centred[1].tolist()
    voxel = [consistency.scene_consistency(t, geometry, t.mean((0, 1), dtype=np.float64))[0, 0] for t in (tokens, moved)]
    assert voxel[0] == pytest.approx(voxel[1], abs=1e-4) and voxel[0] == pytest.approx(0.5, abs=0.1)
    assert consistency.scene_consistency(moved, geometry)[0, 0] > 0.99  # why the raw score is no evidence
    assert consistency.scene_consistency(moved, geometry)[1, 0] > 0.99  # and what the control says about it


def test_answers_are_the_cells_that_look_alike():
    geometry = CellGeometry.of(wall(), GRID, GRID)
    cells = correspondence.answers(surface_tokens((0, 1)), geometry)
    forward = geometry.queries[:, 0] == 0
    assert (cells[forward] == geometry.queries[forward, 1] - 1).all()
    assert (cells[~forward] == geometry.queries[~forward, 1] + 1).all()


# voxel consistency


def golden_pair():
    case = GOLDEN["voxel_correspondence"][0]
    flat = {key: np.array(case[key], dtype=np.float32).reshape(196, -1) for key in ("feat_i", "feat_j", "xyz_i", "xyz_j")}
    valid = [np.array(case[key]).reshape(196).astype(bool) for key in ("valid_i", "valid_j")]
    return case, flat, valid


def test_golden_voxel_correspondence():
    case, flat, valid = golden_pair()
    found = consistency.pair_consistency(
        unit(flat["feat_i"]), unit(flat["feat_j"]), flat["xyz_i"], flat["xyz_j"], *valid, case["voxel_size"]
    )
    expected = case["expected"]
    assert found.score == pytest.approx(expected["score"], abs=1e-5)
    assert (found.shared, found.voxels) == (expected["num_voxels_with_pairs"], expected["num_voxels_total"])
    similarity = np.array(expected["map_i"], dtype=np.float32).reshape(-1)
    assert found.similarity_i == pytest.approx(similarity, abs=1e-5, nan_ok=True)


def test_golden_mutual_matching():
    case, flat, valid = golden_pair()
    expected = case["expected"]["matching_sim_ge_0.6_mutual"]
    found = consistency.mutual_matches(flat["feat_i"], flat["feat_j"], *valid, threshold=0.6)
    assert [int(mask.sum()) for mask in valid] == [expected["num_valid_i"], expected["num_valid_j"]]
    assert len(found.cells_i) == expected["num_selected"]
    assert (
        len(consistency.mutual_matches(flat["feat_i"], flat["feat_j"], *valid, threshold=-1).cells_i) == expected["num_mutual"]
    )
    assert found.similarity.mean() == pytest.approx(expected["mean_sim"], abs=1e-5)
    distance = np.linalg.norm(flat["xyz_i"][found.cells_i] - flat["xyz_j"][found.cells_j], axis=1)
    assert distance.mean() == pytest.approx(expected["mean_world_dist"], abs=1e-5)
    nothing = consistency.mutual_matches(flat["feat_i"], flat["feat_j"], valid[0], np.zeros(196, bool))
    assert len(nothing.cells_i) == 0


def test_independent_features_are_not_consistent_and_zeros_do_not_crash():
    geometry = CellGeometry.of(wall(shifts=(0, CELL, 2 * CELL)), GRID, GRID)
    tokens = np.random.default_rng(2).normal(size=(3, 64, 256))
    assert consistency.scene_consistency(tokens, geometry)[:, 0] == pytest.approx([0, 0], abs=0.02)
    assert consistency.scene_consistency(np.zeros((3, 64, 8)), geometry)[:, 0].tolist() == [0, 0]
    apart = CellGeometry.of(wall(shifts=(0, 50.0)), GRID, GRID)
    assert consistency.scene_consistency(tokens[:2], apart).tolist() == [[0, 0], [0, 0]]


# the whole


def rooms(count, start, seed=0):
    """Walls at varying distance, lower rows nearer, so that position alone explains a part of the depth."""
    rng = np.random.default_rng([seed, start])
    slope = np.linspace(1.3, 0.7, SIZE)[:, None]
    return [wall(f"room{start + i}", (0.0, 0.3), rng.uniform(1.5, 3) * slope) for i in range(count)]


@pytest.fixture(scope="module")
def splits():
    return rooms(12, 0), rooms(4, 100), rooms(6, 200)


@pytest.fixture(scope="module")
def features(splits):
    """Models that know the depth, know nothing, are zero, and know it with noise."""
    models = {"teacher": {}, "teacher_random": {}, "semantic": {}, "student_exported": {}, "raw_patches": {}}
    for index, clip in enumerate(clip for split in splits for clip in split):
        rng = np.random.default_rng(index)
        depth = np.log(clip.depth).reshape(2, GRID, 4, GRID, 4).mean((2, 4))
        noise = rng.normal(size=(2, 6, GRID, GRID))
        know = np.concatenate([depth[:, None], noise], axis=1)
        models["teacher"][clip.scene_id] = know
        models["student_exported"][clip.scene_id] = know + 0.05 * rng.normal(size=know.shape)
        models["teacher_random"][clip.scene_id] = rng.normal(size=(2, 5, GRID, GRID)).astype(np.float16)
        models["semantic"][clip.scene_id] = np.zeros((2, 3, GRID, GRID), np.float32)
        models["raw_patches"][clip.scene_id] = know + 0.3 * rng.normal(size=know.shape)
    return models


@pytest.fixture(scope="module")
def result(features, splits):
    return evaluate(features, *splits)


def row_of(rows, **wanted):
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_depth_probe_reads_depth_and_zeros_leave_position_only(result):
    known = row_of(result["probes"], model="teacher", metric="depth_r2")
    assert known["value"] > 0.999 and known["scenes"] == 6
    assert row_of(result["probes"], model="teacher", metric="depth_delta1")["value"] == 1
    position = result["extras"]["semantic"]["position_r2"]["value"]
    assert 0 < position < 0.8
    assert row_of(result["probes"], model="semantic", metric="depth_r2")["value"] == pytest.approx(position)
    assert row_of(result["probes"], model="teacher_random", metric="depth_r2")["value"] == pytest.approx(position, abs=0.05)
    assert result["extras"]["teacher"]["strength"] < result["extras"]["teacher_random"]["strength"]


def test_zeros_score_chance(result):
    for name in ("correspondence_recall", "correspondence_recall_centred"):
        chance = result["extras"]["semantic"]["correspondence_chance"]["value"]
        assert row_of(result["probes"], model="semantic", metric=name)["value"] == pytest.approx(chance)


def test_paired_rows(result):
    better = row_of(result["paired"], metric="depth_r2", a="teacher", b="teacher_random")
    assert better["low"] > 0 and better["n"] == 6 and better["task"] is None
    values = [row_of(result["probes"], model=name, metric="depth_r2")["value"] for name in ("teacher", "teacher_random")]
    assert better["difference"] == pytest.approx(values[0] - values[1])
    kept = row_of(result["retained"], metric="depth_r2")
    student, teacher, raw = (
        row_of(result["probes"], model=name, metric="depth_r2")["value"]
        for name in ("student_exported", "teacher", "raw_patches")
    )
    assert kept["value"] == pytest.approx((student - raw) / (teacher - raw))


def test_rows_fit_the_schema_of_the_report(result):
    assert {row["metric"] for row in result["probes"]} == set(METRICS) == set(schema.METRICS)
    for name in ("probes", "paired"):
        schema.check_rows(result[name], schema.ROWS[name], name)


def test_per_scene_values_cover_the_test_rooms(result, splits):
    values = result["per_scene"]["correspondence_recall"]["teacher"]
    assert list(values) == [clip.scene_id for clip in splits[2]]


def test_depth_scores_ignore_offset_and_scale(result, features, splits):
    shifted = {"teacher": {scene: 7 * maps - 40 for scene, maps in features["teacher"].items()}}
    again = evaluate(shifted, *splits, draws=100)
    for metric in ("depth_r2", "depth_delta1", "correspondence_recall_centred", "voxel_consistency_centred"):
        first, second = (row_of(found["probes"], model="teacher", metric=metric)["value"] for found in (result, again))
        assert second == pytest.approx(first, abs=1e-3), metric


def test_single_frames_have_depth_but_no_correspondence():
    clips = [wall(f"s{i}", (0.0,), 1.5 + 0.2 * i) for i in range(7)]
    maps = {"teacher": {clip.scene_id: np.full((1, 2, GRID, GRID), np.log(clip.depth.mean())) for clip in clips}}
    found = evaluate(maps, clips[:3], clips[3:5], clips[5:], draws=100)
    assert {row["metric"] for row in found["probes"]} == {"depth_r2", "depth_delta1"}
    assert set(found["missing"]) == set(METRICS) - {"depth_r2", "depth_delta1"}


def test_models_may_have_grids_of_their_own(features, splits):
    coarse = {scene: maps.reshape(2, -1, 4, 2, 4, 2).mean((3, 5)) for scene, maps in features["teacher"].items()}
    found = evaluate({"teacher": features["teacher"], "semantic": coarse}, *splits, draws=100)
    assert row_of(found["probes"], model="semantic", metric="depth_r2")["value"] > 0.99


def test_bad_input_is_named(features, splits):
    train, val, test = splits
    teacher = features["teacher"]

    def with_scene(scene, value):
        return {"teacher": {**teacher, scene: value}}

    absent = {"teacher": {scene: maps for scene, maps in teacher.items() if scene != "room201"}}
    good = teacher["room0"]
    for models, message in (
        ({}, "no model given"),
        (absent, r"teacher has no features for scene room201 \(test\)"),
        (with_scene("room0", good[:1]), r"scene room0: \(2, C, gh, gw\) expected"),
        (with_scene("room0", np.full_like(good, np.nan)), "room0: features hold NaN"),
        (with_scene("room0", good[:, :3]), "different"),
        ({"teacher": {s: m if s in {c.scene_id for c in train} else m[:, :3] for s, m in teacher.items()}}, "different size"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(models, train, val, test)
    with pytest.raises(UserError, match="scene room0 is in train and in test"):
        evaluate({"teacher": teacher}, train, val, [*test, train[0]])
    with pytest.raises(UserError, match="val split has no scenes"):
        evaluate({"teacher": teacher}, train, [], test)
    with pytest.raises(UserError, match="at least 2 scenes"):
        evaluate({"teacher": teacher}, train, val, test[:1])


def test_clips_without_geometry_or_with_too_few_pixels(features, splits):
    train, val, test = splits
    video = PosedClip("video", test[0].rgb, None, None, None, test[0].frame_ids)
    maps = {**features["teacher"], "video": features["teacher"]["room200"]}
    with pytest.raises(UserError, match="scene video: world points need depth"):
        evaluate({"teacher": maps}, train, val, [*test, video])
    with pytest.raises(UserError, match="finer than its 32x32 depth"):
        CellGeometry.of(test[0], 64, 64)
