"""Scenes out of files: posed RGB-D folders and videos written here and read back, and every way they can be broken."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from teacher.scenes import PosedClip, open_scenes
from vega_artifact import UserError


@pytest.fixture(scope="module")
def clips() -> list[PosedClip]:
    return list(open_scenes("procedural:test?count=2&size=64"))


# --- posed folders -------------------------------------------------------------------------------------------------


def write_folder(folder: Path, clip: PosedClip, depth_scale: int = 1) -> None:
    """The clip in the ScanNet export layout, every tenth number; depth smaller by `depth_scale`."""
    folder.mkdir(parents=True)
    small = clip.resized(clip.rgb.shape[1] // depth_scale, clip.rgb.shape[2] // depth_scale)
    for t in range(len(clip.rgb)):
        Image.fromarray(clip.rgb[t]).save(folder / f"{10 * t:05d}.jpg", quality=95)
        Image.fromarray((small.depth[t] * 1000 + 0.5).astype(np.uint16)).save(folder / f"{10 * t:05d}.png")
        np.savetxt(folder / f"{10 * t:05d}.txt", clip.camera_to_world[t], fmt="%.6f")
    for name, matrix in (("intrinsic.txt", clip.intrinsics), ("depth_intrinsic.txt", small.intrinsics)):
        full = np.eye(4)
        full[:3, :3] = matrix
        np.savetxt(folder / name, full, fmt="%.6f")


@pytest.mark.parametrize("scheme", ["scannet", "folder"])
def test_folder_gives_back_what_was_written(tmp_path, clips, scheme):
    write_folder(tmp_path / "posed_images" / "scene0001_00", clips[0])
    write_folder(tmp_path / "posed_images" / "scene0002_00", clips[1])
    source = open_scenes(f"{scheme}:{tmp_path}/posed_images?frames=0")
    assert source.scene_ids == ("scene0001_00", "scene0002_00")
    read = source[0]
    np.testing.assert_array_equal(read.frame_ids, 10 * np.arange(8))
    np.testing.assert_allclose(read.depth, clips[0].depth, atol=6e-4)
    np.testing.assert_allclose(read.world_points(), clips[0].world_points(), atol=3e-3)
    assert np.abs(read.rgb.astype(int) - clips[0].rgb).mean() < 6
    one = open_scenes(f"{scheme}:{tmp_path}/posed_images/scene0002_00?frames=3&height=32")
    assert one.scene_ids == ("scene0002_00",) and one[0].rgb.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(one[0].frame_ids, [0, 30, 70])
    assert one.fingerprint != source.fingerprint


def test_depth_of_another_size_lands_on_the_colour_grid(tmp_path, clips):
    write_folder(tmp_path / "scene", clips[0], depth_scale=2)
    read = open_scenes(f"folder:{tmp_path}/scene")[0]
    half = clips[0].resized(32, 32).depth
    np.testing.assert_allclose(read.depth, half.repeat(2, axis=1).repeat(2, axis=2), atol=6e-4)
    (tmp_path / "scene" / "depth_intrinsic.txt").unlink()  # then the colour camera is scaled, which here is the same
    np.testing.assert_array_equal(open_scenes(f"folder:{tmp_path}/scene")[0].depth, read.depth)


def test_infinite_poses_are_dropped_and_counted(tmp_path, clips, caplog):
    write_folder(tmp_path / "scene", clips[0])
    for name in ("00010", "00050"):
        np.savetxt(tmp_path / "scene" / f"{name}.txt", np.full((4, 4), -np.inf))
    with caplog.at_level(logging.WARNING):
        read = open_scenes(f"folder:{tmp_path}/scene")[0]
    np.testing.assert_array_equal(read.frame_ids, [0, 20, 30, 40, 60, 70])
    assert read.dropped == ("00010.jpg: its pose is infinite", "00050.jpg: its pose is infinite")
    assert "2 of 8 frames dropped" in caplog.text


def test_folder_without_depth_has_poses_and_no_geometry(tmp_path, clips):
    write_folder(tmp_path / "scene", clips[0])
    for path in (tmp_path / "scene").glob("*.png"):
        path.unlink()
    read = open_scenes(f"folder:{tmp_path}/scene")[0]
    assert read.depth is None and read.camera_to_world.shape == (8, 4, 4)


def damage(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("00030.jpg", b"not a picture", "cannot be read as an image"),
        ("00030.png", b"\x89PNG broken", "cannot be read as an image"),
        ("00030.png", None, "cannot be read as an image"),
        ("00030.txt", None, "missing or unreadable"),
        ("00030.txt", b"one two three", "not a matrix of numbers"),
        ("00030.txt", b"1 2\n3 4\n", "4x4 matrix expected, found 2x2"),
        ("intrinsic.txt", None, "missing or unreadable"),
    ],
)
def test_damaged_folder_names_the_file(tmp_path, clips, name, content, message):
    write_folder(tmp_path / "scene", clips[0])
    damage(tmp_path / "scene", name, content)
    with pytest.raises(UserError, match=message) as caught:
        open_scenes(f"folder:{tmp_path}/scene")[0]
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("00030.jpg", b"not a picture", "cannot be read as an image"),
        ("00030.png", b"\x89PNG broken", "00030.png: cannot be read as an image"),
        ("00030.txt", b"one two three", "00030.txt: not a matrix of numbers"),
        ("00000.jpg", b"", "cannot be read as an image"),
    ],
)
def test_damaged_frames_are_left_out_and_listed_where_that_is_asked_for(tmp_path, clips, name, content, reason):
    write_folder(tmp_path / "scene", clips[0])
    whole = open_scenes(f"folder:{tmp_path}/scene")
    damage(tmp_path / "scene", name, content)
    source = open_scenes(f"folder:{tmp_path}/scene?on_bad_frame=skip")
    read, lost = source[0], int(name[:5]) // 10
    assert read.frame_ids.tolist() == [10 * t for t in range(8) if t != lost]
    assert len(read.dropped) == 1 and read.dropped[0].startswith(f"{10 * lost:05d}.jpg: {reason}")
    assert len(read.depth) == len(read.camera_to_world) == len(read.rgb) == 7
    assert source.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match=r"unknown on_bad_frame 'skipp'.*Known: error, skip"):
        open_scenes(f"folder:{tmp_path}/scene?on_bad_frame=skipp")


def test_folder_refuses_8_bit_depth_mixed_sizes_and_no_valid_pose(tmp_path, clips):
    write_folder(tmp_path / "a", clips[0])
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "a" / "00000.png")
    with pytest.raises(UserError, match="16-bit depth"):
        open_scenes(f"folder:{tmp_path}/a")[0]
    write_folder(tmp_path / "b", clips[0])
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "b" / "00010.jpg")
    with pytest.raises(UserError, match=r"64x32 pixels, but 00000\.jpg has 64x64"):
        open_scenes(f"folder:{tmp_path}/b")[0]
    write_folder(tmp_path / "c", clips[0])
    for path in (tmp_path / "c").glob("0*.txt"):
        np.savetxt(path, np.full((4, 4), np.inf))
    with pytest.raises(UserError, match="none of its 8 frames has a finite pose"):
        open_scenes(f"folder:{tmp_path}/c")[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no frames found"):
        open_scenes(f"folder:{tmp_path}/empty")


# --- video ---------------------------------------------------------------------------------------------------------


def write_video(path: Path, frames: np.ndarray, codec: str = "mpeg4", pixels: str = "yuv420p") -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.bit_rate = 4_000_000
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def test_video_frames_are_the_ones_asked_for(tmp_path):
    frames = np.stack([np.full((64, 96, 3), 10 * k, np.uint8) for k in range(20)])
    write_video(tmp_path / "one" / "clip.mp4", frames)
    write_video(tmp_path / "two" / "clip.mp4", frames[:5])
    source = open_scenes(f"video:{tmp_path}/*/*.mp4?frames=6&height=32")
    assert source.scene_ids == ("video-one-clip", "video-two-clip")
    clip = source[0]
    assert clip.rgb.shape == (6, 32, 48, 3) and clip.depth is None and clip.camera_to_world is None
    np.testing.assert_array_equal(clip.frame_ids, [0, 3, 7, 11, 15, 19])
    np.testing.assert_allclose(clip.rgb.mean(axis=(1, 2, 3)), 10 * clip.frame_ids, atol=4)
    assert len(source[1].rgb) == 5  # shorter than asked: all of it
    with pytest.raises(UserError, match="no geometry"):
        clip.world_points()


def test_broken_video_is_one_sentence(tmp_path):
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match=r"noise\.mp4: cannot be decoded"):
        open_scenes(f"video:{tmp_path}/noise.mp4")[0]
    write_video(tmp_path / "whole.mkv", np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), np.uint8))
    data = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[:200])
    with pytest.raises(UserError, match=r"cut\.avi"):
        open_scenes(f"video:{tmp_path}/cut.avi")[0]


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_damaged_video_frame_is_an_error_or_left_out_and_listed(tmp_path, codec):
    import av

    frames = np.stack([np.full((64, 96, 3), 10 * k, np.uint8) for k in range(20)])
    write_video(tmp_path / "clip.avi", frames, codec, "yuvj420p" if codec == "mjpeg" else "yuv420p")
    with av.open(str(tmp_path / "clip.avi")) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][7]
        place = slice(packet.pos, packet.pos + packet.size)
    content = bytearray((tmp_path / "clip.avi").read_bytes())
    content[place] = bytes(place.stop - place.start)
    (tmp_path / "clip.avi").write_bytes(content)
    with pytest.raises(UserError, match=r"clip\.avi: 1 of 20 wanted frames do not decode \(the first is number 7\)"):
        open_scenes(f"video:{tmp_path}/clip.avi?frames=0")[0]
    clip = open_scenes(f"video:{tmp_path}/clip.avi?frames=0&on_bad_frame=skip")[0]
    assert clip.frame_ids.tolist() == [*range(7), *range(8, 20)]
    assert clip.dropped == ("frame 7: does not decode",)
    np.testing.assert_allclose(clip.rgb[:7].mean(axis=(1, 2, 3)), 10 * clip.frame_ids[:7], atol=4)
    spared = open_scenes(f"video:{tmp_path}/clip.avi?frames=2")[0]
    assert spared.frame_ids.tolist() == [0, 19] and not spared.dropped, "a damaged frame nobody asked for is no error"
