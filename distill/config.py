"""What a distillation run is made of: one frozen dataclass, checked when it is made.

The flags of the command line are generated from it:

    vega-edge train --cache CACHE --recipe demo --out RUN
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from distill.losses import TERMS
from vega_artifact import UserError, canonical

# These change how a run is carried out, not which run it is: one may change them and still resume or reuse it.
HOUSEKEEPING = (
    *("accumulate", "compile", "threads", "evaluate_every", "probe_share", "log_every", "trackers", "noise_cache"),
    *("checkpoint_seconds", "checkpoint_steps", "keep_every", "progress"),
)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One distillation run. Origins of the numbers: `distill/recipes.py`."""

    student: str = "vit_micro"
    """A preset of `vega-edge list students` or timm:NAME."""
    head: str = "mlp"
    """Per stream head: mlp or linear."""
    pretrained: str | None = None
    """Weight file the backbone starts from, or hub / hub:REPO; none: from scratch."""
    image_size: tuple[int, int] | None = None
    """Student input (height, width) in pixels; none: as the frames lie in the cache."""
    memory: int = 0
    """Channels that the student remembers per token from frame to frame (student.StreamingStudent); 0: every frame alone."""
    window: int = 8
    """Consecutive frames that a student with memory learns from at once."""
    weights: Mapping[str, float] = field(default_factory=lambda: {"fused": 1.0, "generative": 0.5, "semantic": 0.25})
    """Teacher streams to learn, with their weights in the loss; 0 leaves a stream out."""

    normalizer: Literal["standardize", "phi_s", "layernorm", "none"] = "standardize"
    """How targets are scaled before they are compared."""
    cosine: float = 0.5
    """Weight of 1 - cos per token."""
    smooth_l1: float = 0.5
    """Weight of smooth-L1 per token."""
    mse: float = 0.0
    """Weight of the squared error per token."""
    gram: float = 0.0
    """Weight of the within-frame similarity term."""
    cross_view: float = 0.0
    """Weight of the similarity between two views of a scene; above 0 batches are made of pairs of views."""
    matches: Literal["auto", "geometry", "tokens"] = "auto"
    """What tells which tokens of two views belong together: depth and poses of the scenes, or the teacher's own tokens; auto:
    geometry where the scenes have it."""
    relation_ramp: float = 0.0
    """Part of the steps over which gram and cross_view rise to their weights."""
    drop: float = 0.0
    """Probability that a frame leaves a stream out; the one it fits worst always stays."""

    steps: int = 400
    batch: int = 48
    """Frames per step, over all processes together."""
    accumulate: int = 1
    """In how many parts a process takes its share of a step, where memory is short."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the 2-D weights of the backbone, AdamW for the rest."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW."""
    muon_learning_rate: float = 0.02
    """Peak rate of Muon."""
    rate_scaling: Literal["none", "sqrt", "linear"] = "none"
    """How both rates grow with the batch: not at all, or with (the square root of) batch / rate_batch."""
    rate_batch: int = 256
    """The batch that the rates above are meant for, where they are scaled."""
    weight_decay: float = 0.04
    warmup: float = 0.05
    """Part of the steps during which the rates rise linearly; then they fall to 0 on a cosine."""
    clip: float = 1.0
    """Largest gradient norm; 0: no clipping."""
    ema: float = 0.0
    """Decay of the averaged weights that are shipped; 0: the last weights are shipped."""
    jitter: float = 0.2
    """Largest relative change of brightness, contrast and saturation; colour balance changes by a quarter of it."""
    crop: float = 0.0
    """Smallest part of each side that a random crop keeps, of the frame and of the teacher's map alike; 0: no crops."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """bf16, fp16: autocast, fp16 with a loss scaler; auto: bf16 where the hardware computes in it, else fp32."""
    compile: bool = False
    """Let torch.compile fuse the backbone: slow to start, and equal to rounding."""
    seed: int = 0
    ship: Literal["last", "best"] = "last"
    """Which weights the run ends with: the last, or those of the best validation on the way."""

    validation_part: float = 0.06
    """Part of the scenes, the last ones of the cache, that is only looked at."""
    evaluate_every: int = 100
    """Steps between validations on a few frames; the last one takes them all."""
    probe_share: float = 0.05
    """Part of the time that probes and pictures on the way may take; they are left out where they would take more."""
    log_every: int = 10
    checkpoint_seconds: float = 60.0
    """A checkpoint is due when this time has passed (looked at every `log_every` steps)."""
    checkpoint_steps: int = 0
    """Checkpoint at multiples of this step as well; 0: by time alone."""
    noise_cache: str | None = None
    """A cache of the same teacher with another noise seed: what differs between the two is measured and logged."""
    keep_every: int = 0
    """Weights at multiples of this step stay in the folder `kept`; 0: none do."""
    trackers: tuple[str, ...] = ()
    """Where the log goes beside log.jsonl: accelerate's trackers, such as tensorboard; their packages must be there."""
    threads: int | None = None
    """CPU threads of torch; none: as they are."""
    progress: bool = True

    def __post_init__(self) -> None:
        positive = ("steps", "batch", "window", "accumulate", "rate_batch", "evaluate_every", "log_every")
        wrong = [f"{name} must be at least 1" for name in positive if getattr(self, name) < 1]
        parts = {"warmup": 1.0, "ema": 1.0, "validation_part": 0.5, "jitter": 0.9, "crop": 1.0, "probe_share": 1.0}
        parts |= {"relation_ramp": 1.0, "drop": 1.0}
        wrong += [f"{name} must lie in [0, {top}]" for name, top in parts.items() if not 0 <= getattr(self, name) <= top]
        rates = ("learning_rate", "muon_learning_rate", "weight_decay", "clip", *TERMS)
        wrong += [f"{name} must not be negative" for name in rates if not getattr(self, name) >= 0]
        wrong += [f"{name} must be finite" for name in rates if getattr(self, name) == math.inf]
        if sum(getattr(self, name) for name in TERMS) <= 0:
            wrong.append(f"one of {', '.join(TERMS)} must be above 0")
        if not self.streams or any(not weight >= 0 for weight in self.weights.values()):
            wrong.append("weights must not be negative and at least one stream's must be above 0")
        if self.ship == "best" and self.validation_part == 0:
            wrong.append("ship=best needs a validation_part above 0")
        if min(self.checkpoint_steps, self.keep_every, self.memory, self.seed) < 0:
            wrong.append("checkpoint_steps, keep_every, memory and seed must not be negative")
        if self.image_size is not None and min(self.image_size) < 1:
            wrong.append(f"image_size {self.image_size} must be a height and a width in pixels")
        if self.memory > 0 and (self.crop > 0 or self.cross_view > 0):
            wrong.append("a student with memory sees whole frames in order: set crop=0 and cross_view=0, or memory=0")
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
        values = asdict(self)
        # Which step is best depends on the steps that are looked at.
        left_out = set(HOUSEKEEPING) - ({"evaluate_every"} if self.ship == "best" else set())
        return canonical({name: value for name, value in values.items() if name not in left_out})

    @property
    def rate_factor(self) -> float:
        """What the peak rates are multiplied by for this batch (anchors: linear in Theia, square root in lightly-train)."""
        power = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[self.rate_scaling]
        return (self.batch / self.rate_batch) ** power


def resolve_precision(precision: str, device: torch.device) -> str:
    """What "auto" becomes: "bf16" where the device computes in it natively, else "fp32"."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"
