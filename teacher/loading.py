"""Reads Wan checkpoints: a diffusers folder (transformer/, vae/) or Wan's native layout, sharded or not.

Native layout: config.json + diffusion_pytorch_model*.safetensors + Wan2.1_VAE.pth. Key conversion is diffusers' own; widths
are read from the weights, so small models of the same architecture load too.

    python -c "from teacher.loading import load_wan; print(load_wan('PATH')[0].config)"
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from safetensors import SafetensorError
from safetensors.torch import load_file

from vega_artifact import UserError, read_json

NATIVE_VAE = "Wan2.1_VAE.pth"


def load_wan(path: Path | str, dtype: torch.dtype = torch.float32) -> tuple[WanTransformer3DModel, AutoencoderKLWan]:
    """Load the transformer (in `dtype`) and the VAE (float32) from either layout.

    Raises:
        UserError: no known layout, a truncated or foreign file, or non-finite weights; the file is named.
    """
    root = Path(path)
    if (root / "transformer" / "config.json").exists() and (root / "vae" / "config.json").exists():
        transformer = _diffusers(WanTransformer3DModel, root / "transformer")
        vae = _diffusers(AutoencoderKLWan, root / "vae")
    elif (root / "config.json").exists() and (root / NATIVE_VAE).exists():
        transformer, vae = _native_transformer(root), _native_vae(root / NATIVE_VAE)
    else:
        raise UserError(
            f"{root}: no Wan teacher here; expected a diffusers folder (transformer/, vae/) or Wan's own files "
            f"(config.json, diffusion_pytorch_model*.safetensors, {NATIVE_VAE})"
        )
    _require_finite(transformer, root)
    _require_finite(vae, root)
    return transformer.to(dtype), vae


def _diffusers(model: type, folder: Path) -> Any:
    try:
        return model.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{folder}: does not load as {model.__name__} ({_first_line(error)}); copy the folder again") from error


def _native_transformer(root: Path) -> WanTransformer3DModel:
    config = read_json(root / "config.json")
    if config.get("model_type") != "t2v":
        raise UserError(f"{root / 'config.json'}: model_type 't2v' expected, found {config.get('model_type')!r}")
    state = convert_wan_transformer_to_diffusers(_read_shards(root))
    model = WanTransformer3DModel(
        patch_size=tuple(state["patch_embedding.weight"].shape[2:]),
        num_attention_heads=config["num_heads"],
        attention_head_dim=config["dim"] // config["num_heads"],
        in_channels=config["in_dim"],
        out_channels=config["out_dim"],
        text_dim=state["condition_embedder.text_embedder.linear_1.weight"].shape[1],
        freq_dim=config["freq_dim"],
        ffn_dim=config["ffn_dim"],
        num_layers=config["num_layers"],
        cross_attn_norm="blocks.0.norm2.weight" in state,
        eps=config["eps"],
    )
    return _fill(model, state, root)


def _read_shards(root: Path) -> dict[str, torch.Tensor]:
    index = root / "diffusion_pytorch_model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
    else:
        names = ["diffusion_pytorch_model.safetensors"]
    state: dict[str, torch.Tensor] = {}
    for name in names:
        state |= _read(root / name, lambda file: load_file(file))
    return state


def _native_vae(path: Path) -> AutoencoderKLWan:
    raw = _read(path, lambda file: torch.load(file, map_location="cpu", weights_only=True))
    state = convert_wan_vae_to_diffusers(raw)
    return _fill(AutoencoderKLWan(base_dim=state["encoder.conv_in.weight"].shape[0]), state, path)


def _read(path: Path, reader: Callable[[Path], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    if not path.exists():
        raise UserError(f"{path}: missing; the checkpoint is incomplete, copy this file too")
    try:
        return reader(path)
    except Exception as error:  # zip, safetensors and unpickling errors share no base class
        raise UserError(
            f"{path}: cannot be read ({_first_line(error)}); it is truncated or no checkpoint, copy it again"
        ) from error


def _fill(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> Any:
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the weights do not fit {type(model).__name__} ({detail}); is it another variant?") from error
    return model


def _require_finite(model: torch.nn.Module, path: Path) -> None:
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{path}: weight {name} holds NaN or infinity; the checkpoint is damaged, copy it again")


def load_prompt(path: Path | str) -> torch.Tensor:
    """The text encoding of the empty prompt, (rows, text_dim), from a safetensors or weights-only torch file."""
    file = Path(path)
    reader = (
        load_file if file.suffix == ".safetensors" else lambda name: torch.load(name, map_location="cpu", weights_only=True)
    )
    value: Any = _read(file, reader)
    while isinstance(value, dict):
        known = [key for key in ("context", "embedding", "prompt_embeds") if key in value]
        if not known:
            raise UserError(
                f"{file}: a tensor or a key 'context', 'embedding' or 'prompt_embeds' expected, found {sorted(value)}"
            )
        value = value[known[0]]
    rows = value[0] if value.ndim == 3 else value
    if rows.ndim != 2:
        raise UserError(f"{file}: prompt embedding of shape (rows, text_dim) expected, found {tuple(value.shape)}")
    return rows


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
