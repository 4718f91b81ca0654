"""Ray casting with embree and shading in numpy: colours, exact depth and instance ids of all frames of a clip.

Part of the procedural scenes. Rays have z = 1 in the camera, so that the ray parameter IS the depth along the optical axis.
Two point lights with distance attenuation, a shadow ray to the first, light from everywhere that favours surfaces facing up.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('procedural:val?count=1')[0].depth.mean())"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from .clip import pixel_rays
from .mesh import Mesh
from .textures import texture_bank

CHUNK = 16384  # rays shaded at once: their tables stay in the second-level cache
FALLOFF = 0.12  # light is divided by 1 + FALLOFF * distance squared
MISS = 1e6


@dataclass(frozen=True)
class Light:
    """position in metres; color is linear and includes the strength."""

    position: tuple[float, float, float]
    color: tuple[float, float, float]


@dataclass(frozen=True)
class Lighting:
    """key casts shadows, fill does not; ambient is linear (3,)."""

    key: Light
    fill: Light
    ambient: tuple[float, float, float]


class Caster:
    """The acceleration structure over one mesh."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._scene = EmbreeScene()
        self._geometry = TriangleMesh(self._scene, mesh.points)

    def hits(self, origins: np.ndarray, rays: np.ndarray) -> dict[str, np.ndarray]:
        """Nearest hits of float32 (N, 3) rays: "tfar", "u", "v", "primID" (-1 = none)."""
        return self._scene.run(origins, rays, output=True)

    def distances(self, origins: np.ndarray, rays: np.ndarray) -> np.ndarray:
        """Ray parameter of the nearest hit, float32 (N,), at most `MISS`."""
        found = self._scene.run(
            np.ascontiguousarray(origins, np.float32), np.ascontiguousarray(rays, np.float32), query="DISTANCE"
        )
        return np.minimum(found, MISS)

    def blocked(self, origins: np.ndarray, towards: np.ndarray) -> np.ndarray:
        """Whether something lies between `origins` and `origins + towards`: bool (N,)."""
        limit = np.full(len(origins), 0.998, np.float32)
        return self._scene.run(origins, towards, dists=limit, query="OCCLUDED") == 0


def camera_rays(intrinsics: np.ndarray, camera_to_world: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Origins and rays of every pixel of every frame, float32 (T * H * W, 3), world frame."""
    local = pixel_rays(intrinsics, height, width).reshape(-1, 3)
    rays = np.einsum("tij,nj->tni", camera_to_world[:, :3, :3], local).astype(np.float32).reshape(-1, 3)
    origins = np.repeat(camera_to_world[:, :3, 3].astype(np.float32), height * width, axis=0)
    return origins, rays


def render(
    caster: Caster, lighting: Lighting, intrinsics: np.ndarray, camera_to_world: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render T frames.

    Args:
        intrinsics: float64 (3, 3), pixels.
        camera_to_world: float64 (T, 4, 4).

    Returns:
        rgb uint8 (T, H, W, 3), depth float32 (T, H, W) in metres along the optical axis, instances int16 (T, H, W).
    """
    origins, rays = camera_rays(intrinsics, camera_to_world, height, width)
    hits = caster.hits(origins, rays)
    missed = hits["primID"] < 0
    triangle = np.where(missed, 0, hits["primID"])
    depth = np.where(missed, np.float32(0), hits["tfar"])
    rgb = np.empty((len(rays), 3), np.uint8)
    pixel = np.float32(1.0 / intrinsics[0, 0])
    for start in range(0, len(rays), CHUNK):
        part = slice(start, start + CHUNK)
        rgb[part] = _shade(
            caster, lighting, origins[part], rays[part], depth[part], triangle[part], hits["u"][part], hits["v"][part], pixel
        )
    owner = np.where(missed, np.int16(0), caster.mesh.owner[triangle])
    shape = (len(camera_to_world), height, width)
    return rgb.reshape(*shape, 3), depth.reshape(shape), owner.reshape(shape)


def _shade(
    caster: Caster,
    lighting: Lighting,
    origins: np.ndarray,
    rays: np.ndarray,
    depth: np.ndarray,
    triangle: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    pixel: np.float32,
) -> np.ndarray:
    """Colours uint8 (N, 3) of N hits; works on (channel, N) rows because they are contiguous."""
    mesh = caster.mesh
    surface = np.take(mesh.surface, triangle, axis=1)
    surface = surface[:5] + u * surface[5:10] + v * surface[10:15]
    normal, tile_u, tile_v = surface[:3], surface[3], surface[4]
    normal /= np.sqrt((normal * normal).sum(axis=0))
    ray = np.ascontiguousarray(rays.T)
    facing = (normal * ray).sum(axis=0)
    normal *= np.where(facing > 0, np.float32(-1), np.float32(1))
    point = np.ascontiguousarray(origins.T) + ray * depth + normal * np.float32(2e-3)

    paint = np.take(mesh.paint, triangle, axis=1)
    slant = np.maximum(np.abs(facing) / np.sqrt((ray * ray).sum(axis=0)), np.float32(0.15))
    pattern = texture_bank().sample(mesh.texture[triangle], tile_u, tile_v, depth * pixel * paint[7] / slant)
    color = paint[:3] + pattern * paint[3:6]

    toward = np.array(lighting.key.position, np.float32)[:, None] - point
    shadow = caster.blocked(np.ascontiguousarray(point.T), np.ascontiguousarray(toward.T))
    light = _received(normal, toward, lighting.key) * ~shadow
    light += _received(normal, np.array(lighting.fill.position, np.float32)[:, None] - point, lighting.fill)
    sky = np.float32(0.92) + np.float32(0.08) * normal[2] + np.float32(0.1) * normal[0]
    light += sky * np.array(lighting.ambient, np.float32)[:, None] + paint[6]
    color *= light
    return (np.sqrt(np.minimum(color, 1)) * 255 + np.float32(0.5)).T.astype(np.uint8)


def _received(normal: np.ndarray, toward: np.ndarray, light: Light) -> np.ndarray:
    """Diffuse light (3, N) from a point light `toward` (3, N) metres away."""
    square = (toward * toward).sum(axis=0)
    cosine = np.maximum((normal * toward).sum(axis=0), 0) / np.sqrt(square)
    return np.array(light.color, np.float32)[:, None] * (cosine / (1 + np.float32(FALLOFF) * square))
