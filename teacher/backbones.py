"""The registry of Wan teachers and `load_teacher`, the one door to every teacher.

vega-edge list teachers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from teacher.build import Build
from teacher.devices import Devices, parse_devices
from teacher.features import FeatureTeacher
from teacher.hub import is_hub_id
from vega_artifact import UserError, unknown_name

T2V_1B = {"kind": "t2v", "experts": 1, "num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
T2V_14B = {
    "kind": "t2v",
    "experts": 1,
    "num_layers": 40,
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "ffn_dim": 13824,
}
VACE_1B = T2V_1B | {"kind": "vace", "vace_layers": list(range(0, 30, 2))}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A teacher by name: where its weights are and the settings it is used with by default.

    Attributes:
        source: a hub id, or for embedded ones the transformer's folder in the bundle.
        embedded: shipped in this repository.
        supervision: what the weights were trained on; shown wherever the teacher is used.
        architecture: what the checkpoint must be (diffusers' config names, `kind` and `experts`); a difference is an error.
        defaults: configuration fields that differ from the usual ones.
    """

    source: str
    supervision: str
    embedded: bool = False
    architecture: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


BACKBONES: dict[str, Backbone] = {
    "tiny": Backbone(
        source="generative", embedded=True, supervision="flow matching on procedural video only; no depth, pose or label"
    ),
    "tiny-geometry": Backbone(
        source="geometry",
        embedded=True,
        supervision="flow matching plus DIRECT depth and position supervision: "
        "an auxiliary stand-in, no evidence that generation knows 3D",
    ),
    "wan2.1-t2v-1.3b": Backbone(
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", supervision="Wan2.1 text-to-video pre-training", architecture=T2V_1B
    ),
    "wan2.1-t2v-14b": Backbone(
        source="Wan-AI/Wan2.1-T2V-14B-Diffusers", supervision="Wan2.1 text-to-video pre-training", architecture=T2V_14B
    ),
    "wan2.1-vace-1.3b": Backbone(
        source="Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        supervision="Wan2.1 video creation and editing on top of text-to-video",
        architecture=VACE_1B,
    ),
    "wan2.1-vace-1.3b-padded": Backbone(
        source="Wan-AI/Wan2.1-VACE-1.3B-diffusers",
        supervision="Wan2.1 video creation and editing, read at padding positions as in VEGA-3D's code",
        architecture=VACE_1B,
        defaults={"readout": "padded", "crop": "reference"},
    ),
    "wan2.2-t2v-a14b": Backbone(
        source="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        supervision="Wan2.2 text-to-video pre-training; one of two experts, by noise level",
        architecture=T2V_14B | {"experts": 2},
    ),
}


def teacher_names() -> list[str]:
    """All names `load_teacher` knows: Wan teachers and rivals."""
    from teacher.rivals import RIVALS

    return sorted({*BACKBONES, *RIVALS})


def load_teacher(
    name: str | Path,
    *,
    blocks: tuple[int, ...] | None = None,
    sigma: float | None = None,
    mode: str | None = None,
    crop: str | None = None,
    size: tuple[int, int] | None = None,
    grid: tuple[int, int] | Literal["default"] | None = "default",
    prompt_embeds: Tensor | Path | str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | Sequence[str | torch.device] = "cpu",
    seed: int = 0,
    draws: int | None = None,
    random_weights: int | None = None,
    memory: float | None = None,
    compile: bool = False,
) -> FeatureTeacher:
    """Load a teacher by name, from a folder of weights, or by hub id.

    Args:
        name: a name from `teacher_names()`; the path of a diffusers or native Wan folder; NAME=FOLDER for a folder that must
            hold that variant (and for a rival's weights); or a hub id (OWNER/REPOSITORY). Names and hub ids are looked up in
            the local hub cache and downloaded only where that lacks something; folders never lead to the network.
        blocks, sigma, mode, crop, size, draws, grid: None / "default" takes what the teacher is used with
            (Wan: block 20, 0.3, frame, aligned, 480x832, one draw, 14x14).
        prompt_embeds: encoding of the empty prompt (rows, text_dim) or a file holding it; see `teacher.prompt` for where it
            is looked for, or made, without this.
        device: "cpu", "cuda", "cuda:1", or several ("cuda:0,cuda:1") over which the blocks are spread.
        random_weights: replace the transformer's weights by fresh ones of this seed: the control for "any network would do".
        memory, compile: budget for activations in GiB and torch.compile, for Wan teachers; see `teacher.features.Teacher`.
    Raises:
        UserError: unknown name, unreadable, foreign or unsupported weights, a missing prompt encoding, or settings out of
            range.
    """
    label, folder = _parse(str(name))
    devices = parse_devices(device)
    chosen: dict[str, Any] = {"blocks": blocks, "sigma": sigma, "mode": mode, "crop": crop, "size": size, "draws": draws}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    if grid != "default":
        chosen["grid"] = grid
    options = {"memory": memory, "compile": compile}
    if label is not None and label not in BACKBONES:
        return _rival(label, folder, chosen | {"seed": seed, "dtype": dtype}, prompt_embeds, devices, random_weights, options)
    known = BACKBONES[label] if label else Backbone(source=str(name), supervision="")
    build = Build(known.source, prompt_embeds, dtype, devices, random_weights, options)
    settings = chosen | {"seed": seed, "name": str(name), "dtype": str(dtype).split(".")[-1]}
    if known.embedded:
        if folder is not None:
            raise UserError(f"{name}: {label} is shipped with this program and takes no folder")
        return build.embedded(settings)
    variants = {key: other.architecture for key, other in BACKBONES.items() if other.architecture}
    return build.wan(folder, known.defaults | settings, label, variants)


def _parse(name: str) -> tuple[str | None, Path | None]:
    """(registry name or None, folder or None); a hub id has neither."""
    names = teacher_names()
    label, separator, place = name.partition("=")
    if separator and label in names:
        if not Path(place).expanduser().is_dir():
            raise UserError(f"{place}: no such folder; {label}=FOLDER expects the folder that holds its weights")
        return label, Path(place).expanduser()
    if name in names:
        return name, None
    if Path(name).expanduser().is_dir():
        return None, Path(name).expanduser()
    if is_hub_id(name):
        return None, None
    raise unknown_name("teacher (or folder of weights)", name, names)


def _rival(
    label: str,
    folder: Path | None,
    chosen: dict[str, Any],
    prompt_embeds: Tensor | Path | str | None,
    devices: Devices,
    random_weights: int | None,
    options: dict[str, Any],
) -> FeatureTeacher:
    from teacher.rivals import load_rival

    if prompt_embeds is not None or len(devices.every) > 1 or any(options.values()):
        raise UserError(
            f"{label}: prompt_embeds, memory, compile and several devices are for Wan teachers only; leave them out"
        )
    return load_rival(label, folder, device=devices.first, random_weights=random_weights, **chosen)
