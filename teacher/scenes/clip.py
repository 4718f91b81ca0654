"""PosedClip: one stretch of video with everything known about it, in the one coordinate convention of the project.

First link of the chain: every scene source yields these, the teacher and the probes read them.
World: z up, metres. Camera: OpenCV axes (x right, y down, z forward). Pixel (row, column) has its centre at
(column + 0.5, row + 0.5). Depth is the distance along the optical axis, not along the ray; 0 means unknown.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('procedural:val?count=1')[0].objects)"
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vega_artifact import UserError


@dataclass(frozen=True)
class SceneObject:
    """An oriented box with a name.

    Attributes:
        id: the value in `PosedClip.instances`, from 1.
        name: class name, lower case ("chair", "trash bin").
        center: middle of the box in world metres.
        size: full extents in metres along the object's own axes (width x, depth y, height z).
        yaw: radians about world +z; the object's front looks along its own +y, turned by `yaw`.
    """

    id: int
    name: str
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float

    def corners(self) -> np.ndarray:
        """The eight corners of the box: float64 (8, 3), world metres."""
        signs = np.array([(x, y, z) for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
        local = signs * np.array(self.size)
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        turned = local @ np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        return turned + np.array(self.center)


@dataclass(frozen=True)
class PosedClip:
    """Frames of one scene with whatever geometry is known; see the module docstring for the conventions.

    Attributes:
        scene_id: unique name of the scene, for example "procedural-test-s1-00007".
        rgb: uint8 (T, H, W, 3), sRGB.
        depth: float32 (T, H, W) metres along the optical axis, 0 = unknown; None if there is none.
        intrinsics: float64 (3, 3) pinhole matrix in pixels of (H, W).
        camera_to_world: float64 (T, 4, 4).
        frame_ids: int64 (T,), the frames' numbers in their source; one number always means the same picture.
        instances: int16 (T, H, W), 0 = structure or unknown, else `SceneObject.id`.
        objects: every object of the scene, also those no frame shows.
        room_size: extents x, y and height in metres.
        dropped: frames the source left out, one "name: reason" each; never silently, the feature cache lists them.

    Raises:
        UserError: shapes that do not agree, NaN or infinite numbers, depth without intrinsics.
    """

    scene_id: str
    rgb: np.ndarray
    depth: np.ndarray | None
    intrinsics: np.ndarray | None
    camera_to_world: np.ndarray | None
    frame_ids: np.ndarray
    instances: np.ndarray | None = None
    objects: tuple[SceneObject, ...] = ()
    room_size: tuple[float, float, float] | None = None
    dropped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rgb.ndim != 4 or self.rgb.shape[-1] != 3 or self.rgb.dtype != np.uint8 or self.rgb.size == 0:
            raise self._error(f"rgb must be uint8 (T, H, W, 3) and not empty, found {self.rgb.dtype} {self.rgb.shape}")
        frames, height, width = self.rgb.shape[:3]
        self._check("frame_ids", np.int64, (frames,))
        self._check("depth", np.float32, (frames, height, width))
        self._check("instances", np.int16, (frames, height, width))
        self._check("intrinsics", np.float64, (3, 3))
        self._check("camera_to_world", np.float64, (frames, 4, 4))
        if self.depth is not None and self.intrinsics is None:
            raise self._error("depth without intrinsics; give the 3x3 camera matrix or leave the depth out")
        if self.depth is not None and self.depth.min() < 0:
            raise self._error("depth must not be negative; mark unknown pixels with 0")

    def _check(self, name: str, dtype: type, shape: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value is None:
            return
        if value.dtype != dtype or value.shape != shape:
            raise self._error(f"{name} must be {np.dtype(dtype)} {shape}, found {value.dtype} {value.shape}")
        if np.issubdtype(dtype, np.floating) and not np.isfinite(value).all():
            raise self._error(f"{name} holds NaN or infinite numbers; drop those frames or mark unknown depth with 0")

    def _error(self, sentence: str) -> UserError:
        return UserError(f"scene {self.scene_id}: {sentence}")

    def world_points(self) -> np.ndarray:
        """The world position behind every pixel.

        Returns:
            float32 (T, H, W, 3) metres; NaN where the depth is unknown.

        Raises:
            UserError: the clip has no depth or no poses.
        """
        if self.depth is None or self.intrinsics is None or self.camera_to_world is None:
            raise self._error("world points need depth, intrinsics and poses; this source has no geometry")
        height, width = self.depth.shape[1:]
        rays = pixel_rays(self.intrinsics, height, width)
        local = rays[None] * self.depth[..., None]
        rotation, origin = self.camera_to_world[:, :3, :3], self.camera_to_world[:, :3, 3]
        points = np.einsum("tij,thwj->thwi", rotation, local) + origin[:, None, None, :]
        points[self.depth <= 0] = np.nan
        return points.astype(np.float32)

    def resized(self, height: int, width: int) -> PosedClip:
        """The same clip at another size: colours averaged (bilinear when growing), depth and ids nearest, intrinsics scaled."""
        old_height, old_width = self.rgb.shape[1:3]
        if (height, width) == (old_height, old_width):
            return self
        if height < 1 or width < 1:
            raise self._error(f"cannot resize to {height}x{width}")
        scale = np.diag([width / old_width, height / old_height, 1.0])
        rows = nearest_index(height, old_height)[:, None]
        columns = nearest_index(width, old_width)[None, :]
        return replace(
            self,
            rgb=np.stack([resize_image(image, height, width) for image in self.rgb]),
            depth=None if self.depth is None else np.ascontiguousarray(self.depth[:, rows, columns]),
            instances=None if self.instances is None else np.ascontiguousarray(self.instances[:, rows, columns]),
            intrinsics=None if self.intrinsics is None else scale @ self.intrinsics,
        )


def pixel_rays(intrinsics: np.ndarray, height: int, width: int) -> np.ndarray:
    """Camera-frame ray through every pixel centre, scaled so that z = 1: float64 (H, W, 3)."""
    column, row = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([column, row, np.ones_like(row)], axis=-1)
    return pixels @ np.linalg.inv(intrinsics).T


def nearest_index(new: int, old: int) -> np.ndarray:
    """For each of `new` cells the index of the old cell its centre falls into."""
    return np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)


def resize_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (H, W, 3) to uint8 (height, width, 3): area average when shrinking, bilinear when growing."""
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((width, height), method))
