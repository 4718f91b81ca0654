"""Two views of one scene side by side in a batch, and where in the room their tokens look.

What `relational.cross_view_loss` needs: batches made of pairs, and, where the scenes of a cache still have depth and poses, the
world position of every token. Positions are kept with the cache, so that rooms are rendered (or read) again only once.

    python -m pytest tests/distill/test_views.py -q
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from distill.dataset import shuffled
from teacher.cache import FeatureCache
from teacher.scenes import PosedClip, SceneSource, open_scenes
from vega_artifact import UserError, fingerprint

STREAM_TAG = 0x7669657773  # keeps these draws apart from the shuffles, which use the same seed
# Part of a clip between two views of a pair at most. Of eight views around a procedural room, 63 % of the tokens see a place
# that the next view shows too, 28 % the one after, 8 % and fewer those further on: pairs from anywhere would mostly be in vain.
REACH = 0.25
CUTTING_CROPS = ("cover", "reference")  # of the teacher: its grid covers only a part of the frame


def pair_indices(seed: int, step: int, batch: int, lengths: Sequence[int]) -> np.ndarray:
    """Which frames step `step` (0-based) sees, int64 (batch,), as pairs: entries 2k and 2k + 1 are views of one scene.

    The first of a pair walks through the endless row of shuffles as `dataset.batch_indices` does; the second is another frame
    of its scene, at most REACH of the clip away. A scene of one frame is paired with itself.

    Args:
        lengths: frames per scene, in the order in which the frames lie in memory.

    Raises:
        UserError: an odd batch, or no scene of more than one frame.
    """
    if batch % 2:
        raise UserError(f"run config: batch {batch} cannot be made of pairs of views (cross_view > 0); make it even")
    if max(lengths) < 2:
        raise UserError("run config: cross_view compares two views of a scene, but every scene of this cache has one frame")
    ends = np.cumsum(lengths)
    numbers = np.arange(step * batch // 2, (step + 1) * batch // 2)
    first = shuffled(seed, numbers, int(ends[-1]))
    scene = np.searchsorted(ends, first, side="right")
    start, length = ends[scene] - np.asarray(lengths)[scene], np.asarray(lengths)[scene]
    reach = np.maximum(1, (REACH * length).astype(np.int64))
    low, high = np.maximum(start, first - reach), np.minimum(start + length - 1, first + reach)
    draws = np.array([np.random.default_rng([STREAM_TAG, seed, int(number)]).random() for number in numbers])
    second = low + (draws * (high - low)).astype(np.int64)  # of the frames in reach without the first of the pair
    second += (second >= first) & (high > low)
    return np.stack((first, second), axis=1).ravel()


def token_places(cache: FeatureCache, scenes: Sequence[str], grid: tuple[int, int], kind: str) -> Tensor | None:
    """World position of the surface behind the middle of every token: float32 (F, N, 3) metres, NaN where unknown.

    Args:
        grid: (gh, gw) of the tokens, row-major.
        kind: "geometry": insist on it; "auto": None where the scenes cannot give it; "tokens": always None.

    Raises:
        UserError: with "geometry", the sentence says what is in the way.
    """
    if kind == "tokens":
        return None
    try:
        return torch.from_numpy(_places(cache, scenes, grid))
    except UserError as error:
        if kind == "geometry":
            raise UserError(f"{error}; use matches=tokens, which finds counterparts by the teacher's own tokens") from error
        return None


def _places(cache: FeatureCache, scenes: Sequence[str], grid: tuple[int, int]) -> np.ndarray:
    config = cache.manifest["config"]
    if "scenes" not in config:
        raise UserError(f"{cache.path}: its manifest does not say which scenes it was made from")
    if (crop := config.get("teacher", {}).get("crop")) in CUTTING_CROPS:
        raise UserError(
            f"{cache.path}: its teacher saw a part of each frame (crop {crop!r}), so its tokens have no known place"
        )
    key = fingerprint({"scenes": list(scenes), "grid": grid})

    def make() -> dict[str, np.ndarray]:
        source = open_scenes(str(config["scenes"]))
        if source.fingerprint != config["scenes_fingerprint"]:
            raise UserError(f"{cache.path}: the scenes {config['scenes']} are no longer those it was made from")
        bar = track(scenes, "places of tokens", console=Console(stderr=True), transient=True)
        return {"places": np.concatenate([_of_scene(cache, source, scene, grid) for scene in bar])}

    return cache.derived(f"places-{key}", make)["places"]


def _of_scene(cache: FeatureCache, source: SceneSource, scene: str, grid: tuple[int, int]) -> np.ndarray:
    """(T, N, 3) of the frames the cache holds of one scene."""
    clip: PosedClip = source[source.scene_ids.index(scene)]
    at = {number: t for t, number in enumerate(clip.frame_ids.tolist())}
    kept = [at[number] for number in cache.read(scene, "frame_ids").tolist()]
    return clip.resized(*grid).world_points()[kept].reshape(len(kept), -1, 3)
