"""ARKitScenes as Apple's download script lays it out (raw, or 3dod with its FRAMES folder): one folder per video.

    PATH/Validation/41069025/lowres_wide/41069025_5831.123.png              colour, 256x192
    PATH/Validation/41069025/lowres_depth/41069025_5831.123.png             16-bit depth in millimetres
    PATH/Validation/41069025/lowres_wide_intrinsics/41069025_5831.123.pincam  width height fx fy cx cy
    PATH/Validation/41069025/lowres_wide.traj    world-to-camera: time, axis-angle (3), translation (3)

A scene source; the 3dod download keeps the same four things in 41069025/41069025_frames. PATH may also be one split or one
video. Pose samples and frames have their own clocks: a frame's pose is interpolated between the samples around it, and a frame
further than 0.1 s (Apple's own limit) from the nearest sample is dropped and listed. World z is up. A frame's number is its
time in milliseconds.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('arkitscenes:/data/arkitscenes?frames=32').scene_ids)"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vega_artifact import UserError

from .clip import PosedClip
from .shots import FolderConfig, Shot, bad_frame, shots_clip

APART = 0.1  # seconds, apple/ARKitScenes threedod/benchmark_scripts/utils/tenFpsDataLoader.py
CLOCK = 0.0015  # seconds by which the stamps of a frame's own files may differ, rounded as they are


def frames_folder(scene: Path) -> Path | None:
    """Where the frames of a video lie (raw or 3dod), or None if it has none."""
    folders = (scene, scene / f"{scene.name}_frames")
    return next((folder for folder in folders if (folder / "lowres_wide").is_dir()), None)


def arkit_scenes(path: Path) -> list[Path]:
    """The video folders at `path`, by name; UserError when there is none or a video is in two splits."""
    if path.is_dir() and frames_folder(path):
        return [path]
    for pattern in ("raw/*/*", "*/*", "*"):
        found = sorted((child for child in path.glob(pattern) if child.is_dir() and frames_folder(child)), key=lambda p: p.name)
        if len({child.name for child in found}) < len(found):
            raise UserError(f"{path}: the same video lies in two splits; give one of them, such as {path}/Validation")
        if found:
            return found
    raise UserError(f"{path}: no ARKitScenes videos; expected Validation/VIDEO/lowres_wide, lowres_wide.traj and the like")


def read_trajectory(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times float64 (S,) seconds ascending, camera-to-world float64 (S, 4, 4).

    Raises:
        UserError: no such file, or lines that are not seven numbers.
    """
    from scipy.spatial.transform import Rotation

    try:
        rows = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except OSError:
        raise UserError(f"{path}: missing or unreadable; every video needs its trajectory") from None
    except ValueError as error:
        raise UserError(f"{path}: not a trajectory ({error}); fetch it again") from None
    if rows.shape[1:] != (7,) or not len(rows):
        raise UserError(f"{path}: seven numbers a line expected (time, rotation, translation), found shape {rows.shape}")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    world_to_camera = np.tile(np.eye(4), (len(rows), 1, 1))
    world_to_camera[:, :3, :3] = Rotation.from_rotvec(rows[:, 1:4]).as_matrix()
    world_to_camera[:, :3, 3] = rows[:, 4:]
    return rows[:, 0], np.linalg.inv(world_to_camera)


def pose_at(time: float, times: np.ndarray, poses: np.ndarray) -> np.ndarray | None:
    """Camera-to-world float64 (4, 4) at `time` seconds, or None further than 0.1 s from every sample."""
    from scipy.spatial.transform import Rotation, Slerp

    after = int(np.clip(np.searchsorted(times, time), 0, len(times) - 1))
    before = max(after - 1, 0)
    nearest = before if abs(times[before] - time) <= abs(times[after] - time) else after
    if not abs(times[nearest] - time) <= APART:
        return None
    if abs(times[nearest] - time) <= CLOCK / 3 or not times[before] < time < times[after]:
        return poses[nearest]
    share = (time - times[before]) / (times[after] - times[before])
    pose = np.eye(4)
    pose[:3, :3] = Slerp([0, 1], Rotation.from_matrix(poses[[before, after], :3, :3]))(share).as_matrix()
    pose[:3, 3] = (1 - share) * poses[before, :3, 3] + share * poses[after, :3, 3]
    return pose


def read_pincam(path: Path) -> np.ndarray:
    """Camera matrix float64 (3, 3) of `width height fx fy cx cy`; UserError when it is something else."""
    try:
        _, _, fx, fy, cx, cy = (float(value) for value in path.read_text(encoding="utf-8").split())
    except (OSError, ValueError):
        raise UserError(f"{path}: six numbers expected (width height fx fy cx cy); fetch it again") from None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _stamp(path: Path) -> float:
    try:
        return float(path.stem.rpartition("_")[2])
    except ValueError:
        raise UserError(f"{path}: its name must be VIDEO_SECONDS, such as 41069025_5831.123{path.suffix}") from None


def _beside(folder: Path, suffix: str) -> tuple[np.ndarray, list[Path]]:
    """The files of one kind with their times, in order of time."""
    paths = sorted(folder.glob(f"*{suffix}"), key=_stamp)
    return np.array([_stamp(path) for path in paths]), paths


def _closest(time: float, times: np.ndarray, paths: list[Path], what: str) -> Path:
    index = int(np.argmin(np.abs(times - time))) if len(paths) else -1
    if index < 0 or abs(times[index] - time) > CLOCK:
        raise UserError(f"{what} of the frame at {time:.3f} s is missing; fetch the video again")
    return paths[index]


def arkit_clip(folder: Path, config: FolderConfig) -> PosedClip:
    """Read one video.

    Raises:
        UserError: a file is missing or damaged; it names the file. With `on_bad_frame` "skip" only if no frame is left.
    """
    root, shots = frames_folder(folder) or folder, []
    dropped: list[str] = []
    times, poses = read_trajectory(root / "lowres_wide.traj")
    cameras, depths = _beside(root / "lowres_wide_intrinsics", ".pincam"), _beside(root / "lowres_depth", ".png")
    stamps, frames = _beside(root / "lowres_wide", ".png")
    for time, path in zip(stamps.tolist(), frames):
        with bad_frame(path, dropped, config.on_bad_frame == "skip"):
            pose = pose_at(time, times, poses)
            if pose is None or not np.isfinite(pose).all():
                dropped.append(f"{path.name}: no pose within {APART} s of it")
                continue
            camera = read_pincam(_closest(time, *cameras, f"{path}: the .pincam file"))
            depth = _closest(time, *depths, f"{path}: the depth") if depths[1] else None
            shots.append(Shot(round(1000 * time), path, depth, pose, camera))
    if not shots:
        raise UserError(f"{folder}: none of its {len(frames)} frames has a pose; fetch the video again")
    return shots_clip(folder, shots, config, dropped)
