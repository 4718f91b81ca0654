"""Procedural rooms as clips: one call from (split, seed, index) to a `PosedClip` with exact ground truth.

The scenes of everything that needs no download: the embedded teacher is trained on them, the benchmark asks about them.
The random streams of the splits differ in their first word, so no split can ever meet a room of another. A room depends
on (split, seed, index) only; `frames`, `size` and `span` choose what is seen of its walk.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('procedural:test?count=3').scene_ids)"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vega_artifact import UserError, unknown_name

from .camera import Walk, make_walk, pinhole
from .clip import PosedClip
from .mesh import build_mesh
from .render import Caster, Light, Lighting, render
from .rooms import Room, make_room

SPLITS = {"train": 1, "val": 2, "test": 3}
WALK_FRAMES = 900  # a walk is a video of 30 s at 30 frames/s; frame ids count these
VERSION = 1  # raise when the same (split, seed, index) renders differently


@dataclass(frozen=True)
class ProceduralConfig:
    """What of how many rooms to show.

    Attributes:
        split: "train", "val" or "test".
        count: number of rooms, indices 0..count-1.
        seed: any non-negative integer.
        frames: frames per clip, spread evenly over the covered part of the walk.
        size: pixels, height and width.
        span: fraction of the walk that is covered; where it starts is drawn per room.
    """

    split: str
    count: int = 20
    seed: int = 1
    frames: int = 8
    size: int = 128
    span: float = 1.0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown_name("split", self.split, SPLITS)
        if not (self.count >= 1 and self.seed >= 0 and self.size >= 8 and 0 < self.span <= 1):
            raise UserError("procedural scenes: count >= 1, seed >= 0, size >= 8 and 0 < span <= 1 expected")
        if not 1 <= self.frames <= self.span * WALK_FRAMES:
            raise UserError(f"procedural scenes: frames must be 1 to {int(self.span * WALK_FRAMES)} (span * {WALK_FRAMES})")

    def scene_id(self, index: int) -> str:
        return f"procedural-{self.split}-s{self.seed}-{index:05d}"


def _stream(config: ProceduralConfig, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([VERSION, SPLITS[config.split], config.seed, index, purpose])


def _lighting(room: Room, rng: np.random.Generator) -> Lighting:
    """A warm ceiling light near the middle and a dimmer, cooler one to the side."""
    x, y, height = room.size
    warm, strength = rng.uniform(0.8, 1.0), rng.uniform(0.85, 1.15)
    key = Light(
        (rng.uniform(-0.15, 0.15) * x, rng.uniform(-0.15, 0.15) * y, height - 0.25),
        (strength, strength * 0.96, strength * warm * 0.95),
    )
    dim, side = rng.uniform(0.3, 0.5), rng.uniform(0, 2 * np.pi)
    fill = Light((0.38 * x * np.cos(side), 0.38 * y * np.sin(side), height * 0.7), (dim * 0.9, dim * 0.95, dim))
    ambient = rng.uniform(0.24, 0.34)
    return Lighting(key, fill, (ambient, ambient, ambient * 1.04))


def build_room(config: ProceduralConfig, index: int) -> tuple[Room, Caster, Lighting, Walk]:
    """Everything about one room that does not depend on frames, size or span."""
    room = make_room(_stream(config, index, 0))
    things = [(0, 0.0, np.zeros(3), room.shell)]
    things += [(number, piece.yaw, np.array(piece.origin), piece.parts) for number, piece in enumerate(room.pieces, 1)]
    caster = Caster(build_mesh(things))
    return room, caster, _lighting(room, _stream(config, index, 1)), make_walk(room, caster, _stream(config, index, 2))


def frame_numbers(config: ProceduralConfig, index: int) -> np.ndarray:
    """Which frames of the walk the clip shows: int64 (frames,), ascending, distinct."""
    length = config.span * (WALK_FRAMES - 1)
    start = _stream(config, index, 3).random() * (WALK_FRAMES - 1 - length)
    return np.floor(np.linspace(start, start + length, config.frames) + 1e-6).astype(np.int64)


def procedural_clip(config: ProceduralConfig, index: int) -> PosedClip:
    """Render clip number `index`; the same bytes every time and in every process."""
    room, caster, lighting, walk = build_room(config, index)
    frame_ids = frame_numbers(config, index)
    poses = walk.poses(frame_ids / (WALK_FRAMES - 1))
    intrinsics = pinhole(config.size, config.size)
    rgb, depth, instances = render(caster, lighting, intrinsics, poses, config.size, config.size)
    return PosedClip(
        scene_id=config.scene_id(index),
        rgb=rgb,
        depth=depth,
        intrinsics=intrinsics,
        camera_to_world=poses,
        frame_ids=frame_ids,
        instances=instances,
        objects=tuple(piece.described(number) for number, piece in enumerate(room.pieces, 1)),
        room_size=room.size,
    )
