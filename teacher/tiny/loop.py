"""The training loop every stage of the embedded teacher shares: seeded by step, logged, checkpointed, resumable.

A stage hands over modules, optimizers and `loss(step) -> {name: scalar tensor}` (the entry "loss" is minimised). What a step
sees depends on (seed, step) alone, so a run that was killed continues as if it had not been.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from vega_artifact import UserError, atomic_write

CHECKPOINT_SECONDS = 60.0


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one step."""
    return np.random.default_rng([seed, step])


def split_parameters(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(2-D weights inside transformer blocks for Muon, everything else for AdamW)."""
    matrices, others = [], []
    for name, parameter in module.named_parameters():
        inside = any(part in name for part in ("blocks.", "layers.")) and parameter.ndim == 2 and min(parameter.shape) > 8
        (matrices if inside else others).append(parameter)
    return matrices, others


def muon_and_adamw(module: nn.Module, muon_lr: float = 0.02, adamw_lr: float = 1e-3) -> list[torch.optim.Optimizer]:
    """Muon on block matrices, AdamW on the rest (spec: prototype.md section 2)."""
    matrices, others = split_parameters(module)
    muon = torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0, adjust_lr_fn="original")
    return [muon, torch.optim.AdamW(others, lr=adamw_lr, weight_decay=0.01, betas=(0.9, 0.95))]


def constant_then_linear(step: int, steps: int, warmup: int = 20, decay_from: float = 0.6) -> float:
    """Learning-rate factor: short warm-up, constant, then linear decay to zero."""
    if step < warmup:
        return (step + 1) / warmup
    start = decay_from * steps
    return 1.0 if step < start else max(0.0, (steps - step) / (steps - start))


class Stage:
    """One resumable training stage.

    Args:
        name: shown in the progress bar; also the file names in `work`.
        work: folder of checkpoints and curves.
        modules: what is trained and saved.
        optimizers: their base learning rates are taken from the param groups.
    """

    def __init__(
        self, name: str, work: Path, modules: Mapping[str, nn.Module], optimizers: list[torch.optim.Optimizer]
    ) -> None:
        self.name, self.work, self.modules, self.optimizers = name, work, dict(modules), optimizers
        self.base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.log_path, self.checkpoint_path = work / f"{name}.jsonl", work / f"{name}.pt"
        self.work.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        loss: Callable[[int], dict[str, Tensor]],
        steps: int,
        clip: float = 1.0,
        schedule: Callable[[int, int], float] = constant_then_linear,
        log_every: int = 25,
    ) -> list[dict[str, float]]:
        """Train to `steps`, resuming from the checkpoint when there is one; returns the logged curve."""
        start, minutes, curve = self._resume()
        parameters = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]
        began = last_saved = time.monotonic()
        columns = (TextColumn(self.name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), disable=None) as progress:
            task = progress.add_task(self.name, total=steps, completed=start, note="")
            for step in range(start, steps):
                values = self._step(step, steps, loss, parameters, clip, schedule)
                if step % log_every == 0 or step == steps - 1:
                    row = {"step": step, "minutes": round(minutes + (time.monotonic() - began) / 60, 3), **values}
                    curve.append(row)
                    progress.update(task, note=" ".join(f"{key} {value:.4f}" for key, value in values.items()))
                progress.advance(task)
                if time.monotonic() - last_saved > CHECKPOINT_SECONDS or step == steps - 1:
                    self._save(step + 1, minutes + (time.monotonic() - began) / 60, curve)
                    last_saved = time.monotonic()
        return curve

    def _step(
        self, step: int, steps: int, loss: Callable, parameters: list, clip: float, schedule: Callable
    ) -> dict[str, float]:
        factor = schedule(step, steps)
        for optimizer, lrs in zip(self.optimizers, self.base_lrs, strict=True):
            optimizer.zero_grad(set_to_none=True)
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        torch.manual_seed(step)  # anything a model draws by itself (dropout) is a function of the step
        values = loss(step)
        values["loss"].backward()
        norm = float(nn.utils.clip_grad_norm_(parameters, clip))
        numbers = {key: float(value.detach()) for key, value in values.items()}
        if not math.isfinite(numbers["loss"]) or not math.isfinite(norm):
            raise UserError(
                f"{self.work}: stage {self.name} met a non-finite loss or gradient at step {step}; lower its learning rate"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        return numbers | {"grad_norm": norm}

    def _save(self, step: int, minutes: float, curve: list[dict[str, float]]) -> None:
        state = {
            "step": step,
            "minutes": minutes,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "curve": json.dumps(curve),
        }
        atomic_write(self.checkpoint_path, lambda path: torch.save(state, path))
        text = "\n".join(json.dumps(row) for row in curve) + "\n"
        atomic_write(self.log_path, lambda path: path.write_text(text))

    def _resume(self) -> tuple[int, float, list[dict[str, float]]]:
        if not self.checkpoint_path.exists():
            return 0, 0.0, []
        state = torch.load(self.checkpoint_path, weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["step"], state["minutes"], json.loads(state["curve"])
