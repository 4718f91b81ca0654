"""Which backbones a student may have: presets over timm, and every timm model as `timm:NAME`.

Each becomes a module that turns images (B, 3, H, W) into one feature map (B, D, h, w); `student.model` resamples that
map to the teacher's grid. What each costs: `student.costs`; what it may start from: `student.pretrained`.

    vega-edge list students --size 224 224
    python -c "from student import list_students; print(list_students(), list_students('timm:vit_tiny*'))"
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from torch import Tensor, nn

from student.pretrained import check_arrival, first_line, read_pretrained
from vega_artifact import UserError, unknown_name

TIMM_PREFIX = "timm:"
# The timm modules whose models are plain ViTs: some prefix tokens, then the patches of one grid.
FLAT_TRANSFORMERS = ["vision_transformer", "deit", "eva"]


@dataclass(frozen=True)
class Preset:
    """A backbone by name: the timm model, what to change in it, and what it is good for."""

    timm_name: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)


MICRO = {"embed_dim": 192, "depth": 6, "num_heads": 3, "class_token": False, "global_pool": ""}

# Numbers are in `student.costs`, which measures them.
PRESETS: dict[str, Preset] = {
    "vit_micro": Preset("vit_tiny_patch16_224", "ViT-Ti cut to 6 blocks, no class token: trains on a CPU", MICRO),
    "vit_tiny": Preset("vit_tiny_patch16_224", "ViT-Ti patch 16"),
    "vit_small": Preset("vit_small_patch16_224", "ViT-S patch 16"),
    "deit_tiny": Preset("deit_tiny_patch16_224", "DeiT-Ti: ViT-Ti with ImageNet's mean and deviation"),
    "deit_small": Preset("deit_small_patch16_224", "DeiT-S: ViT-S with ImageNet's mean and deviation"),
    "vit_tiny_dinov3": Preset("vit_tiny_patch16_dinov3_qkvb", "DINOv3's ViT (rotary positions, registers) in size Ti"),
    "vit_small_dinov3": Preset("vit_small_patch16_dinov3", "DINOv3 ViT-S (rotary positions, registers)"),
    "tiny_vit_5m": Preset("tiny_vit_5m_224", "TinyViT 5M: convolutions, then attention in windows"),
    "tiny_vit_11m": Preset("tiny_vit_11m_224", "TinyViT 11M: convolutions, then attention in windows"),
    "efficientvit_b1": Preset("efficientvit_b1", "EfficientViT B1: convolutions and linear attention"),
    "fastvit_t8": Preset("fastvit_t8", "FastViT T8: branches that the export fuses; no attention in this size"),
    "repvit_m1": Preset("repvit_m1", "RepViT M1: branches that the export fuses"),
    "mobilenetv4_conv_small": Preset("mobilenetv4_conv_small", "MobileNetV4 small, convolutions only"),
    "mobilenetv4_conv_medium": Preset("mobilenetv4_conv_medium", "MobileNetV4 medium, convolutions only"),
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
        return Preset(timm_name, "any timm model")
    if name not in PRESETS:
        raise unknown_name("student", name, [*PRESETS, TIMM_PREFIX + "NAME"])
    return PRESETS[name]


def create_backbone(
    name: str, image_size: tuple[int, int], pretrained: Path | str | None = None
) -> tuple[Backbone, dict[str, Any]]:
    """Build the backbone, fresh or with weights from a file, and return it with timm's data about it (mean, std).

    Args:
        image_size: (H, W) pixels; a ViT needs multiples of its patch.
        pretrained: a weight file for this very timm model, or `hub` (see `student.pretrained`); position embeddings are
            resampled.

    Raises:
        UserError: unknown name, a size the model cannot take, or weights that do not fit it.
    """
    preset = resolve(name)
    flat = is_model_in_modules(preset.timm_name, FLAT_TRANSFORMERS)
    options = dict(preset.options)
    options |= {"img_size": image_size, "num_classes": 0} if flat else {"features_only": True, "out_indices": (-2, -1)}
    state = None if pretrained is None else read_pretrained(name, preset.timm_name, pretrained)
    if state is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state)}}  # timm takes tensors out of it
    try:
        model: Any = timm.create_model(preset.timm_name, **options)
    except Exception as error:  # timm raises assertion, runtime, key and type errors alike, all about the given arguments
        source = f" with the weights of {pretrained}" if pretrained is not None else ""
        size = f"{image_size[0]}x{image_size[1]}"
        raise UserError(f"student {name!r} cannot be built at {size} pixels{source}: {first_line(error)}") from error
    if state is not None:
        check_arrival(name, str(pretrained), model, state)
    _check_size(name, image_size, tuple(model.patch_embed.patch_size) if flat else (max(model.feature_info.reduction()),) * 2)
    backbone = TokenBackbone(model) if flat else PyramidBackbone(model, image_size)
    if name.startswith(TIMM_PREFIX):
        _check_passage(name, backbone, image_size)
    return backbone, dict(model.pretrained_cfg)


def outline(name: str, image_size: tuple[int, int]) -> Backbone:
    """The backbone for images of (H, W) pixels without its values: what it is like, and whether it can be built.

    Raises:
        UserError: as `create_backbone`.
    """
    with torch.device("meta"):
        return create_backbone(name, image_size)[0]


def _check_passage(name: str, backbone: Backbone, image_size: tuple[int, int]) -> None:
    """Send one image without values through a copy: nets with windows of a fixed size say only then that it does not fit."""
    trial = copy.deepcopy(backbone).to("meta").eval()
    try:
        with torch.no_grad():
            found = tuple(trial(torch.empty(1, 3, *image_size, device="meta")).shape[1:])
    except Exception as error:  # whatever the network asserts
        size = f"{image_size[0]}x{image_size[1]}"
        raise UserError(
            f"student {name!r} does not take images of {size} pixels ({first_line(error)}); choose others"
        ) from error
    if found != (backbone.channels, *backbone.map_size):
        raise UserError(f"student {name!r}: its last two levels are no map this student can use ({found}); choose another one")


def _check_size(name: str, image_size: tuple[int, int], step: tuple[int, int]) -> None:
    if any(size <= 0 or size % multiple for size, multiple in zip(image_size, step)):
        needed = f"multiples of {step[0]}x{step[1]}"
        raise UserError(f"student {name!r}: image size {image_size[0]}x{image_size[1]} does not fit, it takes {needed}")
