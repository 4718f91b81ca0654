"""Target normalisers: put teacher features on one scale before they are compared, and know the way back.

Statistics are streamed in float64 over the training part of a cache; the inverse is folded into the student, which then
answers in the teacher's own units.

    normalizer = estimate("phi_s", chunks)      # chunks of tokens (M, C)
    z = normalizer.normalize(x); x = normalizer.denormalize(z)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from vega_artifact import UserError, unknown_name

EPSILON = 1e-6  # as torch's LayerNorm in vision transformers; features have a spread of order one
EMPTY = "normalizer: no tokens to estimate from; the training part of the cache is empty"


class Moments:
    """Streaming mean and covariance of tokens (M, C), float64, shifted by the first token so that big means cost no digits."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, tokens: Tensor) -> None:
        tokens = tokens.double()
        if self.count == 0:
            self.shift = tokens[0].clone()
            self.total = torch.zeros_like(self.shift)
            self.square = torch.zeros(len(self.shift), len(self.shift), dtype=torch.float64, device=tokens.device)
        tokens = tokens - self.shift
        self.count += len(tokens)
        self.total += tokens.sum(0)
        self.square += tokens.T @ tokens

    @property
    def mean(self) -> Tensor:
        return self.shift + self.total / self.count

    @property
    def covariance(self) -> Tensor:
        centre = self.total / self.count
        return self.square / self.count - torch.outer(centre, centre)


class Normalizer:
    """z = (x - mean) @ forward, x = z @ inverse + mean; `forward` and `inverse` are (C,) for diagonal maps, else (C, C)."""

    def __init__(self, mean: Tensor, forward: Tensor, inverse: Tensor) -> None:
        self.mean, self.forward, self.inverse = mean.float(), forward.float(), inverse.float()

    @property
    def kind(self) -> str:
        """The student's denormaliser that can hold this inverse: "diagonal" or "full"."""
        return "diagonal" if self.inverse.ndim == 1 else "full"

    def to(self, device: torch.device) -> Normalizer:
        self.mean, self.forward, self.inverse = (part.to(device) for part in (self.mean, self.forward, self.inverse))
        return self

    def normalize(self, features: Tensor) -> Tensor:
        """(..., C) of any float type -> float32 of the same shape."""
        return _apply(features.float() - self.mean, self.forward)

    def denormalize(self, normalised: Tensor) -> Tensor:
        """Inverse of `normalize`, float32."""
        return _apply(normalised.float(), self.inverse) + self.mean


class LayerNormalizer(Normalizer):
    """Each token loses its own mean and spread (Swin feature distillation), which only the token itself can give back.

    Without them `denormalize` uses the typical spread and the offset per channel that keeps the mean right.
    """

    def normalize(self, features: Tensor) -> Tensor:
        return layer_norm(features.float(), features.shape[-1:], eps=EPSILON)

    def statistics(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Per token mean and spread (..., 1), what `denormalize` needs for an exact inverse."""
        features = features.float()
        return features.mean(-1, keepdim=True), (features.var(-1, keepdim=True, unbiased=False) + EPSILON).sqrt()

    def denormalize(self, normalised: Tensor, statistics: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if statistics is None:
            return super().denormalize(normalised)
        mean, spread = statistics
        return normalised.float() * spread + mean


def _apply(values: Tensor, matrix: Tensor) -> Tensor:
    return values * matrix if matrix.ndim == 1 else values @ matrix


NORMALIZERS: dict[str, Callable[[Iterable[Tensor]], Normalizer]] = {}


def register(name: str) -> Callable[[Callable[[Iterable[Tensor]], Normalizer]], Callable[[Iterable[Tensor]], Normalizer]]:
    """Decorator: make an estimator (chunks of tokens (M, C)) -> Normalizer known under `name`."""

    def keep(make: Callable[[Iterable[Tensor]], Normalizer]) -> Callable[[Iterable[Tensor]], Normalizer]:
        NORMALIZERS[name] = make
        return make

    return keep


def estimate(kind: str, chunks: Iterable[Tensor]) -> Normalizer:
    """Fit a normaliser to chunks of tokens (M, C). Raises UserError for an unknown name."""
    if kind not in NORMALIZERS:
        raise unknown_name("normalizer", kind, NORMALIZERS)
    return NORMALIZERS[kind](chunks)


def _moments(chunks: Iterable[Tensor]) -> Moments:
    moments = Moments()
    for chunk in chunks:
        moments.update(chunk)
    if moments.count < 2:
        raise UserError(EMPTY)
    return moments


@register("none")
def none(chunks: Iterable[Tensor]) -> Normalizer:
    """Identity: the loss sees the teacher's own units."""
    channels = next(iter(chunks)).shape[-1]
    return Normalizer(torch.zeros(channels), torch.ones(channels), torch.ones(channels))


@register("standardize")
def standardize(chunks: Iterable[Tensor]) -> Normalizer:
    """Zero mean and unit spread per channel; one that hardly varies (below 1e-3 of the typical spread) is not blown up."""
    moments = _moments(chunks)
    spread = moments.covariance.diagonal().clamp_min(0).sqrt()
    spread = spread.clamp_min(max(1e-3 * float(spread.square().mean().sqrt()), EPSILON))
    return Normalizer(moments.mean, 1 / spread, spread)


@register("phi_s")
def phi_s(chunks: Iterable[Tensor]) -> Normalizer:
    """PHI-S: subtract the mean, rotate so that every channel has equal variance, divide by one scalar (RADIO, 2410.01680).

    With eigenvectors U and a normalised Hadamard matrix H, z = (x - mean) U H^T / alpha; the rotation keeps errors isotropic.
    """
    moments = _moments(chunks)
    values, vectors = torch.linalg.eigh(moments.covariance)
    alpha = values.clamp_min(0).mean().sqrt().clamp_min(EPSILON)
    rotation = vectors @ hadamard(len(values)).to(vectors).T
    return Normalizer(moments.mean, rotation / alpha, rotation.T * alpha)


@register("layernorm")
def layernorm(chunks: Iterable[Tensor]) -> Normalizer:
    """LayerNorm without affine part per token; the typical inverse is a scalar spread and an offset per channel."""
    count, spread, before, after = 0, 0.0, [], []
    for chunk in chunks:
        tokens = chunk.double()
        count += len(tokens)
        spread += float((tokens.var(-1, unbiased=False) + EPSILON).sqrt().sum())
        before.append(tokens.sum(0))
        after.append(layer_norm(tokens, tokens.shape[-1:], eps=EPSILON).sum(0))
    if count == 0:
        raise UserError(EMPTY)
    scale = torch.full_like(before[0], spread / count)
    mean = (torch.stack(before).sum(0) - scale * torch.stack(after).sum(0)) / count
    return LayerNormalizer(mean, 1 / scale, scale)


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
