"""The registry of teachers and `load_teacher`.

vega-edge list teachers
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from teacher.features import Teacher, TeacherConfig
from teacher.loading import load_prompt, load_wan
from teacher.simulator import TEXT_ROWS
from vega_artifact import UserError, unknown_name

PROMPT_FILES = ("empty_prompt.safetensors", "wan_t2v_null_prompt.pt", "empty_prompt.pt")
SAMPLE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A teacher by name: where its weights are and the settings it is used with by default.

    Attributes:
        source: a hub id, or for embedded ones the transformer's folder in the bundle.
        embedded: shipped in this repository.
        supervision: what the weights were trained on; shown wherever the teacher is used.
    """

    source: str
    supervision: str
    embedded: bool = False
    defaults: tuple[tuple[str, Any], ...] = ()


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
    "wan2.1-t2v-1.3b": Backbone(source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers", supervision="Wan2.1 text-to-video pre-training"),
}


def load_teacher(
    name: str | Path,
    *,
    blocks: tuple[int, ...] | None = None,
    sigma: float | None = None,
    mode: str = "frame",
    crop: str = "aligned",
    size: tuple[int, int] | None = None,
    grid: tuple[int, int] | Literal["default"] | None = "default",
    prompt_embeds: Tensor | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
    draws: int | None = None,
    random_weights: int | None = None,
) -> Teacher:
    """Load a teacher by registry name or from a folder of weights.

    Args:
        name: a name from `BACKBONES`, or the path of a diffusers or native Wan folder.
        blocks, sigma, size, draws, grid: None / "default" takes what the backbone is used with
            (Wan: block 20, 0.3, 480x832, one draw, 14x14).
        prompt_embeds: encoding of the empty prompt (rows, text_dim) or a file holding it; needed where the folder has none.
        random_weights: replace the transformer's weights by fresh ones of this seed: the control for "any network would do".
    Raises:
        UserError: unknown name, unreadable or foreign weights, a missing prompt encoding, or settings out of range.
    """
    known = BACKBONES.get(str(name))
    if known is None and not Path(name).is_dir():
        raise unknown_name("teacher (or folder of weights)", str(name), BACKBONES)
    if known is not None and known.embedded:
        transformer, vae, embedded, weights = _embedded(known)
        prompt, settings = torch.zeros(1, transformer.config.text_dim), embedded
    else:
        folder = Path(name) if known is None else _download(known.source)
        transformer, vae = load_wan(folder, dtype)
        prompt, settings, weights = _prompt(folder, prompt_embeds, transformer), {}, weights_identity(folder)
    if random_weights is not None:
        transformer, weights = _randomised(transformer, random_weights), f"random-{random_weights}"
    config = TeacherConfig(name=str(name), weights=weights, mode=mode, crop=crop, dtype=str(dtype).split(".")[-1], seed=seed)
    chosen = {"blocks": blocks, "sigma": sigma, "size": size, "draws": draws}
    config = replace(config, **(settings | {key: value for key, value in chosen.items() if value is not None}))
    if grid != "default":
        config = replace(config, grid=grid)
    if transformer.dtype != dtype:
        transformer = transformer.to(dtype)
    return Teacher(transformer, vae, prompt, config, device)


def weights_identity(folder: Path) -> str:
    """Hash of names, sizes and the first and last MiB of every weight file: quick also for tens of GB."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".pth", ".pt")):
        digest.update(f"{path.relative_to(folder)}:{path.stat().st_size}".encode())
        with open(path, "rb") as stream:
            digest.update(stream.read(SAMPLE))
            stream.seek(max(0, path.stat().st_size - SAMPLE))
            digest.update(stream.read(SAMPLE))
    return digest.hexdigest()[:16]


def _embedded(known: Backbone) -> tuple[WanTransformer3DModel, Any, dict[str, Any], str]:
    from teacher.tiny.bundle import BUNDLE, embedded_settings, load_bundle_wan

    transformer, vae = load_bundle_wan(known.source)
    weights = weights_identity(BUNDLE / known.source) + weights_identity(BUNDLE / "vae")
    return transformer, vae, embedded_settings(known.source), weights


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["transformer/*", "vae/*"]))
    except Exception as error:  # offline, missing, gated: the hub's own classes differ by version
        raise UserError(
            f"{hub_id}: could not be fetched from the hub ({type(error).__name__}); copy the folder here and give its path"
        ) from error


def _prompt(folder: Path, given: Tensor | Path | None, transformer: WanTransformer3DModel) -> Tensor:
    if given is None:
        found = [folder / name for name in PROMPT_FILES if (folder / name).exists()]
        if not found:
            raise UserError(
                f"{folder}: no encoding of the empty prompt; put {PROMPT_FILES[0]} (key 'prompt_embeds', umT5 rows up to the "
                "attention mask's length, so (1, 4096) for the empty prompt) there or pass prompt_embeds"
            )
        given = found[0]
    rows = given if isinstance(given, Tensor) else load_prompt(given)
    if rows.ndim != 2 or rows.shape[1] != transformer.config.text_dim or len(rows) > TEXT_ROWS:
        raise UserError(
            f"prompt_embeds: (rows <= {TEXT_ROWS}, {transformer.config.text_dim}) expected, found {tuple(rows.shape)}"
        )
    return rows


def _randomised(transformer: WanTransformer3DModel, seed: int) -> WanTransformer3DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WanTransformer3DModel.from_config(transformer.config)
