"""The objective against hand-computed numbers, an independent float64 version and finite differences."""

import math

import numpy as np
import pytest
import torch

from distill.losses import Objective
from distill.relational import gram_loss

PREDICTED = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
TARGET = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])


def reference(predicted: np.ndarray, target: np.ndarray, cosine: float, smooth: float, gram: float) -> float:
    """The same objective, in numpy and float64."""
    ours = predicted / np.linalg.norm(predicted, axis=-1, keepdims=True)
    theirs = target / np.linalg.norm(target, axis=-1, keepdims=True)
    distance = np.abs(predicted - target)
    huber = np.where(distance < 1, distance**2 / 2, distance - 0.5)
    similarity = ours @ ours.swapaxes(-1, -2) - theirs @ theirs.swapaxes(-1, -2)
    return cosine * (1 - (ours * theirs).sum(-1)).mean() + smooth * huber.mean() + gram * (similarity**2).mean()


def test_golden_cosine_and_smooth_l1():
    """Token 1 is orthogonal (cos 0, both errors 1 -> smooth-L1 0.5 each), token 2 is equal."""
    part = Objective(weights={"fused": 1.0}).stream(PREDICTED, TARGET)
    assert part.cosine.item() == pytest.approx(0.5)
    assert part.loss.item() == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)


def test_golden_gram():
    """cos(p1, p2) = 0.6 and cos(t1, t2) = 0.8: two of four entries differ by 0.2."""
    assert gram_loss(PREDICTED, TARGET).item() == pytest.approx(2 * 0.2**2 / 4)
    turn = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    assert gram_loss(TARGET @ turn * 3, TARGET).item() == pytest.approx(0, abs=1e-12), "blind to rotation and scale"


@pytest.mark.parametrize("parts", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5, 0.5)])
def test_value_and_gradient_agree_with_float64_finite_differences(parts):
    rng = np.random.default_rng(3)
    predicted, target = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    cosine, smooth, gram = parts
    variable = torch.tensor(predicted, dtype=torch.float32, requires_grad=True)
    objective = Objective(weights={"fused": 1.0}, cosine=cosine, smooth_l1=smooth, gram=gram)
    loss = objective.stream(variable, torch.tensor(target)).loss
    loss.backward()
    assert loss.item() == pytest.approx(reference(predicted, target, *parts), rel=1e-5)
    for index in [(0, 0, 0), (0, 2, 3), (1, 1, 2)]:
        step = np.zeros_like(predicted)
        step[index] = 1e-5
        slope = (reference(predicted + step, target, *parts) - reference(predicted - step, target, *parts)) / 2e-5
        assert variable.grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_streams_add_up_with_their_weights():
    objective = Objective(weights={"fused": 2.0, "semantic": 0.25})
    total, parts = objective({"fused": PREDICTED, "semantic": TARGET}, {"fused": TARGET, "semantic": TARGET})
    assert total.item() == pytest.approx(2.0 * parts["fused"].loss.item())
    assert parts["semantic"].loss.item() == pytest.approx(0, abs=1e-7)


def test_a_large_token_weighs_no_more_than_a_small_one():
    objective = Objective(weights={"fused": 1.0}, cosine=1.0, smooth_l1=0.0)
    scale = torch.tensor([[[100.0], [0.01]]])
    assert objective.stream(PREDICTED * scale, TARGET * scale).loss.item() == pytest.approx(0.5)


def test_losses_stay_float32_under_autocast():
    """1.001 and 1 are the same number in bf16; in float32 the loss sees the difference."""
    tokens = torch.ones(1, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = Objective(weights={"fused": 1.0})({"fused": tokens * 1.001}, {"fused": tokens})
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(0.5 * 0.5 * 0.001**2, rel=0.2)
