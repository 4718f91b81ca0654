"""Rooms a choice may be made on: training rooms that fit and tune the probes, validation rooms that judge, never a test room.

Place in the chain: `vega-edge select` opens its scenes here; bench/search.py takes growing parts of them.

    python -c "from bench.validation import open_sources; \
               print([len(source) for source in open_sources('procedural:val?count=4', 'procedural:train?count=8')])"
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vega_artifact import UserError

if TYPE_CHECKING:
    from teacher.scenes import PosedClip
    from teacher.scenes.source import SceneSource

TUNED = 4  # one in so many of the fitting rooms chooses the probe's penalty instead
FEWEST = (2, 1, 2)  # rooms that fit, tune and judge: below that nothing can be resampled


@dataclass(frozen=True)
class Room:
    """One clip: the frames a teacher watches, and the view of it that is scored.

    Attributes:
        rgb: uint8 (T, H, W, 3), frame_ids: int64 (T,): everything the teacher may see.
        scored: int64 (T',), which of these frames are scored, the same for every mode that is compared.
        view: the clip cut to these frames, with its geometry.
    """

    rgb: np.ndarray
    frame_ids: np.ndarray
    scored: np.ndarray
    view: PosedClip

    @property
    def scene_id(self) -> str:
        return self.view.scene_id

    @classmethod
    def of(cls, clip: PosedClip, scored: np.ndarray) -> Room:
        """Cut a clip.

        Raises:
            UserError: no depth or no poses, or fewer than two frames that every mode delivers.
        """
        if clip.depth is None or clip.camera_to_world is None:
            raise UserError(f"scene {clip.scene_id}: choosing a setting needs depth and poses; give posed RGB-D scenes")
        if len(scored) < 2:
            raise UserError(
                f"scene {clip.scene_id}: of its {len(clip.rgb)} frames only {len(scored)} can be scored in all modes, "
                "at least 2 are needed; give scenes of more frames, or only --modes frame"
            )
        view = replace(
            clip,
            rgb=clip.rgb[scored],
            depth=clip.depth[scored],
            camera_to_world=clip.camera_to_world[scored],
            frame_ids=clip.frame_ids[scored],
            instances=None,
        )
        return cls(clip.rgb, clip.frame_ids, scored, view)


@dataclass(frozen=True)
class Rooms:
    """The rooms of a choice; scene ids are unique over all three lists."""

    fit: list[Room]
    tune: list[Room]
    judge: list[Room]

    @classmethod
    def cut(cls, judge: list[PosedClip], fit: list[PosedClip], scored: Callable[[int], np.ndarray]) -> Rooms:
        """Rooms out of clips; `scored` says for a number of frames which of them are scored."""
        rooms = [Room.of(clip, scored(len(clip.rgb))) for clip in fit]
        tuned = max(1, len(rooms) // TUNED)
        return cls(rooms[:-tuned], rooms[-tuned:], [Room.of(clip, scored(len(clip.rgb))) for clip in judge])

    @property
    def views(self) -> tuple[list[PosedClip], list[PosedClip], list[PosedClip]]:
        """What the probes read: views of the rooms that fit, tune and judge."""
        fit, tune, judge = ([room.view for room in rooms] for rooms in (self.fit, self.tune, self.judge))
        return fit, tune, judge

    @property
    def all(self) -> list[Room]:
        return [*self.fit, *self.tune, *self.judge]

    def part(self, share: float) -> Rooms:
        """The first `share` of each list, at least `FEWEST`; a larger part holds every smaller one."""
        lists = (self.fit, self.tune, self.judge)
        return Rooms(*(rooms[: max(least, math.ceil(share * len(rooms)))] for rooms, least in zip(lists, FEWEST, strict=True)))


def open_sources(scenes: str, fit_scenes: str) -> tuple[SceneSource, SceneSource]:
    """Scenes that judge and scenes that fit, opened and checked; costs nothing yet.

    Raises:
        UserError: test rooms, procedural rooms of a split that is not for this purpose, too few scenes, one scene in both.
    """
    from teacher.scenes import open_scenes

    for flag, uri, split in (("--scenes", scenes, "val"), ("--fit-scenes", fit_scenes, "train")):
        refuse_test_rooms(flag, uri)
        if uri.startswith("procedural:") and not re.match(rf"procedural:{split}(\?|$)", uri):
            raise UserError(f"{flag} {uri}: procedural rooms of the split {split} expected here; write procedural:{split}?...")
    judge, fit = open_scenes(scenes), open_scenes(fit_scenes)
    for flag, source, least in (("--scenes", judge, FEWEST[2]), ("--fit-scenes", fit, FEWEST[0] + FEWEST[1])):
        if len(source) < least:
            raise UserError(f"{flag} {source.uri}: at least {least} scenes are needed, it has {len(source)}; give more")
    if both := sorted(set(judge.scene_ids) & set(fit.scene_ids)):
        raise UserError(f"--scenes and --fit-scenes share {both[0]}; a room that fits a probe must not judge it")
    return judge, fit


def refuse_test_rooms(flag: str, uri: str) -> None:
    """A setting that was chosen on test rooms makes every later score on them worthless.

    Raises:
        UserError: a procedural test URI, or a path whose last folder is called test (scans_test, test-rooms).
    """
    place = uri.partition("?")[0].partition(":")[2]
    folders = [part for part in place.split("/") if part and "*" not in part] or [place]
    if "test" in re.split(r"[^a-z0-9]+", folders[-1].lower()):
        raise UserError(
            f"{flag} {uri}: these are test rooms, and a setting chosen on them would spoil every score on them; "
            "give validation rooms"
        )
