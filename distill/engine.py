"""One optimiser step on whatever accelerate was told to use: one process, DDP, FSDP or DeepSpeed; bf16, fp16 with its scaler.

Between `distill.train`, which says what a step sees, and accelerate, whose own configuration says how it is spread.

    torchrun --nproc_per_node 8 -m vega_edge train --cache CACHE --recipe vit_small_gpu --out RUN
    accelerate launch --use_fsdp --fsdp_version 2 -m vega_edge train ... --change optimizer=adamw
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distill.batches import Batch
from distill.config import RunConfig
from distill.distiller import Distiller
from distill.optimize import WeightAverage, create_optimizers, rate_factor, set_rates
from distill.state import Checkpoint, restore_optimizers
from student import StudentModel
from student.checkpoint import fill
from teacher.launch import lone_launch, processes
from vega_artifact import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

SHARDED = ("FSDP", "DEEPSPEED")  # no process holds whole weights, or whole optimiser states


class Engine:
    """The trained module with its optimisers, scaler and average.

    Attributes:
        bare: the module itself, for one process to look at. model: as accelerate wrapped it.
        sharded: weights or optimiser states are spread over the processes: `weights` then needs all of them, and there is no
            `checkpoint`, because such states are only exact in the sharder's own format, which is a pickle.

    Raises:
        UserError: the config asks for what a sharded module cannot do.
    """

    def __init__(self, accelerator: Accelerator, distiller: Distiller, config: RunConfig) -> None:
        self.accelerator, self.config, self.bare = accelerator, config, distiller
        self.kind = str(accelerator.distributed_type.value)
        self.sharded = self.kind in SHARDED
        self.optimizers = create_optimizers(distiller.student, config)
        self._refuse_impossible()
        if config.compile:
            single = distiller.student if isinstance(distiller.student, StudentModel) else distiller.student.frame
            single.backbone.compile()
        if self.sharded:  # both together: accelerate then lets the optimiser follow its parameters into the shards
            self.model, *self.optimizers = accelerator.prepare(distiller, *self.optimizers)
        else:
            self.model = accelerator.prepare(distiller)
        self.average = WeightAverage(dict(distiller.student.named_parameters()), config.ema) if config.ema > 0 else None
        scaled = distiller.precision == "fp16" and self.kind != "DEEPSPEED"  # which scales by itself
        self.scaler = _scaler(self.kind, accelerator.device, scaled)

    def _refuse_impossible(self) -> None:
        config = self.config
        if self.sharded and len(self.optimizers) > 1:
            raise UserError(f"run config: muon needs whole matrices, {self.kind} shards them; set optimizer=adamw")
        if self.sharded and config.ema > 0:
            raise UserError(f"run config: an average of weights that {self.kind} shards is not kept; set ema=0")
        if self.kind == "DEEPSPEED" and config.accumulate > 1:
            raise UserError("run config: DeepSpeed steps after every part; set accumulate=1 and a smaller batch")

    def step(self, step: int, parts: Sequence[Batch]) -> Tensor:
        """Gradients of all parts, clipped; returns the mean scalars of `Distiller` and the gradient norm, (2 * streams + 2,).

        The weights are as before until `apply`. Dropout and its like draw from (seed, step, process) alone.
        """
        rank = self.accelerator.process_index
        torch.manual_seed(int(np.random.SeedSequence([self.config.seed, step, rank]).generate_state(1)[0]))
        set_rates(self.optimizers, rate_factor(step, self.config.steps, self.config.warmup))
        found = []
        for number, batch in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.model):
                total, scalars = self.model(batch.pixels, batch.targets, batch.hints)
                self.accelerator.backward(self.scaler.scale(total / len(parts)))
            found.append(scalars)
        for optimizer in self.optimizers if self.scaler.is_enabled() else ():
            self.scaler.unscale_(optimizer)
        limit = self.config.clip if self.config.clip > 0 else float("inf")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        norm = torch.as_tensor(0.0 if norm is None else norm, device=scalars.device).detach().float().view(1)
        return torch.cat([torch.stack(found).mean(0), norm])

    def finite(self, scalars: Tensor) -> bool:
        """Whether to go on, the same in all processes. Steps that overflow in fp16 are fine: the scaler leaves them out.

        Gradients are shared, so one norm tells of every process. Reading it is the one place where a step waits for the device.
        """
        if bool(torch.isfinite(scalars[-1])):
            return True
        losses_finite = torch.isfinite(scalars[:1]).float()
        alright = bool(self.accelerator.reduce(losses_finite, reduction="sum") == self.accelerator.num_processes)
        return alright and self.scaler.is_enabled() and self.scaler.get_scale() >= 1

    def apply(self, step: int) -> None:
        """Move the weights by the gradients at hand."""
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        if self.average is not None:
            self.average.update(dict(self.bare.student.named_parameters()), step)

    def weights(self) -> dict[str, Tensor]:
        """What would be shipped now: the student's tensors, averaged where an average is kept. Sharded: all processes call."""
        if self.sharded:
            whole = self.accelerator.get_state_dict(self.model)
            return {name.removeprefix("student."): value for name, value in whole.items()}
        return {**self.bare.student.state_dict(), **(self.average.values if self.average is not None else {})}

    def checkpoint(self, step: int, seconds: float) -> Checkpoint:
        average = self.average.values if self.average is not None else {}
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return Checkpoint(step, seconds, self.bare.student.state_dict(), average, states, self.scaler.state_dict())

    def restore(self, checkpoint: Checkpoint, where: Path) -> None:
        """Go on from a checkpoint; `where` is named when it does not fit."""
        fill(self.bare.student, checkpoint.student, where)
        restore_optimizers(self.optimizers, checkpoint.optimizers, where)
        if self.average is not None:
            for name, value in self.average.values.items():
                value.copy_(checkpoint.average[name])
        if self.scaler.is_enabled() and checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)


def create_accelerator(**options: Any) -> Accelerator:
    """accelerate as its own configuration and the launcher's environment have it; precision is the distiller's matter.

    Without an accelerator `torchrun` leaves accelerate with processes that know nothing of each other and write to one folder,
    so that they belong together on the CPU is said here.

    Raises:
        UserError: the processes that were launched together do not find each other.
    """
    from accelerate import Accelerator  # takes a second; a finished run does not wait for it

    launched = processes()
    if advice := lone_launch(os.environ):  # the batch is that of all processes together, so the run is the same, only slower
        print(advice, file=sys.stderr)
    on_cpu = options.pop("cpu", False) or (launched > 1 and not torch.accelerator.is_available())
    accelerator = Accelerator(mixed_precision="no", cpu=on_cpu, **options)
    if accelerator.num_processes != launched:
        found = f"{launched} processes were launched, accelerate sees {accelerator.num_processes}"
        raise UserError(f"training: {found}; start them with torchrun, or with `accelerate launch` after `accelerate config`")
    return accelerator


def _scaler(kind: str, device: torch.device, enabled: bool) -> Any:
    """torch's loss scaler for this device; FSDP's own where the gradients are sharded."""
    if kind == "FSDP":
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type, enabled=enabled)
    return torch.amp.GradScaler(device.type, enabled=enabled)
