"""A tiny cache in the real format: 32 px frames of coloured cells, targets that are smooth functions of the cells' colours."""

from pathlib import Path

import numpy as np
import pytest

from distill import RunConfig
from teacher.cache import CacheWriter, FeatureCache

CHANNELS = {"fused": 12, "generative": 8, "semantic": 4}


def clip(seed: int, frames: int = 4) -> dict[str, np.ndarray]:
    """One scene: a 2x2 grid of colours per frame, the frame itself with a little noise, three streams and their gate."""
    rng = np.random.default_rng(seed)
    cells = rng.uniform(0, 1, (frames, 2, 2, 3))
    pixels = cells.repeat(16, 1).repeat(16, 2) * 255 + rng.normal(0, 4, (frames, 32, 32, 3))
    arrays = {"rgb": pixels.clip(0, 255).astype(np.uint8), "frame_ids": np.arange(frames, dtype=np.int64)}
    for k, (name, channels) in enumerate(CHANNELS.items()):
        mix = np.random.default_rng([7, k]).normal(size=(3, channels))
        features = np.tanh((cells - 0.5) @ mix * 2) * np.linspace(0.5, 4, channels) + 3
        arrays[name] = features.transpose(0, 3, 1, 2).astype(np.float16)
    arrays["gate"] = cells.mean(-1)[:, None].astype(np.float16)
    return arrays


def write_cache(path: Path, scenes: int = 10, seed: int = 0) -> Path:
    ids = [f"scene-{i:03d}" for i in range(scenes)]
    writer = CacheWriter(path, {"seed": seed}, {"teacher": "tttt"}, ids, scenes_per_shard=4)
    for i, scene_id in enumerate(ids):
        writer.add(scene_id, clip(1000 * seed + i, frames=4 + i % 2))
    writer.finish()
    return path


@pytest.fixture(scope="session")
def cache_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("distill") / "cache")


@pytest.fixture(scope="session")
def cache(cache_path: Path) -> FeatureCache:
    return FeatureCache(cache_path)


@pytest.fixture
def quick() -> RunConfig:
    """A run of a second: 12 steps of 8 frames, logged at every second step, with float32 arithmetic."""
    return RunConfig(steps=12, batch=8, evaluate_every=6, log_every=2, precision="fp32", threads=1, progress=False)


@pytest.fixture
def another_cache_path(tmp_path: Path) -> Path:
    """The same scenes' names with other content."""
    return write_cache(tmp_path / "another", seed=1)
