"""What `vega-edge fit` trains: visual tokens and a reader as one module, and how it is put together from names and folders.

Between `teacher.fit` (the training) and whoever asks a fitted reader: both build the same module from the same few settings.

    python -c "from teacher.tutor import Parts, build; print(build(Parts(), (128, 8, 8), (128, 8, 8)))"
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from teacher.instruction import instruction_context, relation_ids
from teacher.language import LanguageReader, load_language
from teacher.positions import Positions
from teacher.published import SCENE, read_parts
from teacher.reader import Reader
from teacher.visual import CONTEXT, METHODS, SEMANTIC, VisualTokens
from vega_artifact import UserError, unknown_name

EMBEDDED = "embedded"
BLIND = "blind"  # the fusion that shows nothing
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Which parts are put together.

    Attributes:
        reader: "embedded", or the folder of a Hugging Face causal language model.
        fusion: how the streams become one (`teacher.visual.METHODS`), or "blind" for no visual tokens.
        positions: which 3D positions are added to the tokens.
        language: what of the language model is trained: nothing, LoRA matrices of rank `lora_rank`, or all of it.
    """

    reader: str = EMBEDDED
    fusion: str = "token_gated"
    positions: Positions | Literal["none"] = "none"
    language: Literal["frozen", "lora", "full"] = "frozen"
    lora_rank: int = 16
    scale: float = 1.0
    seed: int = 0


class Tutor(nn.Module):
    """forward(streams of one scene, questions) -> loss; `answer` for afterwards.

    Streams: "semantic" (T, Cs, h, w), "generative" (T, Cg, gh, gw), and "cells" (T, gh * gw, 3) where positions are wanted.
    With "context_gated" fusion every question has visual tokens of its own, so questions pass one by one.
    """

    def __init__(self, visual: VisualTokens | None, reader: Reader | LanguageReader) -> None:
        super().__init__()
        self.visual, self.reader = visual, reader
        self.relations = relation_ids(reader.tokenizer) if visual is not None and visual.method == CONTEXT else None

    def forward(
        self, streams: Mapping[str, Tensor], prompts: Sequence[str], answers: Sequence[str], views: Sequence[int | None]
    ) -> Tensor:
        views = self._views(views)
        if self.relations is None:
            return self.reader.loss(self.tokens(streams), prompts, answers, views)
        lessons = zip(prompts, answers, views, strict=True)
        losses = [self.reader.loss(self.tokens(streams, ask), [ask], [say], [view]) for ask, say, view in lessons]
        return torch.stack(losses).mean()

    def tokens(self, streams: Mapping[str, Tensor], prompt: str | None = None) -> Tensor | None:
        """What the reader is given of one scene, (T, width, gh, gw); None when it is blind.

        Args:
            prompt: the question, which "context_gated" fusion hears and no other.
        """
        if self.visual is None:
            return None
        context = None if prompt is None else self._context(prompt)
        return self.visual(streams["semantic"], streams.get("generative"), streams.get("cells"), context)

    def _context(self, prompt: str) -> Tensor | None:
        if self.relations is None:
            return None
        ids = self.reader.tokenizer(prompt, add_special_tokens=False).input_ids
        return instruction_context(ids, cast(nn.Embedding, self.reader.model.get_input_embeddings()), self.relations)

    @torch.no_grad()
    def answer(
        self, streams: Mapping[str, Tensor], prompts: Sequence[str], views: Sequence[int | None], max_new_tokens: int = 16
    ) -> list[str]:
        """Greedy answers to questions about one scene."""
        views = self._views(views)
        if self.relations is None:
            return self.reader.answer(self.tokens(streams), prompts, max_new_tokens, views)
        asked = zip(prompts, views, strict=True)
        lone = [self.reader.answer(self.tokens(streams, ask), [ask], max_new_tokens, [view]) for ask, view in asked]
        return [text for (text,) in lone]

    def _views(self, views: Sequence[int | None]) -> Sequence[int | None]:
        return [None] * len(views) if self.visual is None else views  # who sees nothing has no view to look at

    def learned(self) -> dict[str, Tensor]:
        """Everything that training changes, and the scale, by name."""
        found: dict[str, Tensor] = {name: value for name, value in self.named_parameters() if value.requires_grad}
        return found if self.visual is None else found | {"visual.scale": self.visual.scale}


def build(parts: Parts, semantic: Shape, generative: Shape | None, dtype: torch.dtype = torch.float32) -> Tutor:
    """The untrained module; what is not to be trained has requires_grad off.

    Args:
        semantic, generative: (C, gh, gw) of the streams. dtype: of a frozen language model's weights.

    Raises:
        UserError: an unknown fusion, no such reader, LoRA without peft, or streams that this fusion cannot use.
    """
    if parts.fusion not in (*METHODS, BLIND):
        raise unknown_name("fusion", parts.fusion, (*METHODS, BLIND))
    if generative is None and parts.fusion not in (SEMANTIC, BLIND):
        raise UserError(f"fusion {parts.fusion!r} needs a generative stream, and the cache has none; use --fusion semantic")
    reader, width = _reader(parts, dtype)
    visual = None
    if parts.fusion != BLIND:
        channels = generative[0] if generative is not None else semantic[0]
        visual = VisualTokens(semantic[0], channels, width, parts.fusion, parts.scale, parts.seed)
        if parts.reader != EMBEDDED:
            adopt(visual, Path(parts.reader))
    return Tutor(visual, reader)


def _reader(parts: Parts, dtype: torch.dtype) -> tuple[Reader | LanguageReader, int]:
    if parts.reader == EMBEDDED:
        from teacher.tiny.bundle import WIDTH, load_reader

        condition = parts.fusion if parts.fusion in (SEMANTIC, BLIND) else "fused"
        reader: Reader | LanguageReader = load_reader(condition, 0)
        width = WIDTH
    else:
        reader = load_language(parts.reader, torch.float32 if parts.language == "full" else dtype)
        width = reader.hidden
    reader.requires_grad_(True)
    reader.model.requires_grad_(parts.language == "full")
    if parts.language == "lora":
        reader.model = cast(Any, with_lora(reader.model, parts.lora_rank, parts.seed))  # answers to all that a model does
    return reader, width


def with_lora(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """The model with trainable low-rank matrices beside all of its linear layers.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--language lora needs the package peft (pip install peft); or use frozen or full") from None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, config)


def adopt(visual: VisualTokens, folder: Path) -> list[str]:
    """Take over the projectors and the fusion a LLaVA or VEGA-3D checkpoint brings, where name and shape agree.

    Returns:
        The names of the parts that were taken over.
    """
    state = read_parts(folder) if any(folder.glob("*.safetensors")) else {}
    taken = []
    for part in ("semantic_projector", "generative_projector", "fusion"):
        module = getattr(visual, part)
        prefix = SCENE[part]
        weights = {name.removeprefix(prefix): value.float() for name, value in state.items() if name.startswith(prefix)}
        if module is None or not weights:
            continue
        own = {name: value.shape for name, value in module.state_dict().items()}
        if own == {name: value.shape for name, value in weights.items()}:
            module.load_state_dict(weights)
            taken.append(part)
    return taken
