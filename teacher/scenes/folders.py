"""Posed RGB-D folders in the layout ScanNet exports use: one folder per scene, one triple of files per frame.

    PATH/SCENE/00000.jpg            colour
    PATH/SCENE/00000.png            16-bit depth in millimetres, 0 = unknown (leave all of them out for colour and poses only)
    PATH/SCENE/00000.txt            4x4 camera-to-world
    PATH/SCENE/intrinsic.txt        colour camera, 3x3 or 4x4
    PATH/SCENE/depth_intrinsic.txt  depth camera; without it the colour camera scaled to the depth image

A scene source beside the procedural rooms. Depth is looked up on the colour grid (nearest), assuming as ScanNet does that
both cameras share one pose. Frames whose pose is infinite or NaN (ScanNet has them) are dropped, counted in the log and listed
in the clip; frames with a damaged file are an error, or with `on_bad_frame=skip` dropped likewise.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('scannet:/data/posed_images?frames=32').scene_ids)"
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vega_artifact import UserError, unknown_name

from .clip import PosedClip, pixel_rays, resize_image

log = logging.getLogger(__name__)
MILLIMETRES = 1000.0
POLICIES = ("error", "skip")


@dataclass(frozen=True)
class FolderConfig:
    """frames: how many, spread evenly (0 = all); height: pixels, the width keeps the aspect (0 = as stored).

    on_bad_frame: what to do about a frame that was chosen and cannot be read: "error", or "skip" it and list it in the clip.
    """

    frames: int = 32
    height: int = 0
    on_bad_frame: str = "error"

    def __post_init__(self) -> None:
        if self.frames < 0 or self.height < 0:
            raise UserError("posed folders: frames and height must not be negative (0 = all, as stored)")
        if self.on_bad_frame not in POLICIES:
            raise unknown_name("on_bad_frame", self.on_bad_frame, POLICIES)


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


@contextmanager
def bad_frame(path: Path, dropped: list[str], skip: bool) -> Iterator[None]:
    """A block that reads one frame: a UserError in it is passed on, or with `skip` noted as the reason to drop the frame."""
    try:
        yield
    except UserError as error:
        if not skip:
            raise
        log.warning("frame dropped: %s", error)
        dropped.append(f"{path.name}: {str(error).removeprefix(f'{path}: ').replace(f'{path.parent}/', '')}")


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


@dataclass
class _Frame:
    """What the files of one frame hold, at the size that is wanted: rgb uint8 (H, W, 3), depth float32 (H, W) or None."""

    path: Path
    pose: np.ndarray
    rgb: np.ndarray
    depth: np.ndarray | None


class _Reader:
    """Reads the frames of one folder; the first one that can be read says how large all of them are stored."""

    def __init__(self, folder: Path, config: FolderConfig) -> None:
        self.folder, self.config = folder, config
        self.colour = read_matrix(folder / "intrinsic.txt", (3, 4))[:3, :3]
        self.has_depth = any(folder.glob("*.png"))
        self.first: Path | None = None

    def read(self, path: Path, pose: np.ndarray) -> _Frame:
        image = read_image(path)
        if self.first is None:
            self._settle(path, image)
        if image.shape[:2] != self.stored:
            raise UserError(
                f"{path}: {image.shape[1]}x{image.shape[0]} pixels, but {self.first.name} has {self.stored[1]}x{self.stored[0]}"  # type: ignore[union-attr]
            )
        depth = self._depth(path) if self.has_depth else None
        return _Frame(path, pose, image if self.size == self.stored else resize_image(image, *self.size), depth)

    def _settle(self, path: Path, image: np.ndarray) -> None:
        self.first, self.stored = path, (image.shape[0], image.shape[1])
        height = self.config.height or self.stored[0]
        self.size = (height, max(1, round(self.stored[1] * height / self.stored[0])))
        scale = np.diag([self.size[1] / self.stored[1], self.size[0] / self.stored[0], 1.0])
        self.intrinsics = scale @ self.colour
        self.rays = pixel_rays(self.intrinsics, *self.size)

    def _depth(self, path: Path) -> np.ndarray:
        depth = read_depth(path.with_suffix(".png"))
        camera = _depth_camera(self.folder, self.colour, self.stored, (depth.shape[0], depth.shape[1]))
        return _depth_on_colour(depth, camera, self.rays)


def folder_clip(folder: Path, config: FolderConfig) -> PosedClip:
    """Read one scene folder.

    Raises:
        UserError: a file is missing or unreadable, sizes differ between frames, or no pose is finite; it names the file.
            With `on_bad_frame` "skip" only if no frame is left.
    """
    dropped: list[str] = []
    skip = config.on_bad_frame == "skip"
    posed = valid_frames(folder, dropped, skip)
    reader, frames = _Reader(folder, config), []
    for path, pose in (posed[index] for index in spread(len(posed), config.frames)):
        with bad_frame(path, dropped, skip):
            frames.append(reader.read(path, pose))
    if not frames:
        raise UserError(f"{folder}: none of its frames can be read ({dropped[-1]}); export the scene again or leave it out")
    depths = [frame.depth for frame in frames if frame.depth is not None]
    return PosedClip(
        scene_id=folder.name,
        rgb=np.stack([frame.rgb for frame in frames]),
        depth=np.stack(depths) if depths else None,
        intrinsics=reader.intrinsics,
        camera_to_world=np.stack([frame.pose for frame in frames]),
        frame_ids=np.array([int(frame.path.stem) for frame in frames], np.int64),
        dropped=tuple(dropped),
    )
