"""The semantic stream on a small SigLIP with fresh weights: which layer, which grid, which pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from teacher.semantic import SemanticEncoder, load_semantic, project_then_pool
from teacher.streams import projector
from vega_artifact import UserError

LAYERS, WIDTH = 3, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("siglip")
    config = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2, image_size=48, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        SiglipVisionModel(config).save_pretrained(path)
    return path


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)


@torch.no_grad()
def hidden_state(folder: Path, frames: np.ndarray, layer: int) -> torch.Tensor:
    """What transformers itself gives after `layer` encoder layers, (T, C, 6, 6)."""
    model = SiglipVisionModel.from_pretrained(folder).eval()
    pixels = torch.from_numpy(frames).movedim(-1, 1).float() / 127.5 - 1
    found = model(pixel_values=pixels, output_hidden_states=True).hidden_states[layer]
    return found.transpose(1, 2).unflatten(2, (6, 6))


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_tokens_are_the_output_of_the_wanted_layer(folder: Path, frames: np.ndarray, layer: int) -> None:
    encoder = load_semantic(folder, layer=layer, grid=(6, 6))
    assert len(encoder.encoder.layers) == layer and encoder.channels == WIDTH
    found = encoder.features(frames)
    assert found.shape == (3, WIDTH, 6, 6) and found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, hidden_state(folder, frames, layer), rtol=1e-4, atol=1e-5)


def test_default_is_all_layers_but_the_last(folder: Path, frames: np.ndarray) -> None:
    encoder = load_semantic(folder, grid=(6, 6))
    assert len(encoder.encoder.layers) == LAYERS - 1
    torch.testing.assert_close(encoder.features(frames), hidden_state(folder, frames, LAYERS - 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 3), (4, 5), (14, 14)], ids=str)
def test_other_grids_are_bilinear(folder: Path, frames: np.ndarray, grid: tuple[int, int]) -> None:
    native = load_semantic(folder, grid=(6, 6)).features(frames)
    expected = F.interpolate(native, grid, mode="bilinear", align_corners=False)
    torch.testing.assert_close(load_semantic(folder, grid=grid).features(frames), expected)


@torch.no_grad()
def test_projection_on_the_towers_own_grid_comes_before_pooling(folder: Path, frames: np.ndarray) -> None:
    native = load_semantic(folder, grid=None).features(frames)
    assert native.shape == (3, WIDTH, 6, 6)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        project = projector(WIDTH, 8)
    found = project_then_pool(native, project, (3, 3))
    each = torch.stack([project(native[:, :, row, column]) for row in range(6) for column in range(6)], dim=-1)
    expected = F.interpolate(each.unflatten(-1, (6, 6)), (3, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    pooled_first = project(load_semantic(folder, grid=(3, 3)).features(frames).flatten(2).transpose(1, 2))
    assert not torch.allclose(found.flatten(2).transpose(1, 2), pooled_first, atol=1e-4), "the projector is no linear map"


def test_batch_size_changes_nothing(folder: Path, frames: np.ndarray) -> None:
    one, many = (SemanticEncoder(SiglipVisionModel.from_pretrained(folder), 2, (6, 6), batch) for batch in (1, 64))
    torch.testing.assert_close(one.features(frames), many.features(frames), rtol=1e-5, atol=1e-6)


def test_frames_of_another_size_are_resized_whole(folder: Path) -> None:
    encoder = load_semantic(folder, grid=(6, 6))
    wide = np.random.default_rng(1).integers(0, 256, (1, 100, 260, 3), dtype=np.uint8)
    pixels = torch.from_numpy(wide).movedim(-1, 1).float() / 255
    square = F.interpolate(pixels, (48, 48), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(encoder.features(wide), encoder.features(square), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, -1, LAYERS + 1])
def test_layer_out_of_range(folder: Path, layer: int) -> None:
    with pytest.raises(UserError, match=rf"semantic layer {layer}: 1\.\.{LAYERS} expected"):
        load_semantic(folder, layer=layer)


def test_bad_folders(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no SigLIP vision tower loads from here"):
        load_semantic(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="no SigLIP vision tower loads from here"):
        load_semantic(tmp_path)


def test_truncated_weights(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="no SigLIP vision tower loads from here"):
        load_semantic(tmp_path)


def test_bad_frames(folder: Path) -> None:
    with pytest.raises(UserError, match="frame 0 holds NaN"):
        load_semantic(folder).features(torch.full((1, 3, 48, 48), float("nan")))
