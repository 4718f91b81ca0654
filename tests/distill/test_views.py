"""Pairs of views, and the places their tokens look at."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import views
from distill.relational import same_place
from distill.views import pair_indices, token_places
from teacher.cache import CacheWriter, FeatureCache
from teacher.scenes import open_scenes
from vega_artifact import UserError

URI = "procedural:train?count=2&seed=5&frames=4&size=32"
LENGTHS = [4, 1, 3]


def room_cache(path: Path, uri: str = URI, crop: str = "aligned", kept: slice = slice(None), **changes: str) -> FeatureCache:
    """A cache of rendered rooms whose targets are noise; `kept`: which frames of each clip it holds."""
    source = open_scenes(uri)
    config = {"scenes": source.uri, "scenes_fingerprint": source.fingerprint, "teacher": {"crop": crop}, **changes}
    writer = CacheWriter(path, config, {"teacher": "tttt"}, list(source.scene_ids))
    for clip in source:
        fused = np.random.default_rng(0).normal(size=(len(clip.rgb), 6, 4, 4)).astype(np.float16)
        writer.add(clip.scene_id, {"rgb": clip.rgb[kept], "frame_ids": clip.frame_ids[kept], "fused": fused[kept]})
    writer.finish()
    return FeatureCache(path)


def test_pairs_are_two_frames_of_one_scene():
    scene = np.repeat(np.arange(3), LENGTHS)
    pairs = np.concatenate([pair_indices(0, step, 8, LENGTHS) for step in range(20)]).reshape(-1, 2)
    assert np.array_equal(scene[pairs[:, 0]], scene[pairs[:, 1]])
    alone = pairs[:, 0] == LENGTHS[0]
    assert (pairs[alone, 1] == LENGTHS[0]).all() and (pairs[~alone, 0] != pairs[~alone, 1]).all()
    partners = {(int(a), int(b)) for a, b in pairs}
    assert partners == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (4, 4), (5, 6), (6, 5), (6, 7), (7, 6)}


def test_the_second_view_is_any_within_a_quarter_of_the_clip():
    pairs = np.concatenate([pair_indices(0, step, 64, [8, 16]) for step in range(30)]).reshape(-1, 2)
    short, long = pairs[pairs[:, 0] < 8], pairs[pairs[:, 0] >= 8]
    assert {b for a, b in short.tolist() if a == 5} == {3, 4, 6, 7} and {b for a, b in short.tolist() if a == 0} == {1, 2}
    assert {b - a for a, b in long.tolist()} == {-4, -3, -2, -1, 1, 2, 3, 4}


def test_pairs_are_a_function_of_seed_and_step_and_walk_through_every_frame():
    assert np.array_equal(pair_indices(1, 3, 8, LENGTHS), pair_indices(1, 3, 8, LENGTHS))
    assert not np.array_equal(pair_indices(1, 3, 8, LENGTHS), pair_indices(2, 3, 8, LENGTHS))
    epoch = np.concatenate([pair_indices(1, step, 4, LENGTHS)[::2] for step in range(4)])
    assert sorted(epoch) == list(range(8)), "the first of each pair"
    halves = np.concatenate([pair_indices(1, step, 4, LENGTHS) for step in (6, 7)])
    assert np.array_equal(pair_indices(1, 3, 8, LENGTHS), halves), "the row of pairs does not depend on the batch"


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(UserError, match="batch 7 cannot be made of pairs"):
        pair_indices(0, 0, 7, LENGTHS)
    with pytest.raises(UserError, match="every scene of this cache has one frame"):
        pair_indices(0, 0, 8, [1, 1])


def test_places_are_the_surface_points_of_the_rooms(tmp_path):
    cache = room_cache(tmp_path / "cache")
    places = token_places(cache, cache.scene_ids, (4, 4), "geometry")
    assert places.shape == (8, 16, 3) and places.dtype == torch.float32
    clip = open_scenes(URI)[1]
    expected = clip.world_points()[2].reshape(4, 8, 4, 8, 3)[1, :, 3].reshape(-1, 3)  # the pixels of row 1, column 3
    found = places[4 + 2, 1 * 4 + 3].numpy()
    assert (expected.min(0) - 0.1 <= found).all() and (found <= expected.max(0) + 0.1).all()
    assert same_place(places).any((1, 2)).all(), "neighbouring views share places"
    assert not same_place(places[[0, 4]]).all()


def test_places_follow_the_frames_that_the_cache_kept(tmp_path):
    whole = room_cache(tmp_path / "whole")
    some = room_cache(tmp_path / "some", kept=slice(1, 4, 2))
    expected = token_places(whole, whole.scene_ids, (4, 4), "auto")[[1, 3, 5, 7]]
    torch.testing.assert_close(token_places(some, some.scene_ids, (4, 4), "auto"), expected, equal_nan=True)


def test_rooms_are_looked_at_once_per_cache_and_grid(tmp_path, monkeypatch):
    cache = room_cache(tmp_path / "cache")
    first = token_places(cache, cache.scene_ids, (4, 4), "auto")
    monkeypatch.setattr(views, "open_scenes", lambda _: pytest.fail("opened again"))
    torch.testing.assert_close(token_places(FeatureCache(cache.path), cache.scene_ids, (4, 4), "auto"), first, equal_nan=True)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"crop": "cover"}, "saw a part of each frame"),
        ({"scenes_fingerprint": "0000"}, "no longer those it was made from"),
        ({"scenes": "folder:/no/such/place"}, "/no/such/place"),
    ],
)
def test_scenes_without_geometry_leave_it_to_the_tokens_unless_it_was_asked_for(change, sentence, tmp_path):
    cache = room_cache(tmp_path / "cache", **change)
    assert token_places(cache, cache.scene_ids, (4, 4), "auto") is None
    with pytest.raises(UserError, match=f"{sentence}.*use matches=tokens"):
        token_places(cache, cache.scene_ids, (4, 4), "geometry")
    assert token_places(cache, cache.scene_ids, (4, 4), "tokens") is None


def test_clips_without_depth_and_manifests_without_scenes_say_so(cache, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="does not say which scenes"):
        token_places(cache, cache.scene_ids, (2, 2), "geometry")
    rooms = room_cache(tmp_path / "rooms")
    source = open_scenes(URI)
    blind = replace(source, make=lambda index: replace(source.make(index), depth=None))
    monkeypatch.setattr(views, "open_scenes", lambda _: blind)
    with pytest.raises(UserError, match="world points need depth.*use matches=tokens"):
        token_places(rooms, rooms.scene_ids, (4, 4), "geometry")
