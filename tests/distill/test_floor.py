"""The noise floor against draws whose noise is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.floor import noise_floor
from distill.joined import open_caches
from distill.losses import Objective
from distill.normalize import estimate_from
from teacher.cache import CacheWriter, FeatureCache
from vega_artifact import UserError

NOISE = 0.75  # spread of the noise against a signal of spread 1: its share of the variance is 0.36, and 0.64 is shared
OBJECTIVE = Objective(weights={"generative": 1.0, "gate": 0.1})


def draw(path: Path, seed: int, count: int = 6, teacher: str = "tttt", shift: int = 0, **settings: Any) -> Path:
    """A cache whose features are a function of the scene plus noise that depends on the seed."""
    config = {"seed": seed, "scenes": f"rooms-{count}", "teacher": {"name": "t", "seed": seed, "sigma": 0.3, **settings}}
    scenes = [f"room-{i:02d}" for i in range(count)]
    writer = CacheWriter(path, config, {"teacher": teacher}, scenes)
    for i, scene in enumerate(scenes):
        signal, noise = (np.random.default_rng([i, k]).normal(size=(4, 48, 4, 4)) for k in (0, 100 + seed))
        gate = np.random.default_rng([i, 7]).random((4, 1, 4, 4)).astype(np.float16)
        features = (signal + NOISE * noise + 5).astype(np.float16)
        writer.add(scene, {"generative": features, "gate": gate, "frame_ids": np.arange(4, dtype=np.int64) + shift})
    writer.finish()
    return path


def measured(cache: FeatureCache, second: Path, kind: str = "standardize") -> dict[str, dict[str, float]]:
    fitted = {name: estimate_from(cache, name, cache.scene_ids, kind) for name in OBJECTIVE.weights}
    normalizers = {name: normalizer for name, (normalizer, _) in fitted.items()}
    return noise_floor(cache, second, normalizers, {name: mean for name, (_, mean) in fitted.items()}, OBJECTIVE)


@pytest.fixture
def first(tmp_path: Path) -> FeatureCache:
    return FeatureCache(draw(tmp_path / "first", seed=0))


@pytest.mark.parametrize("kind", ["standardize", "phi_s"])
def test_the_share_of_the_noise_is_found(kind, first, tmp_path):
    floor = measured(first, draw(tmp_path / "second", seed=1), kind)["generative"]
    share = NOISE**2 / (1 + NOISE**2)
    assert floor["noise_share"] == pytest.approx(share, abs=0.02)
    assert floor["centred"] == pytest.approx(1 - share, abs=0.02) and floor["cosine"] == pytest.approx(1 - share, abs=0.02)
    assert floor["ceiling"] == pytest.approx(floor["centred"] ** 0.5) and floor["raw"] > 0.95


def test_the_ceiling_is_what_a_student_without_noise_reaches(first, tmp_path):
    """The signal alone, which no student can beat, has the centred cosine with a draw that is logged as the ceiling."""
    floor = measured(first, draw(tmp_path / "second", seed=1))["generative"]
    signal = np.stack([np.random.default_rng([i, 0]).normal(size=(4, 48, 4, 4)) for i in range(6)])
    drawn = np.stack([first.read(scene, "generative") for scene in first]).astype(np.float64) - 5
    ours, theirs = (torch.from_numpy(maps).flatten(3).transpose(2, 3) for maps in (signal, drawn))
    reached = torch.cosine_similarity(ours, theirs, dim=-1).mean().item()
    assert floor["ceiling"] == pytest.approx(reached, abs=0.01)


def test_what_does_not_depend_on_the_noise_has_no_floor(first, tmp_path):
    gate = measured(first, draw(tmp_path / "second", seed=1))["gate"]
    assert gate["loss"] == pytest.approx(0, abs=1e-6) and gate["noise_share"] == 0 and gate["centred"] == pytest.approx(1)


def test_some_of_the_scenes_are_enough(first, tmp_path):
    few = measured(first, draw(tmp_path / "few", seed=1, count=3))["generative"]
    assert few["noise_share"] == pytest.approx(0.36, abs=0.03)


def test_of_several_teachers_the_one_that_was_drawn_again_has_a_floor(first, tmp_path):
    other = draw(tmp_path / "other", seed=0, teacher="uuuu")
    joined = open_caches([first.path, f"other={other}"])
    objective = Objective(weights={"generative": 1.0, "other_generative": 1.0})
    fitted = {name: estimate_from(joined, name, joined.scene_ids, "standardize") for name in objective.weights}
    parts = [{name: pair[k] for name, pair in fitted.items()} for k in (0, 1)]
    for teacher, stream in (("tttt", "generative"), ("uuuu", "other_generative")):
        second = draw(tmp_path / f"second-{teacher}", seed=1, teacher=teacher)
        assert set(noise_floor(joined, second, *parts, objective)) == {stream}


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"seed": 0}, "has the noise seed 0 of"),
        ({"seed": 1, "teacher": "uuuu"}, "was made by another teacher"),
        ({"seed": 1, "sigma": 0.5}, r"other settings than .*teacher.sigma: 0.3 -> 0.5"),
        ({"seed": 1, "shift": 1}, "holds other frames of scene 'room-00'"),
    ],
)
def test_caches_that_say_nothing_about_the_noise_are_refused(change, sentence, first, tmp_path):
    with pytest.raises(UserError, match=sentence):
        measured(first, draw(tmp_path / "second", **change))


def test_no_scene_in_common_is_refused(first, tmp_path):
    writer = CacheWriter(tmp_path / "second", {**first.manifest["config"], "seed": 1}, {"teacher": "tttt"}, ["elsewhere"])
    writer.add("elsewhere", {name: first.read("room-00", name) for name in first.manifest["streams"]})
    writer.finish()
    with pytest.raises(UserError, match="has no scene of"):
        measured(first, tmp_path / "second")
