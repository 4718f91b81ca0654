"""Fusion: one token stream from two, the semantic one (what is it) and the generative one (where is it).

Place in the chain: both streams arrive projected to one width D on one grid; the fused tokens are what the reader reads and
the student is distilled towards. Formulas and parameter names are those of VEGA-3D (arXiv 2603.19235, both code branches),
so that published fusion weights load: `create_fusion("token_gated", 3584).load_state_dict(...)`.

    python -c "from teacher.fusion import create_fusion; print(create_fusion('token_gated', 128))"
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from vega_artifact import UserError, unknown_name


class Fusion(nn.Module, ABC):
    """Base of all variants: `fusion(semantic, generative)` -> fused, all (B, N, D) of one floating dtype.

    Raises:
        ValueError: the streams differ in shape or are not D wide (they would broadcast into nonsense).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, semantic: Tensor, generative: Tensor, **extra: Any) -> Tensor:
        if semantic.shape != generative.shape or semantic.ndim != 3 or semantic.shape[-1] != self.dim:
            found = f"{tuple(semantic.shape)} and {tuple(generative.shape)}"
            raise ValueError(f"fusion of width {self.dim} needs two streams (B, N, {self.dim}), found {found}")
        return self.fuse(semantic, generative, **extra)

    @abstractmethod
    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        """Fuse two checked streams (B, N, D) of equal shape -> (B, N, D)."""


class Add(Fusion):
    """s + g."""

    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        return semantic + generative


class Only(Fusion):
    """g: the generative stream alone, for the ablation."""

    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        return generative


class Weighted(Fusion):
    """(a s + b g) / (a + b) with two learned scalars."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.weight_2d = nn.Parameter(torch.tensor(0.5))
        self.weight_gen = nn.Parameter(torch.tensor(0.5))

    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        return (self.weight_2d * semantic + self.weight_gen * generative) / (self.weight_2d + self.weight_gen)


class Normed(Fusion):
    """Base of the variants that look at both streams through LayerNorms of their own."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def normed(self, semantic: Tensor, generative: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """LN1(s), LN2(g) and both side by side (B, N, 2D)."""
        s, g = self.norm1(semantic), self.norm2(generative)
        return s, g, torch.cat((s, g), dim=-1)


class Concat(Normed):
    """W [LN1 s; LN2 g] + c."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.projection = nn.Linear(2 * dim, dim)

    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        return self.projection(self.normed(semantic, generative)[2])


class Gated(Normed):
    """a LN1(s) + (1 - a) LN2(g) with one gate a per token and channel."""

    gates: int | None = None  # how many gates per token; None: one per channel

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.gate_projection: nn.Module = nn.Sequential(nn.Linear(2 * dim, self.gates or dim), nn.Sigmoid())

    def gate(self, semantic: Tensor, generative: Tensor) -> Tensor:
        """The share of the semantic stream, (B, N, 1) or, channel-wise, (B, N, D), in 0..1."""
        return self.gate_projection(self.normed(semantic, generative)[2])

    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        s, g, both = self.normed(semantic, generative)
        a = self.gate_projection(both)
        return a * s + (1 - a) * g


class TokenGated(Gated):
    """The released default of the scene-understanding branch: as `Gated` with one gate per token."""

    gates = 1


class TokenGatedResidual(TokenGated):
    """The released default of the spatial-reasoning branch: s + r (1 - a) (g - s) on the raw streams, r a learned scalar."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.residual_scale = nn.Parameter(torch.tensor(0.2))

    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        a = self.gate(semantic, generative)
        mixed = a * semantic + (1 - a) * generative
        return semantic + self.residual_scale * (mixed - semantic)


class ContextGated(Normed):
    """`TokenGated` whose logit is shifted by the instruction: + bias + scale * MLP(LN(context)), context (B, D) or None.

    The context is the pooled embedding of the question's tokens; without one only the bias is added.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.norm_ctx = nn.LayerNorm(dim)
        self.gate_projection = nn.Linear(2 * dim, 1)
        self.ctx_projection = nn.Sequential(nn.Linear(dim, dim // 2), nn.SiLU(), nn.Linear(dim // 2, 1))
        self.context_scale = nn.Parameter(torch.tensor(1.0))
        self.gate_bias = nn.Parameter(torch.tensor(-0.5))

    def gate(self, semantic: Tensor, generative: Tensor, context: Tensor | None = None) -> Tensor:
        """The share of the semantic stream, (B, N, 1) in 0..1."""
        return self._gate(self.normed(semantic, generative)[2], context)

    def fuse(self, semantic: Tensor, generative: Tensor, context: Tensor | None = None) -> Tensor:
        s, g, both = self.normed(semantic, generative)
        a = self._gate(both, context)
        return a * s + (1 - a) * g

    def _gate(self, both: Tensor, context: Tensor | None) -> Tensor:
        logit = self.gate_projection(both) + self.gate_bias
        if context is not None:
            if context.shape != (both.shape[0], self.dim):
                raise ValueError(f"context ({both.shape[0]}, {self.dim}) expected, found {tuple(context.shape)}")
            logit = logit + self.context_scale * self.ctx_projection(self.norm_ctx(context)).unsqueeze(1)
        return logit.sigmoid()


class CrossAttention(Fusion):
    """Blocks in which semantic tokens ask (query) and generative tokens answer (key, value), then an MLP; both residual.

    Args:
        grid: (gh, gw) of the N tokens; None: a square.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, num_layers: int = 1, dropout: float = 0.1, grid: tuple[int, int] | None = None
    ) -> None:
        super().__init__(dim)
        if dim % 4 or dim % num_heads:
            raise UserError(f"cross_attention needs a width divisible by 4 and by its {num_heads} heads, found {dim}")
        self.grid = grid
        self.cross_attn_blocks = nn.ModuleList(CrossAttentionBlock(dim, num_heads, dropout) for _ in range(num_layers))

    def fuse(self, semantic: Tensor, generative: Tensor) -> Tensor:
        tokens = semantic.shape[1]
        height, width = self.grid or (math.isqrt(tokens), math.isqrt(tokens))
        if height * width != tokens:
            raise ValueError(f"{tokens} tokens do not fill a {height}x{width} grid; give create_fusion(..., grid=(gh, gw))")
        position = sincos_position(height, width, self.dim).to(semantic)
        for block in self.cross_attn_blocks:
            semantic = block(semantic, generative, position)
        return semantic


class CrossAttentionBlock(nn.Module):
    """One block of `CrossAttention`."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1_query = nn.LayerNorm(dim)
        self.norm1_key = nn.LayerNorm(dim)
        self.norm1_value = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, semantic: Tensor, generative: Tensor, position: Tensor) -> Tensor:
        query, key = self.norm1_query(semantic) + position, self.norm1_key(generative) + position
        semantic = semantic + self.cross_attention(query, key, self.norm1_value(generative), need_weights=False)[0]
        return semantic + self.mlp(self.norm2(semantic))


def sincos_position(height: int, width: int, dim: int) -> Tensor:
    """(height * width, dim) float32, row-major: sin then cos of the row, then of the column, dim / 4 frequencies each."""
    frequency = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    rows = torch.arange(height, dtype=torch.float32).repeat_interleave(width).outer(frequency)
    columns = torch.arange(width, dtype=torch.float32).repeat(height).outer(frequency)
    return torch.cat((rows.sin(), rows.cos(), columns.sin(), columns.cos()), dim=1)


FUSIONS: dict[str, type[Fusion]] = {
    "add": Add,
    "concat": Concat,
    "context_gated": ContextGated,
    "cross_attention": CrossAttention,
    "gated": Gated,
    "only": Only,
    "token_gated": TokenGated,
    "token_gated_residual": TokenGatedResidual,
    "weighted": Weighted,
}


def create_fusion(name: str, dim: int, seed: int = 0, **options: Any) -> Fusion:
    """A freshly initialised fusion module: Linear weights N(0, 0.02), biases 0, so every gate starts near one half.

    Args:
        name: one of `FUSIONS`.
        dim: the common width D of both streams.
        seed: of the weights; the global random state is neither used nor changed.
        options: of the variant; cross_attention has num_heads, num_layers, dropout and grid, the others have none.

    Raises:
        UserError: an unknown name or option.
    """
    if name not in FUSIONS:
        raise unknown_name("fusion", name, FUSIONS)
    known = set(inspect.signature(FUSIONS[name]).parameters) - {"dim"}
    for option in options:
        if option not in known:
            raise unknown_name(f"option of fusion {name}", option, known or {"(none)"})
    with torch.random.fork_rng(devices=[]):  # the constructors draw weights that are replaced below
        fusion = FUSIONS[name](dim, **options)
    initialise(fusion, torch.Generator(device="cpu").manual_seed(seed))
    return fusion


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Matrices of Linear and attention layers from N(0, 0.02), their biases 0; norms and scalars keep what they have."""
    norms = {f"{name}." for name, part in module.named_modules() if isinstance(part, nn.LayerNorm)}
    for name, parameter in module.named_parameters():
        if parameter.is_meta or name.startswith(tuple(norms)):
            continue
        if parameter.ndim == 2:
            parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(0.0, 0.02, generator=generator))
        elif parameter.ndim == 1:
            parameter.zero_()
