"""Statistics of a teacher stream, streamed over a cache in float64 and kept beside it: what a target normaliser is made from.

Read by `distill.normalize`. A cache is gone through once per stream, part of the scenes and kind of statistics; the next run
(and every other process of this one) reads the result back. Kinds: "variance" is cheap, "covariance" costs C^2 per token and
"tokens" describes how single tokens spread, as LayerNorm needs it.

    python -m pytest tests/distill/test_statistics.py -q
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from distill.joined import JoinedCache
from teacher.cache import FeatureCache
from vega_artifact import UserError, fingerprint

VERSION = 1  # of what is computed; a new number makes stored statistics out of date
EPSILON = 1e-6  # as torch's LayerNorm in vision transformers; features have a spread of order one
EMPTY = "normalizer: no tokens to estimate from; the training part of the cache is empty"


class Gatherer(Protocol):
    """Takes chunks of tokens (M, C) of any float type; `result` gives float64 arrays, "mean" (C,) among them."""

    count: int

    def update(self, tokens: Tensor) -> None: ...

    def result(self) -> dict[str, Tensor]: ...


class Moments:
    """Streaming mean and covariance, shifted by the first token so that big means cost no digits.

    Args:
        full: keep the whole covariance (C, C); False keeps its diagonal alone.
    """

    def __init__(self, full: bool = True) -> None:
        self.full, self.count = full, 0

    def update(self, tokens: Tensor) -> None:
        tokens = tokens.double()
        if self.count == 0:
            self.shift = tokens[0].clone()
            self.total = torch.zeros_like(self.shift)
            shape = (len(self.shift),) * (2 if self.full else 1)
            self.square = torch.zeros(shape, dtype=torch.float64, device=tokens.device)
        tokens = tokens - self.shift
        self.count += len(tokens)
        self.total += tokens.sum(0)
        self.square += tokens.T @ tokens if self.full else tokens.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(C, C), or (C,) when only the diagonal is kept."""
        centre = self.total / self.count
        return self.square / self.count - (torch.outer(centre, centre) if self.full else centre.square())

    def result(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "covariance" if self.full else "variance": self.covariance}


class TokenSpread:
    """Mean over the tokens of each one's own spread over its channels, and the mean token before and after LayerNorm."""

    def __init__(self) -> None:
        self.count, self.spread = 0, 0.0

    def update(self, tokens: Tensor) -> None:
        tokens = tokens.double()
        if self.count == 0:
            self.before, self.after = (torch.zeros_like(tokens[0]) for _ in range(2))
        self.count += len(tokens)
        self.spread += float((tokens.var(-1, unbiased=False) + EPSILON).sqrt().sum())
        self.before += tokens.sum(0)
        self.after += layer_norm(tokens, tokens.shape[-1:], eps=EPSILON).sum(0)

    def result(self) -> dict[str, Tensor]:
        spread = torch.full_like(self.before, self.spread / self.count)
        return {"mean": self.before / self.count, "spread": spread, "normalised_mean": self.after / self.count}


def gather(kind: str, chunks: Iterable[Tensor]) -> dict[str, Tensor]:
    """Statistics of chunks of tokens (M, C) as float64 tensors.

    Args:
        kind: "variance" -> mean, variance (C,); "covariance" -> mean, covariance (C, C);
            "tokens" -> mean, spread, normalised_mean (C,).

    Raises:
        UserError: fewer than two tokens, or a token that is not finite.
    """
    gatherer: Gatherer = TokenSpread() if kind == "tokens" else Moments(full=kind == "covariance")
    for chunk in chunks:
        gatherer.update(chunk)
    if gatherer.count < 2:
        raise UserError(EMPTY)
    found = gatherer.result()
    if not torch.isfinite(found["mean"]).all():
        raise UserError("normalizer: NaN or infinity among the tokens; extract this cache again")
    return found


def stored_statistics(cache: FeatureCache, stream: str, scenes: Sequence[str], kind: str) -> dict[str, Tensor]:
    """As `gather` over all tokens of some scenes of a cache; computed once, then read from the cache's folder.

    Raises:
        UserError: as `gather`, and whatever reading the cache raises.
    """

    if isinstance(cache, JoinedCache):
        cache, stream = cache.origin(stream)

    def make() -> Mapping[str, np.ndarray]:
        return {name: value.numpy() for name, value in gather(kind, _tokens(cache, stream, scenes)).items()}

    key = fingerprint({"scenes": list(scenes), "version": VERSION})
    return {name: torch.from_numpy(value) for name, value in cache.derived(f"{stream}-{kind}-{key}", make).items()}


def _tokens(cache: FeatureCache, stream: str, scenes: Sequence[str]) -> Iterator[Tensor]:
    """Tokens (T * N, C) of one scene after another."""
    for scene in scenes:
        yield torch.from_numpy(cache.read(scene, stream)).flatten(2).transpose(1, 2).flatten(0, 1)
