"""Clips painted by hand for the tests of questions: boxes in a room, rectangles of constant depth in the views."""

from __future__ import annotations

import numpy as np

from teacher.scenes.clip import PosedClip, SceneObject

SIDE = 40  # pixels; focal length 40 as well, so a pixel's ray has slope (pixel + 0.5 - 20) / 40


def box(number: int, name: str, center: tuple[float, float, float], size=(0.5, 0.5, 0.8), yaw: float = 0.0) -> SceneObject:
    return SceneObject(id=number, name=name, center=center, size=size, yaw=yaw)


def painted(objects: tuple[SceneObject, ...], views: list[dict[int, tuple[slice, slice, float]]], scene="painted") -> PosedClip:
    """A clip whose view t shows object i as the rectangle (rows, columns) at constant depth; a wall 9 m away elsewhere."""
    instances = np.zeros((len(views), SIDE, SIDE), dtype=np.int16)
    depth = np.full((len(views), SIDE, SIDE), 9.0, dtype=np.float32)
    for t, view in enumerate(views):
        for number, (rows, columns, metres) in view.items():
            instances[t, rows, columns], depth[t, rows, columns] = number, metres
    return PosedClip(
        scene_id=scene,
        rgb=np.zeros((len(views), SIDE, SIDE, 3), dtype=np.uint8),
        depth=depth,
        intrinsics=np.array([[40.0, 0, 20], [0, 40.0, 20], [0, 0, 1]]),
        camera_to_world=np.tile(np.eye(4), (len(views), 1, 1)),
        frame_ids=np.arange(len(views)),
        instances=instances,
        objects=objects,
        room_size=(4.0, 5.0, 2.5),
    )


FURNITURE = (
    box(1, "chair", (1.0, 1.0, 0.4)),
    box(2, "table", (3.0, 1.1, 0.4), yaw=0.3),
    box(3, "lamp", (3.1, 3.0, 0.9), size=(0.3, 0.3, 1.8)),
    box(4, "bed", (1.1, 3.2, 0.3), size=(1.0, 1.2, 0.6)),
    box(5, "picture", (2.0, 4.9, 1.6), size=(0.6, 0.04, 0.5)),
    box(6, "stool", (0.5, 2.2, 0.25), size=(0.3, 0.3, 0.5)),
    box(7, "stool", (3.6, 2.2, 0.25), size=(0.3, 0.3, 0.5)),
    box(8, "rug", (2.2, 2.2, 0.01), size=(1.6, 1.2, 0.02)),
)


def room(scene: str = "painted") -> PosedClip:
    """Eight objects over five views; object 1 and 2 change sides and order, first views are all clear."""
    tile = [(slice(2 + 13 * r, 12 + 13 * r), slice(1 + 13 * c, 11 + 13 * c)) for r in range(3) for c in range(3)]
    views = [
        {1: (*tile[0], 2.0), 2: (*tile[2], 4.0)},
        {1: (*tile[2], 5.0), 2: (*tile[0], 3.0), 3: (*tile[4], 1.5)},
        {4: (*tile[3], 2.5), 3: (*tile[5], 3.5), 6: (*tile[7], 2.0)},
        {5: (*tile[1], 4.5), 4: (*tile[6], 1.8), 7: (*tile[8], 2.2), 6: (*tile[3], 4.0)},
        {8: (*tile[7], 2.6), 5: (*tile[2], 3.3), 1: (*tile[3], 1.2)},
    ]
    return painted(FURNITURE, views, scene)
