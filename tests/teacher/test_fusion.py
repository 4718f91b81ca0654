"""Fusion variants against the golden outputs of the reference, its parameter counts, and the limits of every gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from teacher.fusion import FUSIONS, create_fusion, sincos_position
from vega_artifact import UserError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "wan-teacher" / "expected.safetensors"
GATED = ["token_gated", "token_gated_residual", "gated", "context_gated"]


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(GOLDEN).items() if name.startswith("fusion_")}


@pytest.fixture
def streams() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    semantic, generative = torch.randn(2, 2, 9, 16, generator=generator)
    return semantic * 2 + 1, generative


@pytest.mark.parametrize("name", ["add", "concat", "weighted", "cross_attention", "gated", "token_gated", "only"])
def test_equals_the_reference(name: str, golden: dict[str, torch.Tensor]) -> None:
    options = {"num_heads": 4, "num_layers": 1, "dropout": 0.0} if name == "cross_attention" else {}
    fusion = create_fusion(name, 32, **options).eval()
    prefix = f"fusion_{name}.param."
    weights = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    assert set(weights) == set(fusion.state_dict())
    fusion.load_state_dict(weights)
    with torch.no_grad():
        output = fusion(golden["fusion_semantic"], golden["fusion_generative"])
    torch.testing.assert_close(output, golden[f"fusion_{name}.output"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "dim", "expected"),
    [
        ("add", 3584, 0),
        ("only", 3584, 0),
        ("weighted", 3584, 2),
        ("concat", 3584, 25_708_032),
        ("gated", 3584, 25_708_032),
        ("token_gated", 3584, 21_505),
        ("token_gated_residual", 3584, 21_506),
        ("token_gated_residual", 2048, 12_290),
        ("context_gated", 3584, 6_454_788),
        ("cross_attention", 3584, 154_201_600),
    ],
)
def test_parameter_counts(name: str, dim: int, expected: int) -> None:
    with torch.device("meta"):
        fusion = create_fusion(name, dim)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == expected


def test_two_cross_attention_blocks_have_twice_the_parameters() -> None:
    with torch.device("meta"):
        fusion = create_fusion("cross_attention", 3584, num_layers=2)
    assert sum(parameter.numel() for parameter in fusion.parameters()) == 2 * 154_201_600


def force_logit(fusion: torch.nn.Module, value: float) -> None:
    projection = fusion.gate_projection
    linear = projection if isinstance(projection, torch.nn.Linear) else projection[0]
    torch.nn.init.constant_(linear.bias, value)


def perturb_norms(fusion: torch.nn.Module) -> None:
    """Make LN1 and LN2 differ from each other and from the plain normalisation."""
    with torch.no_grad():
        fusion.norm1.weight.mul_(1.5)
        fusion.norm2.bias.add_(0.25)


@torch.no_grad()
@pytest.mark.parametrize("name", ["token_gated", "gated", "context_gated"])
def test_open_and_closed_gates(name: str, streams: tuple[torch.Tensor, torch.Tensor]) -> None:
    semantic, generative = streams
    fusion = create_fusion(name, 16)
    perturb_norms(fusion)
    force_logit(fusion, 1e4)
    torch.testing.assert_close(fusion(semantic, generative), fusion.norm1(semantic), rtol=0, atol=0)
    force_logit(fusion, -1e4)
    torch.testing.assert_close(fusion(semantic, generative), fusion.norm2(generative), rtol=0, atol=0)


@torch.no_grad()
def test_residual_limits(streams: tuple[torch.Tensor, torch.Tensor]) -> None:
    semantic, generative = streams
    fusion = create_fusion("token_gated_residual", 16)
    perturb_norms(fusion)
    scale, a = fusion.residual_scale.item(), fusion.gate(semantic, generative)
    assert scale == pytest.approx(0.2)
    torch.testing.assert_close(fusion(semantic, generative), semantic + scale * (1 - a) * (generative - semantic))
    fusion.residual_scale.fill_(0.0)
    assert torch.equal(fusion(semantic, generative), semantic)
    fusion.residual_scale.fill_(1.0)
    force_logit(fusion, -1e4)
    torch.testing.assert_close(fusion(semantic, generative), generative)


@torch.no_grad()
@pytest.mark.parametrize("name", GATED)
def test_gate_is_a_share_per_token_and_explains_the_output(name: str, streams: tuple[torch.Tensor, torch.Tensor]) -> None:
    semantic, generative = streams
    fusion = create_fusion(name, 16)
    a = fusion.gate(semantic, generative)
    assert a.shape == ((2, 9, 16) if name == "gated" else (2, 9, 1))
    assert 0 < a.min() < a.max() < 1
    start = torch.tensor(-0.5).sigmoid() if name == "context_gated" else 0.5
    assert (a - start).abs().max() < 0.15
    if name != "token_gated_residual":
        expected = a * fusion.norm1(semantic) + (1 - a) * fusion.norm2(generative)
        torch.testing.assert_close(fusion(semantic, generative), expected)


@torch.no_grad()
def test_context_shifts_every_token_of_its_item_alike(streams: tuple[torch.Tensor, torch.Tensor]) -> None:
    semantic, generative = streams
    fusion = create_fusion("context_gated", 16)
    fusion.context_scale.fill_(50.0)
    context = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    shift = fusion.gate(semantic, generative, context).logit() - fusion.gate(semantic, generative).logit()
    assert shift.abs().min() > 1e-4 and (shift[0, 0] - shift[1, 0]).abs() > 1e-4
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=1e-3, atol=1e-5)
    assert not torch.allclose(fusion(semantic, generative, context=context), fusion(semantic, generative))
    with pytest.raises(ValueError, match=r"context \(2, 16\) expected, found \(1, 16\)"):
        fusion(semantic, generative, context=context[:1])


@torch.no_grad()
def test_cross_attention_sees_positions_and_takes_any_grid(streams: tuple[torch.Tensor, torch.Tensor]) -> None:
    semantic, generative = streams
    square = create_fusion("cross_attention", 16, num_heads=2).eval()
    flat = create_fusion("cross_attention", 16, num_heads=2, grid=(1, 9)).eval()
    assert not torch.allclose(square(semantic, generative), flat(semantic, generative), atol=1e-7)
    with pytest.raises(ValueError, match="8 tokens do not fill a 2x2 grid"):
        square(semantic[:, :8], generative[:, :8])
    assert torch.equal(sincos_position(2, 3, 8)[4, :4], sincos_position(2, 5, 8)[5, :4])


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_initialisation_is_seeded_small_and_leaves_the_global_state(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (create_fusion(name, 64, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in first.items():
        assert torch.equal(value, again[key])
        if value.ndim == 2:
            assert value.std().item() == pytest.approx(0.02, rel=0.3) and not torch.equal(value, other[key])
        elif value.ndim == 1:
            assert torch.equal(value, torch.ones(64) if "norm" in key and key.endswith("weight") else torch.zeros_like(value))


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_every_variant_trains_and_refuses_streams_that_do_not_match(name: str) -> None:
    fusion = create_fusion(name, 16)
    semantic, generative = torch.ones(2, 4, 16), torch.full((2, 4, 16), 0.5).requires_grad_()
    fusion(semantic, generative).square().sum().backward()
    assert generative.grad is not None and torch.isfinite(generative.grad).all()
    with pytest.raises(ValueError, match=r"two streams \(B, N, 16\), found \(2, 4, 16\) and \(2, 1, 16\)"):
        fusion(semantic, generative[:, :1])


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown fusion 'token_gate'\. Did you mean 'token_gated'.*cross_attention.*weighted"):
        create_fusion("token_gate", 8)
    with pytest.raises(UserError, match=r"unknown option of fusion cross_attention 'heads'.*num_heads"):
        create_fusion("cross_attention", 8, heads=2)
    with pytest.raises(UserError, match="divisible by 4 and by its 8 heads, found 12"):
        create_fusion("cross_attention", 12)
