"""True coordinates as if they were a stream of features: what no teacher can beat, and so what a reader can use at most.

Rendered depth and camera poses of the training tours, encoded with sines; takes the place of the generative stream in the
condition "oracle" of `bench.rooms_study`. No model sees it anywhere else.

    python -c "from pathlib import Path; from teacher.tiny.oracle import oracle_stream; \
               print(oracle_stream(Path('runs/tiny'), 'val').shape)"
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.progress import track

from teacher.scenes.procedural import WALK_FRAMES, ProceduralConfig, build_room, frame_numbers
from teacher.tiny import rooms
from teacher.tiny.bundle import WIDTH
from vega_artifact import atomic_write

PERIODS = 2.0 ** np.arange(-1, 7)  # metres of a full wave: half a metre to 64 m, all of a room and a tenth of a chair


def oracle_stream(work: Path, split: str) -> np.ndarray:
    """Encoded coordinates of all tours of a split: (rooms, T, WIDTH, gh, gw) float16; made once, kept in `work`."""
    path = work / f"stream_oracle_{split}.npy"
    if not path.exists():
        stored = rooms.load(work, f"{split}_geometry")
        poses = list(rooms.in_parallel(_poses, len(stored), (split,), f"{split} poses"))
        found = [encode(np.asarray(own), pose) for own, pose in zip(track(stored, description="oracle"), poses, strict=True)]
        atomic_write(path, lambda temporary: _save(temporary, np.stack(found)))
    return np.load(path, mmap_mode="r")


def encode(stored: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Sines and cosines of where each cell lies.

    Args:
        stored: (T, 4, gh, gw) of `rooms.image_geometry`: log depth and the place in the frame's own camera.
        poses: (T, 4, 4) camera-to-world.

    Returns:
        (T, WIDTH, gh, gw) float16 of distance, depth, place in the camera and place in the room, eight numbers in metres.
    """
    values = stored.astype(np.float64)
    own = 2 * values[:, 1:]
    room = np.einsum("tij,tjhw->tihw", poses[:, :3, :3], own) + poses[:, :3, 3, None, None]
    depth, distance = np.exp(0.5 * values[:, :1] + 1), np.linalg.norm(own, axis=1, keepdims=True)
    metres = np.concatenate([distance, depth, own, room], axis=1)
    phase = 2 * np.pi * metres[:, :, None] / PERIODS[:, None, None]
    waves = np.concatenate([np.sin(phase), np.cos(phase)], axis=2)
    return waves.reshape(len(own), WIDTH, *own.shape[2:]).astype(np.float16)


def _poses(split: str, index: int) -> np.ndarray:
    config = ProceduralConfig(split=split, seed=rooms.RoomsConfig().seed + 1, frames=8, size=rooms.RoomsConfig().size)
    walk = build_room(config, index)[3]
    return walk.poses(frame_numbers(config, index) / (WALK_FRAMES - 1))


def _save(path: Path, values: np.ndarray) -> None:
    with open(path, "wb") as stream:
        np.save(stream, values, allow_pickle=False)
