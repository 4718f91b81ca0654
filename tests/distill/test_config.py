"""Configs are checked when they are made; recipes are found by name."""

import dataclasses

import pytest
import torch

from distill import RunConfig, recipes
from distill.config import resolve_precision
from student.registry import resolve
from vega_artifact import UserError


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0, "warmup": 2.0}, r"batch must be at least 1; warmup must lie in \[0, 1.0\]"),
        ({"weights": {}}, "at least one stream"),
        ({"weights": {"fused": 0.0}}, "at least one stream"),
        ({"weights": {"fused": 1.0, "semantic": -1.0}}, "must not be negative"),
        ({"learning_rate": float("nan")}, "learning_rate must not be negative"),
        ({"cosine": 0.0, "smooth_l1": 0.0}, "one of cosine, smooth_l1, mse, gram, cross_view must"),
        ({"threads": 0}, "threads"),
        ({"accumulate": 0, "crop": 1.5}, r"accumulate must be at least 1; crop must lie in \[0, 1.0\]"),
        ({"keep_every": -1}, "keep_every, memory and seed must not be negative"),
        ({"ship": "best", "validation_part": 0.0}, "ship=best needs a validation_part above 0"),
    ],
)
def test_impossible_configs_say_what_is_wrong(change, message):
    with pytest.raises(UserError, match=message):
        RunConfig(**change)


def test_configs_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().steps = 3
    with pytest.raises(TypeError):
        RunConfig("vit_micro")


def test_identity_ignores_housekeeping_only():
    config = RunConfig()
    other = {"threads": 3, "log_every": 7, "progress": False, "accumulate": 2, "compile": True, "trackers": ("wandb",)}
    assert dataclasses.replace(config, **other, keep_every=5, evaluate_every=9).identity() == config.identity()
    for change in ({"seed": 1}, {"weights": {"fused": 2.0}}, {"image_size": (64, 64)}):
        assert dataclasses.replace(config, **change).identity() != config.identity()


def test_weight_zero_leaves_a_stream_out():
    assert RunConfig(weights={"fused": 1.0, "semantic": 0.0}).streams == ["fused"]


def test_auto_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for supported, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=supported: answer)
        assert resolve_precision("auto", cpu) == expected
    assert resolve_precision("fp32", cpu) == "fp32" and resolve_precision("bf16", cpu) == "bf16"


def test_every_recipe_makes_a_config_of_a_known_student_and_says_what_it_is():
    assert {"demo", "smoke", "vit_tiny", "vit_small_gpu"} <= set(recipes.names())
    for name in recipes.names():
        resolve(recipes.create(name).student)
        assert len(recipes.summary(name)) > 20
    assert recipes.create("demo") == recipes.demo()


def test_unknown_recipe_lists_the_known():
    with pytest.raises(UserError, match=r"unknown recipe 'dema'. Did you mean 'demo'\? Known: demo, first_demo, smoke"):
        recipes.create("dema")
