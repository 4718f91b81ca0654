"""Shots: one colour file, its depth, pose and camera, and how a list of them becomes a clip.

Between the folder layouts (ScanNet, ScanNet++, ARKitScenes: they find the files) and `PosedClip`. Depth is looked up on the
colour grid (nearest), assuming as all three do that the colour and the depth camera share one pose. A clip has one camera:
that of its first frame. Phones refocus between frames, so frames of another focal length are resampled to it.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('scannetpp:/data/scannetpp?frames=32').scene_ids)"
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Shot:
    """One frame before it is read.

    Attributes:
        number: its number in the source. colour: an image file. depth: 16-bit millimetres, or None for no depth.
        pose: float64 (4, 4) camera-to-world.
        camera: float64 (3, 3) in pixels of the stored colour image.
        depth_camera: the same in pixels of the depth image; None: `camera` scaled to it.
    """

    number: int
    colour: Path
    depth: Path | None
    pose: np.ndarray
    camera: np.ndarray
    depth_camera: np.ndarray | None = None


def spread(total: int, wanted: int) -> np.ndarray:
    """Indices of `wanted` items spread evenly over `total`, both ends included: int64; all of them for 0 or too many."""
    count = total if wanted == 0 else min(wanted, total)
    return np.linspace(0, total - 1, count).astype(np.int64)


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


def _scaled(camera: np.ndarray, stored: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A camera matrix for an image of another (H, W)."""
    return np.diag([size[1] / stored[1], size[0] / stored[0], 1.0]) @ camera


def _depth_on_colour(depth: np.ndarray, camera: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Depth (H, W) for the colour pixels whose camera-frame rays are (H, W, 3); 0 where the depth camera did not look."""
    pixels = rays @ camera.T
    column, row = np.floor(pixels[..., 0]).astype(np.int64), np.floor(pixels[..., 1]).astype(np.int64)
    inside = (column >= 0) & (row >= 0) & (column < depth.shape[1]) & (row < depth.shape[0])
    return np.where(inside, depth[np.where(inside, row, 0), np.where(inside, column, 0)], np.float32(0))


def _through(image: np.ndarray, camera: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) `camera` took as `wanted` would have taken it from the same place, bilinear; black outside."""
    warp = camera @ np.linalg.inv(wanted)  # both look the same way, so this is affine
    size = (image.shape[1], image.shape[0])
    moved = Image.fromarray(image).transform(size, Image.Transform.AFFINE, warp[:2].ravel().tolist(), Image.Resampling.BILINEAR)
    return np.asarray(moved)


class _Reader:
    """Reads shots; the first one that can be read says how large all are stored and which camera the clip has."""

    def __init__(self, config: FolderConfig) -> None:
        self.config = config
        self.first: Path | None = None

    def read(self, shot: Shot) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 (H, W, 3) and float32 (H, W) metres or None."""
        image = read_image(shot.colour)
        self.first = self.first or self._settle(shot, image)
        if image.shape[:2] != self.stored:
            here, there = (f"{size[1]}x{size[0]}" for size in (image.shape, self.stored))
            raise UserError(f"{shot.colour}: {here} pixels, but {self.first.name} has {there}")
        depth = None if shot.depth is None else self._depth(shot, shot.depth)
        if self.size != self.stored:
            image = resize_image(image, *self.size)
        camera = _scaled(shot.camera, self.stored, self.size)
        return image if np.array_equal(camera, self.intrinsics) else _through(image, camera, self.intrinsics), depth

    def _settle(self, shot: Shot, image: np.ndarray) -> Path:
        self.stored = (image.shape[0], image.shape[1])
        height = self.config.height or self.stored[0]
        self.size = (height, max(1, round(self.stored[1] * height / self.stored[0])))
        self.intrinsics = _scaled(shot.camera, self.stored, self.size)
        self.rays = pixel_rays(self.intrinsics, *self.size)
        return shot.colour

    def _depth(self, shot: Shot, path: Path) -> np.ndarray:
        depth = read_depth(path)
        scaled = _scaled(shot.camera, self.stored, (depth.shape[0], depth.shape[1]))
        return _depth_on_colour(depth, scaled if shot.depth_camera is None else shot.depth_camera, self.rays)


def shots_clip(folder: Path, shots: Sequence[Shot], config: FolderConfig, dropped: list[str]) -> PosedClip:
    """Read an even choice of the shots.

    Args:
        folder: the scene's; names the clip. shots: by number, poses finite. dropped: what was left out before, "name: reason".

    Raises:
        UserError: a file is missing or unreadable, or sizes differ between frames; it names the file. With `on_bad_frame`
            "skip" only if no frame is left.
    """
    reader, read = _Reader(config), []
    for shot in (shots[index] for index in spread(len(shots), config.frames)):
        with bad_frame(shot.colour, dropped, config.on_bad_frame == "skip"):
            read.append((shot, *reader.read(shot)))
    if not read:
        raise UserError(f"{folder}: none of its frames can be read ({dropped[-1]}); export the scene again or leave it out")
    depths = [depth for _, _, depth in read if depth is not None]
    return PosedClip(
        scene_id=folder.name,
        rgb=np.stack([image for _, image, _ in read]),
        depth=np.stack(depths) if depths else None,
        intrinsics=reader.intrinsics,
        camera_to_world=np.stack([shot.pose for shot, _, _ in read]),
        frame_ids=np.array([shot.number for shot, _, _ in read], np.int64),
        dropped=tuple(dropped),
    )
