"""The embedded teacher bundle: what lies in `teacher/bundle/` and how it is read and written.

Everything is stored in float16 safetensors and used in float32; `manifest.json` records recipe, seeds, curves and the chosen
block and sigma.

    vega-edge verify teacher/bundle
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from teacher.reader import Connector, Reader
from teacher.semantic import SemanticEncoder, load_semantic
from teacher.streams import FusedTokens, SemanticTokens
from vega_artifact import UserError, atomic_write, read_json, read_manifest

BUNDLE = Path(__file__).parent.parent / "bundle"
GRID = (8, 8)
WIDTH = 128
SIZE = (64, 64)
CONDITIONS = ("fused", "semantic", "blind")
READER_SEEDS = (0, 1, 2)


def load_bundle_wan(variant: str, bundle: Path = BUNDLE) -> tuple[WanTransformer3DModel, AutoencoderKLWan]:
    """The embedded transformer ("generative" or "geometry") and VAE in float32."""
    _require(bundle / variant)
    transformer = WanTransformer3DModel.from_pretrained(bundle / variant, torch_dtype=torch.float32, local_files_only=True)
    vae = AutoencoderKLWan.from_pretrained(bundle / "vae", torch_dtype=torch.float32, local_files_only=True)
    return transformer, vae


def embedded_settings(variant: str, bundle: Path = BUNDLE) -> dict[str, Any]:
    """TeacherConfig fields chosen on validation rooms (`python -m bench.select`), from the manifest."""
    chosen = read_manifest(bundle, "teacher")["settings"][variant]
    fixed = {"size": SIZE, "grid": GRID, "text_rows": 1}
    return fixed | {"blocks": tuple(chosen["blocks"]), "sigma": chosen["sigma"], "draws": chosen["draws"]}


def load_semantic_tower(bundle: Path = BUNDLE) -> SemanticEncoder:
    _require(bundle / "semantic")
    return load_semantic(bundle / "semantic", grid=GRID)


def load_tokenizer(bundle: Path = BUNDLE) -> PreTrainedTokenizerFast:
    _require(bundle / "tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(bundle / "tokenizer", local_files_only=True)


def new_mixer(fusion: str, scale: float = 1.0) -> FusedTokens:
    return FusedTokens(WIDTH, WIDTH, WIDTH, fusion, scale)


def load_mixer(name: str, bundle: Path = BUNDLE) -> FusedTokens | None:
    """The fusion trained for an embedded teacher, or None when none was (then there is no fused stream)."""
    path = bundle / "fusion" / f"{name}.safetensors"
    if not path.exists():
        return None
    mixer = new_mixer(read_manifest(bundle, "teacher")["config"]["fit"].get("fusion", "token_gated"))
    mixer.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return mixer.eval().requires_grad_(False)


def load_semantic_tokens(bundle: Path = BUNDLE) -> SemanticTokens:
    """The projector of the semantic-only readers."""
    path = bundle / "fusion" / "semantic.safetensors"
    _require(path)
    tokens = SemanticTokens(WIDTH, WIDTH)
    tokens.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return tokens.eval().requires_grad_(False)


def new_reader(tokenizer: PreTrainedTokenizerFast, condition: str, seed: int) -> Reader:
    """A fresh embedded reader: a Qwen2 of width 128; blind ones have no connector."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
        model = Qwen2ForCausalLM(config)
        for layer in model.model.layers:
            # like attends to like from the start, a word to the patches that show it; gradients find that very slowly
            attention = layer.self_attn
            torch.nn.init.orthogonal_(attention.q_proj.weight)
            attention.k_proj.weight.data.copy_(attention.q_proj.weight)
            # and what is found is taken along as it is: a word that has found its patches knows where they are and how far
            torch.nn.init.orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.data.copy_(0.5 * attention.v_proj.weight.T)
        connector = None if condition == "blind" else Connector(WIDTH, WIDTH, GRID)
    return Reader(model, tokenizer, connector)


def load_reader(condition: str, seed: int, bundle: Path = BUNDLE) -> Reader:
    """A trained reader of one condition ("fused", "semantic", "blind") and seed."""
    return read_reader(bundle / "readers" / f"{condition}-{seed}.safetensors", load_tokenizer(bundle), condition)


def read_reader(path: Path, tokenizer: PreTrainedTokenizerFast, condition: str) -> Reader:
    """A reader from its own file."""
    _require(path)
    reader = new_reader(tokenizer, condition, seed=0)
    state = {key: value.float() for key, value in load_file(path).items()}
    found = reader.load_state_dict(state, strict=False)
    if found.unexpected_keys or set(found.missing_keys) - {"model.lm_head.weight"}:  # tied embeddings are stored once
        raise UserError(f"{path}: not a reader of this version; restore it from the repository or train the bundle again")
    return reader.eval().requires_grad_(False)


def save_half(module: nn.Module, path: Path) -> None:
    """Weights as float16 safetensors, shared tensors once."""
    seen: set[int] = set()
    state = {}
    for key, value in module.state_dict().items():
        if value.data_ptr() not in seen:
            seen.add(value.data_ptr())
            state[key] = value.half().contiguous() if value.is_floating_point() else value
    atomic_write(path, lambda temporary: temporary.write_bytes(save(state)))


def supervision(name: str) -> str:
    """One sentence on what an embedded teacher was trained with."""
    from teacher.backbones import BACKBONES

    return BACKBONES[name].supervision


def lessons(bundle: Path = BUNDLE) -> int:
    """From how many rooms' questions the readers learned."""
    return read_manifest(bundle, "teacher")["config"]["fit"]["lessons"]


def curves(bundle: Path = BUNDLE) -> dict[str, Any]:
    return read_json(bundle / "curves.json")


def _require(path: Path) -> None:
    if not path.exists():
        raise UserError(
            f"{path}: missing from the embedded bundle; restore it from the repository or run: python -m teacher.tiny train"
        )
