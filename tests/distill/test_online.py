"""A teacher that answers on the fly: the run equals that from a cache, and teachers that cannot do it are refused."""

import dataclasses

import numpy as np
import pytest
import torch

from distill import train
from distill.dataset import gather, load_frames
from distill.online import SAMPLE, OnlineCache, sample
from student import load_student
from teacher.cache import CacheWriter, FeatureCache
from teacher.scenes import open_scenes
from vega_artifact import UserError, read_manifest

URI = "procedural:train?count=6&frames=3&size=32&seed=3"


class Teacher:
    """Answers with the colours of a 2x2 grid, mixed; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []

    def __call__(self, frames, scene, ids):
        self.asked.append((scene, list(ids)))
        cells = frames.reshape(len(frames), 2, 16, 2, 16, 3).mean((2, 4)) / 255
        fused = np.tanh(cells @ np.random.default_rng(0).normal(size=(3, 6))).transpose(0, 3, 1, 2)
        return {"fused": fused.astype(np.float32), "semantic": fused[:, :2].astype(np.float32)}


@pytest.fixture(scope="module")
def cached(tmp_path_factory) -> FeatureCache:
    source = open_scenes(URI)
    writer = CacheWriter(tmp_path_factory.mktemp("online") / "cache", {}, {"teacher": "t"}, list(source.scene_ids))
    for clip in (source[k] for k in range(len(source.scene_ids))):
        said = {name: value.astype(np.float16) for name, value in Teacher()(clip.rgb, clip.scene_id, []).items()}
        writer.add(clip.scene_id, said | {"rgb": clip.rgb, "frame_ids": np.asarray(clip.frame_ids)})
    writer.finish()
    return FeatureCache(writer.path)


def test_what_is_gathered_is_what_a_cache_holds(cached):
    teacher = Teacher()
    online = OnlineCache(URI, teacher, "t")
    assert online.streams == cached.streams and online.scene_ids == cached.scene_ids and online.frames == cached.frames
    live = online.live(online.scene_ids[:4], ["fused", "semantic"], None)
    stored = load_frames(cached, cached.scene_ids[:4], ["fused", "semantic"], None)
    teacher.asked.clear()
    rows = np.array([7, 0, 8, 2, 7])
    images, targets = live.gather(rows)
    expected_images, expected = gather(stored, rows)
    assert torch.equal(images, expected_images)
    assert all(torch.equal(targets[name], expected[name]) for name in expected)
    second, first = online.frame_ids[online.scene_ids[2]], online.frame_ids[online.scene_ids[0]]
    wanted = [(online.scene_ids[2], second[[1, 2, 1]].tolist()), (online.scene_ids[0], first[[0, 2]].tolist())]
    assert teacher.asked == wanted, "the frames of the batch and no others"


def test_an_online_run_ends_in_the_weights_of_a_cached_one(cached, quick, tmp_path):
    config = dataclasses.replace(quick, steps=4, weights={"fused": 1.0, "semantic": 0.5}, optimizer="adamw", crop=0.8)
    stored = train(cached.path, tmp_path / "stored", config)
    online = train(OnlineCache(URI, Teacher(), "t"), tmp_path / "online", config)
    first, second = load_student(stored).state_dict(), load_student(online).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    fingerprint = OnlineCache(URI, Teacher(), "t").fingerprint
    manifest = read_manifest(online, "run")
    assert manifest["parents"] == {"cache": fingerprint} and manifest["teacher"] == "t"
    assert OnlineCache(URI, Teacher(), "another").fingerprint != fingerprint


def test_teachers_that_cannot_answer_on_the_fly_are_refused():
    with pytest.raises(UserError, match=r"gives 1 maps of 3 frames in stream 'fused'; only a teacher .* extract a cache"):
        OnlineCache(URI, lambda frames, scene, ids: {"fused": np.zeros((1, 2, 2, 2), np.float32)}, "clip")
    with pytest.raises(UserError, match="NaN or infinity in scene .*, stream 'fused'"):
        OnlineCache(URI, lambda frames, scene, ids: {"fused": np.full((len(frames), 2, 2, 2), np.nan)}, "nan")
    with pytest.raises(UserError, match="unknown stream 'fuse'. Did you mean 'fused'"):
        OnlineCache(URI, Teacher(), "t").read(OnlineCache(URI, Teacher(), "t").scene_ids[0], "fuse")


def test_statistics_come_from_an_even_sample():
    scenes = [f"s{k}" for k in range(100)]
    assert len(sample(scenes)) == SAMPLE and sample(scenes)[0] == "s0" and sample(scenes)[-1] == "s99"
    assert sample(scenes[:5]) == scenes[:5]
