"""What a student costs: parameters, multiply-accumulates, tokens and attention, counted on the network itself.

Nothing is computed for it: the network is built without values (torch's meta device), as the export would deploy it, and one
image passes through. Beside `student.registry`, whose names it describes.

    vega-edge list students --size 224 224
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from student.registry import TokenBackbone, list_students, outline, resolve
from vega_artifact import UserError

LEGEND = """\
deployed: after the export fused parallel branches. MACs: one image, without the heads. map, wide: cells and channels the heads
see, resampled to the teacher's grid. tokens: these cells + class token and registers. attention: how many of the softmax
attention layers TensorRT makes one kernel of in fp16 (in fp32: none). weights: licence of timm's pretrained ones."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The price of one backbone at one input size.

    Attributes:
        parameters: as trained; deployed: after fusing what inference can fuse.
        macs: multiply-accumulates of matrix products and convolutions for one image, as deployed.
        map_size, channels: the feature map the heads see, before it is resampled to the teacher's grid.
        prefix: class and register tokens beside the patches.
        attention: softmax attention layers; fusable: those TensorRT is expected to make one fp16 kernel of.
        licence: of timm's default pretrained weights; "" where there are none.
    """

    name: str
    parameters: int
    deployed: int
    macs: int
    map_size: tuple[int, int]
    channels: int
    prefix: int
    attention: int
    fusable: int
    licence: str


class AttentionCounter(TorchFunctionMode):
    """Counts softmax attention while it is active, and how much of it has the form TensorRT fuses.

    As measured on TensorRT-RTX (spec/export.md 1c) that is as many key as query heads, values as wide as keys: ViT and DINOv3
    12 of 12, TinyViT 10 of 10; multi-query (MobileNetV4 hybrid, 0 of 8) and cascaded groups (EfficientViT-M2, 0 of 16) not.
    For other networks it is a prediction.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.fusable = 0

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function is scaled_dot_product_attention:
            query, key, value = arguments[:3]
            self.total += 1
            self.fusable += query.shape[-3] == key.shape[-3] == value.shape[-3] and key.shape[-1] == value.shape[-1]
        elif function in (torch.softmax, Tensor.softmax, nn.functional.softmax):
            self.total += 1
        return function(*arguments, **(options or {}))


def measure(name: str, size: tuple[int, int] = (224, 224)) -> Cost:
    """The cost of a student's backbone for images of (H, W) pixels.

    Raises:
        UserError: unknown name, or a size the backbone cannot take.
    """
    backbone = outline(name, size)
    parameters = _count(backbone)
    # Fusing moves values about, which meta tensors do not have; empty ones do.
    deployed = reparameterize_model(backbone.eval().to_empty(device="cpu")).to("meta")
    with torch.no_grad(), AttentionCounter() as seen, FlopCounterMode(display=False) as counter:
        deployed(torch.empty(1, 3, *size, device="meta"))
    weights = timm.get_pretrained_cfg(resolve(name).timm_name)
    return Cost(
        name=name,
        parameters=parameters,
        deployed=_count(deployed),
        macs=counter.get_total_flops() // 2,
        map_size=backbone.map_size,
        channels=backbone.channels,
        prefix=backbone.prefix if isinstance(backbone, TokenBackbone) else 0,
        attention=seen.total,
        fusable=seen.fusable,
        licence=(weights and weights.hf_hub_id and weights.license) or "",
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def table(size: tuple[int, int] = (224, 224), names: Sequence[str] | None = None) -> str:
    """The costs of the named students (all presets) as text, one line each, with a legend.

    A student that cannot take the size has a line that says so; when none can, that is a UserError.
    """
    head = ("student", "params", "deployed", "MACs", "map", "wide", "tokens", "attention", "weights", "what it is")
    lines: list[tuple[str, ...]] = [head]
    refused = []
    for name in list_students() if names is None else names:
        try:
            lines.append((*_cells(measure(name, size)), resolve(name).summary))
        except UserError as error:
            refused.append(str(error))
    if len(lines) == 1:
        raise UserError(refused[0])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([*rows, *refused, f"At {size[0]}x{size[1]} pixels. {LEGEND}"])


def _cells(cost: Cost) -> tuple[str, ...]:
    rows, columns = cost.map_size
    attention = f"{cost.fusable}/{cost.attention} fused" if cost.attention else "none"
    return (
        cost.name,
        f"{cost.parameters / 1e6:.2f} M",
        f"{cost.deployed / 1e6:.2f} M",
        f"{cost.macs / 1e9:.2f} G",
        f"{rows}x{columns}",
        str(cost.channels),
        f"{rows * columns}+{cost.prefix}" if cost.attention and cost.prefix else str(rows * columns),
        attention,
        cost.licence or "-",
    )
