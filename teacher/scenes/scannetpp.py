"""ScanNet++ scenes as its toolkit extracts the iPhone stream: one folder per scene under `data`.

    PATH/data/SCENE/iphone/rgb/frame_000000.jpg     colour
    PATH/data/SCENE/iphone/depth/frame_000000.png   16-bit depth in millimetres, smaller than colour, same camera
    PATH/data/SCENE/iphone/pose_intrinsic_imu.json  {"frame_000000": {"aligned_pose": 4x4, "intrinsic": 3x3, ...}, ...}

A scene source; PATH may also be `data` or one scene. `aligned_pose` is camera-to-world in the frame of the laser scan (z up,
metres), `pose` the phone's own world, which is not used. Extraction may thin frames out: numbers stay the original ones.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('scannetpp:/data/scannetpp?frames=32').scene_ids)"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vega_artifact import UserError, read_json

from .clip import PosedClip
from .shots import FolderConfig, Shot, bad_frame, shots_clip

POSES = "pose_intrinsic_imu.json"


def scannetpp_scenes(path: Path) -> list[Path]:
    """The scene folders at `path`, by name; UserError when there is none."""
    for pattern in ("data/*", "*"):
        found = sorted(child for child in path.glob(pattern) if (child / "iphone" / "rgb").is_dir())
        if found:
            return found
    if (path / "iphone" / "rgb").is_dir():
        return [path]
    raise UserError(f"{path}: no ScanNet++ scenes; expected data/SCENE/iphone/rgb/frame_000000.jpg, depth and {POSES}")


def _matrix(where: str, record: Any, key: str, size: int) -> np.ndarray:
    value = record.get(key) if isinstance(record, dict) else None
    try:
        matrix = np.array(value, np.float64).reshape(size, size)
    except (TypeError, ValueError):
        raise UserError(f"{where} needs {key!r} as {size}x{size} numbers; fetch or extract it again") from None
    return matrix


def scannetpp_clip(folder: Path, config: FolderConfig) -> PosedClip:
    """Read one scene.

    Raises:
        UserError: a file or a frame's entry is missing or damaged; it names the file. With `on_bad_frame` "skip" only if no
            frame is left.
    """
    phone, shots = folder / "iphone", []
    dropped: list[str] = []
    entries = read_json(phone / POSES)
    frames = sorted((phone / "rgb").glob("frame_*.jpg"))
    has_depth = any((phone / "depth").glob("frame_*.png"))
    for path in frames:
        with bad_frame(path, dropped, config.on_bad_frame == "skip"):
            where = f"{phone / POSES}: {path.stem}"
            entry = entries.get(path.stem) if isinstance(entries, dict) else None
            pose, camera = _matrix(where, entry, "aligned_pose", 4), _matrix(where, entry, "intrinsic", 3)
            if np.isfinite(pose).all():
                depth = phone / "depth" / f"{path.stem}.png" if has_depth else None
                shots.append(Shot(int(path.stem.removeprefix("frame_")), path, depth, pose, camera))
            else:
                dropped.append(f"{path.name}: its pose is infinite")
    if not shots:
        raise UserError(f"{folder}: none of its {len(frames)} frames has a finite pose; fetch or extract the scene again")
    return shots_clip(folder, shots, config, dropped)
