"""Second look at a cache: run its teacher again on a few clips and compare, so that a cache can be believed.

Beside `teacher.extract`, which fills caches; `vega-edge verify CACHE` re-hashes the files and then calls this.

    vega-edge verify CACHE --rerun 3
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from teacher.cache import FeatureCache
from teacher.extract import clip_record, own_device
from teacher.scenes import open_scenes
from teacher.streams import Pipeline, load_pipeline
from vega_artifact import UserError

TOLERANCE = 0.02  # root mean square difference over the spread of a stream: float16 storage and other CPUs stay well below it
SETTINGS = ("sigma", "mode", "crop", "seed", "draws")


def pipeline_of(cache: FeatureCache, advice: str) -> Pipeline:
    """The pipeline that made a cache, loaded again.

    Raises:
        UserError: it is no longer the one that made the cache; `advice` ends the sentence.
    """
    config: dict[str, Any] = cache.manifest["config"]
    options = teacher_options(config["teacher"]) | {"device": own_device()}
    if config.get("prompt"):
        options["prompt_embeds"] = Path(config["prompt"])
    pipeline = load_pipeline(config.get("asked_for", config["teacher"]["name"]), **options)
    if pipeline.fingerprint != cache.manifest["parents"]["teacher"]:
        raise UserError(
            f"{cache.path}: made by teacher {cache.manifest['parents']['teacher']}, but {config['teacher']['name']!r} is now "
            f"{pipeline.fingerprint}; {advice}"
        )
    return pipeline


def rerun(path: Path | str, count: int, seed: int = 0) -> list[str]:
    """Extract `count` randomly chosen clips of a cache again.

    Args:
        path: folder of kind "cache". count: clips; more than there are means all. seed: of the choice.

    Returns:
        The scene ids that were compared.

    Raises:
        UserError: the teacher or the scenes named in the manifest are not what they were, or a stream differs.
    """
    cache = FeatureCache(path)
    config: dict[str, Any] = cache.manifest["config"]
    pipeline = pipeline_of(cache, "verify it with the weights it was made with")
    source = open_scenes(config["scenes"])
    if source.fingerprint != config["scenes_fingerprint"]:
        raise UserError(f"{path}: the scenes {config['scenes']} are no longer those it was made from; extract it again")
    chosen = np.random.default_rng(seed).permutation(len(cache))[:count]
    names = [cache.scene_ids[index] for index in sorted(chosen)]
    for name in names:
        clip = source[source.scene_ids.index(name)]
        found = clip_record(pipeline, clip, config["seed"], config["store_frames"])
        found = {stream: cache.storage.roundtrip(stream, array) for stream, array in found.items()}
        compare(path, name, cache[name], found)
    return names


def teacher_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of `load_teacher` that give the teacher of a manifest again."""
    options: dict[str, Any] = {name: config[name] for name in SETTINGS if name in config}  # a rival has no crop
    options |= {name: tuple(config[name]) for name in ("blocks", "size")}
    options["grid"] = None if config["grid"] is None else tuple(config["grid"])
    options["dtype"] = getattr(torch, config["dtype"])
    if config["weights"].startswith("random-"):
        options["random_weights"] = int(config["weights"].removeprefix("random-"))
    return options


def compare(path: Path | str, scene_id: str, stored: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Raises UserError naming the first stream of a clip that is not what the teacher computes now."""
    for stream, new in found.items():
        old = stored.get(stream)
        if old is None or old.shape != new.shape:
            shape = "absent" if old is None else f"of shape {old.shape}"
            raise UserError(
                f"{path}: {scene_id}, stream {stream} is {shape} where the teacher gives {new.shape}; extract it again"
            )
        difference = np.asarray(old, np.float64) - np.asarray(new, np.float64)
        error = float(np.sqrt(np.square(difference).mean())) / max(float(np.asarray(new, np.float64).std()), 1e-12)
        if not (error <= TOLERANCE if np.issubdtype(new.dtype, np.floating) else not difference.any()):
            raise UserError(
                f"{path}: {scene_id}, stream {stream} is not what the teacher computes (relative difference {error:.3f})"
            )
