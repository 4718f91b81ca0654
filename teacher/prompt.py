"""The encoding of the empty prompt that every Wan teacher is conditioned on: read it, or make it once with umT5.

Wan's exporter cuts the encoding to the attention mask's length; for the empty prompt that is the end-of-sequence token alone,
so the result is (1, 4096) (spec/vega3d.md 2.2). It is looked for in this order: what the caller gives, a file in the folder,
the user's cache, the folder's own umT5 encoder (text_encoder/ or models_t5_umt5-xxl-enc-bf16.pth), which is encoded once on
the CPU, written beside the weights (or, where that is forbidden, in the user's cache) and freed.

    python -m teacher.prompt ENCODER_FOLDER empty_prompt.safetensors
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import load, save
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from teacher.weights import Entry, fill, identity, load_torch, open_torch
from vega_artifact import UserError, atomic_write, read_json

PROMPT_FILES = ("empty_prompt.safetensors", "wan_t2v_null_prompt.pt", "empty_prompt.pt")
KEYS = ("context", "embedding", "prompt_embeds")
NATIVE_ENCODER = "models_t5*.pth"
TEXT_ROWS = 512
CACHE_ENV = "VEGA_EDGE_CACHE"
# Wan's own names of one umT5 layer -> transformers' names
LAYER_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn": "layer.0.SelfAttention",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def empty_prompt(folder: Path, text_dim: int, given: Tensor | Path | str | None = None) -> Tensor:
    """The encoding of the empty prompt for the Wan checkpoint in `folder`.

    Args:
        text_dim: width the transformer expects (Wan: 4096).
        given: the encoding (rows, text_dim) or a file holding it; then nothing else is looked at.
    Returns:
        (rows, text_dim), rows <= 512, as stored (Wan: (1, 4096) bfloat16).
    Raises:
        UserError: nothing there and no encoder to make it with, or an encoding of another width or holding NaN.
    """
    if isinstance(given, Tensor):
        return _checked(given, text_dim, "prompt_embeds")
    found = Path(given) if given is not None else stored_prompt(folder)
    if found is None:
        found = _make(folder)
    return _checked(load_prompt(found), text_dim, str(found))


def stored_prompt(folder: Path) -> Path | None:
    """The file that holds the folder's encoding already: in it, or in the user's cache."""
    places = [folder / name for name in PROMPT_FILES]
    encoder = _encoder_files(folder)
    if encoder:
        places.append(_cached(encoder))
    return next((place for place in places if place.exists()), None)


def can_make(folder: Path) -> bool:
    """Whether the folder has what the encoding of the empty prompt is read from or made with."""
    return stored_prompt(folder) is not None or bool(_encoder_files(folder))


def load_prompt(path: Path | str) -> Tensor:
    """Read an encoding (rows, text_dim) from a safetensors or weights-only torch file, bare or under one of `KEYS`."""
    file = Path(path)
    value = _load_safetensors(file) if file.suffix == ".safetensors" else load_torch(file)
    while isinstance(value, dict):
        known = [key for key in KEYS if key in value]
        if not known:
            raise UserError(f"{file}: a tensor or a key {', '.join(map(repr, KEYS))} expected, found {sorted(value)}")
        value = value[known[0]]
    if isinstance(value, list) and len(value) == 1:  # Wan's encoder returns one tensor per prompt
        value = value[0]
    if not isinstance(value, Tensor) or value.ndim not in (2, 3) or (value.ndim == 3 and len(value) != 1):
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise UserError(f"{file}: prompt embedding of shape (rows, text_dim) expected, found {shape}")
    return value[0] if value.ndim == 3 else value


def encode_empty_prompt(folder: Path) -> Tensor:
    """Run the umT5 encoder of a Wan folder on the empty prompt: (1, text_dim) bfloat16, on the CPU.

    One row is exact: the padding behind it is masked out inside the encoder, so it cannot change the first token.
    """
    model = _native_encoder(folder) if list(folder.glob(NATIVE_ENCODER)) else _diffusers_encoder(folder)
    tokens = torch.tensor([[model.config.eos_token_id]])
    with torch.no_grad():
        return model(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0].to(torch.bfloat16)


def _make(folder: Path) -> Path:
    encoder = _encoder_files(folder)
    if not encoder:
        raise UserError(
            f"{folder}: no encoding of the empty prompt and no umT5 encoder to make it with; copy text_encoder/ or "
            f"models_t5_umt5-xxl-enc-bf16.pth here once, or run `python -m teacher.prompt ENCODER_FOLDER {PROMPT_FILES[0]}` "
            f"where the encoder is and put that file here or pass it as prompt_embeds"
        )
    rows = encode_empty_prompt(folder)
    beside = folder / PROMPT_FILES[0]
    place = beside if os.access(folder, os.W_OK) else _cached(encoder)
    save_prompt(rows, place)
    return place


def save_prompt(rows: Tensor, path: Path) -> None:
    """Write an encoding atomically, so that several processes may make it at once."""
    content = save({"prompt_embeds": rows.contiguous()})
    atomic_write(path, lambda temporary: temporary.write_bytes(content))


def _encoder_files(folder: Path) -> list[Path]:
    """The umT5 encoder's weight files; none where one of them is missing."""
    place, native = folder / "text_encoder", sorted(folder.glob(NATIVE_ENCODER))[:1]
    if native or not (place / "config.json").exists():
        return native
    index = place / "model.safetensors.index.json"
    names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    files = [place / name for name in names]
    return files if all(file.exists() for file in files) else []


def _cached(encoder: list[Path]) -> Path:
    """Where the user's cache keeps the encoding of one encoder; VEGA_EDGE_CACHE moves it."""
    home = Path(os.environ.get(CACHE_ENV) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vega-edge")
    return home / "prompts" / f"{identity((path.name, path) for path in encoder)}.safetensors"


def _checked(rows: Tensor, text_dim: int, source: str) -> Tensor:
    if rows.ndim != 2 or rows.shape[1] != text_dim or not 0 < len(rows) <= TEXT_ROWS:
        raise UserError(f"{source}: prompt_embeds (1 to {TEXT_ROWS} rows, {text_dim}) expected, found {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise UserError(f"{source}: the prompt encoding holds NaN or infinity; make it again with `python -m teacher.prompt`")
    return rows


def _load_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load(file.read_bytes())
    except Exception as error:  # missing, truncated or foreign: safetensors and the system raise different classes
        raise UserError(f"{file}: cannot be read as safetensors ({type(error).__name__}); make or copy it again") from error


def _diffusers_encoder(folder: Path) -> UMT5EncoderModel:
    path = folder / "text_encoder"
    try:
        model, report = UMT5EncoderModel.from_pretrained(
            path, dtype=torch.bfloat16, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # missing shard, truncation, foreign config: no common base class
        line = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{path}: does not load as a umT5 encoder ({line}); copy the folder again") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))[0]
        raise UserError(f"{path}: does not load as a umT5 encoder ({wrong} is missing or misshaped); copy the folder again")
    return model.eval()


def _native_encoder(folder: Path) -> UMT5EncoderModel:
    """Wan's own umT5 file; its widths are read from the tensors."""
    path = _encoder_files(folder)[0]
    weights = open_torch(path).renamed(_rename_native)
    shapes = weights.shapes
    try:
        vocabulary, width = shapes["shared.weight"]
        buckets, heads = shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        inner = shapes["encoder.block.0.layer.0.SelfAttention.q.weight"][0]
        hidden = shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0]
    except KeyError as error:
        raise UserError(f"{path}: no umT5 encoder of Wan ({error} is missing); copy Wan's own file") from error
    config = UMT5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=inner // heads,
        d_ff=hidden,
        num_heads=heads,
        num_layers=1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        relative_attention_num_buckets=buckets,
    )
    with init_empty_weights(include_buffers=False):
        model = UMT5EncoderModel(config)
    return fill(model, weights, torch.bfloat16)


def _rename_native(state: dict[str, Any]) -> dict[str, Any]:
    renamed: dict[str, Entry] = {}
    for name, entry in state.items():
        if found := re.fullmatch(r"blocks\.(\d+)\.(.+?)((?:\.[qkvo])?\.weight)", name):
            layer, part, rest = found.groups()
            renamed[f"encoder.block.{layer}.{LAYER_NAMES.get(part, part)}{rest}"] = entry
        elif name == "token_embedding.weight":
            renamed |= {"shared.weight": entry, "encoder.embed_tokens.weight": entry}
        else:
            renamed[{"norm.weight": "encoder.final_layer_norm.weight"}.get(name, name)] = entry
    return renamed


def make(folder: Path, out: Path, /) -> None:
    """Encode the empty prompt with the umT5 encoder of a Wan folder and write it as safetensors."""
    if not _encoder_files(folder):
        raise UserError(f"{folder}: no umT5 encoder here; text_encoder/ or {NATIVE_ENCODER} expected")
    save_prompt(encode_empty_prompt(folder), out)
    print(f"{out}: encoding of the empty prompt written")


if __name__ == "__main__":
    import tyro

    tyro.cli(make)
