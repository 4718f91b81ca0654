"""Which backbones a student may have: presets over timm, and every timm model as `timm:NAME`.

Each becomes a module that turns images (B, 3, H, W) into one feature map (B, D, h, w); `student.model` resamples that
map to the teacher's grid. Nothing is ever fetched from the network: pretrained weights come from a file.

    python -c "from student import list_students; print(list_students(), list_students('timm:vit_tiny*'))"
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules, load_state_dict
from torch import Tensor, nn

from vega_artifact import UserError, unknown_name

TIMM_PREFIX = "timm:"
# The timm modules whose models are plain ViTs: some prefix tokens, then the patches of one grid.
FLAT_TRANSFORMERS = ["vision_transformer", "deit", "eva"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A backbone by name: the timm model, what to change in it, and what it is good for."""

    timm_name: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "vit_micro": Preset(
        timm_name="vit_tiny_patch16_224",
        summary="ViT patch 16, dim 192, depth 6, no class token; 2.8 M parameters, trains on a CPU",
        options={"embed_dim": 192, "depth": 6, "num_heads": 3, "class_token": False, "global_pool": ""},
    ),
    "vit_tiny": Preset(timm_name="vit_tiny_patch16_224", summary="ViT-Ti patch 16, 5.5 M"),
    "vit_small": Preset(timm_name="vit_small_patch16_224", summary="ViT-S patch 16, 22 M"),
    "deit_tiny": Preset(timm_name="deit_tiny_patch16_224", summary="DeiT-Ti patch 16, 5.5 M (ImageNet mean and std)"),
    "mobilenetv4_conv_small": Preset(timm_name="mobilenetv4_conv_small", summary="MobileNetV4 small, convolutions only"),
    "repvit_m1": Preset(timm_name="repvit_m1", summary="RepViT M1, re-parameterisable convolutions"),
}


class Backbone(nn.Module):
    """images (B, 3, H, W) -> one feature map (B, channels, *map_size)."""

    channels: int
    map_size: tuple[int, int]


class TokenBackbone(Backbone):
    """A vision transformer whose patch tokens, after the final norm, become the map."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.map_size = tuple(model.patch_embed.grid_size)
        self.channels = model.num_features
        self.prefix: int = model.num_prefix_tokens

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model.forward_features(images)[:, self.prefix :]
        return tokens.transpose(1, 2).unflatten(2, self.map_size)


class PyramidBackbone(Backbone):
    """A hierarchical network: its last two levels, the coarser one enlarged to the finer, as one map.

    The last level alone (stride 32) would be 4x4 at 128 px, coarser than the teacher's grid; the stride-16 level keeps place.
    """

    def __init__(self, model: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.channels_last = str(getattr(model, "output_fmt", "")).endswith("NHWC")
        self.channels = sum(model.feature_info.channels())
        stride = model.feature_info.reduction()[0]
        self.map_size = (image_size[0] // stride, image_size[1] // stride)

    def forward(self, images: Tensor) -> Tensor:
        levels = self.model(images)
        if self.channels_last:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        fine, coarse = levels
        coarse = nn.functional.interpolate(coarse, size=self.map_size, mode="bilinear", align_corners=False)
        return torch.cat([fine, coarse], dim=1)


def list_students(pattern: str = "*") -> list[str]:
    """Names `create_student` takes that match a shell wildcard; a pattern with `timm:` searches all of timm."""
    if pattern.startswith(TIMM_PREFIX):
        return [TIMM_PREFIX + name for name in timm.list_models(pattern.removeprefix(TIMM_PREFIX))]
    return sorted(fnmatch.filter(PRESETS, pattern))


def resolve(name: str) -> Preset:
    """The preset behind a name. Raises UserError listing the known names."""
    if name.startswith(TIMM_PREFIX):
        timm_name = name.removeprefix(TIMM_PREFIX)
        if not timm.is_model(timm_name):
            close = difflib.get_close_matches(timm_name, timm.list_models(), n=6, cutoff=0.4)
            raise unknown_name("timm model", timm_name, close or PRESETS)
        return Preset(timm_name=timm_name, summary="any timm model")
    if name not in PRESETS:
        raise unknown_name("student", name, [*PRESETS, TIMM_PREFIX + "NAME"])
    return PRESETS[name]


def create_backbone(
    name: str, image_size: tuple[int, int], pretrained: Path | str | None = None
) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone, fresh or with weights from a file, and return it with timm's data about it (mean, std).

    Args:
        image_size: (H, W) pixels; a ViT needs multiples of its patch.
        pretrained: safetensors or torch state dict for this very timm model; position embeddings are resampled.

    Raises:
        UserError: unknown name, a size the model cannot take, or weights that do not fit it.
    """
    preset = resolve(name)
    flat = is_model_in_modules(preset.timm_name, FLAT_TRANSFORMERS)
    options = dict(preset.options)
    options |= {"img_size": image_size, "num_classes": 0} if flat else {"features_only": True, "out_indices": (-2, -1)}
    if pretrained is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": _read_weights(name, pretrained)}}
    try:
        model: Any = timm.create_model(preset.timm_name, **options)
    except Exception as error:  # timm raises assertion, runtime, key and type errors alike, all about the given arguments
        source = f" with the weights of {pretrained}" if pretrained is not None else ""
        size = f"{image_size[0]}x{image_size[1]}"
        raise UserError(f"student {name!r} cannot be built at {size} pixels{source}: {_first_line(error)}") from error
    _check_size(name, image_size, tuple(model.patch_embed.patch_size) if flat else (32, 32))
    backbone = TokenBackbone(model) if flat else PyramidBackbone(model, image_size)
    return backbone, dict(model.pretrained_cfg)


def _read_weights(name: str, path: Path | str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise UserError(f"{path}: no such weight file for student {name!r}; give a safetensors or torch state dict")
    try:
        return load_state_dict(str(path), weights_only=True)  # never unpickles
    except Exception as error:
        raise UserError(f"{path}: no readable state dict of tensors ({_first_line(error)})") from error


def _check_size(name: str, image_size: tuple[int, int], step: tuple[int, int]) -> None:
    if any(size <= 0 or size % multiple for size, multiple in zip(image_size, step)):
        needed = f"multiples of {step[0]}x{step[1]}"
        raise UserError(f"student {name!r}: image size {image_size[0]}x{image_size[1]} does not fit, it takes {needed}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
