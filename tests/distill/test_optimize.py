"""Who optimises what, at which rate; weight averaging."""

import pytest
import torch
from torch import nn

from distill import RunConfig
from distill.optimize import WeightAverage, create_optimizers, rate_factor, set_rates
from student import create_student


def test_muon_takes_the_hidden_matrices_and_adamw_everything_else_once():
    student = create_student(heads={"fused": 4})
    adamw, muon = create_optimizers(student, RunConfig(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert "backbone.model.blocks.5.mlp.fc2.weight" in hidden and len(hidden) == 4 * 6
    groups = [{names[id(p)] for p in group["params"]} for group in adamw.param_groups]
    assert hidden | groups[0] | groups[1] == set(names.values()) and not hidden & (groups[0] | groups[1])
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.1, 0.0]
    assert "backbone.model.pos_embed" in groups[1] and "heads.fused.3.weight" in groups[0]


@pytest.mark.parametrize("optimizer, name", [("adamw", "vit_micro"), ("muon", "mobilenetv4_conv_small")])
def test_adamw_alone_when_asked_or_when_there_is_no_matrix(optimizer, name):
    optimizers = create_optimizers(create_student(name, heads={"fused": 4}), RunConfig(optimizer=optimizer))
    assert [type(o).__name__ for o in optimizers] == ["AdamW"]


def test_rates_rise_linearly_then_fall_to_zero():
    factors = [rate_factor(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert factors[10] == 1.0 and factors[55] == pytest.approx(0.5) and 0 < factors[99] < 0.001
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert rate_factor(0, 1, 0.0) == 1.0


def test_rates_are_set_from_each_groups_peak():
    optimizers = create_optimizers(create_student(heads={"fused": 4}), RunConfig(learning_rate=1e-3, muon_learning_rate=0.02))
    set_rates(optimizers, 0.5)
    set_rates(optimizers, 0.25)
    assert [group["lr"] for o in optimizers for group in o.param_groups] == pytest.approx([2.5e-4, 2.5e-4, 5e-3])


def test_average_follows_the_recurrence():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    average = WeightAverage(dict(layer.named_parameters()), decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]):
        nn.init.constant_(layer.weight, value)
        average.update(dict(layer.named_parameters()), step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert average.values["weight"].item() == pytest.approx(expected)
    torch.testing.assert_close(layer.weight.detach(), torch.full((1, 1), 5.0))
