"""What students cost: counted, against arithmetic and against what was measured elsewhere; and the table.

python -m pytest tests/student/test_costs.py
"""

import functools

import pytest
import torch

import vega_edge
from student import costs, list_students
from student.costs import AttentionCounter, measure, table
from student.registry import create_backbone
from vega_artifact import UserError

cost_of = functools.cache(measure)  # building a network takes longer than asking about it


def test_a_plain_vit_costs_what_arithmetic_says():
    cost = measure("vit_micro", (128, 96))
    tokens, width, depth = 8 * 6, 192, 6
    per_block = tokens * 12 * width**2 + 2 * tokens**2 * width  # qkv, projection, two times four widths; two attention products
    assert cost.macs == tokens * 3 * 16 * 16 * width + depth * per_block
    weights = (3 * 16 * 16 + 1) * width + tokens * width + 2 * width  # patches, positions, final norm
    weights += depth * (12 * width**2 + 13 * width)  # per block: matrices; their biases (9 widths) and two norms (4)
    assert cost.parameters == cost.deployed == weights
    assert (cost.map_size, cost.channels, cost.prefix) == ((8, 6), 192, 0)


@pytest.mark.parametrize("name", list_students())
def test_every_preset_is_built_without_memory_and_takes_wide_images(name):
    cost = cost_of(name, (192, 448))
    assert cost.map_size == (12, 28) and cost.macs > 1e8
    assert 0.9 * cost.parameters < cost.deployed <= cost.parameters
    assert cost.licence


@pytest.mark.parametrize(
    ("name", "fusable", "attention"),
    [  # measured on TensorRT-RTX 1.7.1, fp16 (export spec 1c)
        ("vit_small", 12, 12),
        ("vit_small_dinov3", 12, 12),
        ("tiny_vit_5m", 10, 10),
        ("timm:efficientvit_m2", 0, 16),
        ("timm:mobilenetv4_hybrid_medium", 0, 8),
        ("repvit_m1", 0, 0),
    ],
)
def test_the_rule_for_fused_attention_agrees_with_what_was_measured(name, fusable, attention):
    cost = cost_of(name, (192, 448))
    assert (cost.fusable, cost.attention) == (fusable, attention)


def test_attention_written_out_is_counted_but_not_promised():
    query = torch.zeros(1, 2, 4, 8)
    with AttentionCounter() as seen:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
        (query @ query.mT).softmax(-1)
        torch.nn.functional.softmax(query, -1)
    assert (seen.total, seen.fusable) == (3, 1)


def test_branches_that_fuse_make_the_deployed_network_smaller_than_the_trained_one():
    for name in ("repvit_m1", "fastvit_t8"):
        cost = cost_of(name, (192, 448))
        assert cost.deployed < cost.parameters == sum(p.numel() for p in create_backbone(name, (192, 448))[0].parameters())


def test_the_table_names_every_cost_and_keeps_students_that_cannot_take_the_size_apart():
    text = table((224, 208), ["vit_micro", "vit_small_dinov3", "repvit_m1"])
    head, micro, dino, refused, *legend = text.splitlines()
    assert head.split()[:9] == ["student", "params", "deployed", "MACs", "map", "wide", "tokens", "attention", "weights"]
    assert micro.split()[0] == "vit_micro" and "14x13" in micro and " 182 " in micro and "6/6 fused" in micro
    assert "182+5" in dino and "dinov3-license" in dino
    assert "repvit_m1" in refused and "multiples of 32x32" in refused
    assert legend[0].startswith("At 224x208 pixels")


def test_the_command_prints_it_at_the_wanted_size(monkeypatch, capsys):
    monkeypatch.setattr(costs, "list_students", lambda: ["vit_micro"])
    assert vega_edge.main(["list", "students", "--size", "256", "192"]) == 0
    assert "16x12" in capsys.readouterr().out
    assert vega_edge.main(["list", "students"]) == 0
    assert "14x14" in capsys.readouterr().out
    assert vega_edge.main(["list", "tasks", "--size", "256", "192"]) == 2
    assert "--size is for `list students`" in capsys.readouterr().err


def test_a_size_that_suits_none_and_an_unknown_name_are_errors():
    with pytest.raises(UserError, match="200x200 does not fit"):
        table((200, 200), ["vit_micro", "repvit_m1"])
    with pytest.raises(UserError, match="unknown student 'vit_mikro'"):
        measure("vit_mikro")
