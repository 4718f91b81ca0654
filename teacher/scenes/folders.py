"""Posed RGB-D folders in the layout ScanNet exports use: one folder per scene, one triple of files per frame.

    PATH/SCENE/00000.jpg            colour
    PATH/SCENE/00000.png            16-bit depth in millimetres, 0 = unknown (leave all of them out for colour and poses only)
    PATH/SCENE/00000.txt            4x4 camera-to-world
    PATH/SCENE/intrinsic.txt        colour camera, 3x3 or 4x4
    PATH/SCENE/depth_intrinsic.txt  depth camera; without it the colour camera scaled to the depth image

A scene source beside the procedural rooms. ScanNet's own worlds are turned against the walls: `scannet:` multiplies every
pose by the scene's axis alignment, found in PATH/SCENE/axis_align_matrix.txt (4x4) or in ScanNet's own SCENE.txt, in the folder
or in PATH/../scans/SCENE. (VEGA-3D reads it from EmbodiedScan pickles, which we never open.) `folder:` leaves poses alone.
Frames whose pose is infinite or NaN (ScanNet has them) are dropped, counted in the log and listed in the clip; frames with a
damaged file are an error, or with `on_bad_frame=skip` dropped likewise.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('scannet:/data/posed_images?frames=32').scene_ids)"
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vega_artifact import UserError, unknown_name

from .clip import PosedClip
from .shots import FolderConfig, Shot, bad_frame, read_matrix, shots_clip

log = logging.getLogger(__name__)
ALIGNMENTS = ("auto", "none", "require")


@dataclass(frozen=True)
class ScanNetConfig(FolderConfig):
    """align: "auto" applies the axis alignment where there is one, "require" wants one for every scene, "none" ignores it."""

    align: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.align not in ALIGNMENTS:
            raise unknown_name("align", self.align, ALIGNMENTS)


def find_scenes(path: Path) -> list[Path]:
    """The scene folders at `path`: itself when it holds frames, else its sub-folders that do, by name.

    Raises:
        UserError: no such folder, or no frames in it.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give one scene or the folder that holds the scenes (posed_images)")
    if any(path.glob("*.jpg")):
        return [path]
    scenes = sorted(child for child in path.iterdir() if child.is_dir() and any(child.glob("*.jpg")))
    if not scenes:
        raise UserError(
            f"{path}: no frames found; expected NNNNN.jpg, NNNNN.png, NNNNN.txt and intrinsic.txt in it or one level below"
        )
    return scenes


def axis_alignment(folder: Path) -> np.ndarray | None:
    """The matrix that turns a ScanNet scene's world to the walls: float64 (4, 4), or None where no file holds one.

    Raises:
        UserError: a file that should hold it holds something else.
    """
    own = folder / "axis_align_matrix.txt"
    if own.exists():
        return _rigid(own, read_matrix(own, (4,)))
    name = f"{folder.name}.txt"
    for path in (folder / name, folder.parent.parent / "scans" / folder.name / name):
        if not path.exists():
            continue
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, values = line.partition("=")
            if key.strip() == "axisAlignment":
                return _parsed(path, values)
    return None


def _parsed(path: Path, values: str) -> np.ndarray:
    try:
        numbers = np.array([float(value) for value in values.split()])
    except ValueError:
        numbers = np.empty(0)
    if numbers.size != 16:
        raise UserError(f"{path}: axisAlignment must be 16 numbers, found {values.strip()!r:.60}; fetch the file again")
    return _rigid(path, numbers.reshape(4, 4))


def _rigid(path: Path, matrix: np.ndarray) -> np.ndarray:
    if not np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-3):  # printed with six decimals
        raise UserError(f"{path}: its axis alignment is no rotation, so depth would be distorted; fetch the file again")
    return matrix


def alignment_for(folder: Path, align: str) -> np.ndarray | None:
    """What `align` (see `ScanNetConfig`) means for one scene: float64 (4, 4) or None."""
    matrix = None if align == "none" else axis_alignment(folder)
    if matrix is None and align == "require":
        raise UserError(f"{folder}: no axis alignment; put ScanNet's {folder.name}.txt into it or into ../scans/{folder.name}")
    return matrix


def valid_frames(folder: Path, dropped: list[str], skip: bool) -> list[tuple[Path, np.ndarray]]:
    """Colour files with their 4x4 poses, by frame number; frames left out for their pose are added to `dropped`."""
    frames = [path for path in sorted(folder.glob("*.jpg")) if path.stem.isdigit()]
    kept = []
    for path in frames:
        with bad_frame(path, dropped, skip):
            pose = read_matrix(path.with_suffix(".txt"), (4,))
            if np.isfinite(pose).all():
                kept.append((path, pose))
            else:
                dropped.append(f"{path.name}: its pose is infinite")
    if not kept:
        raise UserError(f"{folder}: none of its {len(frames)} frames has a finite pose; export the scene again")
    if dropped:
        log.warning("%s: %d of %d frames dropped, their pose is infinite or unreadable", folder.name, len(dropped), len(frames))
    return kept


def folder_clip(folder: Path, config: FolderConfig) -> PosedClip:
    """Read one scene folder; with a `ScanNetConfig` its world is aligned.

    Raises:
        UserError: a file is missing or unreadable, sizes differ between frames, or no pose is finite; it names the file.
            With `on_bad_frame` "skip" only if no frame is left.
    """
    dropped: list[str] = []
    posed = valid_frames(folder, dropped, config.on_bad_frame == "skip")
    align = alignment_for(folder, config.align) if isinstance(config, ScanNetConfig) else None
    world = np.eye(4) if align is None else align
    camera, depth_camera = read_matrix(folder / "intrinsic.txt", (3, 4))[:3, :3], None
    has_depth = any(folder.glob("*.png"))
    if has_depth and (folder / "depth_intrinsic.txt").exists():
        depth_camera = read_matrix(folder / "depth_intrinsic.txt", (3, 4))[:3, :3]
    shots = [
        Shot(int(path.stem), path, path.with_suffix(".png") if has_depth else None, world @ pose, camera, depth_camera)
        for path, pose in posed
    ]
    return shots_clip(folder, shots, config, dropped)
