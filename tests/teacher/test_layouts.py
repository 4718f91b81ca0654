"""Posed layouts of ScanNet, ScanNet++ and ARKitScenes: what is written reads back, real oddities are met, faults are named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from teacher.scenes import PosedClip, open_scenes
from teacher.scenes.arkitscenes import pose_at
from teacher.scenes.layout_writer import LAYOUTS, TURN, write_arkitscenes, write_scannet, write_scannetpp
from tests.teacher.painted import room
from vega_artifact import UserError

SOURCES = {"scannet": "scannet:{}/posed_images", "scannetpp": "scannetpp:{}", "arkitscenes": "arkitscenes:{}"}


@pytest.fixture(scope="module")
def clip() -> PosedClip:
    """Five frames from five places, 0.1 s apart in ARKit's clock, colours that survive JPEG."""
    painted = room("scene0001_00")
    poses = np.tile(np.eye(4), (5, 1, 1))
    poses[:, :3, :3] = Rotation.from_euler("zyx", [[0.3 * t, 0.1 * t, -0.2 * t] for t in range(5)]).as_matrix()
    poses[:, :3, 3] = [[t, 0.5 * t, 1.4] for t in range(5)]
    ramp = np.linspace(0, 200, 40)
    rgb = np.stack(
        [np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.full((40, 40), 40.0 * t)], -1) for t in range(5)]
    )
    return replace(painted, rgb=rgb.astype(np.uint8), camera_to_world=poses, frame_ids=np.arange(0, 50, 10))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_gives_back_what_was_written(tmp_path, clip, layout):
    LAYOUTS[layout](clip, tmp_path)
    LAYOUTS[layout](replace(clip, scene_id="scene0002_00"), tmp_path)
    source = open_scenes(f"{SOURCES[layout].format(tmp_path)}?frames=0")
    assert source.scene_ids == ("scene0001_00", "scene0002_00")
    read = source[0]
    np.testing.assert_array_equal(read.frame_ids, clip.frame_ids * (100 if layout == "arkitscenes" else 1))
    np.testing.assert_allclose(read.depth, clip.depth, atol=6e-4)
    np.testing.assert_allclose(read.camera_to_world, clip.camera_to_world, atol=1e-5)
    np.testing.assert_allclose(read.world_points(), clip.world_points(), atol=2e-3)
    assert np.abs(read.rgb.astype(int) - clip.rgb).mean() < 3
    few = open_scenes(f"{SOURCES[layout].format(tmp_path)}?frames=2&height=20")
    assert few[1].rgb.shape == (2, 20, 20, 3) and few.fingerprint != source.fingerprint


# --- ScanNet ---------------------------------------------------------------------------------------------------------


def test_scannet_worlds_are_turned_to_the_walls(tmp_path, clip):
    folder = write_scannet(clip, tmp_path)
    turned = Rotation.from_euler("z", -TURN).as_matrix() @ clip.camera_to_world[:, :3, :3]
    for uri in (f"folder:{folder}", f"scannet:{folder}?align=none"):
        np.testing.assert_allclose(open_scenes(uri)[0].camera_to_world[:, :3, :3], turned, atol=1e-5)
    aligned = open_scenes(f"scannet:{folder}?align=require")
    np.testing.assert_allclose(aligned[0].camera_to_world, clip.camera_to_world, atol=1e-5)
    text = tmp_path / "scans" / "scene0001_00" / "scene0001_00.txt"
    np.savetxt(folder / "axis_align_matrix.txt", np.eye(4))  # the scene's own file wins, and is part of what the source is
    own = open_scenes(f"scannet:{folder}?align=require")
    np.testing.assert_allclose(own[0].camera_to_world[:, :3, :3], turned, atol=1e-5)
    (folder / "axis_align_matrix.txt").unlink()
    text.write_text(text.read_text().replace("0.921061", "0.921062"))
    assert len({aligned.fingerprint, own.fingerprint, open_scenes(f"scannet:{folder}?align=require").fingerprint}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("axisAlignment = 1 2 3\n", "must be 16 numbers"),
        (f"axisAlignment = {'x ' * 16}\n", "must be 16 numbers"),
        (f"axisAlignment = {'2 0 0 0 ' * 4}\n", "no rotation"),
        ("sceneType = Office\n", "no axis alignment; put ScanNet's scene0001_00.txt"),
        (None, "no axis alignment"),
    ],
)
def test_a_bad_or_missing_axis_alignment_is_named(tmp_path, clip, text, message):
    folder = write_scannet(clip, tmp_path)
    path = tmp_path / "scans" / "scene0001_00" / "scene0001_00.txt"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=message):
        open_scenes(f"scannet:{folder}?align=require")
    if text is None or "sceneType" in text:
        assert len(open_scenes(f"scannet:{folder}")[0].rgb) == 5, "test scans have none: auto goes on without"


# --- ScanNet++ -------------------------------------------------------------------------------------------------------


def entries_of(folder) -> dict:
    return json.loads((folder / "iphone" / "pose_intrinsic_imu.json").read_text())


def test_scannetpp_focal_length_changes_and_thinned_frames(tmp_path, clip):
    folder = write_scannetpp(clip, tmp_path)
    entries = entries_of(folder)
    zoomed = np.array(entries["frame_000010"]["intrinsic"])
    zoomed[[0, 1], [0, 1]] *= 1.25  # the phone refocused: this frame shows less of the room
    entries["frame_000010"]["intrinsic"] = zoomed.tolist()
    entries["frame_000020"]["aligned_pose"] = np.full((4, 4), np.inf).tolist()
    entries["frame_000099"] = entries["frame_000030"]  # the poses cover the whole video, pictures are thinned out
    (folder / "iphone" / "pose_intrinsic_imu.json").write_text(json.dumps(entries))
    read = open_scenes(f"scannetpp:{tmp_path}/data?frames=0")[0]
    assert read.frame_ids.tolist() == [0, 10, 30, 40]
    assert read.dropped == ("frame_000020.jpg: its pose is infinite",)
    np.testing.assert_array_equal(read.intrinsics, clip.intrinsics)
    # In the common camera everything of the zoomed frame is smaller by 1.25 about the centre; its border was not seen.
    middle = np.arange(8, 32)
    source = np.floor(20 + (middle + 0.5 - 20) * 1.25).astype(int)
    np.testing.assert_allclose(read.depth[1][np.ix_(middle, middle)], clip.depth[1][np.ix_(source, source)], atol=6e-4)
    assert (read.depth[1][:3] == 0).all() and (read.rgb[1][:3] == 0).all()
    expected = (20 + (middle + 0.5 - 20) * 1.25 - 0.5) * 200 / 39  # the ramp, bilinear
    assert np.abs(read.rgb[1][20, middle, 1] - expected).max() < 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("frame_000020"), "frame_000020 needs 'aligned_pose' as 4x4 numbers"),
        (lambda e: e["frame_000020"].pop("intrinsic"), "frame_000020 needs 'intrinsic' as 3x3"),
        (lambda e: e["frame_000020"].update(aligned_pose=[1, 2]), "frame_000020 needs 'aligned_pose'"),
        (
            lambda e: [row.update(aligned_pose=[[np.nan] * 4] * 4) for row in e.values()],
            "none of its 5 frames has a finite pose",
        ),
    ],
)
def test_damaged_scannetpp_poses_are_named(tmp_path, clip, change, message):
    folder = write_scannetpp(clip, tmp_path)
    entries = entries_of(folder)
    change(entries)
    (folder / "iphone" / "pose_intrinsic_imu.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message):
        open_scenes(f"scannetpp:{tmp_path}")[0]
    if "finite" not in message:
        read = open_scenes(f"scannetpp:{tmp_path}?on_bad_frame=skip")[0]
        assert read.frame_ids.tolist() == [0, 10, 30, 40] and len(read.dropped) == 1


# --- ARKitScenes -----------------------------------------------------------------------------------------------------


def test_arkit_poses_are_interpolated_and_late_frames_dropped(tmp_path, clip):
    folder = write_arkitscenes(clip, tmp_path)
    lines = (folder / "lowres_wide.traj").read_text().splitlines()
    (folder / "lowres_wide.traj").write_text("\n".join(lines[:3]) + "\n")  # tracking ended after the frame at 2 s
    (folder / "lowres_wide_intrinsics" / "scene0001_00_1.000.pincam").rename(
        folder / "lowres_wide_intrinsics" / "scene0001_00_1.001.pincam"  # stamps are rounded separately
    )
    read = open_scenes(f"arkitscenes:{tmp_path}")[0]
    assert read.frame_ids.tolist() == [0, 1000, 2000]
    assert read.dropped[0] == "scene0001_00_3.000.png: no pose within 0.1 s of it" and len(read.dropped) == 2
    times, poses = np.array([0.0, 0.1]), np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3], poses[1, :3, 3] = Rotation.from_euler("z", 0.4).as_matrix(), [1, 0, 0]
    half = pose_at(0.05, times, poses)
    np.testing.assert_allclose(half[:3, :3], Rotation.from_euler("z", 0.2).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(half[:3, 3], [0.5, 0, 0])
    np.testing.assert_array_equal(pose_at(0.15, times, poses), poses[1])
    assert pose_at(0.21, times, poses) is None and pose_at(-0.11, times, poses) is None


def test_arkit_3dod_layout_and_splits(tmp_path, clip):
    write_arkitscenes(clip, tmp_path / "flat")
    inner = tmp_path / "nested" / "Training" / "41069025" / "41069025_frames"
    inner.parent.mkdir(parents=True)
    (tmp_path / "flat" / "Validation" / "scene0001_00").rename(inner)
    source = open_scenes(f"arkitscenes:{tmp_path}/nested")
    assert source.scene_ids == ("41069025",) and len(source[0].rgb) == 5
    write_arkitscenes(replace(clip, scene_id="41069025"), tmp_path / "nested")
    with pytest.raises(UserError, match="same video lies in two splits"):
        open_scenes(f"arkitscenes:{tmp_path}/nested")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lowres_wide.traj", None, r"lowres_wide\.traj: missing"),
        ("lowres_wide.traj", "1 2 3\n", "seven numbers a line"),
        ("lowres_wide.traj", "1 2 a\n", "not a trajectory"),
        ("lowres_wide_intrinsics/scene0001_00_2.000.pincam", "40 40 a b c d", "six numbers expected"),
        ("lowres_wide_intrinsics/scene0001_00_2.000.pincam", None, r"2\.000\.png: the \.pincam file of the frame at 2\.000 s"),
        ("lowres_depth/scene0001_00_2.000.png", None, "the depth of the frame at 2.000 s is missing"),
        ("lowres_wide/scene0001_00_late.png", "", "its name must be VIDEO_SECONDS"),
    ],
)
def test_damaged_arkit_files_are_named(tmp_path, clip, name, content, message):
    folder = write_arkitscenes(clip, tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        open_scenes(f"arkitscenes:{tmp_path}")[0]


# --- all -------------------------------------------------------------------------------------------------------------


def test_nothing_there_and_nothing_to_write_are_one_sentence(tmp_path, clip):
    for scheme, expected in (("scannetpp", "no ScanNet.. scenes"), ("arkitscenes", "no ARKitScenes videos")):
        with pytest.raises(UserError, match=expected):
            open_scenes(f"{scheme}:{tmp_path}")
    with pytest.raises(UserError, match="unknown align 'yes'.*Known: auto, none, require"):
        open_scenes(f"scannet:{write_scannet(clip, tmp_path)}?align=yes")
    with pytest.raises(UserError, match="unknown option .*'align'"):
        open_scenes(f"folder:{tmp_path}?align=none")
    with pytest.raises(UserError, match="posed layouts need depth"):
        write_scannet(replace(clip, depth=None), tmp_path)
    with pytest.raises(UserError, match="do not fit into 16 bits"):
        write_scannetpp(replace(clip, depth=clip.depth + np.float32(70)), tmp_path)


def test_colours_and_poses_alone_are_enough(tmp_path, clip):
    folder = write_scannetpp(clip, tmp_path)
    for path in (folder / "iphone" / "depth").glob("*.png"):
        path.unlink()
    Image.fromarray(clip.rgb[0]).resize((30, 40)).save(folder / "iphone" / "rgb" / "frame_000040.jpg")
    with pytest.raises(UserError, match=r"frame_000040\.jpg: 30x40 pixels, but frame_000000\.jpg has 40x40"):
        open_scenes(f"scannetpp:{tmp_path}")[0]
    read = open_scenes(f"scannetpp:{tmp_path}?on_bad_frame=skip")[0]
    assert read.depth is None and read.frame_ids.tolist() == [0, 10, 20, 30]
