"""What a batch tells the objective, and whole runs that use all of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import RunConfig, train
from distill.dataset import Frames
from distill.hints import check_pairs, hints_for, prepared, step_indices
from distill.log import read_log
from student import load_student
from teacher.cache import CacheWriter, FeatureCache
from tests.distill.conftest import clip, write_cache
from tests.distill.test_batches import batches
from tests.distill.test_views import room_cache
from vega_artifact import UserError, read_manifest

CPU = torch.device("cpu")


@pytest.fixture
def frames() -> Frames:
    """Two scenes of four frames on a 2x2 grid; places are frame number and token number."""
    places = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(4.0), torch.zeros(1), indexing="ij"), dim=-1)[:, :, 0]
    images, targets = torch.zeros(8, 4, 4, 3, dtype=torch.uint8), {"fused": torch.rand(8, 4, 2).half()}
    return Frames(images, targets, ("a", "b"), (4, 4), places)


def test_pairs_only_where_views_are_compared(frames):
    config = RunConfig(batch=6, cross_view=1.0)
    pairs = step_indices(config, 0, frames).reshape(-1, 2)
    assert (pairs // 4 == pairs[:, :1] // 4).all() and (pairs[:, 0] != pairs[:, 1]).all()
    assert len(set(step_indices(replace(config, cross_view=0.0), 0, frames))) == 6


def test_pairs_are_not_split_between_processes():
    check_pairs(RunConfig(cross_view=1.0), 4)
    check_pairs(RunConfig(), 3)
    with pytest.raises(UserError, match="its share of batch 48 is 3 frames"):
        check_pairs(RunConfig(cross_view=1.0), 3)


def test_processes_and_parts_together_are_told_what_one_is_told(frames, quick):
    config = replace(quick, batch=8, weights={"fused": 1.0, "semantic": 1.0}, cross_view=1.0, drop=0.5)
    with batches(frames, config) as whole:
        expected = whole.take(2, 0).hints
    told = []
    for rank in range(2):
        with batches(frames, replace(config, accumulate=2), 2, rank) as dealt:
            told += [dealt.take(2, part).hints for part in range(2)]
    assert torch.equal(torch.cat([part.places for part in told]), expected.places)
    assert torch.equal(torch.cat([part.keep for part in told]), expected.keep) and not expected.keep.all()
    with pytest.raises(UserError, match="is 1 frames"):
        batches(frames, replace(config, accumulate=4), 2)


def test_hints_are_there_when_they_are_asked_for(frames):
    rows, samples = np.array([5, 0]), np.array([10, 11])
    plain = hints_for(RunConfig(), replace(frames, places=None), 3, rows, samples)
    assert plain == (None, None, None)
    config = RunConfig(drop=0.5, relation_ramp=0.5, steps=100, weights={"fused": 1.0, "semantic": 1.0, "gate": 0.0})
    told = hints_for(config, frames, 9, rows, samples)
    assert torch.equal(told.places, frames.places[[5, 0]]) and told.keep.shape == (2, 2)
    assert told.ramp.item() == pytest.approx(10 / 50)
    assert hints_for(config, frames, 80, rows, samples).ramp.item() == 1.0


def test_places_follow_the_crop(frames):
    told = hints_for(RunConfig(), frames, 0, np.array([1, 2]), np.array([0, 1]))
    right_half = torch.tensor([[0.0, 0.5, 1.0, 0.5]]).expand(2, 4)
    places = prepared(told, right_half, (2, 2), CPU).places
    assert places[0, :, 1].tolist() == pytest.approx([0.75 + 0.0, 1.0, 2.75, 3.0])
    assert torch.equal(prepared(told, None, (2, 2), CPU).places, told.places)


@pytest.fixture
def short(quick) -> RunConfig:
    return replace(quick, steps=4, evaluate_every=2)


def test_a_run_with_every_term_logs_each(tmp_path, short):
    """Rooms with geometry, pairs of views, dropping, crops and a ramp; the same run without geometry differs."""
    cache = room_cache(tmp_path / "rooms", "procedural:train?count=3&seed=5&frames=4&size=32")
    config = replace(short, batch=6, weights={"fused": 1.0}, mse=0.5, gram=0.5, cross_view=0.5, relation_ramp=0.5, crop=0.7)
    losses = {}
    for matches in ("auto", "tokens"):
        run = train(cache.path, tmp_path / matches, replace(config, matches=matches))
        lines = [line for line in read_log(run / "log.jsonl") if "terms" in line]
        assert all(set(line["terms"]) == {"cosine", "smooth_l1", "mse", "gram", "cross_view"} for line in lines)
        losses[matches] = [line["terms"]["cross_view"] for line in lines]
        expected = {"auto": "geometry", "tokens": "tokens"}[matches]
        assert read_manifest(run, "run")["resolved"]["matches"] == expected and min(losses[matches]) > 0
    assert losses["auto"] != losses["tokens"]


def test_a_run_learns_the_gate(cache_path, tmp_path, quick):
    config = replace(quick, steps=16, weights={"fused": 1.0, "gate": 1.0}, normalizer="layernorm", jitter=0.0, log_every=1)
    run = train(cache_path, tmp_path / "run", replace(config, learning_rate=5e-3))
    cosines = [line["cosine"]["gate"] for line in read_log(run / "log.jsonl") if "cosine" in line]
    assert np.mean(cosines[-3:]) > np.mean(cosines[:2]) + 0.2, cosines
    assert read_manifest(run, "run")["validation"]["gate"]["centred"] < 0.9999, "compared as a map, not as single numbers"
    frames = FeatureCache(cache_path).read("scene-000", "rgb")
    student = load_student(run)
    with torch.no_grad():
        gate = student(student.preprocess(frames))["gate"]
    assert gate.shape == (4, 4, 1) and 0 < gate.mean() < 1, "in the teacher's own units"


def test_a_run_on_two_teachers_with_dropping_and_a_noise_floor(tmp_path, short):
    first = write_cache(tmp_path / "first")
    names = FeatureCache(first).scene_ids
    draws = {}
    for name, seed, noise in (("dense", 0, 0.0), ("redrawn", 1, 0.5)):
        writer = CacheWriter(tmp_path / name, {"seed": seed}, {"teacher": "uuuu"}, names)
        for i, scene in enumerate(names):
            arrays = clip(i, frames=4 + i % 2)
            shift = noise * np.random.default_rng(i).normal(size=arrays["semantic"].shape)
            writer.add(scene, {"rgb": arrays["rgb"], "frame_ids": arrays["frame_ids"],
                               "map": (arrays["semantic"] + shift).astype(np.float16)})  # fmt: skip
        writer.finish()
        draws[name] = tmp_path / name
    config = replace(short, weights={"fused": 1.0, "d_map": 0.5}, drop=0.5, noise_cache=str(draws["redrawn"]))
    run = train([first, f"d={draws['dense']}"], tmp_path / "run", config)
    manifest, lines = read_manifest(run, "run"), read_log(run / "log.jsonl")
    assert set(manifest["validation"]) == {"fused", "d_map"} and manifest["teacher"] == "tttt"
    assert set(manifest["noise_floor"]) == {"d_map"} and 0.05 < manifest["noise_floor"]["d_map"]["noise_share"] < 0.9
    ceiling = manifest["noise_floor"]["d_map"]["ceiling"]
    assert lines[0] == {"step": 0, "noise_floor": manifest["noise_floor"]}
    told = [line["validation"] for line in lines if "validation" in line]
    assert len(told) == 2 and all(line["d_map"]["ceiling"] == ceiling and "ceiling" not in line["fused"] for line in told)
    again = train([first, f"d={draws['dense']}"], Path(run), replace(config, noise_cache=None))
    assert again == run, "the second draw is no part of what a run is"
    with pytest.raises(UserError, match="holds another run"):
        train(first, run, replace(config, weights={"fused": 1.0}))


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"cross_view": -1.0}, "cross_view must not be negative"),
        ({"cosine": 0.0, "smooth_l1": 0.0}, "one of cosine, smooth_l1, mse, gram, cross_view must be above 0"),
        ({"drop": 1.5}, r"drop must lie in \[0, 1.0\]"),
        ({"relation_ramp": -0.1}, r"relation_ramp must lie in"),
    ],
)
def test_impossible_objectives_say_what_is_wrong(change, sentence):
    with pytest.raises(UserError, match=sentence):
        RunConfig(**change)
