"""Posed RGB-D folders in the layout ScanNet exports use: one folder per scene, one triple of files per frame.

    PATH/SCENE/00000.jpg            colour
    PATH/SCENE/00000.png            16-bit depth in millimetres, 0 = unknown (leave all of them out for colour and poses only)
    PATH/SCENE/00000.txt            4x4 camera-to-world
    PATH/SCENE/intrinsic.txt        colour camera, 3x3 or 4x4
    PATH/SCENE/depth_intrinsic.txt  depth camera; without it the colour camera scaled to the depth image

A scene source beside the procedural rooms. Depth is looked up on the colour grid (nearest), assuming as ScanNet does that
both cameras share one pose. Frames whose pose is infinite or NaN (ScanNet has them) are dropped and counted in the log.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('scannet:/data/posed_images?frames=32').scene_ids)"
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vega_artifact import UserError

from .clip import PosedClip, pixel_rays, resize_image

log = logging.getLogger(__name__)
MILLIMETRES = 1000.0


@dataclass(frozen=True)
class FolderConfig:
    """frames: how many, spread evenly (0 = all); height: pixels, the width keeps the aspect (0 = as stored)."""

    frames: int = 32
    height: int = 0

    def __post_init__(self) -> None:
        if self.frames < 0 or self.height < 0:
            raise UserError("posed folders: frames and height must not be negative (0 = all, as stored)")


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


def read_matrix(path: Path, sizes: tuple[int, ...]) -> np.ndarray:
    """A square float64 matrix from a text file.

    Raises:
        UserError: missing, not numbers, or not one of the `sizes`.
    """
    try:
        matrix = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except OSError:
        raise UserError(f"{path}: missing or unreadable; every posed folder needs it") from None
    except ValueError as error:
        raise UserError(f"{path}: not a matrix of numbers ({error}); export the scene again") from None
    if matrix.shape not in {(size, size) for size in sizes}:
        expected = " or ".join(f"{size}x{size}" for size in sizes)
        raise UserError(f"{path}: a {expected} matrix expected, found {matrix.shape[0]}x{matrix.shape[1]}")
    return matrix


def read_image(path: Path) -> np.ndarray:
    """uint8 (H, W, 3); UserError when the file cannot be decoded."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); copy or export it again") from None


def read_depth(path: Path) -> np.ndarray:
    """float32 (H, W) metres from a 16-bit image of millimetres."""
    try:
        with Image.open(path) as image:
            millimetres = np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); copy or export it again") from None
    if millimetres.ndim != 2 or millimetres.dtype.itemsize < 2:
        raise UserError(f"{path}: 16-bit depth in millimetres expected, found {millimetres.dtype} {millimetres.shape}")
    return (millimetres / MILLIMETRES).astype(np.float32)


def valid_frames(folder: Path) -> tuple[list[tuple[Path, np.ndarray]], int]:
    """Colour files with their 4x4 poses, by frame number, and how many frames were dropped for an infinite pose."""
    frames = [path for path in sorted(folder.glob("*.jpg")) if path.stem.isdigit()]
    posed = [(path, read_matrix(path.with_suffix(".txt"), (4,))) for path in frames]
    kept = [(path, pose) for path, pose in posed if np.isfinite(pose).all()]
    dropped = len(posed) - len(kept)
    if not kept:
        raise UserError(f"{folder}: none of its {len(posed)} frames has a finite pose; export the scene again")
    if dropped:
        log.warning("%s: %d of %d frames dropped, their pose is infinite", folder.name, dropped, len(posed))
    return kept, dropped


def spread(total: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` items spread evenly over `total`, both ends included: int64; all of them for 0 or too many."""
    count = total if wanted == 0 else min(wanted, total)
    return np.linspace(0, total - 1, count).astype(np.int64)


def _depth_on_colour(depth: np.ndarray, camera: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Depth (H, W) for the colour pixels whose camera-frame rays are (H, W, 3); 0 where the depth camera did not look."""
    pixels = rays @ camera.T
    column, row = np.floor(pixels[..., 0]).astype(np.int64), np.floor(pixels[..., 1]).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < depth.shape[1]) & (row < depth.shape[0])
    return np.where(inside, depth[np.where(inside, row, 0), np.where(inside, column, 0)], np.float32(0))


def _depth_camera(folder: Path, colour: np.ndarray, colour_size: tuple[int, int], depth_size: tuple[int, int]) -> np.ndarray:
    path = folder / "depth_intrinsic.txt"
    if path.exists():
        return read_matrix(path, (3, 4))[:3, :3]
    return np.diag([depth_size[1] / colour_size[1], depth_size[0] / colour_size[0], 1.0]) @ colour


def _read_depths(
    folder: Path, paths: list[Path], colour: np.ndarray, stored: tuple[int, int], rays: np.ndarray
) -> np.ndarray | None:
    """Depth of all frames on the colour grid, float32 (T, H, W); None when the folder has no depth at all."""
    if not any(folder.glob("*.png")):
        return None
    depths = []
    for path in paths:
        depth = read_depth(path.with_suffix(".png"))
        camera = _depth_camera(folder, colour, stored, (depth.shape[0], depth.shape[1]))
        depths.append(_depth_on_colour(depth, camera, rays))
    return np.stack(depths)


def folder_clip(folder: Path, config: FolderConfig) -> PosedClip:
    """Read one scene folder.

    Raises:
        UserError: a file is missing or unreadable, sizes differ between frames, or no pose is finite; it names the file.
    """
    frames, _ = valid_frames(folder)
    frames = [frames[index] for index in spread(len(frames), config.frames)]
    paths = [path for path, _ in frames]
    colour = read_matrix(folder / "intrinsic.txt", (3, 4))[:3, :3]
    first = read_image(paths[0])
    stored = (first.shape[0], first.shape[1])
    height = config.height or stored[0]
    width = max(1, round(stored[1] * height / stored[0]))
    images = []
    for path in paths:
        image = read_image(path)
        if image.shape != first.shape:
            raise UserError(
                f"{path}: {image.shape[1]}x{image.shape[0]} pixels, but {paths[0].name} has {stored[1]}x{stored[0]}"
            )
        images.append(image if (height, width) == stored else resize_image(image, height, width))
    intrinsics = np.diag([width / stored[1], height / stored[0], 1.0]) @ colour
    return PosedClip(
        scene_id=folder.name,
        rgb=np.stack(images),
        depth=_read_depths(folder, paths, colour, stored, pixel_rays(intrinsics, height, width)),
        intrinsics=intrinsics,
        camera_to_world=np.stack([pose for _, pose in frames]),
        frame_ids=np.array([int(path.stem) for path in paths], np.int64),
    )
