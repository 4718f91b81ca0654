"""Relational terms against hand-worked numbers, an independent float64 version, and double-precision gradient checks."""

import math

import numpy as np
import pytest
import torch

from distill.relational import SAME_PLACE, TEMPERATURE, cross_view_loss, gram_loss, mutual_nearest, same_place

PREDICTED = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
TARGET = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def reference(predicted: np.ndarray, target: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """The cross-view term row by row, in numpy."""
    ours = predicted / np.linalg.norm(predicted, axis=-1, keepdims=True)
    theirs = target / np.linalg.norm(target, axis=-1, keepdims=True)
    found = []
    for here, right in enumerate(answers):
        there, rows = here + 1 if here % 2 == 0 else here - 1, []
        for i in np.flatnonzero(right.any(1)):
            p = softmax(ours[there] @ ours[here, i] / TEMPERATURE)[right[i]]
            q = softmax(theirs[there][right[i]] @ theirs[here, i] / TEMPERATURE)
            rows.append((q * np.log(q / p)).sum())
        found.append(np.mean(rows) if rows else 0.0)
    return np.array(found)


def test_golden_gram():
    """cos(p1, p2) = 0.6 and cos(t1, t2) = 0.8: two of four entries differ by 0.2."""
    assert gram_loss(PREDICTED, TARGET).tolist() == pytest.approx([2 * 0.2**2 / 4])
    turn = torch.tensor([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
    assert gram_loss(TARGET @ turn * 3, TARGET).item() == pytest.approx(0, abs=1e-12), "blind to rotation and scale"


def test_golden_cross_view():
    """Both views hold the axes; cosines 1 and 0. Token i answers token i: q is certain, p(i) = 1 / (1 + exp(-1 / T))."""
    axes = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    expected = math.log(1 + math.exp(-1 / TEMPERATURE))
    answers = torch.eye(2, dtype=torch.bool).expand(2, 2, 2)
    assert cross_view_loss(axes, axes, answers).tolist() == pytest.approx([expected] * 2)
    swapped = torch.stack((axes[0], axes[0].flip(0)))  # the student finds each token at the wrong place
    wrong = cross_view_loss(swapped, axes, answers)
    assert wrong.tolist() == pytest.approx([1 / TEMPERATURE + expected] * 2)


def test_cross_view_equals_an_independent_version():
    predicted, target = drawn(4, 5, 3), drawn(4, 5, 3, seed=1)
    answers = drawn(4, 5, 5, seed=2) > 0.8
    assert not answers.any(-1).all() and answers.sum(-1).max() > 1, "rows without an answer and with several"
    found = cross_view_loss(predicted, target, answers)
    np.testing.assert_allclose(found.numpy(), reference(predicted.numpy(), target.numpy(), answers.numpy()), rtol=1e-9)


def test_the_teachers_own_similarities_are_best_where_every_token_may_answer():
    target, everything = drawn(2, 6, 4), torch.ones(2, 6, 6, dtype=torch.bool)
    assert cross_view_loss(target * 3, target, everything).abs().max() < 1e-12
    assert cross_view_loss(drawn(2, 6, 4, seed=1), target, everything).min() > 0.1


def test_views_without_a_common_place_cost_nothing_and_give_no_gradient():
    predicted = drawn(2, 3, 4).requires_grad_()
    loss = cross_view_loss(predicted, drawn(2, 3, 4, seed=1), torch.zeros(2, 3, 3, dtype=torch.bool))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0] and predicted.grad.abs().max() == 0


@pytest.mark.parametrize("part", ["gram", "cross_view"])
def test_gradients(part):
    predicted, target = drawn(4, 4, 3).requires_grad_(), drawn(4, 4, 3, seed=1)
    answers = drawn(4, 4, 4, seed=2) > 0
    loss = gram_loss if part == "gram" else lambda p, t: cross_view_loss(p, t, answers)
    assert torch.autograd.gradcheck(lambda tokens: loss(tokens, target), (predicted,))


def test_the_same_place_is_within_the_radius_and_never_unknown():
    """View b repeats the places of view a, moved by a little less, a little more, and not at all but unknown."""
    first = torch.tensor([[0.0, 0, 0], [1000.0, 5, 1], [3.0, 3, 3]])
    second = first + torch.tensor([[SAME_PLACE - 0.01, 0, 0], [0, SAME_PLACE + 0.01, 0], [0, 0, torch.nan]])
    assert same_place(torch.stack((first, second))).tolist() == [[[True, False, False], [False] * 3, [False] * 3]] * 2
    one_way = torch.tensor([[[0.0, 0, 0], [9, 9, 9]], [[5, 5, 5], [0, 0, 0.1]]])
    assert same_place(one_way).tolist() == [[[False, True], [False, False]], [[False, False], [True, False]]]
    far = first + 1e4  # the usual shortcut of cdist is off by more than the radius here
    assert same_place(torch.stack((far, far))).tolist() == [torch.eye(3, dtype=torch.bool).tolist()] * 2


def test_mutual_nearest_opens_the_rows_that_both_sides_agree_on():
    """Token 0 and 1 of a are both closest to token 0 of b, which prefers 0; b's token 1 is nobody's first choice."""
    angles = torch.tensor([[0.0, 0.5, 3.0], [0.1, 1.2, 3.1]])
    tokens = torch.stack((angles.cos(), angles.sin()), dim=-1) * torch.tensor([1.0, 7.0, 0.2])[:, None]
    assert mutual_nearest(tokens).tolist() == [[[True] * 3, [False] * 3, [True] * 3]] * 2
