"""Published VEGA-3D checkpoints: names, shapes and values of their fusion, projectors and merger, on small random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from teacher.fusion import FUSIONS, create_fusion
from teacher.merger import Merger
from teacher.published import from_state, load_published
from teacher.streams import projector
from vega_artifact import UserError

CHANNELS, WIDTH, HIDDEN = 12, 16, 20


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spatial(gates: int = 1) -> dict[str, Tensor]:
    """The names of the spatial-reasoning branch, with a tensor of the language model that is none of our business."""
    shapes = {
        "generative_merger.ln_q.weight": (CHANNELS,),
        "generative_merger.mlp.0.weight": (HIDDEN, 4 * CHANNELS),
        "generative_merger.mlp.0.bias": (HIDDEN,),
        "generative_merger.mlp.2.weight": (WIDTH, HIDDEN),
        "generative_merger.mlp.2.bias": (WIDTH,),
        "generative_fusion.norm1.weight": (WIDTH,),
        "generative_fusion.norm1.bias": (WIDTH,),
        "generative_fusion.norm2.weight": (WIDTH,),
        "generative_fusion.norm2.bias": (WIDTH,),
        "generative_fusion.gate_projection.0.weight": (gates, 2 * WIDTH),
        "generative_fusion.gate_projection.0.bias": (gates,),
        "generative_fusion.residual_scale": (),
        "model.embed_tokens.weight": (3, WIDTH),
    }
    return {name: drawn(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}


def scene(method: str) -> dict[str, Tensor]:
    """The names of the scene-understanding branch."""
    parts: dict[str, nn.Module] = {
        "model.mm_projector.": projector(9, WIDTH),
        "model.generative_projector.": projector(CHANNELS, WIDTH),
        "model.feature_fusion.": create_fusion(method, WIDTH, **({"num_layers": 2} if method == "cross_attention" else {})),
    }
    state = {prefix + name: value for prefix, part in parts.items() for name, value in part.state_dict().items()}
    return {name: drawn(tuple(value.shape), seed) for seed, (name, value) in enumerate(state.items())}


@torch.no_grad()
def test_spatial_branch_from_shards(tmp_path: Path) -> None:
    state = spatial()
    names = sorted(state)
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: state[name] for name in part}, tmp_path / f"model-0000{number + 1}-of-00002.safetensors")
    found = load_published(tmp_path)
    assert (found.branch, found.method) == ("spatial", "token_gated_residual")
    maps = drawn((2, CHANNELS, 5, 6), 50)
    assert found.merger is not None
    merged = found.merger(maps)
    assert merged.shape == (2, WIDTH, 2, 3)

    block = maps[1, :, 2:4, 4:6]  # rows first, as the reference's reshape and permute leave it
    normed = (
        block / (block.square().mean(0, keepdim=True) + 1e-6).sqrt() * state["generative_merger.ln_q.weight"][:, None, None]
    )
    flat = normed.permute(1, 2, 0).flatten()
    hidden = nn.functional.gelu(state["generative_merger.mlp.0.weight"] @ flat + state["generative_merger.mlp.0.bias"])
    expected = state["generative_merger.mlp.2.weight"] @ hidden + state["generative_merger.mlp.2.bias"]
    torch.testing.assert_close(merged[1, :, 1, 2], expected, rtol=1e-4, atol=1e-4)

    own = create_fusion("token_gated_residual", WIDTH)
    prefix = "generative_fusion."
    own.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    streams = drawn((1, 4, WIDTH), 60), drawn((1, 4, WIDTH), 61)
    assert torch.equal(found.fusion(*streams), own(*streams))


@pytest.mark.parametrize("method", sorted(set(FUSIONS) - {"only"}))
def test_scene_branch_tells_its_fusion(method: str) -> None:
    state = scene(method) | {"model.image_newline": drawn((WIDTH,), 70)}
    found = from_state(state)
    assert (found.branch, found.method) == ("scene", method)
    assert found.newline is not None and torch.equal(found.newline, state["model.image_newline"])
    assert found.semantic_projector is not None and found.generative_projector is not None
    assert torch.equal(found.semantic_projector[2].bias, state["model.mm_projector.2.bias"])
    assert torch.equal(found.generative_projector[0].weight, state["model.generative_projector.0.weight"])
    for name, value in found.fusion.state_dict().items():
        assert torch.equal(value, state[f"model.feature_fusion.{name}"])


def test_weighted_of_the_spatial_branch_has_another_name() -> None:
    state = {name: value for name, value in spatial().items() if "fusion" not in name}
    state |= {"generative_fusion.weight_2d": torch.tensor(0.25), "generative_fusion.weight_3d": torch.tensor(0.75)}
    found = from_state(state)
    assert found.method == "weighted" and found.fusion.state_dict()["weight_gen"].item() == 0.75


def test_parameter_counts_of_the_paper() -> None:
    counts = {}
    with torch.device("meta"):
        modules = {
            "semantic": projector(1152, 3584),
            "generative": projector(1536, 3584),
            "merger 7B": Merger(1536, 3584),
            "merger 3B": Merger(1536, 2048),
            "avg": Merger(1536, 3584, "avg"),
        }
    for name, module in modules.items():
        counts[name] = sum(parameter.numel() for parameter in module.parameters())
    assert counts == {
        "semantic": 16_980_992,
        "generative": 18_357_248,
        "merger 7B": 39_855_104,
        "merger 3B": 33_562_112,
        "avg": 20_979_200,
    }


@torch.no_grad()
def test_merger_resizes_to_the_patches_of_the_vision_tower() -> None:
    merger = Merger(CHANNELS, WIDTH, "avg", HIDDEN)
    maps = drawn((1, CHANNELS, 30, 52), 80)
    assert merger(maps, (28, 36)).shape == (1, WIDTH, 14, 18), "252 tokens of a 4:3 frame"
    constant = maps[..., :1, :1].expand(-1, -1, 6, 4)
    torch.testing.assert_close(merger(constant, (4, 4))[0, :, 1, 1], merger(constant)[0, :, 0, 0])


def test_bad_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no .safetensors file in it"):
        load_published(tmp_path)
    save_file({"model.embed_tokens.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"no generative branch in it, tensors generative_merger\.\* or"):
        load_published(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(UserError, match="model.safetensors: not a readable safetensors file"):
        load_published(tmp_path)
    with pytest.raises(UserError, match="a fusion with the tensors surprise is none of ours"):
        from_state(
            {name: value for name, value in spatial().items() if "fusion" not in name}
            | {"generative_fusion.surprise": torch.ones(1)}
        )
    with pytest.raises(UserError, match="its token_gated_residual fusion does not fit a width of 16"):
        from_state(spatial() | {"generative_fusion.norm1.weight": torch.ones(3)})
