"""Visual tokens for any reader: project both streams, fuse them on one grid, add where they look in the room.

The trainable part of `vega-edge fit`. Order as in VEGA-3D (spec/vega3d.md 4): the semantic stream is projected on its own grid
and pooled after that, so a cache may hold 27x27 semantic and 14x14 generative maps. Parameter names are those of
`teacher.streams.FusedTokens`, whose weights load here.

    python -c "from teacher.visual import VisualTokens; print(VisualTokens(1152, 1536, 3584, 'token_gated'))"
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from teacher.fusion import FUSIONS, create_fusion, initialise
from teacher.positions import sin3d
from teacher.semantic import project_then_pool
from teacher.streams import projector
from vega_artifact import unknown_name

SEMANTIC, SEQUENCE = "semantic", "sequence"  # the methods beside the fusion modules
CONTEXT = "context_gated"  # the fusion module that also hears the question
METHODS = (*FUSIONS, SEMANTIC, SEQUENCE)


class VisualTokens(nn.Module):
    """Semantic (T, Cs, h, w) and generative (T, Cg, gh, gw) maps -> what the reader is given, float, `width` channels.

    Args:
        method: a name of `teacher.fusion.FUSIONS`; "semantic" leaves the generative stream out; "sequence" leaves both
            unfused, generative frames after the semantic ones.
        scale: divides the generative stream, whose size differs widely between models and blocks.
        seed: of the fresh weights.
    """

    scale: Tensor

    def __init__(
        self, semantic: int, generative: int, width: int, method: str = "token_gated", scale: float = 1.0, seed: int = 0
    ) -> None:
        super().__init__()
        if method not in METHODS:
            raise unknown_name("fusion", method, METHODS)
        self.method, self.width = method, width
        with torch.random.fork_rng(devices=[]):  # what the constructors draw is replaced below
            self.semantic_projector = projector(semantic, width)
            self.generative_projector = None if method == SEMANTIC else projector(generative, width)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        for module in (self.semantic_projector, self.generative_projector):
            if module is not None:
                initialise(module, generator)
        self.fusion = create_fusion(method, width, seed=seed) if method in FUSIONS else None
        self.register_buffer("scale", torch.tensor(scale))

    def forward(
        self, semantic: Tensor, generative: Tensor | None, cells: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Visual tokens (T, width, gh, gw); "sequence" gives 2 T maps, first the semantic ones.

        Args:
            generative: may be None for the method "semantic", whose grid is then the semantic stream's own.
            cells: where each token looks, (T, gh * gw, 3) from `teacher.positions.discretise`; None adds nothing.
            context: (width,) of the question, see `teacher.instruction`; only for the method "context_gated".
        """
        shape = semantic.shape[2:] if generative is None else generative.shape[2:]
        grid = (int(shape[0]), int(shape[1]))
        tokens = project_then_pool(semantic, self.semantic_projector, grid).flatten(2).transpose(1, 2)
        if self.generative_projector is not None:
            assert generative is not None
            other = self.generative_projector((generative / self.scale).flatten(2).transpose(1, 2))
            extra = {} if context is None else {"context": context.expand(len(tokens), -1)}
            tokens = torch.cat((tokens, other)) if self.fusion is None else self.fusion(tokens, other, **extra)
        if cells is not None:
            encoding = sin3d(cells, self.width).to(tokens)
            tokens = tokens + (torch.cat((encoding, encoding)) if len(tokens) > len(encoding) else encoding)
        return tokens.transpose(1, 2).unflatten(2, grid)
