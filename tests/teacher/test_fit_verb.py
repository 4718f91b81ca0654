"""`vega-edge fit` on a small cache of made-up streams: what it learns, resumes, refuses, and what comes out of its folder."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import teacher.fit as fit_module
from teacher.cache import FeatureCache
from teacher.fit import rate_factor
from teacher.fit_folder import CHECKPOINT, WEIGHTS, load_fit
from teacher.fit_streams import SceneStreams
from teacher.lessons import read_lessons
from teacher.scenes.questions import write_questions
from teacher.tutor import Parts, build
from teacher.visual import VisualTokens
from tests.teacher.fit_rooms import SHORT, make_rooms, run
from tests.teacher.language_folders import llava_video
from vega_artifact import UserError, read_json, read_manifest
from vega_edge import main


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rooms(tmp_path_factory.mktemp("fit"))


def stored(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / WEIGHTS)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


def test_learns_what_only_the_tokens_say_and_answers_from_its_folder(work: Path, tmp_path: Path) -> None:
    long = replace(SHORT, steps=60, accumulate=4, rate=3e-3, language_rate=3e-3)
    out = run(work, tmp_path / "fit", long, language="full")
    assert np.mean(losses(out)[-5:]) < 0.3 < losses(out)[0]
    tutor, cache = load_fit(out), FeatureCache(work / "cache")
    streams = SceneStreams(cache, Parts())
    for number, scene in enumerate(cache.scene_ids):
        found = tutor.answer(streams.read(scene), ["is there a red chair ? Answer the question simply."], [None], 2)
        assert found == [["red", "blue"][number % 2]]
    manifest = read_manifest(out, "fit")
    assert manifest["parents"] == {"cache": cache.fingerprint} and manifest["lessons"] == "12 lessons about 4 scenes"


def test_a_killed_fit_resumes_to_the_same_weights(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(work, tmp_path / "whole", language="full")
    update, count = fit_module.Fitting._update, iter(range(99))

    def killed(self: fit_module.Fitting) -> float:
        if next(count) == 3:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(fit_module.Fitting, "_update", killed)
    with pytest.raises(KeyboardInterrupt):
        run(work, tmp_path / "part", language="full")
    assert (tmp_path / "part" / CHECKPOINT).exists() and len(losses(tmp_path / "part")) == 3
    monkeypatch.setattr(fit_module.Fitting, "_update", update)
    part = run(work, tmp_path / "part", language="full")
    assert (part / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes() and losses(part) == losses(whole)
    assert not (part / CHECKPOINT).exists()
    monkeypatch.setattr(fit_module.Fitting, "run", lambda self: pytest.fail("a finished fit is not run again"))
    assert run(work, part, language="full") == part
    with pytest.raises(UserError, match=r"holds another fit \(.*language"):
        run(work, part)


def test_the_command(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """3D positions, bf16, gradient checkpointing and the sequence variant in one run."""
    command = ["fit", "--cache", work / "cache", "--questions", work / "questions.json", "--reader", work / "qwen2"]
    options = "--fusion sequence --positions masked --precision bf16 --checkpointing --steps 2 --accumulate 1 --per-scene 2"
    assert main([*map(str, command), "--out", str(tmp_path / "fit"), *options.split()]) == 0
    assert "12 lessons about 4 scenes" in capsys.readouterr().out
    assert read_manifest(tmp_path / "fit", "fit")["precision"] == "bf16" and len(losses(tmp_path / "fit")) == 2
    assert main([*map(str, command), "--out", str(tmp_path / "other"), "--fusion", "token_gate"]) == 2
    assert "unknown fusion 'token_gate'. Did you mean 'token_gated'" in capsys.readouterr().err


def test_positions_reach_the_tokens(work: Path) -> None:
    streams = SceneStreams(FeatureCache(work / "cache"), Parts(positions="masked"))
    read = streams.read(streams.cache.scene_ids[0])
    assert read["cells"].shape == (2, 4, 3) and read["cells"].isfinite().any()
    visual = VisualTokens(6, 8, 12, "add")
    plain, placed = visual(read["semantic"], read["generative"]), visual(**read)
    assert plain.shape == placed.shape == (2, 12, 2, 2) and not torch.equal(plain, placed)


def test_weights_of_a_fused_bundle_have_the_same_names() -> None:
    from teacher.streams import FusedTokens

    ours, theirs = VisualTokens(8, 8, 16), FusedTokens(8, 8, 16, scale=3.0)
    ours.load_state_dict(theirs.state_dict())
    maps = torch.randn(2, 2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(*maps), theirs(*maps))


def test_semantic_and_blind_conditions(work: Path, tmp_path: Path) -> None:
    names = stored(run(work, tmp_path / "semantic", fusion="semantic"))
    assert "visual.semantic_projector.0.weight" in names
    assert not any("generative" in name or "fusion" in name for name in names)
    assert not any(name.startswith("reader.model") for name in names), "the language model was frozen"
    blind = load_fit(run(work, tmp_path / "blind", fusion="blind", language="full"))
    assert blind.answer({}, ["is there a chair ?"], [1], 2) == blind.answer({}, ["is there a chair ?"], [None], 2)
    with pytest.raises(UserError, match="would train nothing"):
        run(work, tmp_path / "nothing", fusion="blind", language="frozen", reader="embedded")


def test_a_llava_checkpoint_brings_its_projector(tmp_path: Path) -> None:
    llava_video(tmp_path)
    tutor = build(Parts(reader=str(tmp_path)), (6, 4, 4), (8, 2, 2))
    assert tutor.visual is not None and float(tutor.visual.semantic_projector[0].bias.abs().sum()) > 0
    other = build(Parts(reader=str(tmp_path)), (7, 4, 4), (8, 2, 2))
    assert other.visual is not None and float(other.visual.semantic_projector[0].bias.abs().sum()) == 0


def test_lora(work: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("peft") is None:
        with pytest.raises(UserError, match=r"--language lora needs the package peft \(pip install peft\)"):
            run(work, tmp_path / "fit", language="lora")
        return
    out = run(work, tmp_path / "fit", language="lora", lora_rank=2)
    matrices = {name: value for name, value in stored(out).items() if name.startswith("reader.model.")}
    assert matrices and all("lora_" in name for name in matrices)
    assert any("lora_B" in name and value.abs().sum().item() > 0 for name, value in matrices.items())
    loaded = dict(load_fit(out).named_parameters())
    assert all(torch.equal(loaded[name], value) for name, value in matrices.items())


def test_what_is_left_out_is_told(work: Path, tmp_path: Path) -> None:
    records = read_json(work / "questions.json")
    strays = [
        {**records[0], "scene_id": "elsewhere", "question_id": "x"},
        {**records[0], "answers": ["", "no\nno"], "question_id": "y"},
    ]
    write_questions(tmp_path / "more.json", [*records, *strays])
    found = read_lessons([tmp_path / "more.json"], FeatureCache(work / "cache"))
    assert found.told() == (
        "13 lessons about 4 scenes; left out: 1 questions about 1 scenes that are not in the cache; "
        "left out: 1 answers that are empty or absent"
    )
    assert found.scenes[records[0]["scene_id"]][-1].answer == "no no"
    write_questions(tmp_path / "none.json", strays[:1])
    with pytest.raises(UserError, match="nothing to learn from, 0 lessons about 0 scenes; left out: 1 questions"):
        read_lessons([tmp_path / "none.json"], FeatureCache(work / "cache"))


def test_a_loss_that_is_not_finite_names_its_step(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module.Fitting, "_update", lambda self: float("nan") if self.step else 1.0)
    with pytest.raises(UserError, match="the loss is not finite at step 2; lower --rate"):
        run(work, tmp_path / "fit")


def test_bad_input(work: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is no fit"):
        run(work, tmp_path / "full")
    with pytest.raises(UserError, match="no stream 'rgb' in it; extract it again with that stream"):
        SceneStreams(FeatureCache(work / "cache"), Parts(), tower="teacher/bundle/semantic")
    assert rate_factor(0, 100, 0.03) == pytest.approx(1 / 3) and rate_factor(3, 100, 0.03) == 1 > rate_factor(99, 100, 0.03) > 0
    broken = run(work, tmp_path / "cut")
    content = (broken / WEIGHTS).read_bytes()
    (broken / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="content differs from the manifest"):
        load_fit(broken)
