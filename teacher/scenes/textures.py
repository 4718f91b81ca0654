"""Procedural surface patterns: a bank of periodic grey tiles with mip levels, looked up for all pixels in one gather.

Part of the room renderer. A pattern only says how much of a material's second colour shows (0..1); the colours come from
the material. Mip levels keep far floors from shimmering at 64 pixels, for the price of one logarithm per pixel.

    python -c "from teacher.scenes.textures import texture_bank; print(texture_bank().names)"
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter

TILE = 256  # texels per side of a tile at the finest level
LEVELS = 9


@dataclass(frozen=True)
class TextureBank:
    """All tiles, all mip levels, flat.

    Attributes:
        names: texture name -> index.
        values: float32 (textures * stride,), pattern values in 0..1.
        offsets: int32 (LEVELS,), where a level starts inside a texture.
        stride: values per texture.
    """

    names: dict[str, int]
    values: np.ndarray
    offsets: np.ndarray
    stride: int

    def sample(self, texture: np.ndarray, u: np.ndarray, v: np.ndarray, texels: np.ndarray) -> np.ndarray:
        """Pattern values for N points.

        Args:
            texture: int32 (N,) indices.
            u, v: float32 (N,) tile coordinates, one tile per unit, periodic.
            texels: float32 (N,), how many finest texels one pixel covers; chooses the level.
        """
        level = np.clip(np.log2(np.maximum(texels, 1.0)) + 0.5, 0, LEVELS - 1).astype(np.int32)
        side = np.right_shift(np.int32(TILE), level)
        mask = side - 1
        column = np.floor(u * side).astype(np.int32) & mask
        row = np.floor(v * side).astype(np.int32) & mask
        index = texture * np.int32(self.stride) + self.offsets[level] + row * side + column
        return self.values[index]


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """Texel centres in 0..1 as (v, u)."""
    line = (np.arange(TILE) + 0.5) / TILE
    return line[:, None] * np.ones(TILE), line[None, :] * np.ones((TILE, 1))


def _fractal(rng: np.random.Generator, sigmas: tuple[float, ...], stretch: float = 1.0) -> np.ndarray:
    """Periodic noise in 0..1: Gaussian-filtered white noise, coarse octaves dominating."""
    total = np.zeros((TILE, TILE))
    for sigma in sigmas:
        octave = gaussian_filter(rng.standard_normal((TILE, TILE)), (sigma, sigma * stretch), mode="wrap")
        total += octave / octave.std() * sigma**0.5
    return np.clip(0.5 + total / (4.5 * total.std()), 0, 1)


def _plain(rng: np.random.Generator) -> np.ndarray:
    return 0.12 * _fractal(rng, (1.0, 6.0))


def _checker(rng: np.random.Generator) -> np.ndarray:
    v, u = _grid()
    return ((np.floor(u * 2) + np.floor(v * 2)) % 2) * 0.9 + 0.1 * _fractal(rng, (2.0,))


def _stripes(rng: np.random.Generator) -> np.ndarray:
    return ((_grid()[1] * 4) % 1 < 0.5) * 0.9 + 0.1 * _fractal(rng, (2.0,))


def _wood(rng: np.random.Generator) -> np.ndarray:
    """Eight planks along u with their own tone, grain and staggered ends."""
    v, u = _grid()
    plank = np.floor(v * 8).astype(int)
    ends = (u * 2 + rng.random(8)[plank]) % 1
    tone = rng.random((8, 3))[plank, np.floor(u * 2 + rng.random(8)[plank]).astype(int)]
    gaps = ((v * 8) % 1 < 0.06) | (ends < 0.012)
    return np.clip(0.5 * tone + 0.5 * _fractal(rng, (1.5, 4.0), 8.0), 0, 0.9) * ~gaps + 1.0 * gaps


def _grain(rng: np.random.Generator) -> np.ndarray:
    return _fractal(rng, (1.5, 4.0), 10.0)


def _brick(rng: np.random.Generator) -> np.ndarray:
    v, u = _grid()
    course = np.floor(v * 8).astype(int)
    along = (u * 4 + 0.5 * (course % 2)) % 4
    tone = rng.random((8, 4))[course, along.astype(int)]
    mortar = ((v * 8) % 1 < 0.12) | (along % 1 < 0.06)
    return np.where(mortar, 1.0, 0.35 * tone + 0.15 * _fractal(rng, (1.0, 3.0)))


def _noise(rng: np.random.Generator) -> np.ndarray:
    return _fractal(rng, (1.5, 5.0, 16.0))


def _tiles(rng: np.random.Generator) -> np.ndarray:
    v, u = _grid()
    tone = rng.random((4, 4))[np.floor(v * 4).astype(int), np.floor(u * 4).astype(int)]
    joint = ((u * 4) % 1 < 0.05) | ((v * 4) % 1 < 0.05)
    return np.where(joint, 1.0, 0.25 * tone)


def _books(rng: np.random.Generator) -> np.ndarray:
    """Upright spines of unequal width, tone and height: dark gaps read as 1."""
    edges = np.sort(rng.random(23))
    spine = np.searchsorted(edges, _grid()[1][0])
    tone = rng.random(24)[spine]
    return np.tile(tone, (TILE, 1)) * 0.9 + 0.1 * _fractal(rng, (2.0,))


def _dots(rng: np.random.Generator) -> np.ndarray:
    v, u = _grid()
    return 1.0 * (np.hypot((u * 4) % 1 - 0.5, (v * 4) % 1 - 0.5) < 0.28)


def _frame(rng: np.random.Generator) -> np.ndarray:
    """Nested borders, for rugs: one tile covers the whole face."""
    v, u = _grid()
    edge = np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v))
    border = ((edge > 0.05) & (edge < 0.11)) | ((edge > 0.17) & (edge < 0.2))
    diamond = np.abs(u - 0.5) + np.abs(v - 0.5) < 0.2
    return 0.85 * (border | diamond) + 0.15 * _fractal(rng, (1.5, 4.0))


def _painting(rng: np.random.Generator) -> np.ndarray:
    return np.round(_fractal(rng, (14.0, 28.0)) * 4) / 4


def _leaves(rng: np.random.Generator) -> np.ndarray:
    return 1.0 * (_fractal(rng, (5.0,)) > 0.52)


_PATTERNS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "plain": _plain, "checker": _checker, "stripes": _stripes, "wood": _wood, "grain": _grain, "brick": _brick, "noise": _noise,
    "tiles": _tiles, "books": _books, "dots": _dots, "frame": _frame, "painting": _painting, "leaves": _leaves,
}  # fmt: skip


@cache
def texture_bank() -> TextureBank:
    """The bank, built once per process (about 0.3 s) and the same everywhere."""
    flat: list[np.ndarray] = []
    for number, pattern in enumerate(_PATTERNS.values()):
        tile = pattern(np.random.default_rng([2024, number]))
        for _ in range(LEVELS):
            flat.append(tile.astype(np.float32).ravel())
            if tile.shape[0] > 1:
                tile = tile.reshape(tile.shape[0] // 2, 2, tile.shape[1] // 2, 2).mean(axis=(1, 3))
    sizes = [(TILE >> level) ** 2 for level in range(LEVELS)]
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    return TextureBank({name: i for i, name in enumerate(_PATTERNS)}, np.concatenate(flat), offsets, sum(sizes))
