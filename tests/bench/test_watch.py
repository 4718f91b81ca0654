"""Probes on the way: what they answer for a perfect and a blind student, and whose rooms they ask about.

python -m pytest tests/bench/test_watch.py
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import maps
from bench.watch import Watch, spread
from distill import RunConfig, train
from distill.log import read_log
from student import Preprocess
from teacher.cache import CacheWriter, FeatureCache
from teacher.scenes import open_scenes
from vega_artifact import UserError

URI = "procedural:train?count=8&frames=4&size=32&seed=4&span=0.3"
CONFIG = RunConfig(weights={"fused": 1.0, "semantic": 0.5}, validation_part=0.5, steps=4, batch=8, evaluate_every=2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    """A teacher that knows more than colours: its tokens are the depths of the cell, mixed, beside a smooth picture."""
    source = open_scenes(URI)
    config = {"scenes": source.uri, "scenes_fingerprint": source.fingerprint}
    writer = CacheWriter(tmp_path_factory.mktemp("watch") / "cache", config, {"teacher": "depth"}, list(source.scene_ids))
    mix = np.random.default_rng(0).normal(size=(3 + 4, 12))
    for clip in (source[k] for k in range(len(source.scene_ids))):
        cells = np.log(np.where(clip.depth > 0, clip.depth, 1.0)).reshape(len(clip.rgb), 4, 8, 4, 8).mean((2, 4))
        colour = clip.rgb.reshape(len(clip.rgb), 4, 8, 4, 8, 3).mean((2, 4)) / 255
        known = np.concatenate([colour, np.stack([cells, cells**2, np.sin(3 * cells), np.cos(3 * cells)], -1)], -1)
        fused = (known @ mix).transpose(0, 3, 1, 2).astype(np.float16)
        arrays = {"rgb": clip.rgb, "frame_ids": np.asarray(clip.frame_ids), "fused": fused, "semantic": fused[:, :3]}
        writer.add(clip.scene_id, arrays)
    writer.finish()
    return FeatureCache(writer.path)


@pytest.fixture(scope="module")
def watch(cache: FeatureCache) -> Watch:
    return Watch(cache, CONFIG)


class Answers(torch.nn.Module):
    """A student that gives prepared tokens, whatever it is shown."""

    def __init__(self, cache: FeatureCache, blind: bool) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.preprocess = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(32, 32))
        self.grid = (4, 4)
        frames = [(cache.read(scene, "rgb"), cache.read(scene, "fused")) for scene in cache.scene_ids]
        self.known = {rgb[k].tobytes(): value[k] for rgb, value in frames for k in range(len(rgb))}
        self.blind = blind

    def film(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        frames = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        tokens = np.stack([self.known[frame.tobytes()] for frame in frames]).astype(np.float32)
        answer = torch.from_numpy(tokens).flatten(2).transpose(1, 2)
        return {"fused": torch.zeros_like(answer) if self.blind else answer}


def test_a_perfect_student_keeps_everything_and_a_blind_one_nothing(watch: Watch, cache: FeatureCache) -> None:
    perfect, blind = watch(Answers(cache, blind=False)), watch(Answers(cache, blind=True))
    for name in ("depth_r2", "correspondence"):
        assert perfect.numbers[name] == pytest.approx(perfect.numbers[f"teacher/{name}"], abs=1e-6)
        assert blind.numbers[name] < perfect.numbers[name]
    assert perfect.numbers["kept/depth_r2"] == pytest.approx(1.0, abs=1e-4) and blind.numbers["kept/depth_r2"] < 0.9
    assert perfect.numbers["teacher/correspondence"] < perfect.numbers["raw_patches/correspondence"], (
        "this one adds nothing here"
    )
    assert "kept/correspondence" not in perfect.numbers
    assert sorted(perfect.pictures) == ["pca-0-student", "pca-0-teacher", "pca-1-student", "pca-1-teacher"]
    assert perfect.pictures["pca-0-student"] == perfect.pictures["pca-0-teacher"] != blind.pictures["pca-0-student"]


def test_it_judges_rooms_that_the_student_does_not_learn_from(watch: Watch, cache: FeatureCache) -> None:
    assert watch.rooms.names("train") == cache.scene_ids[:4]
    assert watch.rooms.names("val") == cache.scene_ids[4:6] and watch.rooms.names("test") == cache.scene_ids[6:]
    assert spread("abcdefgh", 3) == ["a", "e", "h"] and spread("ab", 3) == ["a", "b"]


def test_it_writes_into_the_log_of_a_run(watch: Watch, cache: FeatureCache, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, optimizer="adamw", precision="fp32", log_every=2, progress=False, threads=1)
    run = train(cache.path, tmp_path / "run", config, probes=watch)
    probed = [record for record in read_log(run / "log.jsonl") if "probes" in record]
    assert [record["step"] for record in probed] == [2, 4] and "kept/depth_r2" in probed[0]["probes"]
    assert (run / "pictures" / "pca-0-student-00000004.png").read_bytes()[:4] == b"\x89PNG"


def test_too_few_rooms_and_rooms_without_depth_are_refused(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"probes need 2 rooms .* validation_part 0.1 keeps 1; raise it"):
        Watch(cache, dataclasses.replace(CONFIG, validation_part=0.1))
    opened = maps.open_scenes

    class Flat:
        """The same scenes without their depth."""

        def __init__(self, uri: str) -> None:
            self.source = opened(uri)
            self.scene_ids = self.source.scene_ids

        def __getitem__(self, index: int):
            return dataclasses.replace(self.source[index], depth=None)

    monkeypatch.setattr("bench.watch.open_scenes", Flat)
    with pytest.raises(UserError, match="probes need depth and poses, it has none"):
        Watch(cache, CONFIG)
