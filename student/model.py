"""The student: one timm backbone, resampled to the teacher's grid, one head per teacher stream.

Sits between `distill`, which trains it, and `export`, which writes it as ONNX: every size is static and every operation
exports (the resampling to the grid is two matrix products, whatever the ratio).

    python -c "from student import create_student; import torch; print(create_student()(torch.zeros(1, 3, 128, 128)).keys())"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from student.heads import Denormalizer, create_head, folded
from student.registry import create_backbone
from vega_artifact import UserError


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How the student wants its images; plain data, it travels in every manifest down to the device."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int]  # (H, W)

    def __call__(self, frames: np.ndarray) -> Tensor:
        """uint8 (B, H, W, 3) of any size -> float32 (B, 3, *size): antialiased bilinear resize, /255, minus mean, over std."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise UserError(f"frames: uint8 (B, H, W, 3) expected, got {frames.dtype} {frames.shape}")
        images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
        if tuple(images.shape[-2:]) != tuple(self.size):
            images = interpolate(images, size=self.size, mode="bilinear", antialias=True, align_corners=False)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (images / 255 - mean) / std


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """Everything needed to rebuild the module that a weight file fills."""

    name: str = "vit_micro"
    heads: Mapping[str, int]  # stream -> channels
    image_size: tuple[int, int] = (128, 128)
    grid: tuple[int, int] = (8, 8)
    head: str = "mlp"
    denormalize: str = "diagonal"


class GridResample(nn.Module):
    """Feature map (B, D, h, w) -> tokens (B, gh*gw, D), row-major; antialiased bilinear as two constant matrices.

    `adaptive_avg_pool2d` exports only where the sizes divide; matrices made once from `interpolate` export for any ratio.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.identity = source == grid
        rows, columns = (_resize_matrix(old, new) for old, new in zip(source, grid))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        if not self.identity:
            features = self.rows @ features @ self.columns.T
        return features.flatten(2).transpose(1, 2)


def _resize_matrix(old: int, new: int) -> Tensor:
    """(new, old) float32: each row holds the weights of one output position."""
    unit = torch.eye(old)[None, None]  # only the rows are resized: torch mixes up maps that are one pixel wide
    return interpolate(unit, size=(new, old), mode="bilinear", antialias=True, align_corners=False)[0, 0]


class StudentModel(nn.Module):
    """images (B, 3, H, W) float, normalised by `preprocess` -> {stream: (B, N, C)} in the teacher's feature space.

    Attributes:
        config: StudentConfig, JSON-able.
        preprocess: Preprocess, plain data.
    """

    def __init__(self, config: StudentConfig, pretrained: Path | str | None = None) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.backbone, data = create_backbone(config.name, config.image_size, pretrained)
        self.preprocess = Preprocess(mean=tuple(data["mean"]), std=tuple(data["std"]), size=config.image_size)
        self.resample = GridResample(self.backbone.map_size, config.grid)
        width = self.backbone.channels
        self.heads = nn.ModuleDict({stream: create_head(config.head, width, size) for stream, size in config.heads.items()})
        self.denormalizers = nn.ModuleDict({s: Denormalizer(size, config.denormalize) for s, size in config.heads.items()})

    def tokens(self, images: Tensor) -> Tensor:
        """What all heads read: (B, N, D), the backbone's map on the teacher's grid, row by row."""
        return self.resample(self.backbone(images))

    def predict(self, tokens: Tensor) -> dict[str, Tensor]:
        """The heads alone: (..., N, D) -> {stream: (..., N, C)} in the units of the target normaliser."""
        return {stream: head(tokens) for stream, head in self.heads.items()}

    def normalised(self, images: Tensor) -> dict[str, Tensor]:
        """What training compares: {stream: (B, N, C)} in the units of the target normaliser."""
        return self.predict(self.tokens(images))

    def denormalise(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """From the units of the normaliser back into the teacher's feature space."""
        return {stream: self.denormalizers[stream](value) for stream, value in outputs.items()}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.denormalise(self.normalised(images))

    def fold(self) -> StudentModel:
        """Put the way back into the teacher's units into the heads, in place, for export; the student can learn no more."""
        for stream, head in self.heads.items():
            units = self.denormalizers[stream]
            if isinstance(units, Denormalizer) and folded(head, units) is not None:
                self.denormalizers[stream] = nn.Identity()
        return self

    def film(self, images: Tensor) -> dict[str, Tensor]:
        """Frames (T, 3, H, W) of one camera in order -> {stream: (T, N, C)}; here each is answered alone."""
        return self(images)

    @property
    def grid(self) -> tuple[int, int]:
        """Of the teacher's tokens."""
        return self.config.grid

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def _check(config: StudentConfig) -> None:
    if not config.heads:
        raise UserError("student: at least one head is needed, for example heads={'fused': 128}")
    bad = [name for name, size in config.heads.items() if not name.isidentifier() or size < 1]
    if bad:
        raise UserError(f"student: heads map a plain stream name to its number of channels; these do not: {', '.join(bad)}")
    if min(config.grid) < 1:
        raise UserError(f"student: the grid must be at least 1x1, got {config.grid[0]}x{config.grid[1]}")


def create_student(
    name: str = "vit_micro",
    heads: Mapping[str, int] | None = None,
    image_size: tuple[int, int] = (128, 128),
    grid: tuple[int, int] = (8, 8),
    pretrained: Path | str | None = None,
    *,
    head: str = "mlp",
    denormalize: str = "diagonal",
    seed: int = 0,
) -> StudentModel:
    """Make an untrained student (float32, CPU, training mode); the same seed gives the same weights.

    Args:
        name: a preset (`list_students()`) or `timm:NAME`.
        heads: stream -> channels of the teacher; default fused, generative and semantic of 128 each.
        image_size: (H, W) pixels of the student's input.
        grid: (gh, gw) of the teacher's tokens; N = gh * gw.
        pretrained: weight file for the backbone, or `hub` (`student.pretrained`); None starts from scratch and fetches nothing.
        head: "mlp" or "linear".
        denormalize: "diagonal" (per channel) or "full" (a rotation as well, for PHI-S).

    Raises:
        UserError: unknown names, sizes the backbone cannot take, weights that do not fit.
    """
    streams = dict(heads) if heads is not None else {"fused": 128, "generative": 128, "semantic": 128}
    size, cells = (int(image_size[0]), int(image_size[1])), (int(grid[0]), int(grid[1]))
    config = StudentConfig(name=name, heads=streams, image_size=size, grid=cells, head=head, denormalize=denormalize)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StudentModel(config, pretrained)
