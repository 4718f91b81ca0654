"""The cache in memory, and an order that depends on seed and step alone."""

import shutil
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from distill.dataset import batch_indices, check_streams, gather, load_frames, split_scenes
from teacher.cache import FeatureCache
from vega_artifact import UserError, read_json, write_json


def test_frames_and_tokens_are_those_of_the_cache(cache):
    frames = load_frames(cache, cache.scene_ids[1:3], ["fused", "semantic"], None)
    first = cache[cache.scene_ids[1]]
    count = len(first["rgb"])
    assert len(frames) == count + len(cache[cache.scene_ids[2]]["rgb"]) and set(frames.targets) == {"fused", "semantic"}
    assert np.array_equal(frames.images[:count].numpy(), first["rgb"])
    token = frames.targets["fused"][1, 2]  # row-major: token 2 of a 2x2 grid is row 1, column 0
    assert np.array_equal(token.numpy(), first["fused"][1, :, 1, 0]) and token.dtype == torch.float16


def test_frames_know_how_many_belong_to_each_scene(cache):
    frames = load_frames(cache, cache.scene_ids[1:4], ["generative"], None)
    assert frames.lengths == tuple(cache.frames[scene] for scene in cache.scene_ids[1:4]) and sum(frames.lengths) == len(frames)
    moved = replace(frames, places=torch.zeros(len(frames), 4, 3)).to(torch.device("cpu"))
    assert moved.lengths == frames.lengths and moved.nbytes() == frames.nbytes() + len(frames) * 4 * 3 * 4


def test_frames_are_resized_on_request(cache):
    frames = load_frames(cache, cache.scene_ids[:1], ["fused"], (64, 48))
    assert frames.images.shape[1:] == (64, 48, 3) and frames.images.dtype == torch.uint8
    original = cache[cache.scene_ids[0]]["rgb"]
    assert abs(frames.images.float().mean().item() - original.mean()) < 2


def test_the_order_is_a_function_of_seed_and_step():
    assert np.array_equal(batch_indices(1, 5, 8, 30), batch_indices(1, 5, 8, 30))
    assert not np.array_equal(batch_indices(1, 5, 8, 30), batch_indices(2, 5, 8, 30))
    epoch = np.concatenate([batch_indices(1, step, 8, 32) for step in range(4)])
    following = np.concatenate([batch_indices(1, step, 8, 32) for step in range(4, 8)])
    assert sorted(epoch) == sorted(following) == list(range(32)) and not np.array_equal(epoch, following)
    assert np.bincount(batch_indices(0, 0, 50, 20), minlength=20).min() >= 2, "a batch may be larger than the data"


def test_gather_takes_images_and_targets_together(cache):
    frames = load_frames(cache, cache.scene_ids, ["fused"], None)
    images, targets = gather(frames, np.array([3, 0]))
    assert torch.equal(images[0], frames.images[3]) and torch.equal(targets["fused"][1], frames.targets["fused"][0])


def test_validation_is_the_last_part_of_the_scenes():
    scenes = [str(i) for i in range(50)]
    assert split_scenes(scenes, 0.06) == (scenes[:47], scenes[47:])
    assert split_scenes(scenes[:2], 0.06) == (["0"], ["1"]), "at least one scene"
    assert split_scenes(scenes, 0.0) == (scenes, [])
    with pytest.raises(UserError, match="1 scenes cannot be split"):
        split_scenes(scenes[:1], 0.06)


def test_unusable_streams_are_named(cache, cache_path, tmp_path):
    assert check_streams(cache, ["fused", "semantic"]) == (2, 2)
    with pytest.raises(UserError, match=r"unknown stream .*'fusde'.*'fused'"):
        check_streams(cache, ["fusde"])
    changed = tmp_path / "changed"
    shutil.copytree(cache_path, changed)
    manifest = read_json(changed / "manifest.json")
    manifest["streams"]["semantic"]["shape"] = [4, 1, 4]
    write_json(changed / "manifest.json", manifest)
    with pytest.raises(UserError, match="different grids"):
        check_streams(FeatureCache(changed), ["fused", "semantic"])
    del manifest["streams"]["rgb"]
    write_json(changed / "manifest.json", manifest)
    with pytest.raises(UserError, match="no 'rgb' frames"):
        check_streams(FeatureCache(changed), ["fused"])


def test_what_does_not_fit_into_memory_is_refused_before_it_is_read(cache, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(UserError, match="does not fit into memory"):
        load_frames(cache, cache.scene_ids, ["fused"], None)


def test_a_target_that_is_not_finite_is_named(cache, monkeypatch):
    read = cache.read

    def poisoned(scene_id, stream):
        array = read(scene_id, stream)
        if (scene_id, stream) == ("scene-001", "semantic"):
            array = array.copy()
            array[0, 0, 0, 0] = np.nan
        return array

    monkeypatch.setattr(cache, "read", poisoned)
    with pytest.raises(UserError, match=r"NaN or infinity in scene 'scene-001', stream 'semantic'"):
        load_frames(cache, cache.scene_ids, ["fused", "semantic"], None)
