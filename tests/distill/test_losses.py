"""The objective against hand-computed numbers, an independent float64 version, finite differences and gradient checks."""

import numpy as np
import pytest
import torch

from distill.losses import Hints, Objective, cosine_loss, mse_loss, smooth_l1_loss
from distill.relational import cross_view_loss, mutual_nearest, same_place

PREDICTED = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
TARGET = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(predicted: np.ndarray, target: np.ndarray, cosine: float, smooth: float, mse: float, gram: float) -> float:
    """The same objective, in numpy and float64."""
    ours = predicted / np.linalg.norm(predicted, axis=-1, keepdims=True)
    theirs = target / np.linalg.norm(target, axis=-1, keepdims=True)
    distance = np.abs(predicted - target)
    huber = np.where(distance < 1, distance**2 / 2, distance - 0.5)
    similarity = ours @ ours.swapaxes(-1, -2) - theirs @ theirs.swapaxes(-1, -2)
    parts = ((1 - (ours * theirs).sum(-1)).mean(), huber.mean(), (distance**2).mean(), (similarity**2).mean())
    return float(np.dot((cosine, smooth, mse, gram), parts))


def test_golden_cosine_and_smooth_l1():
    """Token 1 is orthogonal (cos 0, both errors 1 -> smooth-L1 0.5 each), token 2 is equal."""
    part = Objective(weights={"fused": 1.0}).stream(PREDICTED, TARGET)
    assert part.cosine.item() == pytest.approx(0.5)
    assert part.loss.item() == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)


def test_golden_per_token_losses():
    """One frame with errors 3 and 0 in its first token and 0.5 and 0 in its second; cosines 4 / 5 and 1."""
    target = torch.tensor([[[0.0, 4.0], [1.0, 0.0]]])
    predicted = torch.tensor([[[3.0, 4.0], [1.5, 0.0]]])
    assert cosine_loss(predicted, target).tolist() == pytest.approx([0.1])
    assert smooth_l1_loss(predicted, target).tolist() == pytest.approx([(2.5 + 0.125) / 4])
    assert mse_loss(predicted, target).tolist() == pytest.approx([(9 + 0.25) / 4])


@pytest.mark.parametrize("loss", [cosine_loss, smooth_l1_loss, mse_loss])
def test_gradients_in_double_precision(loss):
    predicted, target = drawn(2, 3, 4).double().requires_grad_(), drawn(2, 3, 4, seed=1).double()
    assert torch.autograd.gradcheck(lambda tokens: loss(tokens, target), (predicted,))


@pytest.mark.parametrize("parts", [(1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0), (0.5, 0.5, 0.25, 0.5)])
def test_value_and_gradient_agree_with_float64_finite_differences(parts):
    rng = np.random.default_rng(3)
    predicted, target = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    cosine, smooth, mse, gram = parts
    variable = torch.tensor(predicted, dtype=torch.float32, requires_grad=True)
    objective = Objective(weights={"fused": 1.0}, cosine=cosine, smooth_l1=smooth, mse=mse, gram=gram)
    loss = objective.stream(variable, torch.tensor(target)).loss
    loss.backward()
    assert loss.item() == pytest.approx(reference(predicted, target, *parts), rel=1e-5)
    for index in [(0, 0, 0), (0, 2, 3), (1, 1, 2)]:
        step = np.zeros_like(predicted)
        step[index] = 1e-5
        slope = (reference(predicted + step, target, *parts) - reference(predicted - step, target, *parts)) / 2e-5
        assert variable.grad[index].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_terms_are_logged_before_they_are_weighted():
    part = Objective(weights={"fused": 1.0}, mse=2.0, gram=3.0).stream(PREDICTED, TARGET)
    assert {name: value.item() for name, value in part.terms.items()} == pytest.approx(
        {"cosine": 0.5, "smooth_l1": 0.25, "mse": 0.5, "gram": 0.02}
    )
    assert part.loss.item() == pytest.approx(0.5 * 0.5 + 0.5 * 0.25 + 2 * 0.5 + 3 * 0.02)


def test_views_are_compared_by_places_where_they_are_known_and_by_the_teacher_where_not():
    predicted, target, places = drawn(4, 6, 5), drawn(4, 6, 5, seed=1), drawn(4, 6, 3, seed=2)
    objective = Objective(weights={"fused": 1.0}, cosine=0.0, smooth_l1=0.0, cross_view=2.0)
    for hints, matches in ((Hints(places=places), same_place(places)), (Hints(), mutual_nearest(target))):
        found = objective.stream(predicted, target, hints)
        torch.testing.assert_close(found.per_image, 2 * cross_view_loss(predicted, target, matches))
    assert same_place(places).any() and not torch.equal(same_place(places), mutual_nearest(target))


def test_relational_terms_are_ramped_in_and_the_others_are_not():
    predicted, target = drawn(2, 4, 3), drawn(2, 4, 3, seed=1)
    whole = Objective(weights={"fused": 1.0}, gram=1.0, cross_view=1.0)
    losses = [whole.stream(predicted, target, Hints(ramp=torch.tensor(ramp))).loss for ramp in (0.0, 0.5, 1.0)]
    assert losses[0].item() == pytest.approx(Objective(weights={"fused": 1.0}).stream(predicted, target).loss.item())
    assert losses[1].item() == pytest.approx((losses[0] + losses[2]).item() / 2) and losses[2] > losses[0]


def test_a_stream_of_one_channel_is_compared_by_its_map():
    """As tokens both gates would have cosine 1; as maps they are opposite. Relations between tokens are left out."""
    target = torch.tensor([[[1.0], [-1.0], [1.0], [-1.0]], [[2.0], [1.0], [1.0], [2.0]]])
    objective = Objective(weights={"gate": 1.0}, cosine=1.0, smooth_l1=0.0, gram=5.0, cross_view=5.0)
    assert objective.stream(-target, target).per_image.tolist() == pytest.approx([2.0, 2.0])
    assert objective.stream(target * 3, target).per_image.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert set(objective.stream(target, target).terms) == {"cosine"}


def test_dropping_leaves_out_easy_streams_frame_by_frame_and_reports_all():
    """Frame 0 fits "semantic" worse, frame 1 "fused"; nothing else is kept."""
    targets = {"fused": TARGET.expand(2, 2, 2), "semantic": TARGET.expand(2, 2, 2)}
    predicted = {"fused": torch.cat((TARGET, PREDICTED)), "semantic": torch.cat((PREDICTED, TARGET))}
    objective = Objective(weights={"fused": 1.0, "semantic": 10.0}, cosine=1.0, smooth_l1=0.0)
    everything, parts = objective(predicted, targets, Hints(keep=torch.ones(2, 2, dtype=torch.bool)))
    nothing, parts_dropped = objective(predicted, targets, Hints(keep=torch.zeros(2, 2, dtype=torch.bool)))
    assert everything.item() == pytest.approx(objective(predicted, targets)[0].item()) == pytest.approx(5.5 / 2)
    assert nothing.item() == pytest.approx(5.5 / 2), "what was dropped was learned already"
    harder = {"fused": torch.cat((PREDICTED, PREDICTED)), "semantic": torch.cat((-TARGET, TARGET))}
    assert objective(harder, targets, Hints(keep=torch.zeros(2, 2, dtype=torch.bool)))[0].item() == pytest.approx(
        (10 * 2 + 0.5) / 2
    )
    assert parts["fused"].loss.item() == parts_dropped["fused"].loss.item() == pytest.approx(0.25)


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
