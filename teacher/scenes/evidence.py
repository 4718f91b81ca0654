"""What the frames of a clip really show: which object in which view, how big, how far, how far to the left.

Between scenes and questions: a question may only be asked of what is visible, so ground truth is read from the instance
and depth images and not from the list of objects alone.

    python -c "from teacher.scenes import open_scenes; from teacher.scenes.evidence import Evidence; \
               print(Evidence(open_scenes('procedural:val?count=1')[0]).in_view(0))"
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vega_artifact import UserError

if TYPE_CHECKING:
    from teacher.scenes.clip import PosedClip, SceneObject

SEEN = 0.004  # share of a view's pixels from which an object counts as seen (66 px of 128x128)
UNSEEN = 0.0005  # share below which it counts as not seen; what lies between is ambiguous and never asked about
MEASURED = 0.5  # share of an object's pixels that need a valid depth


@dataclass(frozen=True)
class Sighting:
    """One object in one view.

    Attributes:
        view: 0-based index of the frame in the clip (questions say view + 1).
        share: visible pixels / pixels of the view.
        column: mean image column of the visible pixels, 0 (left edge) to 1 (right edge).
        distance: median length in metres of the rays from the camera centre to the visible surface.
        near, far: 10 % and 90 % quantile in metres of the depth along the optical axis over the visible pixels.
    """

    view: int
    object: SceneObject
    share: float
    column: float
    distance: float
    near: float
    far: float


class Evidence:
    """Visibility of every ground-truth object of a clip.

    Args:
        clip: a PosedClip with instances (T,H,W), depth (T,H,W), intrinsics and objects.

    Raises:
        UserError: the clip lacks one of these, as plain videos and unlabelled folders do.
    """

    def __init__(self, clip: PosedClip) -> None:
        missing = [name for name in ("instances", "depth", "intrinsics", "room_size") if getattr(clip, name) is None]
        if not clip.objects:
            missing.append("objects")
        if clip.instances is None or clip.depth is None or clip.intrinsics is None or clip.room_size is None or missing:
            raise UserError(
                f"{clip.scene_id}: questions from ground truth need {', '.join(missing)}, which this clip lacks; "
                "use procedural scenes or load the benchmark's own question file"
            )
        self.scene_id, self.objects, self.room_size = clip.scene_id, clip.objects, clip.room_size
        self._index = {item.id: number for number, item in enumerate(clip.objects)}
        labels = self._labels(clip.instances)
        self.shares, columns = self._count(labels)
        self._sightings = self._measure(labels, columns, clip.depth, _ray_lengths(clip.intrinsics, labels.shape[1:]))
        self._classes = Counter(item.name for item in clip.objects)
        self.visible = tuple(item for item, best in zip(clip.objects, self.shares.max(axis=0)) if best >= SEEN)

    def _labels(self, instances: np.ndarray) -> np.ndarray:
        """(T,H,W) uint16: 0 for structure, else 1 + position of the object in clip.objects, offset per view."""
        instances = np.maximum(instances, 0)
        table = np.zeros(max(int(instances.max()), *self._index) + 1, dtype=np.uint16)
        for identity, number in self._index.items():
            table[identity] = number + 1
        stride = len(self._index) + 1
        if stride * len(instances) > np.iinfo(np.uint16).max:
            raise UserError(f"{self.scene_id}: {len(instances)} views of {stride - 1} objects are too many; use fewer frames")
        return table[instances] + (np.arange(len(instances), dtype=np.uint16) * stride)[:, None, None]

    def _count(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares (T,N) of the view's pixels and mean columns (T,N) in 0..1 of every object."""
        views, height, width = labels.shape
        bins = views * (len(self._index) + 1)
        pixels = np.bincount(labels.ravel(), minlength=bins).reshape(views, -1)[:, 1:]
        places = np.broadcast_to((np.arange(width) + 0.5) / width, labels.shape)
        sums = np.bincount(labels.ravel(), weights=places.ravel(), minlength=bins).reshape(views, -1)[:, 1:]
        return pixels / (height * width), sums / np.maximum(pixels, 1)

    def _measure(
        self, labels: np.ndarray, columns: np.ndarray, depth: np.ndarray, ray_lengths: np.ndarray
    ) -> list[dict[int, Sighting]]:
        """Per view: position in clip.objects -> Sighting, for the objects seen there with enough valid depth."""
        depth, rays, flat = depth.ravel(), (depth * ray_lengths).ravel(), labels.ravel()
        order = np.argsort(flat, kind="stable")  # 16-bit keys: numpy sorts them by radix, in linear time
        starts = np.searchsorted(flat[order], np.arange(labels.shape[0] * (len(self._index) + 1) + 1))
        found: list[dict[int, Sighting]] = [{} for _ in range(len(labels))]
        for view, number in zip(*np.nonzero(self.shares >= SEEN)):
            group = view * (len(self._index) + 1) + number + 1
            pixels = order[starts[group] : starts[group + 1]]
            pixels = pixels[depth[pixels] > 0]
            if len(pixels) < MEASURED * self.shares[view, number] * labels[0].size:
                continue
            along = np.sort(depth[pixels])
            found[view][int(number)] = Sighting(
                view=int(view),
                object=self.objects[number],
                share=float(self.shares[view, number]),
                column=float(columns[view, number]),
                distance=float(np.median(rays[pixels])),
                near=float(along[len(along) // 10]),
                far=float(along[(9 * len(along)) // 10]),
            )
        return found

    def in_view(self, view: int) -> list[Sighting]:
        """Objects seen in the view that can be called "the CLASS" there: no second one shows more than a few pixels."""
        names = Counter(item.name for item, share in zip(self.objects, self.shares[view]) if share >= UNSEEN)
        return [sighting for sighting in self._sightings[view].values() if names[sighting.object.name] == 1]

    def unique(self) -> list[SceneObject]:
        """Visible objects that are the only one of their class in the whole room."""
        return [item for item in self.visible if self._classes[item.name] == 1]

    def categories(self) -> dict[str, list[SceneObject]]:
        """Classes all of whose instances are visible somewhere in the clip -> these instances."""
        groups: dict[str, list[SceneObject]] = {}
        for item in self.visible:
            groups.setdefault(item.name, []).append(item)
        return {name: items for name, items in groups.items() if len(items) == self._classes[name]}

    def first_views(self) -> dict[str, int]:
        """Class -> the view in which it first appears, for classes whose first appearance is clear.

        Clear: from one view to the next it goes from (nearly) no pixels to enough to be seen.
        """
        first: dict[str, int] = {}
        for name in sorted({item.name for item in self.visible}):
            columns = [self._index[item.id] for item in self.objects if item.name == name]
            best = self.shares[:, columns].max(axis=1)
            view = int(np.argmax(best >= SEEN))
            if (best[:view] < UNSEEN).all():
                first[name] = view
        return first


def _ray_lengths(intrinsics: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(H,W) float32: metres along the ray per metre along the optical axis; pixel centres at +0.5."""
    x = (np.arange(shape[1]) + 0.5 - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (np.arange(shape[0]) + 0.5 - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.sqrt(1.0 + x[None, :] ** 2 + y[:, None] ** 2).astype(np.float32)
