"""A teacher that answers while the student learns, where the disk has no room for a cache: frames in memory, targets on demand.

Takes the place of a cache for `distill.train`. The teacher comes as a function, because this room cannot run one; it is asked
about the very frames of the next step while the present one runs. Statistics come from a sample of scenes. Every epoch asks
again, so a cache is faster wherever it fits.

    pipeline = load_pipeline("tiny")
    train(OnlineCache("procedural:train?count=40", pipeline.streams, pipeline.fingerprint), "RUN", recipes.demo())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.dataset import Frames, check_memory, load_frames
from teacher.cache import FeatureCache
from teacher.launch import local_processes
from teacher.scenes import open_scenes
from vega_artifact import UserError, fingerprint, unknown_name

Answer = Callable[[np.ndarray, str, Sequence[int]], Mapping[str, np.ndarray]]
SAMPLE = 16  # scenes that the statistics of the targets come from


class OnlineCache(FeatureCache):
    """Scenes and a teacher behind the interface of a cache; frames are kept, targets are not.

    Args:
        scenes: URI, see `teacher.scenes`.
        answer: (frames (T, H, W, 3) uint8, scene id, frame ids) -> {stream: (T, C, gh, gw) float}; one map per frame, which
            must not depend on the other frames.
        teacher: fingerprint of whoever answers.

    Raises:
        UserError: scenes that cannot be read or do not fit into memory, or a teacher that does not answer frame by frame.
    """

    def __init__(self, scenes: str, answer: Answer, teacher: str) -> None:
        source = open_scenes(scenes)
        self.path, self.answer = source.uri, answer  # type: ignore[assignment]  # errors name it as they name a folder
        first_clip = source[0]
        needed = 2 * first_clip.rgb.nbytes * len(source.scene_ids)  # here, and in the size that the student takes
        check_memory(self, needed, local_processes())
        clips = [first_clip, *(source[k] for k in range(1, len(source.scene_ids)))]
        self.images = {clip.scene_id: clip.rgb for clip in clips}
        self.frame_ids = {clip.scene_id: np.asarray(clip.frame_ids) for clip in clips}
        self.scene_ids = list(source.scene_ids)
        self.frames = {scene: len(self.images[scene]) for scene in self.scene_ids}
        config = {"scenes": source.uri, "scenes_fingerprint": source.fingerprint, "online": True}
        self.fingerprint = fingerprint({"teacher": teacher, **config})
        first = self.asked(self.scene_ids[0], slice(None))
        self.streams = {name: value.shape[1:] for name, value in first.items()}
        rgb = {"dtype": "uint8", "shape": list(self.images[self.scene_ids[0]].shape[1:])}
        self.manifest = {"streams": {**self.streams, "rgb": rgb}, "parents": {"teacher": teacher}, "config": config}

    def asked(self, scene: str, rows: slice | np.ndarray) -> dict[str, np.ndarray]:
        """What the teacher says about some frames of a scene: {stream: (T, C, gh, gw) float16}, as a cache would hold it.

        Raises:
            UserError: another number of maps than frames, or one that is not finite.
        """
        frames, ids = self.images[scene][rows], self.frame_ids[scene][rows]
        found = {name: value.astype(np.float16) for name, value in self.answer(frames, scene, ids.tolist()).items()}
        for name, value in found.items():
            if len(value) != len(frames):
                raise UserError(
                    f"{self.path}: the teacher gives {len(value)} maps of {len(frames)} frames in stream {name!r}; only a "
                    "teacher that sees every frame alone (frame mode) can answer on the fly, extract a cache of this one"
                )
            if not np.isfinite(value).all():
                raise UserError(f"{self.path}: NaN or infinity in scene {scene!r}, stream {name!r}; use another dtype or scene")
        return found

    def read(self, scene_id: str, stream: str) -> np.ndarray:
        if stream == "rgb":
            return self.images[scene_id]
        if stream == "frame_ids":
            return self.frame_ids[scene_id]
        if stream not in self.streams:
            raise unknown_name("stream", stream, self.streams)
        return self.asked(scene_id, slice(None))[stream]

    def derived(self, name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Nothing is kept: there is no folder."""
        return dict(make())

    def live(self, scene_ids: Sequence[str], streams: Sequence[str], size: tuple[int, int] | None) -> LiveFrames:
        """Frames of some scenes, in memory, whose targets are asked for when they are gathered."""
        held = load_frames(self, scene_ids, [], size)
        place = [(scene, number) for scene in scene_ids for number in range(self.frames[scene])]
        return LiveFrames(held.images, {}, held.scenes, held.lengths, None, self, tuple(streams), tuple(place))


@dataclass(frozen=True)
class LiveFrames(Frames):
    """Frames without targets, and whom to ask for them; place: (scene, number within it) of every frame."""

    cache: OnlineCache | None = None
    streams: tuple[str, ...] = ()
    place: tuple[tuple[str, int], ...] = ()

    def gather(self, indices: np.ndarray) -> tuple[Tensor, dict[str, Tensor]]:
        """As `distill.dataset.gather`; the teacher sees the chosen frames of one scene together."""
        assert self.cache is not None
        by_scene: dict[str, list[int]] = {}
        for row, index in enumerate(indices):
            by_scene.setdefault(self.place[index][0], []).append(row)
        targets: dict[str, Tensor] = {}
        for scene, rows in by_scene.items():
            found = self.cache.asked(scene, np.array([self.place[indices[row]][1] for row in rows]))
            for name in self.streams:
                tokens = torch.from_numpy(found[name]).flatten(2).transpose(1, 2)
                held = targets.setdefault(name, torch.empty(len(indices), *tokens.shape[1:], dtype=tokens.dtype))
                held[rows] = tokens
        where = torch.from_numpy(indices).to(self.images.device)
        return self.images.index_select(0, where), targets


def sample(scene_ids: Sequence[str]) -> list[str]:
    """The scenes whose targets tell the statistics of all, spread evenly."""
    chosen = np.linspace(0, len(scene_ids) - 1, min(SAMPLE, len(scene_ids))).round().astype(int)
    return [scene_ids[k] for k in chosen]
