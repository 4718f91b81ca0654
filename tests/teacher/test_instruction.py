"""What a question is about, and a gate that hears it: the vector by hand, and a fit with `context_gated` fusion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from teacher.cache import FeatureCache
from teacher.fit_folder import load_fit
from teacher.fit_streams import SceneStreams
from teacher.instruction import TAIL, instruction_context, relation_ids
from teacher.tiny.bundle import load_tokenizer
from teacher.tutor import Parts, build
from tests.teacher.fit_rooms import make_rooms, run
from tests.teacher.language_folders import qwen2, tokenizer

PROMPTS = ["is there a red chair ?", "is the lamp in view ?"]


@pytest.fixture(scope="module")
def table() -> nn.Embedding:
    return nn.Embedding(300, 4).requires_grad_(False)


def test_words_of_relation_count_double_and_the_length_is_one(table: nn.Embedding) -> None:
    words = table.weight
    expected = nn.functional.normalize((words[5] + 2 * words[9] + words[5]) / 4, dim=0)
    plain = nn.functional.normalize((words[5] + words[5] + words[7]) / 3, dim=0)
    torch.testing.assert_close(instruction_context([5, 5, 7], table, {9}), plain)
    once = nn.functional.normalize((words[5] + 2 * words[9]) / 3, dim=0)
    torch.testing.assert_close(instruction_context([5, 9, 5], table, {9}), once)
    assert not torch.allclose(expected, once), "where a relation word occurs, every word counts once"
    assert float(instruction_context([5, 9], table, {9}).norm()) == pytest.approx(1.0)


def test_only_the_tail_counts_and_what_it_relates(table: nn.Embedding) -> None:
    tail = list(range(100, 100 + TAIL))
    torch.testing.assert_close(instruction_context([1, 2, *tail], table, ()), instruction_context(tail, table, ()))
    mean = (table.weight[tail].sum(0) + 2 * table.weight[2]) / (TAIL + 2)
    torch.testing.assert_close(instruction_context([1, 2, *tail], table, {2}), nn.functional.normalize(mean, dim=0))


def test_relation_words_are_known_ones() -> None:
    assert relation_ids(tokenizer()) == frozenset(), "this vocabulary has none; its <unk> is no word of relation"
    known = load_tokenizer()
    assert known("left", add_special_tokens=False).input_ids[0] in relation_ids(known)
    assert known("chair", add_special_tokens=False).input_ids[0] not in relation_ids(known)


def test_every_question_has_tokens_of_its_own(tmp_path: Path) -> None:
    """And loss and answers are those of the questions one by one."""
    tutor = build(Parts(reader=str(qwen2(tmp_path)), fusion="context_gated", language="full"), (6, 4, 4), (8, 2, 2)).eval()
    assert tutor.visual is not None
    with torch.no_grad():
        tutor.visual.fusion.context_scale.fill_(200.0)
    generator = torch.Generator().manual_seed(0)
    shapes = {"semantic": (2, 6, 4, 4), "generative": (2, 8, 2, 2)}
    streams = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    first, second = (tutor.tokens(streams, prompt) for prompt in PROMPTS)
    assert not torch.allclose(first, second)
    lone = [tutor(streams, [prompt], ["red"], [None]) for prompt in PROMPTS]
    both = tutor(streams, PROMPTS, ["red", "red"], [None, None])
    torch.testing.assert_close(both, torch.stack(lone).mean())
    asked = [tutor.answer(streams, [prompt], [view], 3)[0] for prompt, view in zip(PROMPTS, (None, 1))]
    assert tutor.answer(streams, PROMPTS, [None, 1], 3) == asked
    both.backward()
    assert float(tutor.visual.fusion.ctx_projection[0].weight.grad.abs().sum()) > 0


def test_a_fit_learns_it_and_answers_from_its_folder(tmp_path: Path) -> None:
    work = make_rooms(tmp_path)
    tutor = load_fit(run(work, tmp_path / "fit", fusion="context_gated"))
    start = build(Parts(reader=str(work / "qwen2"), fusion="context_gated"), (6, 4, 4), (8, 2, 2))
    name = "visual.fusion.ctx_projection.2.weight"
    assert not torch.equal(tutor.state_dict()[name], start.state_dict()[name])
    cache = FeatureCache(work / "cache")
    streams = SceneStreams(cache, Parts(fusion="context_gated")).read(cache.scene_ids[0])
    assert len(tutor.answer(streams, PROMPTS, [None, None], 2)) == 2
