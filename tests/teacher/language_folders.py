"""Small language models in folders as Hugging Face and LLaVA write them, with fresh weights: what the readers are tested on."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vega_artifact import read_json, write_json

WORDS = "<|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <unk> system user assistant how many is there a chair bed"
WORDS += " two yes no first red blue table lamp room the in view simply answer question options . ? :"
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
HIDDEN = 16
SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per word of `WORDS`."""
    words = WORDS.split()
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", unk_token="<unk>", additional_special_tokens=words[:4]
    )
    found.chat_template = template
    return found


def qwen2(folder: Path) -> Path:
    return _save(folder, Qwen2ForCausalLM, Qwen2Config(vocab_size=len(WORDS.split()), **SIZES))


def qwen25_vl(folder: Path) -> Path:
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(WORDS.split()),
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            **SIZES,
        },
        vision_config={"depth": 1, "hidden_size": 8, "num_heads": 1, "intermediate_size": 8, "out_hidden_size": HIDDEN},
    )
    return _save(folder, Qwen2_5_VLForConditionalGeneration, config)


def llava_video(folder: Path) -> Path:
    """LLaVA's own layout: a flat config of another model type, projector and newline among the language model's weights."""
    qwen2(folder)
    raw = read_json(folder / "config.json")
    write_json(folder / "config.json", raw | {"model_type": "llava", "architectures": ["LlavaQwenForCausalLM"]})
    state = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    extra = {"0.weight": (HIDDEN, 6), "0.bias": (HIDDEN,), "2.weight": (HIDDEN, HIDDEN), "2.bias": (HIDDEN,)}
    state |= {f"model.mm_projector.{name}": torch.randn(shape, generator=generator) for name, shape in extra.items()}
    state["model.image_newline"] = torch.randn(HIDDEN, generator=generator)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _save(folder: Path, kind: type, config: Qwen2Config | Qwen2_5_VLConfig) -> Path:
    """Weights so large that answers depend on everything the model is given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
