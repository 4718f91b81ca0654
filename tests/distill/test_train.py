"""The trainer from cache to run: it learns, resumes exactly, reuses, refuses, and notices NaN."""

import dataclasses
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill import RunConfig, recipes, train
from distill.log import read_log
from distill.state import RunFolder
from student import load_student
from teacher.cache import FeatureCache
from vega_artifact import UserError, read_manifest, verify_files

ROOT = Path(__file__).resolve().parents[2]
TRAINER = importlib.import_module("distill.train")  # `distill.train` itself is the function
BATCHES = importlib.import_module("distill.batches")


def weights(run: Path, name: str = "student.safetensors") -> dict[str, torch.Tensor]:
    return load_file(run / name)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def training_code(cache: Path, out: Path, config: RunConfig) -> list[str]:
    """A command that runs `train` in a fresh interpreter."""
    changes = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    code = f"from distill import RunConfig, train; train({str(cache)!r}, {str(out)!r}, RunConfig(**{changes!r}))"
    return [sys.executable, "-c", code]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


@pytest.fixture(scope="module")
def smoke_run(cache_path, tmp_path_factory):
    config = dataclasses.replace(recipes.smoke(), steps=60, batch=16, threads=1)
    return train(cache_path, tmp_path_factory.mktemp("run") / "run", config), config


def test_a_run_has_everything_the_next_stage_needs(smoke_run, cache):
    run, config = smoke_run
    manifest = read_manifest(run, "run")
    verify_files(run, manifest)
    assert manifest["parents"] == {"cache": cache.fingerprint} and manifest["teacher"] == "tttt"
    assert manifest["steps"] == 60 and manifest["minutes"] > 0 and manifest["config"]["seed"] == config.seed
    assert manifest["preprocess"] == {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [32, 32]}
    assert manifest["student"]["heads"] == {"fused": 12, "generative": 8, "semantic": 4} and manifest["student"]["grid"] == [
        2,
        2,
    ]
    assert manifest["scenes"]["validation"] == ["scene-009"] and len(manifest["scenes"]["train"]) == 9
    assert manifest["parameters"] == sum(p.numel() for p in load_student(run).parameters())
    assert manifest["resolved"]["precision"] in ("fp32", "bf16") and manifest["resolved"]["threads"] == 1
    assert {path.name for path in run.iterdir()} == {
        "manifest.json",
        "config.json",
        "log.jsonl",
        "student.safetensors",
        "student_init.safetensors",
    }


def test_it_learns_and_answers_in_the_teachers_units(smoke_run, cache):
    run, _ = smoke_run
    clip = cache["scene-009"]
    target = torch.from_numpy(clip["fused"]).float().flatten(2).transpose(1, 2)
    errors = {}
    for undistilled in (False, True):
        student = load_student(run, undistilled=undistilled)
        with torch.no_grad():
            errors[undistilled] = (student(student.preprocess(clip["rgb"]))["fused"] - target).square().mean().item()
    spread = (target - target.mean((0, 1))).square().mean().item()
    assert errors[False] < 0.5 * spread < errors[True]


def test_the_log_tells_the_story(smoke_run):
    run, _ = smoke_run
    records = read_log(run / "log.jsonl")
    training = [record for record in records if "loss" in record]
    assert [record["step"] for record in training] == list(range(5, 61, 5))
    assert set(training[0]["cosine"]) == set(training[0]["losses"]) == {"fused", "generative", "semantic"}
    assert training[-1]["loss"] < 0.7 * training[0]["loss"]
    assert all(record["images_per_s"] > 0 and record["gradient"] > 0 for record in training)
    weights_ = recipes.smoke().weights
    total = sum(weights_[name] * value for name, value in training[-1]["losses"].items())
    assert training[-1]["loss"] == pytest.approx(total, rel=1e-4)
    validations = [record for record in records if "validation" in record]
    assert [record["step"] for record in validations] == [10, 20, 30, 40, 50, 60]
    assert validations[-1]["validation"] == read_manifest(run, "run")["validation"]
    assert validations[-1]["validation"]["fused"]["centred"] > validations[0]["validation"]["fused"]["centred"]


def test_a_finished_run_is_reused_at_once(smoke_run, cache_path, monkeypatch):
    run, config = smoke_run
    monkeypatch.setattr(TRAINER, "Trainer", None)  # must not even be looked at
    before = (run / "manifest.json").stat().st_mtime_ns
    assert train(cache_path, run, dataclasses.replace(config, log_every=7)) == run
    assert (run / "manifest.json").stat().st_mtime_ns == before


def test_folders_of_other_runs_are_refused_and_left_alone(smoke_run, cache_path, another_cache_path):
    run, config = smoke_run
    content = (run / "student.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"another run \(config\.steps: 60 -> 61\)"):
        train(cache_path, run, dataclasses.replace(config, steps=61))
    other = FeatureCache(another_cache_path).fingerprint
    with pytest.raises(UserError, match=f"another run .*cache: .* -> '{other}'"):
        train(another_cache_path, run, config)
    assert (run / "student.safetensors").read_bytes() == content


def test_an_altered_result_is_not_reused(quick, cache_path, tmp_path):
    run = train(cache_path, tmp_path / "run", dataclasses.replace(quick, steps=2))
    content = bytearray((run / "student.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "student.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"student\.safetensors: content differs"):
        train(cache_path, run, dataclasses.replace(quick, steps=2))


@pytest.mark.parametrize("normalizer", ["phi_s", "layernorm", "none"])
def test_every_normalizer_trains_and_loads(normalizer, quick, cache_path, tmp_path):
    config = dataclasses.replace(quick, normalizer=normalizer, steps=4, gram=0.5, head="linear", image_size=(64, 64))
    student = load_student(train(cache_path, tmp_path / "run", config))
    kind = "full" if normalizer == "phi_s" else "diagonal"
    assert student.config.denormalize == kind and student.config.head == "linear" and student.preprocess.size == (64, 64)
    outputs = student(torch.zeros(1, 3, 64, 64))
    assert outputs["semantic"].shape == (1, 4, 4) and all(torch.isfinite(value).all() for value in outputs.values())


def test_how_often_it_looks_and_saves_does_not_change_the_result(quick, cache_path, tmp_path):
    plain = train(cache_path, tmp_path / "plain", quick)
    often = dataclasses.replace(quick, evaluate_every=2, log_every=1, checkpoint_steps=3)
    busy = train(cache_path, tmp_path / "busy", often)
    assert equal(weights(plain), weights(busy))
    assert train(cache_path, plain, often) == plain, "it is the same run"


def test_average_weights_are_what_is_shipped(quick, cache_path, tmp_path):
    every = dataclasses.replace(quick, steps=4, keep_every=1)
    run = train(cache_path, tmp_path / "run", every)
    averaged = weights(train(cache_path, tmp_path / "averaged", dataclasses.replace(every, ema=0.99)))
    expected = weights(run, "student_init.safetensors")
    for step in range(4):
        decay = min(0.99, (1 + step) / (10 + step))
        kept = weights(run, f"kept/step-{step + 1:08d}.safetensors")
        expected = {name: decay * value + (1 - decay) * kept[name] for name, value in expected.items()}
    learned = [name for name in averaged if not name.startswith("denormalizers.")]
    for name in learned:
        torch.testing.assert_close(averaged[name], expected[name], rtol=1e-5, atol=1e-7)
    assert not equal(weights(run), averaged)


def test_threads_and_random_state_of_the_caller_stay_as_they_were(quick, cache_path, tmp_path, monkeypatch):
    """Thread counts are only recorded: really raising them makes the cores of a busy machine fight."""
    counts: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    before = torch.get_rng_state()
    train(cache_path, tmp_path / "run", dataclasses.replace(quick, steps=2, threads=3))
    assert counts == [3, torch.get_num_threads()]
    assert torch.equal(torch.get_rng_state(), before)
    counts.clear()
    train(cache_path, tmp_path / "other", dataclasses.replace(quick, steps=2, threads=None))
    assert set(counts) <= {torch.get_num_threads()}, "left alone unless the config says so"


def test_nan_names_the_step_the_stream_and_the_frame_and_keeps_the_checkpoint(quick, cache_path, tmp_path, monkeypatch):
    gather, calls = BATCHES.gather, []

    def poisoned(frames, indices):
        images, targets = gather(frames, indices)
        calls.append(indices)
        if len(calls) == 7:
            targets["generative"][0, 0, 0] = float("nan")
        return images, targets

    monkeypatch.setattr(BATCHES, "gather", poisoned)
    config = dataclasses.replace(quick, log_every=4, checkpoint_seconds=0.0)
    with pytest.raises(UserError, match=r"at step 7 the target 'generative' is not finite \(frames scene-00\d/\d\); extract"):
        train(cache_path, tmp_path / "run", config)
    assert [path.name for path in (tmp_path / "run" / "checkpoint").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    resumed = train(cache_path, tmp_path / "run", config)
    assert equal(weights(resumed), weights(train(cache_path, tmp_path / "straight", config)))


def test_streams_the_cache_does_not_have_are_refused_before_anything_is_written(quick, cache_path, tmp_path):
    with pytest.raises(UserError, match="unknown stream .*'wan'"):
        train(cache_path, tmp_path / "run", dataclasses.replace(quick, weights={"wan": 1.0}))
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"manifest\.json: missing"):
        train(tmp_path / "nothing", tmp_path / "run", quick)


@pytest.mark.slow
def test_killed_at_any_time_the_same_command_ends_in_the_same_weights(cache_path, tmp_path):
    """Two SIGKILLs of a real process that checkpoints at every step, against a run nobody disturbed."""
    config = RunConfig(
        steps=24,
        batch=8,
        optimizer="adamw",
        ema=0.9,
        log_every=1,
        checkpoint_seconds=0.0,
        evaluate_every=10,
        threads=1,
        progress=False,
    )
    out, log = tmp_path / "killed", tmp_path / "killed" / "log.jsonl"
    for lines in (4, 12):
        process = subprocess.Popen(training_code(cache_path, out, config), env=environment())
        deadline = time.monotonic() + 90
        while not (log.exists() and log.read_text().count("\n") >= lines):
            assert process.poll() is None and time.monotonic() < deadline, "the run ended or hung before it could be killed"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
    subprocess.run(training_code(cache_path, out, config), env=environment(), check=True, timeout=120)
    straight = train(cache_path, tmp_path / "straight", config)
    assert equal(weights(out), weights(straight))
    steps = [record["step"] for record in read_log(log) if "loss" in record]
    assert steps == list(range(1, 25)), "every step is logged once"
    assert read_manifest(out, "run")["fingerprint"] == read_manifest(straight, "run")["fingerprint"]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(cache_path, tmp_path):
    """The batch is dealt out; the curve is that of one process with the whole batch (twice that of each of the two)."""
    config = RunConfig(steps=20, batch=8, optimizer="adamw", precision="fp32", log_every=1, threads=1, progress=False)
    command = training_code(cache_path, tmp_path / "two", config)
    script = tmp_path / "two_processes.py"
    script.write_text(command[-1])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(launch, env=environment(), check=True, timeout=180, capture_output=True)
    one = read_log(train(cache_path, tmp_path / "one", config) / "log.jsonl")
    two = read_log(tmp_path / "two" / "log.jsonl")
    assert read_manifest(tmp_path / "two", "run")["resolved"]["processes"] == 2
    pairs = [(ours, theirs) for ours, theirs in zip(one, two, strict=True) if "loss" in ours]
    assert len(pairs) == 20
    differences = [abs(theirs["loss"] - ours["loss"]) / ours["loss"] for ours, theirs in pairs]
    assert max(differences) < 1e-4, differences


def test_a_batch_that_cannot_be_dealt_out_is_refused(quick, cache, tmp_path):
    class Three:
        num_processes, device = 3, torch.device("cpu")

    folder = RunFolder(tmp_path / "run", quick, cache.fingerprint)
    with pytest.raises(UserError, match="batch 8 cannot be dealt to 3 processes evenly"):
        TRAINER.Trainer(cache, folder, quick, Three())
    with pytest.raises(UserError, match="batch 8 cannot be dealt to 1 processes of 3 parts each evenly"):
        train(cache.path, tmp_path / "run", dataclasses.replace(quick, accumulate=3))
