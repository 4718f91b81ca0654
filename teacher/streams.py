"""From two frozen encoders to one fused token stream: projectors, the learned gate, and the pipeline that runs it all.

Order as in VEGA-3D (spec/vega3d.md 4): project both streams with a two-layer MLP, fuse per token on the shared grid.

    python -c "from teacher.streams import load_pipeline; print(load_pipeline('tiny').fingerprint)"
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from teacher.features import Teacher
from teacher.fusion import create_fusion
from teacher.semantic import SemanticEncoder
from vega_artifact import fingerprint


def projector(channels: int, width: int) -> nn.Sequential:
    """LLaVA's `mlp2x_gelu`: Linear, exact GELU, Linear."""
    return nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Linear(width, width))


class FusedTokens(nn.Module):
    """Projects and fuses semantic (B, Cs, gh, gw) and generative (B, Cg, gh, gw) maps.

    Args:
        scale: divides the raw residual stream, whose magnitude differs widely between models and blocks.
        method: a name known to `teacher.fusion`.
    """

    def __init__(self, semantic: int, generative: int, width: int, method: str = "token_gated", scale: float = 1.0) -> None:
        super().__init__()
        self.semantic_projector = projector(semantic, width)
        self.generative_projector = projector(generative, width)
        self.fusion = create_fusion(method, width)
        self.register_buffer("scale", torch.tensor(scale))

    def _project(self, semantic: Tensor, generative: Tensor) -> tuple[Tensor, Tensor]:
        first = self.semantic_projector(semantic.flatten(2).transpose(1, 2))
        return first, self.generative_projector((generative / self.scale).flatten(2).transpose(1, 2))

    def forward(self, semantic: Tensor, generative: Tensor) -> Tensor:
        """Fused map (B, width, gh, gw)."""
        fused = self.fusion(*self._project(semantic, generative))
        return fused.transpose(1, 2).unflatten(2, semantic.shape[2:])

    @torch.no_grad()
    def gate(self, semantic: Tensor, generative: Tensor) -> Tensor:
        """Share of the semantic stream per token, (B, 1, gh, gw) in 0..1."""
        gate = self.fusion.gate(*self._project(semantic, generative))
        return gate.transpose(1, 2).unflatten(2, semantic.shape[2:])


class SemanticTokens(nn.Module):
    """The semantic-only condition: the same projector the fused condition has for its semantic stream, and nothing else."""

    def __init__(self, semantic: int, width: int) -> None:
        super().__init__()
        self.semantic_projector = projector(semantic, width)

    def forward(self, semantic: Tensor) -> Tensor:
        """(B, Cs, gh, gw) -> (B, width, gh, gw)."""
        tokens = self.semantic_projector(semantic.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, semantic.shape[2:])


class Pipeline:
    """Generative teacher, semantic encoder and fusion, run on the same pixels.

    Args:
        block: which of the teacher's blocks feeds the fusion.
        semantic, mixer: both or neither; without them only the generative stream comes out.
    """

    def __init__(
        self, teacher: Teacher, block: int, semantic: SemanticEncoder | None = None, mixer: FusedTokens | None = None
    ) -> None:
        self.teacher, self.block, self.semantic, self.mixer = teacher, block, semantic, mixer.eval() if mixer else None

    @property
    def fingerprint(self) -> str:
        parts = [self.teacher.fingerprint, self.block]
        for module in (self.semantic, self.mixer):
            parts.append(weights_hash(module) if module else None)
        return fingerprint(parts)

    @torch.no_grad()
    def streams(
        self, frames: np.ndarray, scene_id: str, frame_ids: Sequence[int] | None = None, seed: int | None = None
    ) -> dict[str, np.ndarray]:
        """All streams of one clip.

        Args:
            frames: (T, H, W, 3) uint8.
            seed: another noise seed than the teacher's own, for the noise floor.
        Returns:
            "generative", and with a semantic branch "semantic", "fused" (T, C, gh, gw) and "gate" (T, 1, gh, gw), float32.
        """
        features = self.teacher.features(frames, scene_id=scene_id, frame_ids=frame_ids, seed=seed)
        generative = features.blocks[self.block]
        found = {"generative": generative}
        if self.semantic is not None:
            semantic = self.semantic.features(frames)[features.frame_index]
            found["semantic"] = semantic
            if self.mixer is not None:
                found |= {"fused": self.mixer(semantic, generative), "gate": self.mixer.gate(semantic, generative)}
        return {name: value.numpy() for name, value in found.items()}


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of the bytes of all weights: sums would depend on the number of threads."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_pipeline(name: str, **options: object) -> Pipeline:
    """Teacher by name or path with everything that comes with it; options are those of `load_teacher`."""
    from teacher.backbones import BACKBONES, load_teacher

    teacher = load_teacher(name, **options)  # type: ignore[arg-type]
    block = max(teacher.wanted)
    if name in BACKBONES and BACKBONES[name].embedded:
        from teacher.tiny.bundle import load_mixer, load_semantic_tower

        mixer = load_mixer(name) if options.get("random_weights") is None else None
        return Pipeline(teacher, block, load_semantic_tower(), mixer)
    return Pipeline(teacher, block)
