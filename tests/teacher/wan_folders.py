"""Small random Wan checkpoints written in both published layouts, for the tests of loading."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

GOLDEN = Path(__file__).parent.parent / "golden" / "wan-teacher"  # its small VAE is there in both layouts
TEXT_DIM = 16
SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 3,
    "ffn_dim": 32,
    "freq_dim": 32,
    "text_dim": TEXT_DIM,
}
TO_NATIVE = [  # diffusers name -> Wan's own, in the order in which they apply
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.scale_shift_table", ".modulation"),
    (r"\.norm2\.", ".norm3."),
    (r"\.proj_in\.", ".before_proj."),
    (r"\.proj_out\.", ".after_proj."),
]


def small_transformer(kind: str = "t2v", seed: int = 0, **changes: Any) -> Any:
    """A random transformer; `kind` "t2v" or "vace" (hints at every second block)."""
    torch.manual_seed(seed)
    if kind == "vace":
        return WanVACETransformer3DModel(**(SMALL | {"vace_layers": [0, 2]} | changes)).eval()
    return WanTransformer3DModel(**(SMALL | changes)).eval()


def write_wan(root: Path, layout: str, model: Any, shards: int = 1, prompt: bool = True) -> Path:
    """Write a complete checkpoint of `model` in `layout` ("diffusers" or "native")."""
    write_transformer(root / "transformer" if layout == "diffusers" else root, layout, model, shards)
    write_vae(root, layout)
    if prompt:
        save_file({"prompt_embeds": torch.linspace(-1, 1, TEXT_DIM)[None]}, root / "empty_prompt.safetensors")
    return root


def write_transformer(folder: Path, layout: str, model: Any, shards: int = 1) -> None:
    """Config and weights of a transformer alone, as in an expert's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    if layout == "diffusers":
        model.save_config(folder)
    else:
        state = {native_name(name): value for name, value in state.items()}
        (folder / "config.json").write_text(json.dumps(native_config(model)))
    write_shards(folder, state, shards)


def write_vae(root: Path, layout: str) -> None:
    if layout == "diffusers":
        shutil.copytree(GOLDEN / "diffusers" / "vae", root / "vae")
    else:
        shutil.copy(GOLDEN / "native" / "Wan2.1_VAE.pth", root)


def write_shards(folder: Path, state: Mapping[str, Tensor], shards: int) -> None:
    """One safetensors file, or several with their index."""
    names, stem = sorted(state), "diffusion_pytorch_model"
    if shards == 1:
        save_file({name: state[name].contiguous() for name in names}, folder / f"{stem}.safetensors")
        return
    index = {}
    for number in range(shards):
        file = f"{stem}-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]
        save_file({name: state[name].contiguous() for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def native_name(name: str) -> str:
    for pattern, replacement in TO_NATIVE:
        name = re.sub(pattern, replacement, name)
    return name


def native_config(model: Any) -> dict[str, Any]:
    """The fields Wan's own config.json has."""
    config = model.config
    found = {
        "_class_name": "WanModel",
        "model_type": "t2v",
        "dim": config.num_attention_heads * config.attention_head_dim,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.in_channels,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "out_dim": config.out_channels,
        "text_len": 512,
    }
    if hasattr(config, "vace_layers"):
        found |= {"_class_name": "VaceWanModel", "model_type": "vace"}
        found |= {"vace_layers": list(config.vace_layers), "vace_in_dim": config.vace_in_channels}
    return found


def edit_json(path: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
