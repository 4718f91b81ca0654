"""What a distillation run is made of: one frozen dataclass, checked when it is made.

The flags of the command line are generated from it:

    vega-edge train --cache CACHE --recipe demo --out RUN
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from vega_artifact import UserError, canonical

# These change how a run is carried out, not which run it is: one may change them and still resume or reuse it.
HOUSEKEEPING = ("threads", "evaluate_every", "log_every", "checkpoint_seconds", "checkpoint_steps", "progress")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One distillation run. Origins of the numbers: `distill/recipes.py`."""

    student: str = "vit_micro"
    """A preset of `vega-edge list students` or timm:NAME."""
    head: str = "mlp"
    """Per stream head: mlp or linear."""
    pretrained: str | None = None
    """Weight file the backbone starts from; none: from scratch."""
    image_size: tuple[int, int] | None = None
    """Student input (height, width) in pixels; none: as the frames lie in the cache."""
    weights: Mapping[str, float] = field(default_factory=lambda: {"fused": 1.0, "generative": 0.5, "semantic": 0.25})
    """Teacher streams to learn, with their weights in the loss; 0 leaves a stream out."""

    normalizer: Literal["standardize", "phi_s", "layernorm", "none"] = "standardize"
    """How targets are scaled before they are compared."""
    cosine: float = 0.5
    """Weight of 1 - cos per token."""
    smooth_l1: float = 0.5
    """Weight of smooth-L1 per token."""
    gram: float = 0.0
    """Weight of the within-frame similarity term."""

    steps: int = 400
    batch: int = 48
    """Frames per step, over all processes together."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the 2-D weights of the backbone, AdamW for the rest."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak rate of Muon."""
    weight_decay: float = 0.04
    warmup: float = 0.05
    """Part of the steps during which the rates rise linearly; then they fall to 0 on a cosine."""
    clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema: float = 0.0
    """Decay of the averaged weights that are shipped; 0: the last weights are shipped."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation; colour balance changes by a quarter of it."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: autocast; auto: bf16 where the hardware computes in it."""
    seed: int = 0

    validation_part: float = 0.06
    """Part of the scenes, the last ones of the cache, that is only looked at."""
    evaluate_every: int = 100
    """Steps between validations on a few frames; the last one takes them all."""
    log_every: int = 10
    checkpoint_seconds: float = 60.0
    """A checkpoint is due when this time has passed (looked at every `log_every` steps)."""
    checkpoint_steps: int = 0
    """Checkpoint at multiples of this step as well; 0: by time alone."""
    threads: int | None = None
    """CPU threads of torch; none: as they are."""
    progress: bool = True

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "evaluate_every", "log_every")
        wrong = [f"{name} must be at least 1" for name in positive if getattr(self, name) < 1]
        parts = {"warmup": 1.0, "ema": 1.0, "validation_part": 0.5, "jitter": 0.9}
        wrong += [f"{name} must lie in [0, {top}]" for name, top in parts.items() if not 0 <= getattr(self, name) <= top]
        rates = ("learning_rate", "muon_learning_rate", "weight_decay", "cosine", "smooth_l1", "gram", "clip")
        wrong += [f"{name} must not be negative" for name in rates if not getattr(self, name) >= 0]
        if self.cosine + self.smooth_l1 + self.gram <= 0:
            wrong.append("one of cosine, smooth_l1 and gram must be above 0")
        if not self.streams or any(not weight >= 0 for weight in self.weights.values()):
            wrong.append("weights must not be negative and at least one stream's must be above 0")
        if self.threads is not None and self.threads < 1:
            wrong.append("threads must be at least 1")
        if wrong:
            raise UserError(f"run config: {'; '.join(wrong)}")

    @property
    def streams(self) -> list[str]:
        """The streams that are learned."""
        return [name for name, weight in self.weights.items() if weight > 0]

    def identity(self) -> dict[str, Any]:
        """What makes this run another run: everything but the housekeeping, as plain JSON."""
        return canonical({name: value for name, value in asdict(self).items() if name not in HOUSEKEEPING})


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" becomes: "bf16" where the device computes in it natively, else "fp32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"
