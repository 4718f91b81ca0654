"""Feature maps by model: layout, laziness, pieces, and refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import maps
from teacher.cache import CacheWriter, FeatureCache
from vega_artifact import UserError


def make_cache(path: Path, scenes: tuple[str, ...], teacher: str = "t0", frames: int = 3) -> FeatureCache:
    writer = CacheWriter(path, {"scenes": "none"}, {"teacher": teacher}, list(scenes), 2)
    random = np.random.default_rng(len(path.name))
    for name in scenes:
        writer.add(
            name,
            {
                "fused": random.normal(size=(frames, 5, 2, 4)).astype(np.float16),
                "semantic": random.normal(size=(frames, 6, 2, 4)).astype(np.float16),
                "rgb": random.integers(0, 256, (frames, 32, 64, 3), dtype=np.uint8),
                "frame_ids": np.arange(frames),
            },
        )
    writer.finish()
    return FeatureCache(path)


def test_streams_of_several_caches_under_one_name(tmp_path: Path) -> None:
    caches = [make_cache(tmp_path / "a", ("a0", "a1")), make_cache(tmp_path / "bb", ("b0",))]
    models = maps.collect(caches)
    assert list(models) == ["teacher", "semantic", "raw_patches"]
    assert sorted(models["teacher"]) == ["a0", "a1", "b0"]
    np.testing.assert_array_equal(models["teacher"]["b0"], caches[1].read("b0", "fused").astype(np.float32))
    assert models["semantic"]["a0"].shape == (3, 6, 2, 4)
    assert models["raw_patches"]["a0"].shape == (3, 3 * maps.PATCH**2, 2, 4)


def test_raw_patches_are_the_pixels_of_their_cell() -> None:
    frames = np.zeros((1, 16, 32, 3), np.uint8)  # two rows, four columns of cells at PATCH pixels: no resampling
    frames[0, 8:, 24:] = (255, 0, 51)
    found = maps.raw_patches(frames, (2, 4))
    assert found[0, :, 0].max() == 0 and found[0, :, 1, :3].max() == 0
    np.testing.assert_allclose(found[0, :, 1, 3].reshape(-1, 3), np.tile([1, 0, 0.2], (maps.PATCH**2, 1)), atol=1e-6)


def test_networks_are_fed_in_pieces_and_tokens_land_in_their_cell(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "a", ("a0",), frames=maps.STEP + 3)
    sizes = []

    def encode(frames: np.ndarray) -> dict[str, np.ndarray]:
        sizes.append(len(frames))
        tokens = np.tile(np.arange(8, dtype=np.float32)[None, :, None], (len(frames), 1, 2))
        return {"fused": tokens + frames.mean(axis=(1, 2, 3))[:, None, None]}

    found = maps.network_maps([cache], encode, (2, 4), "fused", Path("net"))["a0"]
    assert sizes == [maps.STEP, 3]
    assert found.shape == (maps.STEP + 3, 2, 2, 4)
    brightness = cache.read("a0", "rgb").mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found[:, 0, 1, 3], 7 + brightness, rtol=1e-5)
    with pytest.raises(UserError, match="net: no stream 'semantic'"):
        maps.network_maps([cache], encode, (2, 4), "semantic", Path("net"))["a0"]


def test_refusals(tmp_path: Path) -> None:
    first, other = make_cache(tmp_path / "a", ("a0",)), make_cache(tmp_path / "bb", ("b0",), teacher="t1")
    with pytest.raises(UserError, match=r"2 different teachers.*t0.*t1|2 different teachers.*t1.*t0"):
        maps.collect([first, other])
    with pytest.raises(UserError, match="no stream 'generative'"):
        maps.collect([first], stream="generative")
    with pytest.raises(UserError, match="no finished run"):
        maps.collect([first], run=tmp_path / "nowhere")
