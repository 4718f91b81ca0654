"""Heads and the way back into the teacher's units."""

import pytest
import torch

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
