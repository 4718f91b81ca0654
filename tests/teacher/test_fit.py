"""How the embedded fusion and readers learn: tokens that give their streams back, questions per step, what is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from teacher.scenes import open_scenes
from teacher.scenes.questions import procedural_questions
from teacher.tiny import bundle, fit, rooms, school

CONFIG = fit.FitConfig(recover_steps=40, rooms=1, ladder_questions=3, vsi_questions=2)


@pytest.fixture(scope="module")
def streams() -> fit.Streams:
    """Four invented rooms of two views whose streams have a few dimensions, as real ones do."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(2, 6, 128))
    semantic, generative = (np.moveaxis(rng.normal(size=(4, 2, 8, 8, 6)) @ part, -1, 2).astype(np.float16) for part in basis)
    visible = rng.random((4, 2, 1, 1, len(rooms.class_names()))) < 0.35
    coverage = np.broadcast_to(visible, (4, 2, 8, 8, visible.shape[-1])).astype(np.uint8) * 255
    return fit.Streams(semantic, generative, coverage)


@pytest.fixture(scope="module")
def questions() -> list[dict]:
    source = open_scenes("procedural:train?count=4&frames=2&size=64&seed=3")
    return [{task: procedural_questions(source[i], task) for task in ("scanqa", "vsibench")} for i in range(4)]


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def same(before: list[torch.Tensor], module: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))


class TestRecover:
    def test_is_one_for_tokens_that_know_nothing_and_falls_when_they_are_trained(self, streams, tmp_path: Path) -> None:
        tokens, recover = fit.new_tokens(streams, CONFIG), fit.Recover(streams)
        raw = streams.rows(0)
        with torch.no_grad():
            for back in recover.back:
                back.weight.zero_(), back.bias.zero_()
            assert float(recover(tokens(*raw), raw)) == pytest.approx(1.0, abs=0.2)
        fit.train_recover(tokens, recover, streams, tmp_path, "toy", CONFIG)
        with torch.no_grad():
            assert float(recover(tokens(*raw), raw)) < 0.8

    def test_asks_for_both_streams_of_fused_tokens(self, streams) -> None:
        assert len(fit.Recover(streams).back) == 2
        assert len(fit.Recover(replace(streams, generative=None)).back) == 1


class TestTokens:
    def test_are_the_same_for_the_same_seed_whatever_was_drawn_before(self, streams) -> None:
        first = weights(fit.new_tokens(streams, CONFIG))
        torch.rand(3)
        assert same(first, fit.new_tokens(streams, CONFIG))
        assert not same(first, fit.new_tokens(streams, replace(CONFIG, seed=1)))


class TestQuestions:
    def test_lessons_are_balanced_and_speak_of_what_is_there(self, streams) -> None:
        names = rooms.class_names()
        seen = streams.seen(0)
        items = fit.alignment_questions(np.random.default_rng(0), seen, names)
        answers = [item.answer for item in items]
        assert answers.count("yes") == answers.count("no") == 12
        for prompt, answer, view in items:
            name = next(n for n in sorted(names, key=len, reverse=True) if f"a {n} " in prompt or f"a {n}?" in prompt)
            assert (view is not None) == prompt.startswith("In this view, ")
            there = seen[:, names.index(name)].any() if view is None else seen[view, names.index(name)]
            assert (answer == "yes") == there

    def test_a_step_has_the_asked_for_number_of_each_task(self, questions) -> None:
        items = fit.pick(np.random.default_rng(0), questions[0], CONFIG)
        assert len(items) == 5
        assert sum("These are frames of a video" in item.prompt for item in items) == 2

    def test_types_take_turns(self, questions) -> None:
        kinds = {record["question_type"] for record in questions[0]["vsibench"]}
        of = {fit.item(record, "vsibench"): record["question_type"] for record in questions[0]["vsibench"]}
        config = replace(CONFIG, ladder_questions=0, vsi_questions=len(kinds))
        for seed in range(3):
            assert {of[item] for item in fit.pick(np.random.default_rng(seed), questions[0], config)} == kinds

    def test_blind_readers_meet_as_many_questions_as_seeing_ones(self) -> None:
        assert fit.FitConfig(base_steps=100, alignment=0.2).blind_base_steps == 80


class TestReader:
    def test_a_step_changes_the_reader_and_leaves_frozen_tokens_alone(self, streams, questions, tmp_path: Path) -> None:
        reader = bundle.new_reader(bundle.load_tokenizer(), "fused", 0)
        tokens = fit.new_tokens(streams, CONFIG).requires_grad_(False)
        before, held = weights(reader), weights(tokens)
        fit.train_reader(fit.Lesson("toy", 2, 0, True), reader, tokens, streams, questions, tmp_path, CONFIG)
        assert not same(before, reader)
        assert same(held, tokens)

    def test_like_attends_to_like_and_takes_along_what_it_finds(self) -> None:
        for layer in bundle.new_reader(bundle.load_tokenizer(), "blind", 0).model.model.layers:
            query = layer.self_attn.q_proj.weight
            assert torch.equal(query, layer.self_attn.k_proj.weight)
            assert torch.allclose(query @ query.T, torch.eye(len(query)), atol=1e-5)
            copied = layer.self_attn.o_proj.weight @ layer.self_attn.v_proj.weight
            assert torch.allclose(copied, 0.5 * torch.eye(len(copied)), atol=1e-5)


class TestSchool:
    @pytest.fixture
    def work(self, streams, questions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        def streams_of(work: Path, condition: str, split: str, teacher: str) -> fit.Streams | None:
            seen = streams if condition == "fused" else replace(streams, generative=None)
            return None if condition == "blind" else seen

        monkeypatch.setattr(school, "streams_of", streams_of)
        monkeypatch.setattr(school, "READER_SEEDS", (0, 1))
        monkeypatch.setattr(rooms, "load_questions", lambda work, split: questions)
        config = replace(CONFIG, recover_steps=2, base_steps=2, reader_steps=2)
        for part in school.PARTS.values():
            part(tmp_path, config)
        return tmp_path

    def test_every_condition_gets_tokens_a_base_and_readers_that_differ(self, work: Path) -> None:
        assert {path.stem for path in (work / "fusion").iterdir()} == {"semantic", "tiny", "tiny-geometry"}
        read = {path.stem: load_file(path) for path in (work / "readers").iterdir()}
        assert set(read) == {f"{condition}-{seed}" for condition in bundle.CONDITIONS for seed in (0, 1)}
        for condition in bundle.CONDITIONS:
            base = load_file(work / f"base_{condition}.safetensors")
            name = "model.model.layers.0.mlp.up_proj.weight"
            found = [base[name], read[f"{condition}-0"][name], read[f"{condition}-1"][name]]
            assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))

    def test_asks_about_the_first_rooms_only(self, work: Path, questions) -> None:
        for count in (1, 3):
            asked = school.School(work, replace(CONFIG, lessons=count), "blind").questions
            assert asked == questions[:count]

    def test_a_second_call_changes_nothing(self, work: Path) -> None:
        paths = [*(work / "fusion").iterdir(), *(work / "readers").iterdir()]
        before = [path.read_bytes() for path in paths]
        for part in school.PARTS.values():
            part(work, replace(CONFIG, recover_steps=2, base_steps=2, reader_steps=2))
        assert [path.read_bytes() for path in paths] == before
