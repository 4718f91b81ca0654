"""What a fit reads of one scene: semantic and generative maps from the cache, and where each token looks in the room.

Between `teacher.cache` and `teacher.tutor`. The semantic stream may also come from a SigLIP folder that reads the cached frames
on its own grid (27x27 for so400m), which is the way for teachers whose cache has no semantic stream.

    python -c "from teacher.cache import FeatureCache; from teacher.fit_streams import SceneStreams; \
               from teacher.tutor import Parts; print(SceneStreams(FeatureCache('runs/demo/cache-val'), Parts()).semantic)"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from teacher.cache import FeatureCache
from teacher.positions import discretise, token_points
from teacher.scenes.source import SceneSource, open_scenes
from teacher.semantic import SemanticEncoder, load_semantic
from teacher.tutor import BLIND, Parts, Shape
from teacher.visual import SEMANTIC
from vega_artifact import UserError

SCALED_BY = 8  # scenes whose generative maps give the scale


class SceneStreams:
    """Streams of the scenes of one cache, as the parts need them.

    Attributes:
        semantic, generative: (C, gh, gw) of the streams; generative is None where it is not used.

    Raises:
        UserError: a cache without the streams, without frames for a SigLIP tower, or with other scenes than it was made from.
    """

    def __init__(self, cache: FeatureCache, parts: Parts, tower: str | None = None) -> None:
        self.cache, self.parts = cache, parts
        self.blind = parts.fusion == BLIND
        self.tower: SemanticEncoder | None = None if tower is None or self.blind else load_semantic(Path(tower), grid=None)
        for name in () if self.blind else self._needed():
            if name not in cache.manifest["streams"]:
                hint = "give a SigLIP folder with --semantic" if name == SEMANTIC else "extract it again with that stream"
                raise UserError(f"{cache.path}: no stream {name!r} in it; {hint}")
        self.generative: Shape | None = None if self.blind or parts.fusion == SEMANTIC else cache.streams["generative"]
        if self.tower is None:
            self.semantic: Shape = cache.streams.get(SEMANTIC, (0, 0, 0))
        else:
            side = int(self.tower.embeddings.num_patches**0.5)
            self.semantic = (self.tower.channels, side, side)
        self.source = None if parts.positions == "none" or self.blind else self._scenes()

    def _needed(self) -> list[str]:
        first = SEMANTIC if self.tower is None else "rgb"
        return [first] if self.parts.fusion == SEMANTIC else [first, "generative"]

    def _scenes(self) -> SceneSource:
        """The scenes the cache was made from, for their depth and poses."""
        config = self.cache.manifest["config"]
        source = open_scenes(str(config["scenes"]))
        if source.fingerprint != config["scenes_fingerprint"]:
            raise UserError(
                f"{self.cache.path}: the scenes {config['scenes']} are no longer those it was made from; extract it again"
            )
        return source

    def scale(self, scenes: Sequence[str]) -> float:
        """Standard deviation of the generative stream over the first scenes; 1 where there is none."""
        if self.generative is None:
            return 1.0
        maps = [torch.from_numpy(self.cache.read(scene, "generative")).float() for scene in scenes[:SCALED_BY]]
        return float(torch.cat([part.flatten() for part in maps]).std())

    def read(self, scene: str) -> dict[str, Tensor]:
        """Float32 "semantic" (T, Cs, h, w), "generative" (T, Cg, gh, gw) and "cells" (T, gh * gw, 3), those that are used."""
        if self.blind:
            return {}
        found = {}
        if self.tower is None:
            found[SEMANTIC] = torch.from_numpy(self.cache.read(scene, SEMANTIC)).float()
        else:
            found[SEMANTIC] = self.tower.features(self.cache.read(scene, "rgb"))
        if self.generative is not None:
            found["generative"] = torch.from_numpy(self.cache.read(scene, "generative")).float()
        if self.source is not None:
            found["cells"] = self._cells(scene)
        return found

    def _cells(self, scene: str) -> Tensor:
        assert self.source is not None and self.parts.positions != "none"
        clip = self.source[self.source.scene_ids.index(scene)]
        grid = (self.generative or self.semantic)[1:]
        return discretise(token_points(clip, (grid[0], grid[1]), self.parts.positions))
