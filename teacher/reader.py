"""The reader: a causal language model that answers questions from visual tokens fed through `inputs_embeds`.

The questions of one scene share its visual prefix, so they are packed into one sequence: every question attends to the prefix
and to itself only, and positions restart after the prefix. One pass then costs the prefix once, in training and in greedy
decoding, and gives the same logits as asking each question alone (a test compares them). Visual tokens attend to all tokens of
their own view and to no other view, so that a question about one view, which attends to that view only, knows nothing else.

    python -c "from teacher.tiny.bundle import load_reader; print(load_reader("blind", 0).answer(None, ["How many chair(s)?"]))"
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen2ForCausalLM

from vega_artifact import UserError

QUESTION_START = 1  # the whole visual prefix stands at position 0


class Connector(nn.Module):
    """Token maps (T, C, gh, gw) -> visual embeddings (T * gh/2 * gw/2, hidden).

    2x2 neighbours are concatenated before a linear layer (as Qwen2.5-VL's merger does), then learned cell embeddings
    are added, because the language model's own positions are one-dimensional. They start as a row's plus a column's.
    """

    def __init__(self, channels: int, hidden: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (channels, *grid)
        self.merge = nn.PixelUnshuffle(2)
        self.norm = nn.LayerNorm(4 * channels)
        self.project = nn.Linear(4 * channels, hidden)
        row, column = torch.randn(grid[0] // 2, 1, hidden), torch.randn(1, grid[1] // 2, hidden)
        self.cell = nn.Parameter(0.3 * (row + column).flatten(0, 1)[None])

    def forward(self, tokens: Tensor) -> Tensor:
        if tuple(tokens.shape[1:]) != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise UserError(
                f"visual tokens: (T, {expected}) expected, found {tuple(tokens.shape)}; "
                "give the reader the stream and grid it was trained on"
            )
        merged = self.merge(tokens).flatten(2).transpose(1, 2)
        return (self.project(self.norm(merged)) + self.cell).flatten(0, 1)


class Reader(nn.Module):
    """A causal LM, its tokenizer, and the connector of its visual tokens (None for a blind reader).

    Args:
        model: any causal LM that takes `inputs_embeds`, 4-D attention masks and position ids.
        tokenizer: encodes prompts and answers; its eos token ends an answer.
    """

    def __init__(self, model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, connector: Connector | None) -> None:
        super().__init__()
        self.model, self.tokenizer, self.connector = model, tokenizer, connector

    def prefix(self, tokens: Tensor | None) -> Tensor:
        """Visual prefix (P, hidden): the bos embedding, then the visual tokens if this reader sees."""
        embed = self.model.get_input_embeddings()
        start = embed(torch.tensor([self.tokenizer.bos_token_id]))
        if self.connector is None or tokens is None:
            return start
        # a token carries the word for its view's number, so that "first" can be told from later; at unit scale,
        # because an untrained word is so much smaller than a visual embedding that nothing would find it
        views = torch.stack([embed(torch.tensor(self._encode(str(view + 1)))).mean(0) for view in range(len(tokens))])
        views = nn.functional.rms_norm(views, views.shape[-1:])
        visual = self.connector(tokens)
        return torch.cat([start, visual + views.repeat_interleave(len(visual) // len(tokens), dim=0)])

    def loss(
        self, tokens: Tensor | None, prompts: Sequence[str], answers: Sequence[str], views: Sequence[int | None] | None = None
    ) -> Tensor:
        """Mean cross-entropy of the answer tokens (and eos) of one scene's questions; arguments as for `answer`."""
        asked = [self._encode(prompt) for prompt in prompts]
        said = [self._encode(answer, answer=True) for answer in answers]
        texts = [a + s for a, s in zip(asked, said, strict=True)]
        labels = [[-100] * len(a) + s for a, s in zip(asked, said, strict=True)]
        prefix = self.prefix(tokens)
        logits, _, _ = self._pack(prefix, self._owners(tokens, len(prefix)), texts, views)
        flat = torch.tensor([label for row in labels for label in row])
        # the token at position i is predicted from i - 1, which for packed questions is always inside the same question
        keep = flat[1:] != -100
        return nn.functional.cross_entropy(logits[len(prefix) : -1][keep].float(), flat[1:][keep])

    @torch.no_grad()
    def answer(
        self,
        tokens: Tensor | None,
        prompts: Sequence[str],
        max_new_tokens: int = 8,
        views: Sequence[int | None] | None = None,
    ) -> list[str]:
        """Greedy answers to all questions of one scene.

        Args:
            tokens: (T, C, gh, gw) float32 visual tokens, ignored by a blind reader.
            views: per prompt the only view (0..T-1) it may look at, or None for all; left out: every prompt sees all.
        """
        if not prompts:
            return []
        asked = [self._encode(prompt) for prompt in prompts]
        prefix = self.prefix(tokens)
        logits, cache, shown = self._pack(prefix, self._owners(tokens, len(prefix)), asked, views)
        ends = torch.tensor([len(a) for a in asked]).cumsum(0) + len(prefix) - 1
        chosen = logits[ends].argmax(-1)
        owner = torch.cat([torch.full((len(a),), index) for index, a in enumerate(asked)])
        lengths = torch.tensor([len(a) for a in asked])
        written = [chosen]
        rows = torch.arange(len(asked))
        for step in range(1, max_new_tokens):
            if all(self._ended(written)):
                break
            owner = torch.cat([owner, rows])
            mask = torch.cat([shown, rows[:, None] == owner[None]], dim=1)
            output = self.model(
                inputs_embeds=self.model.get_input_embeddings()(chosen)[None],
                attention_mask=mask[None, None],
                position_ids=(QUESTION_START + lengths + step - 1)[None],
                past_key_values=cache,
                use_cache=True,
            )
            chosen = output.logits[0].argmax(-1)
            written.append(chosen)
        return [self._decode([int(row[i]) for row in written]) for i in range(len(asked))]

    def _owners(self, tokens: Tensor | None, length: int) -> Tensor:
        """Which view each place of a prefix of `length` belongs to, int64 (length,); -1 for the bos token."""
        if tokens is None or length == 1:
            return torch.full((length,), -1)
        cells = torch.arange(len(tokens)).repeat_interleave((length - 1) // len(tokens))
        return torch.cat([torch.tensor([-1]), cells])

    def _pack(
        self, prefix: Tensor, owners: Tensor, texts: Sequence[Sequence[int]], views: Sequence[int | None] | None
    ) -> tuple[Tensor, DynamicCache, Tensor]:
        """One forward over prefix + all texts.

        Returns:
            logits (P + sum of lengths, V), the filled cache, and what each text sees of the prefix, bool (texts, P).
        """
        flat = torch.tensor([token for text in texts for token in text])
        owner = torch.cat([torch.full((len(text),), index) for index, text in enumerate(texts)])
        shown = _shown(owners, len(texts), views)
        start = len(prefix)
        # visual tokens share one position: their own embeddings say where they are, and a rotary phase that differs between
        # them only hides from a small model that a word and a patch mean the same
        place = torch.zeros(start, dtype=torch.long)
        positions = torch.cat([place, *(QUESTION_START + torch.arange(len(text)) for text in texts)])
        own_view = (owners[:, None] == owners[None]) | (owners[None] == -1)
        own_text = (owner[:, None] == owner[None]).tril()
        nothing = torch.zeros(start, len(flat), dtype=torch.bool)
        mask = torch.cat([torch.cat([own_view, nothing], dim=1), torch.cat([shown[owner], own_text], dim=1)])
        embeds = torch.cat([prefix, self.model.get_input_embeddings()(flat)])[None]
        cache = DynamicCache() if not self.training else None
        output = self.model(
            inputs_embeds=embeds,
            attention_mask=mask[None, None],
            position_ids=positions[None],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.logits[0], cache, shown

    def _encode(self, text: str, answer: bool = False) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids + [self.tokenizer.eos_token_id] if answer else ids

    def _ended(self, written: list[Tensor]) -> list[bool]:
        eos = self.tokenizer.eos_token_id
        return (torch.stack(written) == eos).any(0).tolist()

    def _decode(self, ids: list[int]) -> str:
        eos = self.tokenizer.eos_token_id
        kept = ids[: ids.index(eos)] if eos in ids else ids
        # the embedded tokenizer has one token per digit and decodes "3 . 4"
        return re.sub(r"(?<=[0-9.]) (?=[0-9.])", "", self.tokenizer.decode(kept)).strip()


def _shown(owners: Tensor, asked: int, views: Sequence[int | None] | None) -> Tensor:
    """What each question sees of a prefix: bool (asked, P); the bos token is seen by all."""
    if views is None:
        views = [None] * asked
    if len(views) != asked:
        raise ValueError(f"{len(views)} views given for {asked} questions")
    count = int(owners.max()) + 1
    for view in views:
        if count and view is not None and not 0 <= view < count:
            raise UserError(f"a question asks about view {view}; views 0..{count - 1} were given")
    wanted = torch.tensor([-1 if view is None else view for view in views])[:, None]
    return (wanted == -1) | (owners == -1) | (owners == wanted)
