"""The merger of VEGA-3D's spatial-reasoning branch: generator maps -> tokens of the language model, four patches to one.

Takes the place of the generative projector where a Qwen2.5-VL reads: maps are resized to its patch grid, 2x2 neighbours become
one token, as its own vision tower's merger does with its patches. Names and shapes are the published ones (spec/vega3d.md 5.4).

    python -c "from teacher.merger import Merger; print(sum(p.numel() for p in Merger(1536, 3584).parameters()))"
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HIDDEN = 4096


class Merger(nn.Module):
    """Maps (T, C, h, w) -> (T, width, h // 2, w // 2); an odd last row or column is dropped.

    Args:
        kind: "mlp" puts the four RMS-normalised neighbours side by side, "avg" takes their mean.
    """

    def __init__(self, channels: int, width: int, kind: Literal["mlp", "avg"] = "mlp", hidden: int = HIDDEN) -> None:
        super().__init__()
        self.kind = kind
        if kind == "mlp":
            self.ln_q = nn.RMSNorm(channels, eps=1e-6)
        wide = 4 * channels if kind == "mlp" else channels
        self.mlp = nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, maps: Tensor, patches: tuple[int, int] | None = None) -> Tensor:
        """`patches`: the (h, w) grid of the vision tower, to which maps are first resized bilinearly in float32."""
        if patches is not None and patches != tuple(maps.shape[2:]):
            maps = F.interpolate(maps.float(), patches, mode="bilinear", align_corners=False).to(maps.dtype)
        rows, columns = (side // 2 * 2 for side in maps.shape[2:])
        cells = maps[:, :, :rows, :columns].movedim(1, -1)
        blocks = cells.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)  # (T, h/2, w/2, 2, 2, C)
        merged = self.ln_q(blocks).flatten(3) if self.kind == "mlp" else blocks.mean((3, 4))
        return self.mlp(merged).movedim(-1, 1)


def merger_shape(state: dict[str, Tensor]) -> tuple[int, int, Literal["mlp", "avg"], int]:
    """(channels, width, kind, hidden) of a published merger's weights."""
    hidden, wide = state["mlp.0.weight"].shape
    kind: Literal["mlp", "avg"] = "mlp" if "ln_q.weight" in state else "avg"
    return (wide // 4 if kind == "mlp" else wide), state["mlp.2.weight"].shape[0], kind, hidden


def load_merger(state: dict[str, Tensor]) -> Merger:
    """A merger of whatever size the weights have."""
    channels, width, kind, hidden = merger_shape(state)
    with torch.device("meta"):
        merger = Merger(channels, width, kind, hidden)
    merger.load_state_dict(state, assign=True)
    return merger
