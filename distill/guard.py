"""When a step is no longer finite: which target, weight, module or gradient was it, and on which frames?

`distill.train` asks before the step touches the weights, so running it once more shows what happened.

    python -m pytest tests/distill/test_guard.py -q
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.batches import Batch
from distill.distiller import Distiller

NAMED = 6  # frames that are named in the sentence


@dataclass(frozen=True)
class Fault:
    """What was not finite, the rows of the batch it concerns (all, where it is no matter of single frames), what to do."""

    what: str
    rows: list[int]
    advice: str = "lower the learning rates or use precision fp32"

    def told(self, names: Sequence[str]) -> str:
        """One sentence with the names of the frames; `names`: of the whole batch."""
        found = [names[row] for row in self.rows]
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return f"{self.what} (frames {', '.join(found[:NAMED])}{more}); {self.advice}"


def find_fault(distiller: Distiller, batch: Batch) -> Fault | None:
    """Run one step again and name the first thing that is not finite, in the order in which a step computes; None: all is."""
    every = list(range(len(batch.pixels)))
    for name, value in batch.targets.items():
        if bad := _bad_rows(value):
            return Fault(f"the target {name!r} is not finite", bad, "extract the cache again")
    for name, parameter in distiller.student.named_parameters():
        if not _finite(parameter):
            return Fault(f"the weight {name} is not finite before the step", every)
    if found := _first_bad_module(distiller, batch.pixels):
        return Fault(f"the output of module {found[0]} is not finite", found[1] or every)
    total, scalars = distiller(batch.pixels, batch.targets, batch.hints)
    for name, value in zip(distiller.objective.weights, scalars[1:]):
        if not torch.isfinite(value):
            return Fault(f"the loss of stream {name!r} is not finite", every)
    names, parameters = zip(*((name, p) for name, p in distiller.student.named_parameters() if p.requires_grad))
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)  # not `backward`, on which other processes may wait
    bad_gradients = [name for name, gradient in zip(names, gradients) if gradient is not None and not _finite(gradient)]
    if bad_gradients:  # backward runs from the last to the first
        return Fault(f"the gradient of {bad_gradients[-1]} is not finite", every)
    return None


def _first_bad_module(distiller: Distiller, pixels: Tensor) -> tuple[str, list[int]] | None:
    """Name of the innermost module that answers first with something that is not finite, and the rows of the batch."""
    found: list[tuple[str, list[int]]] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not found and not _finite(tensor):
                    found.append((name, _bad_rows(tensor) if len(tensor) == len(pixels) else []))

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in distiller.student.named_modules() if name]
    try:
        with torch.no_grad():
            distiller.predict(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.ndim else []
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _bad_rows(tensor: Tensor) -> list[int]:
    """Rows (first axis) that hold something that is not finite."""
    return torch.nonzero(~torch.isfinite(tensor).flatten(1).all(1)).flatten().tolist()
