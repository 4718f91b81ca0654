"""The walk of a camera through a room: a smooth path in free space and a slow turn that looks inwards.

Part of the procedural scenes. Many short curves are drawn, those that touch furniture are dropped, and of the rest the
one with the longest free view while turning is taken.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('procedural:val')[0].camera_to_world[:, :3, 3])"
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt

from .render import Caster
from .rooms import CELL, Room

FIELD_OF_VIEW = np.deg2rad(70.0)  # horizontal
CURVES, KEPT, HEADINGS, PROBES = 96, 6, 12, 12
CLEARANCE = 0.33  # metres between the camera and furniture or walls


@dataclass(frozen=True)
class Walk:
    """A camera path as a function of time in 0..1.

    Attributes:
        control: (4, 2) Bezier points in metres.
        height, bob: metres;  heading, sweep: start and total turn in radians;  pitch: radians, negative looks down.
        phases: (3,) of the small periodic motions.
    """

    control: np.ndarray
    height: float
    bob: float
    heading: float
    sweep: float
    pitch: float
    phases: np.ndarray

    def poses(self, time: np.ndarray) -> np.ndarray:
        """Camera-to-world matrices float64 (T, 4, 4) at `time` (T,)."""
        place = np.concatenate([_bezier(self.control, time), np.zeros((len(time), 1))], axis=1)
        place[:, 2] = self.height + self.bob * np.sin(2 * np.pi * (time + self.phases[0]))
        yaw = _turn(self.heading, self.sweep, time, self.phases[1])
        pitch = self.pitch + np.deg2rad(4.0) * np.sin(2 * np.pi * (1.5 * time + self.phases[2]))
        return look(place, yaw, pitch)


def _turn(heading: np.ndarray | float, sweep: np.ndarray | float, time: np.ndarray, phase: float) -> np.ndarray:
    """Steady pan with a slow sway of 5 degrees."""
    return heading + sweep * time + np.deg2rad(5.0) * np.sin(2 * np.pi * (time + phase))


def _bezier(control: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Cubic Bezier curves: control (..., 4, 2), time (T,) -> (..., T, 2)."""
    s, t = 1 - time, time
    weights = np.stack([s**3, 3 * s * s * t, 3 * s * t * t, t**3], axis=-1)
    return np.einsum("tk,...kd->...td", weights, control)


def look(place: np.ndarray, yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Camera-to-world (T, 4, 4) of OpenCV cameras at `place` (T, 3) looking along yaw and pitch (T,), never rolled."""
    forward = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], axis=-1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=-1)
    pose = np.tile(np.eye(4), (len(yaw), 1, 1))
    pose[:, :3, :3] = np.stack([right, np.cross(forward, right), forward], axis=-1)
    pose[:, :3, 3] = place
    return pose


def _clearance(room: Room) -> np.ndarray:
    """Metres from every cell of the floor plan to the nearest furniture or wall."""
    return distance_transform_edt(np.pad(~room.solid, 1))[1:-1, 1:-1] * CELL


def _curves(room: Room, rng: np.random.Generator) -> np.ndarray:
    """The longest `KEPT` of the curves that stay clear of everything: (k, 4, 2)."""
    clearance = _clearance(room)
    need = min(CLEARANCE, 0.8 * float(clearance.max()))
    cells = np.argwhere(clearance >= need)
    points = cells[rng.integers(len(cells), size=(CURVES, 4))] + rng.random((CURVES, 4, 2))
    points = points * CELL - np.array(room.size[:2]) / 2
    shrink = np.array([1.0, 0.75, 0.5, 0.25, 0.08])[np.arange(CURVES) % 5][:, None, None]
    control = points[:, :1] + shrink * (points - points[:, :1])
    control[0] = points[0, :1]  # standing still is always possible
    path = _bezier(control, np.linspace(0, 1, 32))
    index = np.clip(((path + np.array(room.size[:2]) / 2) / CELL).astype(np.int64), 0, np.array(clearance.shape) - 1)
    clear = clearance[index[..., 0], index[..., 1]].min(axis=1) >= need
    length = np.linalg.norm(np.diff(path, axis=1), axis=2).sum(axis=1)
    best = np.argsort(-np.where(clear, np.minimum(length, 3.5), -1.0), kind="stable")[:KEPT]
    return control[best[clear[best]]]


def make_walk(room: Room, caster: Caster, rng: np.random.Generator) -> Walk:
    """Draw a walk: eye height 1.2-1.7 m, a turn of 200-280 degrees, the headings chosen for the widest view."""
    control = _curves(room, rng)
    height, sweep = rng.uniform(1.2, 1.7), np.deg2rad(rng.uniform(200, 280))
    pitch, phases = np.deg2rad(rng.uniform(-19, -9)), rng.random(3)
    time = np.linspace(0, 1, PROBES)
    heading = 2 * np.pi * (np.arange(HEADINGS) + rng.random()) / HEADINGS
    starts, turns = np.repeat(heading, 2), np.tile([sweep, -sweep], HEADINGS)
    yaw = _turn(starts[:, None], turns[:, None], time[None], phases[1])  # (2 * HEADINGS, PROBES)
    place = _bezier(control, time)
    origins = np.broadcast_to(place[:, None], (len(control), len(yaw), PROBES, 2)).reshape(-1, 2)
    origins = np.concatenate([origins, np.full((len(origins), 1), height)], axis=1)
    aim = look(np.zeros((yaw.size, 3)), yaw.ravel(), np.full(yaw.size, pitch))[:, :3, 2]
    view = caster.distances(origins, np.tile(aim, (len(control), 1)))
    view = np.minimum(view.reshape(len(control), len(yaw), PROBES), 4.0)
    length = np.linalg.norm(np.diff(place, axis=1), axis=2).sum(axis=1)
    score = view.mean(axis=2) + view.min(axis=2) + 0.4 * np.minimum(length, 3.0)[:, None]
    curve, turn = np.unravel_index(int(score.argmax()), score.shape)
    return Walk(control[curve], height, rng.uniform(0.0, 0.05), float(starts[turn]), float(turns[turn]), float(pitch), phases)


def pinhole(height: int, width: int) -> np.ndarray:
    """Intrinsics float64 (3, 3) with square pixels, the centre in the middle and `FIELD_OF_VIEW` across the width."""
    focal = 0.5 * width / np.tan(FIELD_OF_VIEW / 2)
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
