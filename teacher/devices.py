"""Where a teacher runs: one device, or its transformer blocks spread over several.

Splitting follows the depth: equal runs of blocks, one device after the other, so that 14B in bfloat16 fits on cards that hold
only a part of it. The residual stream moves once per border; VAE, embeddings and control branches stay on the first device.

    python -c "from teacher import load_teacher; print(load_teacher('tiny', device='cpu,cpu').device)"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from teacher.features import Teacher
from vega_artifact import UserError


@dataclass(frozen=True)
class Devices:
    """One or several devices, in the order in which the blocks run through them."""

    every: tuple[torch.device, ...]

    @property
    def first(self) -> torch.device:
        return self.every[0]

    def place(self, kind: Callable[..., Teacher], *parts: Any, **options: Any) -> Teacher:
        """Build a teacher with `kind` on these devices; `parts` and `options` are its arguments without `device`."""
        if len(self.every) == 1:
            return kind(*parts, device=self.first, **options)
        teacher = kind(*parts, device="cpu", **options)  # built where there is room for all of it
        blocks = teacher.simulator.blocks
        teacher.simulator.blocks = nn.ModuleList()
        teacher.simulator.to(self.first)
        teacher.latents.to(self.first)
        teacher.simulator.blocks = spread(blocks, self.every)
        teacher.device = self.first
        return teacher


def parse_devices(given: str | torch.device | Sequence[str | torch.device]) -> Devices:
    """Devices from "cuda", "cuda:0,cuda:1", or a sequence of such names.

    Raises:
        UserError: a device torch does not know or this machine does not have.
    """
    names = given.split(",") if isinstance(given, str) else [given] if isinstance(given, torch.device) else list(given)
    return Devices(tuple(_device(name) for name in names or [""]))


def spread(blocks: nn.ModuleList, devices: Sequence[torch.device]) -> nn.ModuleList:
    """Move equal runs of blocks to the devices in order; each block fetches its inputs to where it is."""
    for index, block in enumerate(blocks):
        device = devices[index * len(devices) // len(blocks)]
        block.to(device)
        block.register_forward_pre_hook(_Fetch(device))
    return blocks


@dataclass(frozen=True)
class _Fetch:
    """Forward pre-hook that brings a module's tensor arguments to its device."""

    device: torch.device

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.to(self.device) if isinstance(value, Tensor) else value for value in arguments)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name.strip() if isinstance(name, str) else name)
    except RuntimeError:
        raise UserError(f"device {name!r}: 'cpu', 'cuda', 'cuda:1' or several separated by commas expected") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        has = f"cuda:0 to cuda:{count - 1}" if count else "no CUDA device that torch can use"
        raise UserError(f"device {device}: this machine has {has}; run `vega-edge doctor` to see what it can use")
    return device
