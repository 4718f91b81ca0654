"""A Hugging Face causal language model as a reader: visual tokens come in through `inputs_embeds`, answers go out as text.

Same two calls as the embedded `teacher.reader.Reader`: `loss` and `answer`. Loaded by folder, all of them greedy:

- Qwen2 and any other causal LM, and LLaVA-Video's Qwen2: rows of visual tokens end with a learned newline;
- Qwen2-VL and Qwen2.5-VL (language model only): frames between vision tokens, with positions of time, row and column.

    python -c "from teacher.language import load_language; print(load_language('LLaVA-Video-7B-Qwen2').layout)"
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.utils import logging

from teacher.serialise import grid_positions, with_newlines, wrapped
from vega_artifact import UserError, read_json

PLACE = "<image>"  # where the visual tokens go; cut out before anything is encoded
SYSTEM = "You are a helpful assistant."
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_MODELS = ("qwen2_vl", "qwen2_5_vl")
Layout = Literal["rows", "images"]


class LanguageReader(nn.Module):
    """A causal LM and its tokenizer.

    Args:
        model: takes inputs_embeds, a 2-D attention mask, position_ids and logits_to_keep.
        layout: "rows" with newlines, positions in one dimension; "images" as Qwen2.5-VL reads them, in three.
        newline: (hidden,) of the layout "rows"; None: fresh, of the size of a word's embedding.
        batch: questions answered together.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layout: Layout = "rows",
        newline: Tensor | None = None,
        batch: int = 16,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.layout, self.batch = model, tokenizer, layout, batch
        self.hidden = int(self._table().weight.shape[1])
        if tokenizer.eos_token_id is None:
            raise UserError("this tokenizer has no eos token, so no answer would end; set eos_token in tokenizer_config.json")
        if layout == "rows":
            fresh = torch.randn(self.hidden, generator=torch.Generator(device="cpu").manual_seed(0)) / self.hidden**0.5
            self.image_newline = nn.Parameter(fresh if newline is None else newline.float())

    def loss(
        self, tokens: Tensor | None, prompts: Sequence[str], answers: Sequence[str], views: Sequence[int | None] | None = None
    ) -> Tensor:
        """Mean cross-entropy of the answers' tokens and the end of each, as (); arguments as for `answer`."""
        said = [[*self._encode(answer), self.tokenizer.eos_token_id] for answer in answers]
        rows, places = [], []
        for prompt, view, answer in zip(prompts, _views(views, len(prompts)), said, strict=True):
            before, after = self._texts(prompt)
            embeds, positions = self._prefix(_view_of(tokens, view), before)
            rows.append(torch.cat((embeds, self._embed(after + answer))))
            places.append(_onwards(positions, len(after) + len(answer)))
        embeds, mask = _left_padded(rows)
        longest = max(map(len, said))
        logits = self._forward(embeds, mask, _stacked(places), use_cache=False, logits_to_keep=longest + 1).logits
        labels = torch.full((len(said), longest), -100)
        for row, answer in enumerate(said):
            labels[row, longest - len(answer) :] = torch.tensor(answer)
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels.flatten().to(logits.device))

    @torch.no_grad()
    def answer(
        self,
        tokens: Tensor | None,
        prompts: Sequence[str],
        max_new_tokens: int = 16,
        views: Sequence[int | None] | None = None,
    ) -> list[str]:
        """Greedy answers to questions about one scene; the scene's tokens pass through the model once.

        Args:
            tokens: (T, hidden, gh, gw), or None for a blind reader.
            views: per prompt the only frame (0..T-1) it is shown, None for all; left out: every prompt sees all.
        """
        wanted = _views(views, len(prompts))
        found: dict[int, str] = {}
        for view in dict.fromkeys(wanted):
            rows = [row for row, asked in enumerate(wanted) if asked == view]
            texts = [self._texts(prompts[row]) for row in rows]
            embeds, positions = self._prefix(_view_of(tokens, view), texts[0][0])
            prefix = self._forward(embeds[None], None, positions[:, None], use_cache=True, logits_to_keep=1).past_key_values
            for start in range(0, len(rows), self.batch):
                asked = [after for _, after in texts[start : start + self.batch]]
                written = self._decode(copy.deepcopy(prefix), positions, asked, max_new_tokens)
                found |= dict(zip(rows[start : start + self.batch], written))
        return [found[row] for row in range(len(prompts))]

    def _decode(self, cache: Any, before: Tensor, asked: list[list[int]], steps: int) -> list[str]:
        """Answers to questions that follow one prefix, whose keys and values are in `cache` (of one row)."""
        cache.batch_repeat_interleave(len(asked))
        embeds, mask = _left_padded([self._embed(ids) for ids in asked])
        places = _stacked([_onwards(before, len(ids))[:, before.shape[1] :] for ids in asked])
        mask = torch.cat((mask.new_ones(len(asked), before.shape[1]), mask), dim=1)
        chosen: list[Tensor] = []
        for _ in range(steps):
            output = self._forward(embeds, mask, places, past_key_values=cache, use_cache=True, logits_to_keep=1)
            chosen.append(output.logits[:, -1].argmax(-1))
            if (torch.stack(chosen) == self.tokenizer.eos_token_id).any(0).all():
                break
            embeds = self.model.get_input_embeddings()(chosen[-1][:, None])
            mask = torch.cat((mask, mask.new_ones(len(asked), 1)), dim=1)
            places = places[:, :, -1:] + 1
        return [self._text(row) for row in torch.stack(chosen, dim=1).tolist()]

    def _forward(self, embeds: Tensor, mask: Tensor | None, places: Tensor, **options: Any) -> Any:
        """One pass; `places` (3, B, L), of which a model with ordinary positions gets the first."""
        places = places.to(embeds.device)
        positions = places if self.layout == "images" else places[0]
        return self.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, **options)

    def _prefix(self, tokens: Tensor | None, before: list[int]) -> tuple[Tensor, Tensor]:
        """Text before the question and visual tokens: embeddings (P, hidden), positions (3, P)."""
        embeds, positions = self._embed(before), torch.arange(len(before)).expand(3, -1)
        if tokens is None:
            return embeds, positions
        if tokens.ndim != 4 or tokens.shape[1] != self.hidden:
            raise UserError(f"visual tokens (T, {self.hidden}, gh, gw) expected by this reader, found {tuple(tokens.shape)}")
        if self.layout == "rows":
            visual = with_newlines(tokens, self.image_newline)
            positions = _onwards(positions, len(visual))
        else:
            edges = cast(list[int], self.tokenizer.convert_tokens_to_ids([VISION_START, VISION_END]))
            visual = wrapped(tokens, *self._embed(edges))
            grid = (tokens.shape[2], tokens.shape[3])
            positions = torch.cat((positions, grid_positions(len(tokens), grid, len(before))), dim=1)
        return torch.cat((embeds, visual.to(embeds))), positions

    def _texts(self, prompt: str) -> tuple[list[int], list[int]]:
        """Token ids before and after the visual tokens, by the model's chat template if it has one."""
        if self.tokenizer.chat_template is None:
            start = self.tokenizer.bos_token_id
            return ([self.tokenizer.eos_token_id if start is None else start], self._encode(prompt))
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": f"{PLACE}\n{prompt}"}]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        before, _, after = text.partition(PLACE)
        return self._encode(before), self._encode(after)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _embed(self, ids: Sequence[int]) -> Tensor:
        table = self._table()
        return table(torch.tensor(list(ids), dtype=torch.long, device=table.weight.device))

    def _table(self) -> nn.Embedding:
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def _text(self, ids: list[int]) -> str:
        eos = self.tokenizer.eos_token_id
        return str(self.tokenizer.decode(ids[: ids.index(eos)] if eos in ids else ids, skip_special_tokens=True)).strip()


def _views(views: Sequence[int | None] | None, count: int) -> list[int | None]:
    if views is not None and len(views) != count:
        raise ValueError(f"{len(views)} views given for {count} questions")
    return [None] * count if views is None else list(views)


def _view_of(tokens: Tensor | None, view: int | None) -> Tensor | None:
    if tokens is None or view is None:
        return tokens
    if not 0 <= view < len(tokens):
        raise UserError(f"a question asks about view {view}; views 0..{len(tokens) - 1} were given")
    return tokens[view : view + 1]


def _onwards(positions: Tensor, count: int) -> Tensor:
    """Positions (3, P) continued by `count` words, each one further than the largest before it."""
    first = int(positions.max()) + 1 if positions.numel() else 0
    return torch.cat((positions, torch.arange(first, first + count).expand(3, -1)), dim=1)


def _left_padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows (L_i, D) -> (B, L, D), and which places are used, int64 (B, L)."""
    mask = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in rows], True, 0, padding_side="left")
    return pad_sequence(rows, batch_first=True, padding_side="left"), mask


def _stacked(places: list[Tensor]) -> Tensor:
    """Positions (3, L_i), padded on the left -> (3, B, L)."""
    return pad_sequence([row.T for row in places], batch_first=True, padding_side="left").permute(2, 0, 1)


def load_language(folder: Path | str, dtype: torch.dtype = torch.float32) -> LanguageReader:
    """The language model and tokenizer of a transformers folder, or of a LLaVA-Video one.

    Raises:
        UserError: no such folder, a model that is no causal LM, weights that are unreadable or lack a tensor.
    """
    folder = Path(folder)
    logging.disable_progress_bar()
    raw = read_json(folder / "config.json")
    kind = str(raw.get("model_type"))
    newline: Tensor | None = None
    try:
        if kind in IMAGE_MODELS:
            model, info = _pretrained(AutoModelForImageTextToText, folder, dtype)
            model.model.visual = None  # its place is taken by the visual tokens
        elif kind.startswith("llava") and "num_hidden_layers" in raw:
            model, info, newline = _load_llava(folder, raw, dtype)
        else:
            model, info = _pretrained(AutoModelForCausalLM, folder, dtype)
        tokenizer = _load_tokenizer(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{folder}: no causal language model loads from here ({reason})") from error
    if info["missing_keys"]:
        raise UserError(
            f"{folder}: its weights lack {sorted(info['missing_keys'])[0]}; fetch the checkpoint again, with all its shards"
        )
    return LanguageReader(model.eval(), tokenizer, "images" if kind in IMAGE_MODELS else "rows", newline)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. One saved without a class of its own is loaded as it is.

    AutoTokenizer would put the model's usual class in its place, which splits text its own way and drops what it does not know.
    """
    record = folder / "tokenizer_config.json"
    plain = record.exists() and read_json(record).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(folder, local_files_only=True)


def _pretrained(kind: Any, folder: Path, dtype: torch.dtype, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model, and what its weights lacked."""
    model, info = kind.from_pretrained(folder, dtype=dtype, local_files_only=True, output_loading_info=True, **options)
    return model, info


def _load_llava(folder: Path, raw: dict[str, Any], dtype: torch.dtype) -> tuple[PreTrainedModel, Any, Tensor | None]:
    """LLaVA's own layout: Qwen2's settings stand in the outer config, its weights among those of the vision tower."""
    from teacher.published import SCENE, read_parts

    known = set(Qwen2Config().to_dict()) - {"model_type", "architectures", "dtype", "transformers_version"}
    config = Qwen2Config(**{name: value for name, value in raw.items() if name in known})
    model, info = _pretrained(Qwen2ForCausalLM, folder, dtype, config=config)
    return model, info, read_parts(folder).get(SCENE["newline"])
