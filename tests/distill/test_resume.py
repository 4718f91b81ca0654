"""Stopping and going on, starting from another run, and failures on the way that leave the last checkpoint safe."""

import dataclasses
import importlib
import json
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distill import train
from distill.engine import Engine
from distill.interrupt import Interrupt
from distill.log import read_log
from distill.observe import Findings
from distill.train import Trainer
from student import load_student
from vega_artifact import UserError, read_json, read_manifest, write_json


@pytest.fixture
def brief(quick):
    return dataclasses.replace(quick, steps=8, evaluate_every=3, optimizer="adamw", weights={"fused": 1.0})


def stop(number: int):
    """Probes that send this process a signal the first time they are asked."""

    def probes(student: nn.Module) -> Findings:
        if not sent:
            sent.append(number)
            signal.raise_signal(number)
        return Findings({})

    sent: list[int] = []
    return probes


def tensors(run):
    return load_file(run / "student.safetensors")


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_interrupted_and_resumed_equals_undisturbed_dropout_and_all(brief, cache_path, tmp_path, monkeypatch):
    create = Trainer._create_student

    def with_dropout(self, frames, grid):
        student = create(self, frames, grid)
        student.heads["fused"].append(nn.Dropout(0.3))
        return student

    monkeypatch.setattr(Trainer, "_create_student", with_dropout)
    config = dataclasses.replace(brief, ema=0.9, crop=0.7, accumulate=2)
    with pytest.raises(KeyboardInterrupt):
        train(cache_path, tmp_path / "run", config, probes=stop(signal.SIGTERM))
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["step-00000003"]
    assert not (tmp_path / "run" / "manifest.json").exists()
    torch.rand(17)  # the caller's own random numbers are nobody's business
    resumed = train(cache_path, tmp_path / "run", config)
    straight = train(cache_path, tmp_path / "straight", config)
    assert equal(tensors(resumed), tensors(straight))
    steps = [record["step"] for record in read_log(resumed / "log.jsonl") if "loss" in record]
    assert steps == [2, 4, 6, 8]


def test_the_first_signal_is_noted_and_the_second_acts():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may ignore it
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_warm_start_takes_backbone_and_fitting_heads_and_is_a_run_of_its_own(brief, cache_path, tmp_path):
    first = train(cache_path, tmp_path / "first", brief)
    config = dataclasses.replace(brief, weights={"fused": 1.0, "semantic": 1.0}, normalizer="none", steps=1, learning_rate=0.0)
    second = train(cache_path, tmp_path / "second", config, start_from=first)
    manifest = read_manifest(second, "run")
    assert manifest["parents"]["start_from"] == read_manifest(first, "run")["fingerprint"]
    assert manifest["resolved"]["new_heads"] == ["semantic"] and manifest["steps"] == 1
    old, new = load_student(first).state_dict(), load_student(second, undistilled=True).state_dict()
    for name in old:
        if name.startswith("denormalizers."):
            assert not torch.equal(old[name], new[name]), "they belong to the targets of each run"
        else:
            assert torch.equal(old[name], new[name])
    with pytest.raises(UserError, match="holds another run .*start_from"):
        train(cache_path, second, config)
    assert train(cache_path, second, config, start_from=first) == second


def test_a_warm_start_from_another_student_names_what_differs(brief, cache_path, tmp_path):
    first = train(cache_path, tmp_path / "first", dataclasses.replace(brief, steps=1))
    with pytest.raises(UserError, match=r"pos_embed \(1, \d+, 192\) expected, found .* same student and image size"):
        train(cache_path, tmp_path / "second", dataclasses.replace(brief, image_size=(64, 64)), start_from=first)
    with pytest.raises(UserError, match=r"manifest\.json: missing"):
        train(cache_path, tmp_path / "second", brief, start_from=tmp_path / "nothing")


def test_a_run_from_before_a_field_was_there_is_still_the_same_run(brief, cache_path, tmp_path):
    run = train(cache_path, tmp_path / "run", dataclasses.replace(brief, steps=1))
    text = (run / "manifest.json").read_text()
    assert '"crop": 0.0,' in text
    (run / "manifest.json").write_text(text.replace('"crop": 0.0,', ""))
    assert train(cache_path, run, dataclasses.replace(brief, steps=1)) == run
    with pytest.raises(UserError, match=r"another run \(config.crop: 0.0 -> 0.5\)"):
        train(cache_path, run, dataclasses.replace(brief, steps=1, crop=0.5))


def test_a_cache_that_disappears_costs_no_checkpoint(brief, cache_path, tmp_path):
    """Gone while a run is under way, it is not missed: frames and targets are in memory; gone at a resume, it is named."""
    cache = shutil.copytree(cache_path, tmp_path / "cache")

    def vanish(student: nn.Module) -> Findings:
        shutil.move(cache, tmp_path / "elsewhere")
        return stop(signal.SIGINT)(student)

    with pytest.raises(KeyboardInterrupt):
        train(cache, tmp_path / "run", brief, probes=vanish)
    with pytest.raises(UserError, match=r"cache/manifest\.json: missing"):
        train(cache, tmp_path / "run", brief)
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["step-00000003"]
    shutil.move(tmp_path / "elsewhere", cache)
    shards = sorted(cache.glob("*.safetensors"))
    shards[0].rename(tmp_path / "shard")
    with pytest.raises(UserError, match=f"{shards[0].name}: shard named in the manifest but missing"):
        train(cache, tmp_path / "run", brief)
    (tmp_path / "shard").rename(shards[0])
    resumed = train(cache, tmp_path / "run", brief)
    assert equal(tensors(resumed), tensors(train(cache_path, tmp_path / "straight", brief)))


def interrupted(cache_path, out, config):
    with pytest.raises(KeyboardInterrupt):
        train(cache_path, out, config, probes=stop(signal.SIGTERM))


def test_a_resumed_run_keeps_the_arithmetic_it_began_with(brief, cache_path, tmp_path, monkeypatch):
    trainer = importlib.import_module("distill.train")  # `distill.train` itself is the function
    config = dataclasses.replace(brief, precision="auto")
    monkeypatch.setattr(trainer, "resolve_precision", lambda precision, device: "bf16")
    interrupted(cache_path, tmp_path / "run", config)
    monkeypatch.setattr(trainer, "resolve_precision", lambda precision, device: "fp32")
    run = train(cache_path, tmp_path / "run", config)
    assert read_manifest(run, "run")["resolved"]["precision"] == "bf16"


def test_a_resumed_run_does_not_change_what_matches_its_views(brief, cache_path, tmp_path, monkeypatch):
    config = dataclasses.replace(brief, cross_view=0.5)
    interrupted(cache_path, tmp_path / "run", config)
    record = read_json(tmp_path / "run" / "config.json")
    assert record["resolved"]["matches"] == "tokens"
    write_json(tmp_path / "run" / "config.json", record | {"resolved": record["resolved"] | {"matches": "geometry"}})
    with pytest.raises(UserError, match="began with matches of views by geometry, now there are but those by tokens"):
        train(cache_path, tmp_path / "run", config)


def test_time_that_probes_took_before_an_interruption_still_counts(brief, cache_path, tmp_path):
    config = dataclasses.replace(brief, evaluate_every=2, probe_share=0.01)
    interrupted(cache_path, tmp_path / "run", config)
    log = tmp_path / "run" / "log.jsonl"
    slow = [record | {"seconds": 50.0} if "probes" in record else record for record in read_log(log)]
    log.write_text("".join(json.dumps(record) + "\n" for record in slow))
    asked = []
    train(cache_path, tmp_path / "run", config, probes=lambda student: asked.append(1) or Findings({}))
    assert len(asked) == 1, "at the end alone"


def test_weights_that_are_not_finite_are_neither_saved_nor_shipped(brief, cache_path, tmp_path, monkeypatch):
    apply = Engine.apply

    def ruined(self, step):
        apply(self, step)
        if step == 4:
            next(self.bare.student.parameters()).data[0] = float("nan")

    monkeypatch.setattr(Engine, "apply", ruined)
    monkeypatch.setattr(Engine, "finite", lambda self, scalars: True)
    config = dataclasses.replace(brief, evaluate_every=8, log_every=8, checkpoint_steps=1)
    with pytest.raises(UserError, match="step 5 left 1 weights that are not finite, .* the last checkpoint is intact"):
        train(cache_path, tmp_path / "run", config)
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["step-00000004"]
    with pytest.raises(UserError, match="step 5 left 1 weights .* no checkpoint had been written yet"):
        train(cache_path, tmp_path / "short", dataclasses.replace(config, steps=5, checkpoint_steps=0))
