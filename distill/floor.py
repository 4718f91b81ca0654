"""The noise floor: how far two draws of the same teacher are apart, so that nobody chases what no student can learn.

A generator watched with another noise seed answers differently; what differs is in the targets but not in the pictures.
Measured against a second cache of the same scenes, and logged beside the curves of a run (`distill.train`).

    vega-edge extract --teacher tiny --scenes "procedural:train?count=20" --seed 1 --out SECOND
    vega-edge train --cache CACHE --out RUN --change noise_cache=SECOND
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from distill.joined import JoinedCache
from distill.losses import Objective, vectors
from distill.normalize import Normalizer
from teacher.cache import FeatureCache, differences, listed
from vega_artifact import UserError

SCENES = 32  # at most, spread evenly over those that both caches hold
FREE = ("seed", "scenes", "scenes_fingerprint", "store_frames", "storage", "asked_for")  # may differ between the two caches


def noise_floor(
    cache: FeatureCache,
    second: Path | str,
    normalizers: Mapping[str, Normalizer],
    means: Mapping[str, Tensor],
    objective: Objective,
) -> dict[str, dict[str, float]]:
    """Compare two draws of a teacher as a student is compared with one of them.

    Args:
        cache: what the student learns from. second: a cache of the same teacher, another noise seed and some of these scenes.
        normalizers, means: stream -> normaliser of its targets, and its mean token (C,).
        objective: of the run; per-token and within-frame terms count, pairs of views are not formed here.

    Returns:
        {stream: {"loss": of the objective; "cosine": on normalised tokens, as the training log has it; "raw", "centred":
        cosines as the validation has them; "ceiling": sqrt(centred), about the centred cosine of a student that knows all but
        the noise; "noise_share": of the normalised targets' variance}} for the streams that `second` holds.

    Raises:
        UserError: another teacher or setting, the same seed, no scene in common, or other frames of one.
    """
    other = FeatureCache(second)
    source = _same_teacher(cache, other)
    scenes = _common(source, other)
    found = {}
    for stream in objective.weights:
        origin, own = cache.origin(stream) if isinstance(cache, JoinedCache) else (cache, stream)
        if origin is source and own in other.streams:
            pair = [torch.cat([_tokens(part, scene, own) for scene in scenes]) for part in (source, other)]
            found[stream] = _compare(pair[0], pair[1], normalizers[stream], means[stream], objective, stream)
    return found


def _same_teacher(cache: FeatureCache, other: FeatureCache) -> FeatureCache:
    """Which of the caches the student learns from the second one is another draw of."""
    parts = list(cache.parts.values()) if isinstance(cache, JoinedCache) else [cache]
    advice = "give a cache of the same teacher and settings with another --seed"
    fitting = [part for part in parts if part.manifest["parents"].get("teacher") == other.manifest["parents"].get("teacher")]
    if not fitting:
        raise UserError(f"{other.path}: was made by another teacher than {cache.path}; {advice}")
    if lines := differences(_settings(fitting[0].manifest["config"]), _settings(other.manifest["config"])):
        raise UserError(f"{other.path}: was made with other settings than {fitting[0].path} ({listed(lines)}); {advice}")
    seeds = [part.manifest["config"].get("seed") for part in (fitting[0], other)]
    if seeds[0] == seeds[1]:
        raise UserError(f"{other.path}: has the noise seed {seeds[0]} of {fitting[0].path}, so nothing differs; {advice}")
    return fitting[0]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in FREE}
    if isinstance(kept.get("teacher"), Mapping):
        kept["teacher"] = {name: value for name, value in kept["teacher"].items() if name != "seed"}
    return kept


def _common(source: FeatureCache, other: FeatureCache) -> list[str]:
    scenes = [scene for scene in source.scene_ids if scene in other]
    if not scenes:
        raise UserError(f"{other.path}: has no scene of {source.path}; extract some of the same scenes with another --seed")
    chosen = [scenes[i] for i in sorted(set(np.linspace(0, len(scenes) - 1, min(SCENES, len(scenes))).astype(int).tolist()))]
    for scene in chosen:
        if not np.array_equal(source.read(scene, "frame_ids"), other.read(scene, "frame_ids")):
            raise UserError(f"{other.path}: holds other frames of scene {scene!r} than {source.path}; extract the same ones")
    return chosen


def _tokens(cache: FeatureCache, scene: str, stream: str) -> Tensor:
    """(T, N, C) float32."""
    return torch.from_numpy(cache.read(scene, stream)).flatten(2).transpose(1, 2).float()


def _compare(
    first: Tensor, second: Tensor, normalizer: Normalizer, mean: Tensor, objective: Objective, stream: str
) -> dict[str, float]:
    """Two draws (F, N, C) of one stream."""
    device = normalizer.mean.device
    first, second, mean = first.to(device), second.to(device), mean.to(device)
    wanted, answer = normalizer.normalize(first), normalizer.normalize(second)
    single = Objective(
        weights={stream: 1.0}, **{term: getattr(objective, term) for term in ("cosine", "smooth_l1", "mse", "gram")}
    )
    part = single.stream(answer, wanted)
    centred = _cosine(first - mean, second - mean)
    variance = (wanted - wanted.mean((0, 1))).square().mean()
    return {
        "loss": float(part.loss),
        "cosine": float(part.cosine),
        "raw": _cosine(first, second),
        "centred": centred,
        "ceiling": max(centred, 0.0) ** 0.5,
        "noise_share": float((wanted - answer).square().mean() / 2 / variance),
    }


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(cosine_similarity(vectors(first), vectors(second), dim=-1).mean())
