"""Stage 3 of the embedded teacher: a small SigLIP, trained with its sigmoid loss between images and texts.

Texts are class prompts ("a photo of a chair"). Beside the pooled image, every patch token is matched against the same texts
(which classes cover the patch), so that a tower this small learns where things are and not only whether they are there.

    python -m teacher.tiny train --stage semantic
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

from teacher.tiny.loop import Stage, muon_and_adamw, step_rng

TEXT_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    width: int = 128
    layers: int = 5
    heads: int = 4
    image_size: int = 128
    patch: int = 16
    steps: int = 1200
    batch: int = 32
    covered: float = 0.15  # share of a patch a class must cover to count as present
    seed: int = 0


def build(config: SemanticConfig, vocabulary: int) -> SiglipModel:
    """A SiglipModel of the embedded size with seeded fresh weights."""
    torch.manual_seed(config.seed)
    shared = {"hidden_size": config.width, "intermediate_size": 3 * config.width, "num_attention_heads": config.heads}
    vision = SiglipVisionConfig(
        **shared, num_hidden_layers=config.layers, image_size=config.image_size, patch_size=config.patch
    )
    text = SiglipTextConfig(
        **shared, num_hidden_layers=1, vocab_size=vocabulary, max_position_embeddings=TEXT_LENGTH, projection_size=config.width
    )
    return SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def class_prompts(names: list[str], tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(K, TEXT_LENGTH) token ids of "a photo of a NAME"."""
    texts = [f"a photo of a {name}" for name in names]
    return tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt").input_ids


def sigmoid_loss(logits: Tensor, present: Tensor) -> Tensor:
    """SigLIP's pairwise loss: -log sigmoid(+-logit), averaged over pairs with positives weighted up to balance."""
    sign = 2 * present - 1
    weight = torch.where(present > 0, 3.0, 1.0)
    return -(weight * F.logsigmoid(sign * logits)).mean()


def train_semantic(
    frames: np.ndarray,
    coverage: np.ndarray,
    names: list[str],
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    config: SemanticConfig,
) -> SiglipModel:
    """Train on frames (N, 128, 128, 3) uint8 with coverage (N, gh, gw, K) uint8 in 1/255: share of each patch per class."""
    model = build(config, len(tokenizer))
    prompts = class_prompts(names, tokenizer)

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(config.seed, step)
        rows = rng.integers(0, len(frames), config.batch)
        images = torch.from_numpy(frames[rows]).movedim(-1, 1).float().div(127.5).sub(1)
        images = (images * float(rng.uniform(0.85, 1.15)) + float(rng.uniform(-0.1, 0.1))).clamp(-1, 1)
        present = torch.from_numpy(coverage[rows]).float().div(255) > config.covered
        with torch.autocast("cpu", torch.bfloat16):
            vision = model.vision_model(pixel_values=images)
            text = model.text_model(input_ids=prompts).pooler_output
        text = F.normalize(text.float(), dim=-1)
        scale, bias = model.logit_scale.exp(), model.logit_bias
        patches = F.normalize(vision.last_hidden_state.float(), dim=-1) @ text.T * scale + bias
        pooled = F.normalize(vision.pooler_output.float(), dim=-1) @ text.T * scale + bias
        dense = sigmoid_loss(patches, present.flatten(1, 2).float())
        image = sigmoid_loss(pooled, present.flatten(1, 2).any(1).float())
        return {"loss": dense + 0.5 * image, "patch": dense.detach(), "image": image.detach()}

    with torch.no_grad():  # SigLIP's own start: scale 10, bias -10; a small tower converges faster from -5
        model.logit_scale.fill_(np.log(10.0))
        model.logit_bias.fill_(-5.0)
    Stage("semantic", work, {"model": model}, muon_and_adamw(model, 0.01, 1e-3)).run(loss, config.steps)
    return model.eval()


@torch.no_grad()
def patch_f1(model: SiglipModel, frames: np.ndarray, coverage: np.ndarray, prompts: Tensor, covered: float) -> list[float]:
    """F1 per class of the zero-shot patch labels on held-out frames, the measure kept in the bundle's manifest."""
    text = F.normalize(model.text_model(input_ids=prompts).pooler_output, dim=-1)
    found = []
    for chunk in np.array_split(frames, max(1, len(frames) // 64)):
        images = torch.from_numpy(chunk).movedim(-1, 1).float().div(127.5).sub(1)
        tokens = F.normalize(model.vision_model(pixel_values=images).last_hidden_state, dim=-1)
        found.append((tokens @ text.T * model.logit_scale.exp() + model.logit_bias > 0).numpy())
    predicted = np.concatenate(found).reshape(-1, len(prompts))
    truth = (coverage.reshape(-1, len(prompts)) / 255) > covered
    hits = (predicted & truth).sum(0)
    return [float(2 * h / max(1, p + t)) for h, p, t in zip(hits, predicted.sum(0), truth.sum(0), strict=True)]
