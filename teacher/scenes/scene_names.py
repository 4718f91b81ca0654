"""Scene names: which scene of a cache a benchmark's record asks about, whatever source the cache was made from.

Between question files and everything that has tokens per scene (`teacher.lessons`, `bench.conditions`). Posed sources name a
scene as the benchmarks do (scannet: scene0011_00, scannetpp: 10 hex digits, arkitscenes: 8 digits). A `video:` source names it
video-FOLDER-FILE by its files below the deepest folder they share, so VSI-Bench's `<root>/<dataset>/<scene_name>.mp4`
(spec/bench.md 1.1) is video-DATASET-SCENE, or video-SCENE where only one data set was matched.

    python -c "from teacher.scenes.scene_names import SceneNames; \
               print(SceneNames(['video-scannet-scene0011_00']).find({'scene_id': 'scene0011_00'}, 'scene_id'))"
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vega_artifact import UserError

VIDEO = "video-"  # how `teacher.scenes.video.find_videos` begins its names
DATASET = "dataset"  # the field of VSI-Bench's records that names the folder of a video; others ask about ScanNet only


class SceneNames:
    """The scene ids of one cache, to be asked by record.

    Attributes:
        ids: as the cache has them.
    """

    def __init__(self, scene_ids: Iterable[str]) -> None:
        self.ids = tuple(scene_ids)
        self._known = set(self.ids)
        self._whole: dict[str, list[str]] = {}
        self._endings: dict[str, list[str]] = {}
        for scene_id in self.ids:
            if scene_id.startswith(VIDEO):
                self._add(scene_id)

    def _add(self, scene_id: str) -> None:
        """File a video's id under itself and everything that may follow a folder's name; a file's ending may be part of it."""
        rest = scene_id.removeprefix(VIDEO)
        for name in {rest, rest.rpartition(".")[0] or rest}:
            parts = name.split("-")
            self._whole.setdefault(name, []).append(scene_id)
            for start in range(len(parts)):
                self._endings.setdefault("-".join(parts[start:]), []).append(scene_id)

    def find(self, record: Mapping[str, Any], field: str) -> str | None:
        """The scene that `record[field]` names, by the record's `dataset` too where it has one; None if there is none.

        Raises:
            UserError: several scenes are called that.
        """
        scene = str(record.get(field))
        if scene in self._known:
            return scene
        if DATASET in record:
            found = self._endings.get(f"{record[DATASET]}-{scene}") or self._whole.get(scene, [])
        else:
            found = self._endings.get(scene, [])
        if len(found) > 1:
            raise UserError(
                f"scene {scene!r} of the questions may be {found[0]!r} or {found[1]!r} of the cache; "
                "extract one video per scene, in folders named like the data sets"
            )
        return found[0] if found else None
