"""Hugging Face readers by folder: what the model really sees, batches and single questions, greedy decoding, bad folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from teacher.language import LanguageReader, load_language
from tests.teacher.language_folders import HIDDEN, llava_video, qwen2, qwen25_vl, tokenizer
from vega_artifact import UserError

QUESTIONS = ["how many chair ?", "is there a red bed in the room ?", "is there a lamp in view ?", "how many table ?"]
MAKERS = {"qwen2": qwen2, "qwen25_vl": qwen25_vl, "llava_video": llava_video}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def reader(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LanguageReader:
    return load_language(folders[request.param])


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(3, HIDDEN, 2, 2, generator=torch.Generator().manual_seed(1))


def test_the_tokenizer_is_the_folders_own(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert load_language(folder)._encode("no the first") == tokenizer()("no the first").input_ids


def test_layouts(folders: dict[str, Path]) -> None:
    assert load_language(folders["qwen2"]).layout == load_language(folders["llava_video"]).layout == "rows"
    assert load_language(folders["qwen25_vl"]).layout == "images"
    stored = load_file(folders["llava_video"] / "model.safetensors")["model.image_newline"]
    assert torch.equal(load_language(folders["llava_video"]).image_newline, stored)


def test_batches_answer_as_single_questions_do(reader: LanguageReader, tokens: Tensor) -> None:
    views = [None, 0, None, 2]
    alone = [reader.answer(tokens, [q], 6, views=[v])[0] for q, v in zip(QUESTIONS, views)]
    assert reader.answer(tokens, QUESTIONS, 6, views=views) == alone
    reader.batch = 1
    assert reader.answer(tokens, QUESTIONS, 6, views=views) == alone
    assert len(set(alone)) > 1


@torch.no_grad()
def test_answers_are_the_greedy_ones_of_one_plain_forward(folders: dict[str, Path], tokens: Tensor) -> None:
    """Everything spelled out for a text model: template, tokens between its halves, argmax without any cache."""
    reader = load_language(folders["qwen2"])
    head = "<|im_start|> system You are a helpful assistant. <|im_end|> <|im_start|> user"
    tail = f"{QUESTIONS[1]} <|im_end|> <|im_start|> assistant"
    words, embed = tokenizer(), reader.model.get_input_embeddings()
    rows = [torch.cat([tokens[t, :, y].T, reader.image_newline[None]]) for t in range(3) for y in range(2)]
    start, written = torch.tensor(words(head).input_ids), list[int]()
    for _ in range(5):
        end = torch.tensor(words(tail).input_ids + written)
        logits = reader.model(inputs_embeds=torch.cat([embed(start), *rows, embed(end)])[None]).logits[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] == words.eos_token_id:
            break
    assert reader.answer(tokens, [QUESTIONS[1]], 5) == [words.decode(written, skip_special_tokens=True).strip()]


def test_visual_tokens_views_and_their_absence_matter(reader: LanguageReader, tokens: Tensor) -> None:
    losses = [
        reader.loss(seen, QUESTIONS[:1], ["two"], views=[view]).item()
        for seen, view in ((tokens, None), (tokens.flip(3), None), (tokens, 0), (tokens, 1), (None, None))
    ]
    assert len({round(loss, 4) for loss in losses}) == 5
    changed = tokens.clone()
    changed[1:] = 0
    assert reader.loss(changed, QUESTIONS[:1], ["two"], views=[0]).item() == pytest.approx(losses[2], rel=1e-5)


def test_loss_is_the_mean_over_answer_tokens_of_all_questions(reader: LanguageReader, tokens: Tensor) -> None:
    answers = ["two", "no the first"]
    together = reader.loss(tokens, QUESTIONS[:2], answers)
    alone = [reader.loss(tokens, [q], [a]) for q, a in zip(QUESTIONS, answers)]
    expected = (2 * alone[0] + 4 * alone[1]) / 6  # each answer's words and its end
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    gradient = torch.autograd.grad(reader.loss(tokens.requires_grad_(), QUESTIONS[:1], ["two"]), tokens)[0]
    assert (gradient.abs().sum((1, 2, 3)) > 0).all(), "every frame is read"


def test_a_tokenizer_without_template_or_end(folders: dict[str, Path], tokens: Tensor) -> None:
    model = load_language(folders["qwen2"]).model
    plain = LanguageReader(model, tokenizer(template=None))
    assert plain._texts("is there")[1] == tokenizer()("is there").input_ids
    assert len(plain.answer(tokens, QUESTIONS, 3)) == 4 and plain.answer(tokens, [], 3) == []
    endless = tokenizer()
    endless.eos_token = None
    with pytest.raises(UserError, match="no eos token, so no answer would end"):
        LanguageReader(model, endless)


def test_bad_input(folders: dict[str, Path], tokens: Tensor) -> None:
    reader = load_language(folders["qwen2"])
    with pytest.raises(UserError, match=r"visual tokens \(T, 16, gh, gw\) expected by this reader, found \(3, 8, 2, 2\)"):
        reader.answer(tokens[:, :8], QUESTIONS)
    with pytest.raises(UserError, match=r"asks about view 3; views 0\.\.2 were given"):
        reader.answer(tokens, QUESTIONS[:1], views=[3])
    with pytest.raises(ValueError, match="1 views given for 2 questions"):
        reader.loss(tokens, QUESTIONS[:2], ["no", "no"], views=[None])


def test_bad_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.json: no such file"):
        load_language(tmp_path)
    qwen2(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lacking = {name: value for name, value in state.items() if "layers.1.mlp.up_proj" not in name}
    save_file(lacking, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_language(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x01" * 64)
    with pytest.raises(UserError, match="no causal language model loads from here"):
        load_language(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    with pytest.raises(UserError, match="no causal language model loads from here"):
        load_language(tmp_path)
