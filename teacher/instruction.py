"""Instruction: what a question is about as one vector, by which `context_gated` fusion leans to one stream or the other.

Between the reader's words and `teacher.visual`. As VEGA-3D makes it (spec/vega3d.md 5.1): the embeddings of the question's last
96 tokens, without the chat template, averaged with double weight for words of spatial relation, and normalised. Where relation
words occur, those before the tail are kept too and every word counts once (H-EmbodVis/VEGA-3D@670d37f llava_arch.py). Which
words those are is our choice: that code takes their ids from the model's configuration, and has none where it names none.

    python -c "from teacher.tiny.bundle import load_tokenizer; from teacher.instruction import relation_ids; \
               print(len(relation_ids(load_tokenizer())))"
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

TAIL = 96  # tokens
BOOST = 2.0
RELATIONS = (
    "above behind below beneath beside between close closer closest far farther farthest front inside left near nearer nearest "
    "next on opposite outside over right top under"
).split()


def relation_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids of the words of spatial relation that are one token, at the start of a text or after a space."""
    found = set()
    for word in RELATIONS:
        for text in (word, f" {word}"):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
                found.add(int(ids[0]))
    return frozenset(found)


def instruction_context(ids: Sequence[int], table: nn.Embedding, relations: Collection[int]) -> Tensor:
    """One question as float32 (D,) of unit length.

    Args:
        ids: of the question's tokens, at least one, without a template. table: the reader's word embeddings, (V, D).
    """
    kept = list(ids[-TAIL:])
    if related := [number for number in ids if number in relations]:
        kept = list(dict.fromkeys([*kept, *related]))
    words = table(torch.tensor(kept, device=table.weight.device)).float()
    weights = torch.tensor([BOOST if number in relations else 1.0 for number in kept], device=words.device)
    return nn.functional.normalize((words * weights[:, None]).sum(0) / weights.sum(), dim=0)
