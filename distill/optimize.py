"""Optimisers, learning-rate schedule and weight averaging of a run.

Rates depend on the step alone, so a resumed run needs no scheduler state.

    python -m pytest tests/distill/test_optimize.py -q
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from distill.config import RunConfig


def create_optimizers(student: nn.Module, config: RunConfig) -> list[Optimizer]:
    """Muon for the backbone's 2-D weights (if asked for, and if it has any) and AdamW for the rest.

    Embeddings, heads and convolutions stay with AdamW: Muon is meant for hidden matrices. Gains, biases and position
    embeddings do not decay. Peak rates are those of the config, scaled to its batch.
    """
    named = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    hidden = [p for name, p in named if config.optimizer == "muon" and _is_backbone(name) and p.ndim == 2]
    taken = {id(parameter) for parameter in hidden}
    rest = [(name, parameter) for name, parameter in named if id(parameter) not in taken]
    decayed = [p for name, p in rest if _decays(name, p)]
    plain = [p for name, p in rest if not _decays(name, p)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [AdamW([group for group in groups if group["params"]], lr=config.learning_rate, fused=True)]
    if hidden:
        optimizers.append(Muon(hidden, lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"] = group["lr"] * config.rate_factor
    return optimizers


def _is_backbone(name: str) -> bool:
    return name.removeprefix("frame.").startswith("backbone.")


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and not name.endswith(("pos_embed", "cls_token", "reg_token", "dist_token"))


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over `warmup * steps` steps, then a cosine down to 0; a function of the step alone (0-based)."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def set_rates(optimizers: list[Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


class WeightAverage:
    """Exponential moving average of the parameters; early steps average over fewer (decay at most (1 + t) / (10 + t))."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [parameters[name].detach() for name in self.values], 1 - decay)
