"""Target normalisers: put teacher features on one scale before they are compared, and know the way back.

Made from statistics over the training part of a cache (`distill.statistics`); the inverse is folded into the student, which
then answers in the teacher's own units.

    normalizer = estimate("phi_s", chunks)      # chunks of tokens (M, C)
    z = normalizer.normalize(x); x = normalizer.denormalize(z)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from distill.statistics import EPSILON, gather, stored_statistics
from teacher.cache import FeatureCache
from vega_artifact import UserError, unknown_name


class Normalizer:
    """z = (x - mean) @ forward, x = z @ inverse + mean; `forward` and `inverse` are (C,) for diagonal maps, else (C, C)."""

    def __init__(self, mean: Tensor, forward: Tensor, inverse: Tensor) -> None:
        self.mean, self.forward, self.inverse = mean.float(), forward.float(), inverse.float()

    @property
    def kind(self) -> str:
        """The student's denormaliser that can hold this inverse: "diagonal" or "full"."""
        return "diagonal" if self.inverse.ndim == 1 else "full"

    def to(self, where: torch.device | torch.dtype) -> Normalizer:
        self.mean, self.forward, self.inverse = (part.to(where) for part in (self.mean, self.forward, self.inverse))
        return self

    def normalize(self, features: Tensor) -> Tensor:
        """(..., C) of any float type -> the normaliser's own type (float32 unless moved) in the same shape."""
        return _apply(features.to(self.mean.dtype) - self.mean, self.forward)

    def denormalize(self, normalised: Tensor) -> Tensor:
        """Inverse of `normalize`, of the same type."""
        return _apply(normalised.to(self.mean.dtype), self.inverse) + self.mean


class LayerNormalizer(Normalizer):
    """Each token loses its own mean and spread (Swin feature distillation), which only the token itself can give back.

    Without them `denormalize` uses the typical spread and the offset per channel that keeps the mean right.
    """

    def normalize(self, features: Tensor) -> Tensor:
        return layer_norm(features.to(self.mean.dtype), features.shape[-1:], eps=EPSILON)

    def statistics(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Per token mean and spread (..., 1), what `denormalize` needs for an exact inverse."""
        features = features.to(self.mean.dtype)
        return features.mean(-1, keepdim=True), (features.var(-1, keepdim=True, unbiased=False) + EPSILON).sqrt()

    def denormalize(self, normalised: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if statistics is None:
            return super().denormalize(normalised)
        mean, spread = statistics
        return normalised.to(self.mean.dtype) * spread + mean


def _apply(values: Tensor, matrix: Tensor) -> Tensor:
    return values * matrix if matrix.ndim == 1 else values @ matrix


Builder = Callable[[Mapping[str, Tensor]], Normalizer]
NORMALIZERS: dict[str, tuple[str, Builder]] = {}  # name -> the kind of statistics it needs, and what makes it of them


def register(name: str, needs: str) -> Callable[[Builder], Builder]:
    """Decorator: make a normaliser known under `name`; `needs` is a kind of `distill.statistics.gather`."""

    def keep(build: Builder) -> Builder:
        NORMALIZERS[name] = (needs, build)
        return build

    return keep


def estimate(kind: str, chunks: Iterable[Tensor]) -> Normalizer:
    """Fit a normaliser to chunks of tokens (M, C). Raises UserError for an unknown name or no tokens."""
    needs, build = _known(kind)
    return build(gather(needs, chunks))


def estimate_from(cache: FeatureCache, stream: str, scenes: Sequence[str], kind: str) -> tuple[Normalizer, Tensor]:
    """The normaliser of one stream over some scenes, and the stream's mean token (C,) float32; statistics are kept.

    A stream of one channel (the gate) has no spread within a token: where "layernorm" is asked for it is standardised.

    Raises:
        UserError: an unknown name, no scenes, or no Hadamard matrix for the channels.
    """
    one_channel = cache.streams[stream][0] == 1
    needs, build = _known("standardize" if one_channel and kind == "layernorm" else kind)
    statistics = stored_statistics(cache, stream, scenes, needs)
    return build(statistics), statistics["mean"].float()


def _known(kind: str) -> tuple[str, Builder]:
    if kind not in NORMALIZERS:
        raise unknown_name("normalizer", kind, NORMALIZERS)
    return NORMALIZERS[kind]


@register("none", needs="variance")
def none(statistics: Mapping[str, Tensor]) -> Normalizer:
    """Identity: the loss sees the teacher's own units."""
    mean = statistics["mean"]
    return Normalizer(torch.zeros_like(mean), torch.ones_like(mean), torch.ones_like(mean))


@register("standardize", needs="variance")
def standardize(statistics: Mapping[str, Tensor]) -> Normalizer:
    """Zero mean and unit spread per channel; one that hardly varies (below 1e-3 of the typical spread) is not blown up."""
    spread = statistics["variance"].clamp_min(0).sqrt()
    spread = spread.clamp_min(max(1e-3 * float(spread.square().mean().sqrt()), EPSILON))
    return Normalizer(statistics["mean"], 1 / spread, spread)


@register("phi_s", needs="covariance")
def phi_s(statistics: Mapping[str, Tensor]) -> Normalizer:
    """PHI-S: subtract the mean, rotate so that every channel has equal variance, divide by one scalar (RADIO, 2410.01680).

    With eigenvectors U and a normalised Hadamard matrix H, z = (x - mean) U H^T / alpha; the rotation keeps errors isotropic.
    """
    values, vectors = torch.linalg.eigh(statistics["covariance"])
    alpha = values.clamp_min(0).mean().sqrt().clamp_min(EPSILON)
    rotation = vectors @ hadamard(len(values)).to(vectors).T
    return Normalizer(statistics["mean"], rotation / alpha, rotation.T * alpha)


@register("layernorm", needs="tokens")
def layernorm(statistics: Mapping[str, Tensor]) -> Normalizer:
    """LayerNorm without affine part per token; the typical inverse is a scalar spread and an offset per channel."""
    spread = statistics["spread"]
    return LayerNormalizer(statistics["mean"] - spread * statistics["normalised_mean"], 1 / spread, spread)


def hadamard(size: int) -> Tensor:
    """Orthogonal (size, size) float64 matrix with entries +-1/sqrt(size): Sylvester doubling over Paley's construction.

    Covers powers of two and the widths in use (192, 384, 768, 1152, 1280, 1536, ...). Raises UserError where neither applies.
    """
    core, doublings = size, 0
    while core > 2 and not _is_paley(core) and core % 2 == 0:
        core, doublings = core // 2, doublings + 1
    if core not in (1, 2) and not _is_paley(core):
        raise UserError(f"phi_s: no Hadamard matrix for {size} channels is known here; use normalizer 'standardize'")
    matrix = _paley(core) if _is_paley(core) else torch.ones(1, 1, dtype=torch.float64)
    doublings += 1 if core == 2 else 0
    for _ in range(doublings):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def _is_paley(order: int) -> bool:
    prime = order - 1
    return prime > 2 and prime % 4 == 3 and all(prime % divisor for divisor in range(2, int(prime**0.5) + 1))


def _paley(order: int) -> Tensor:
    """Paley I: identity plus the skew matrix of quadratic residues modulo the prime order - 1."""
    prime = order - 1
    residue = torch.full((prime,), -1.0, dtype=torch.float64)
    residue[[k * k % prime for k in range(1, prime)]] = 1.0
    residue[0] = 0.0
    index = torch.arange(prime)
    skew = torch.zeros(order, order, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = residue[(index[:, None] - index[None, :]) % prime]
    return skew + torch.eye(order, dtype=torch.float64)
