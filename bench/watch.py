"""3D probes for a student that is still learning: does the sense of space survive? Numbers and pictures for its log.

Between `distill.train`, which calls it within a share of its time, and the probes of this room. Rooms are those of the training
cache: the depth probe is fitted on some that the student learns from, and tuned and judged on those kept for validation. A
compass, not the result: that is `vega-edge bench probe` on test rooms.

    train(CACHE, RUN, config, probes=Watch(FeatureCache(CACHE), config))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from bench import maps
from bench.correspondence import ALL, mean_token, recall_statistics
from bench.depth import DepthProbe, r2
from bench.intervals import ratio
from bench.pictures import pca_maps
from bench.probes import Rooms
from distill.config import RunConfig
from distill.dataset import split_scenes
from distill.observe import Findings
from student import AnyStudent
from teacher.cache import FeatureCache
from teacher.scenes import PosedClip, open_scenes
from vega_artifact import UserError

FIT, TUNE, JUDGE = 12, 4, 8  # rooms, at most
PICTURES, PIXELS = 2, 160  # frames of the first judged room, and the width of their pictures
MEASURES = ("depth_r2", "correspondence")


class Watch:
    """A callable for `train(..., probes=)`.

    It answers {"depth_r2", "correspondence"} of the student (depth probe's R², centred recall), the same of the teacher and of
    raw patches, and as "kept/..." which share of what the teacher adds to raw patches (if it does) the student has by now; as
    pictures the tokens of teacher and student in the teacher's three principal components.

    Args:
        cache: of posed clips with depth, with frames; config: of the run, which decides the rooms and the stream.

    Raises:
        UserError: fewer than two validation rooms, or clips without depth or poses.
    """

    def __init__(self, cache: FeatureCache, config: RunConfig) -> None:
        learned, held = split_scenes(cache.scene_ids, config.validation_part)
        if len(held) < 2:
            raise UserError(
                f"{cache.path}: probes need 2 rooms that are not learned from, validation_part {config.validation_part} keeps "
                f"{len(held)}; raise it, or train without probes"
            )
        self.cache, self.stream = cache, max(config.streams, key=lambda name: config.weights[name])
        tuned = min(TUNE, len(held) // 2)
        maps.clips(cache, 0)  # refuses scenes that are no longer those of the cache
        source = open_scenes(str(cache.manifest["config"]["scenes"]))
        splits = (spread(learned, FIT), held[:tuned], spread(held[tuned:], JUDGE))
        self.rooms = Rooms(*([_posed(source[source.scene_ids.index(scene)]) for scene in split] for split in splits))
        self.pictured = splits[2][0]
        grid = cache.streams[self.stream][1:]
        self.teacher = maps.Maps([cache], lambda home, scene: home.read(scene, self.stream))
        raw = maps.Maps([cache], lambda home, scene: maps.raw_patches(home.read(scene, "rgb"), (grid[0], grid[1])))
        self.bounds = {"teacher": self.score("teacher", self.teacher), "raw_patches": self.score("raw_patches", raw)}

    def __call__(self, student: AnyStudent) -> Findings:
        device = next(student.parameters()).device

        def encode(frames: np.ndarray) -> dict[str, np.ndarray]:
            with torch.inference_mode():
                streams = student.film(student.preprocess(frames).to(device))
            return {name: value.cpu().numpy() for name, value in streams.items()}

        found = maps.network_maps([self.cache], encode, student.grid, self.stream, self.cache.path, maps.step_of(student))
        scores = self.score("student", found)
        numbers = dict(scores)
        for model, values in self.bounds.items():
            numbers |= {f"{model}/{name}": value for name, value in values.items()}
        for name in MEASURES:
            low, high = self.bounds["raw_patches"][name], self.bounds["teacher"][name]
            if high > low:  # else the teacher adds nothing that could be kept
                numbers[f"kept/{name}"] = (scores[name] - low) / (high - low)
        return Findings(numbers, self.pictures(found[self.pictured]))

    def score(self, model: str, found: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Depth R² and centred correspondence recall of one model's maps over the judged rooms."""
        (fit, grid), (tune, _), (judge, _) = (self.rooms.tokens(model, found, split) for split in ("train", "val", "test"))
        geometry = self.rooms.geometry(grid)
        probe = DepthProbe.fit(fit, geometry["train"], tune, geometry["val"])
        centre, scenes = mean_token(fit), list(zip(judge, geometry["test"], strict=True))
        depth = sum(probe.statistics(*scene) for scene in scenes)
        recall = sum(recall_statistics(*scene, centre)[ALL] for scene in scenes)
        return {"depth_r2": float(r2(np.asarray(depth))), "correspondence": float(ratio(np.asarray(recall)))}

    def pictures(self, student: np.ndarray) -> dict[str, bytes]:
        """PNG by name: some frames' tokens of teacher and student in the teacher's colours."""
        drawn = pca_maps(self.teacher[self.pictured][:PICTURES], {"student": student[:PICTURES]}, PIXELS)
        return {f"pca-{number}-{model}": picture for model, found in drawn.items() for number, picture in enumerate(found)}


def spread(scenes: Sequence[str], limit: int) -> list[str]:
    """At most `limit` of them, evenly spread, in order."""
    return [scenes[k] for k in np.linspace(0, len(scenes) - 1, min(limit, len(scenes))).round().astype(int)]


def _posed(clip: PosedClip) -> PosedClip:
    if clip.depth is None or clip.camera_to_world is None or clip.intrinsics is None:
        raise UserError(f"scene {clip.scene_id}: probes need depth and poses, it has none; train without probes")
    return clip
