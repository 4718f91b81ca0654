"""Heads and the way back into the teacher's units."""

import pytest
import torch
from torch import nn

from student import create_student
from student.heads import Denormalizer, create_head
from vega_artifact import UserError


def test_head_shapes_and_widths():
    tokens = torch.randn(2, 5, 16)
    assert create_head("linear", 16, 7)(tokens).shape == (2, 5, 7)
    assert create_head("mlp", 16, 7)(tokens).shape == (2, 5, 7)
    hidden = [create_head("mlp", *size)[1].out_features for size in ((192, 128), (1056, 128), (192, 1536))]
    assert hidden == [192, 256, 1536], "never narrower than the output, at most twice as wide"


def test_unknown_head_lists_the_known():
    with pytest.raises(UserError, match="unknown head 'conv'.*linear, mlp"):
        create_head("conv", 4, 4)


def test_denormalizer_starts_as_identity_and_takes_both_kinds():
    tokens = torch.randn(2, 3, 4)
    matrix, offset = torch.randn(4, 4), torch.randn(4)
    for kind in ("diagonal", "full"):
        assert torch.equal(Denormalizer(4, kind)(tokens), tokens)
    full, diagonal = Denormalizer(4, "full"), Denormalizer(4, "diagonal")
    full.set(matrix, offset)
    diagonal.set(matrix[0], offset)
    torch.testing.assert_close(full(tokens), torch.einsum("bnc,cd->bnd", tokens, matrix) + offset)
    torch.testing.assert_close(diagonal(tokens), tokens * matrix[0] + offset)


def test_denormalizer_refuses_other_shapes_and_kinds():
    with pytest.raises(UserError, match="shapes"):
        Denormalizer(4, "diagonal").set(torch.eye(4), torch.zeros(4))
    with pytest.raises(UserError, match="unknown denormalizer"):
        Denormalizer(4, "rotated")


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("units", ["diagonal", "full"])
def test_a_folded_student_answers_the_same_without_steps_after_its_heads(kind, units):
    student = create_student("vit_micro", {"fused": 6, "gate": 1}, (32, 32), (2, 2), head=kind, denormalize=units).eval()
    generator = torch.Generator().manual_seed(0)
    for module in student.denormalizers.values():
        module.set(torch.randn(module.matrix.shape, generator=generator), torch.randn(module.offset.shape, generator=generator))
    images = torch.randn(2, 3, 32, 32, generator=generator)
    expected = student(images)
    student.fold()
    assert all(isinstance(module, nn.Identity) for module in student.denormalizers.values())
    for name, value in student(images).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    again = {name: value.clone() for name, value in student.state_dict().items()}
    assert all(torch.equal(value, again[name]) for name, value in student.fold().state_dict().items()), "once is enough"


def test_a_head_that_does_not_end_linear_keeps_its_units_outside():
    student = create_student("vit_micro", {"fused": 6}, (32, 32), (2, 2))
    student.heads["fused"].append(nn.Dropout())
    assert isinstance(student.fold().denormalizers["fused"], Denormalizer)
