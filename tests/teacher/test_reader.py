"""The reader: packing the questions of a scene changes nothing, the cache changes nothing, and no question sees another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from teacher.reader import Reader
from teacher.tiny.bundle import GRID, WIDTH, load_reader, load_tokenizer, new_reader
from vega_artifact import UserError

FRAMES = 8
PROMPTS = [
    "How many chair(s) are in this room?",
    "In this view, which is nearer to the camera, the cabinet or the door? Answer the question simply.",
    "These are frames of a video.\nWhat is the size of this room (in square meters)?",
    "Is there a sofa?",
]
ANSWERS = ["3", "door", "14.2", "no"]


def tokens(seed: int = 0, frames: int = 3) -> Tensor:
    return torch.randn(frames, WIDTH, *GRID, generator=torch.Generator().manual_seed(seed))


def lively(condition: str) -> Reader:
    """A fresh reader with large weights: its answers hang on every token it may look at, trained or not.

    Queries and keys are large from the start; larger still, and attention would see one token only. Values that are taken
    along as they are would only repeat what was asked, so they are mixed.
    """
    reader = new_reader(load_tokenizer(), condition, seed=5)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for name, weight in reader.model.named_parameters():
            if name.endswith(("v_proj.weight", "o_proj.weight")):
                weight.normal_(std=0.16, generator=generator)
            elif "layers." in name and weight.ndim == 2 and not name.endswith(("q_proj.weight", "k_proj.weight")):
                weight.mul_(8)
    return reader.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["lively", "bundle"])
def reader(request: pytest.FixtureRequest) -> Reader:
    return lively("fused") if request.param == "lively" else load_reader("fused", 0)


def pack(reader: Reader, visual: Tensor | None, texts: list[list[int]]) -> tuple[int, Tensor]:
    prefix = reader.prefix(visual)
    return len(prefix), reader._pack(prefix, reader._owners(visual, len(prefix)), texts, None)[0]


@torch.no_grad()
def logits_alone(reader: Reader, visual: Tensor | None, ids: list[int]) -> Tensor:
    """One question without packing or cache: views see themselves and bos, text is causal. (len(ids), V)."""
    prefix = reader.prefix(visual)
    embeds = torch.cat([prefix, reader.model.get_input_embeddings()(torch.tensor(ids))])
    positions = torch.tensor([*[0] * len(prefix), *range(1, 1 + len(ids))])
    mask = torch.ones(len(embeds), len(embeds), dtype=torch.bool).tril()
    if visual is not None and reader.connector is not None:
        cells = (len(prefix) - 1) // len(visual)
        mask[1 : len(prefix), 1 : len(prefix)] = torch.block_diag(*[torch.ones(cells, cells)] * len(visual)).bool()
    output = reader.model(
        inputs_embeds=embeds[None], attention_mask=mask[None, None], position_ids=positions[None], use_cache=False
    )
    return output.logits[0, -len(ids) :]


def decode_naively(reader: Reader, visual: Tensor | None, prompt: str, count: int = 8) -> list[int]:
    """Greedy decoding that runs everything again for each token."""
    ids, said = reader._encode(prompt), []
    while len(said) < count:
        said.append(int(logits_alone(reader, visual, ids + said)[-1].argmax()))
        if said[-1] == reader.tokenizer.eos_token_id:
            break
    return said


def test_packed_logits_are_those_of_each_question_alone(reader: Reader) -> None:
    visual = tokens()
    texts = [reader._encode(prompt) for prompt in PROMPTS]
    start, logits = pack(reader, visual, texts)
    packed = logits[start:].split([len(text) for text in texts])
    for text, found in zip(texts, packed, strict=True):
        torch.testing.assert_close(found, logits_alone(reader, visual, text), rtol=1e-3, atol=1e-3)


def test_cached_decoding_equals_naive_decoding(reader: Reader) -> None:
    visual = tokens()
    naive = [reader._decode(decode_naively(reader, visual, prompt)) for prompt in PROMPTS]
    assert reader.answer(visual, PROMPTS) == naive
    assert [reader.answer(visual, [prompt])[0] for prompt in PROMPTS] == naive
    assert reader.answer(visual, PROMPTS[::-1]) == naive[::-1]


def test_a_question_about_one_view_is_answered_from_that_view_alone(reader: Reader) -> None:
    visual, views = tokens(), [None, 2, 0, 1]
    alone = [reader.answer(visual, [prompt], views=[view])[0] for prompt, view in zip(PROMPTS, views, strict=True)]
    assert reader.answer(visual, PROMPTS, views=views) == alone
    changed = visual.clone()
    changed[1] += 1
    again = reader.answer(changed, PROMPTS, views=views)
    assert again[1:3] == alone[1:3]
    with torch.no_grad():
        losses = [reader.loss(maps, PROMPTS[1:2], ANSWERS[1:2], views=[2]) for maps in (visual, changed, visual.flip(0))]
    assert losses[0] == losses[1] != losses[2]


def test_a_view_that_was_not_given_is_refused() -> None:
    with pytest.raises(UserError, match="view 3; views 0..2 were given"):
        lively("fused").answer(tokens(), PROMPTS[:1], views=[3])
    with pytest.raises(ValueError, match="1 views given for 4 questions"):
        lively("fused").answer(tokens(), PROMPTS, views=[0])


def test_lively_answers_differ_so_that_the_comparison_means_something() -> None:
    reader = lively("fused")
    by_scene = [reader.answer(tokens(seed), PROMPTS) for seed in range(2)]
    assert len(set(by_scene[0])) == len(PROMPTS) and by_scene[0] != by_scene[1]


def test_packed_loss_is_the_mean_over_all_answer_tokens(reader: Reader) -> None:
    visual, losses = tokens(), []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        asked, said = reader._encode(prompt), reader._encode(answer, answer=True)
        assert said[-1] == reader.tokenizer.eos_token_id and len(said) > 1
        logits = logits_alone(reader, visual, asked + said)[len(asked) - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(said), reduction="none"))
    with torch.no_grad():
        torch.testing.assert_close(reader.loss(visual, PROMPTS, ANSWERS), torch.cat(losses).mean(), rtol=1e-4, atol=1e-4)
        for index, expected in enumerate(losses):
            alone = reader.loss(visual, PROMPTS[index : index + 1], ANSWERS[index : index + 1])
            torch.testing.assert_close(alone, expected.mean(), rtol=1e-4, atol=1e-4)


def test_training_mode_gives_the_same_loss() -> None:
    reader = lively("fused")
    before = reader.loss(tokens(), PROMPTS, ANSWERS)
    torch.testing.assert_close(reader.train().loss(tokens(), PROMPTS, ANSWERS), before, rtol=1e-5, atol=1e-5)


def test_no_question_sees_another() -> None:
    """Exactly zero gradient from one question's logits to all others, and none but zero to its own and the prefix."""
    reader = lively("fused")
    texts = [reader._encode(prompt) for prompt in PROMPTS[:3]]
    embeds: list[Tensor] = []
    hook = reader.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: embeds.append(kwargs["inputs_embeds"].requires_grad_()), with_kwargs=True
    )
    start, logits = pack(reader, tokens(), texts)
    hook.remove()
    bounds = [start, *(start + sum(len(t) for t in texts[: k + 1]) for k in range(3))]
    logits[bounds[1] : bounds[2]].square().sum().backward()
    assert embeds[0].grad is not None
    moved = embeds[0].grad[0].abs().sum(1)
    assert (moved[: bounds[0]] > 0).all() and (moved[bounds[1] : bounds[2]] > 0).all()
    assert (moved[bounds[0] : bounds[1]] == 0).all() and (moved[bounds[2] :] == 0).all()


def test_one_question_ends_while_others_go_on() -> None:
    reader, visual = lively("fused"), tokens()
    free = [decode_naively(reader, visual, prompt) for prompt in PROMPTS]
    first, stop = next((ids, t) for ids in free for t in ids[1:] if t != ids[0] and any(t not in other for other in free))
    reader.tokenizer.eos_token = reader.tokenizer.convert_ids_to_tokens(stop)
    assert reader.tokenizer.eos_token_id == stop
    again = [decode_naively(reader, visual, prompt) for prompt in PROMPTS]
    ended = [ids[: ids.index(stop)] if stop in ids else ids for ids in again]
    assert stop in first and len({len(ids) for ids in ended}) > 1
    assert reader.answer(visual, PROMPTS) == [reader._decode(ids) for ids in ended]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_answers_are_no_longer_than_asked(count: int) -> None:
    reader, visual = lively("fused"), tokens()
    expected = [reader._decode(decode_naively(reader, visual, prompt, count)) for prompt in PROMPTS]
    assert reader.answer(visual, PROMPTS, max_new_tokens=count) == expected


def test_blind_reader_ignores_tokens() -> None:
    reader = lively("blind")
    assert reader.answer(tokens(), PROMPTS) == reader.answer(tokens(9), PROMPTS) == reader.answer(None, PROMPTS)
    assert torch.equal(reader.loss(tokens(), PROMPTS, ANSWERS), reader.loss(None, PROMPTS, ANSWERS))
    assert len(reader.prefix(tokens())) == 1, "the start token alone"


def test_prefix_holds_a_quarter_of_the_cells_of_every_frame() -> None:
    reader = lively("fused")
    full = reader.prefix(tokens(frames=FRAMES))
    assert full.shape == (1 + FRAMES * GRID[0] * GRID[1] // 4, WIDTH)
    torch.testing.assert_close(reader.prefix(tokens(frames=FRAMES)[:2]), full[: 1 + 2 * GRID[0] * GRID[1] // 4])


def test_same_seed_same_reader_and_global_randomness_untouched() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    readers = [new_reader(load_tokenizer(), "semantic", seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    weights = [reader.model.model.layers[0].self_attn.q_proj.weight for reader in readers]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_nothing_asked_nothing_said() -> None:
    assert lively("blind").answer(None, []) == []


@pytest.mark.parametrize("shape", [(3, WIDTH, 4, 4), (3, WIDTH // 2, *GRID), (WIDTH, *GRID)], ids=str)
def test_tokens_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"visual tokens: \(T, 128, 8, 8\) expected, found \("):
        lively("fused").answer(torch.zeros(shape), PROMPTS)


def test_every_question_needs_its_answer() -> None:
    with pytest.raises(ValueError, match="shorter"):
        lively("blind").loss(None, PROMPTS, ANSWERS[:2])
