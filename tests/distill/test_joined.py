"""Several caches as one: streams by name, frames of the first, and clear words when they do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.dataset import check_streams, load_frames
from distill.joined import JoinedCache, open_caches
from distill.normalize import estimate_from
from teacher.cache import DERIVED, CacheWriter, FeatureCache
from tests.distill.conftest import clip, write_cache
from vega_artifact import UserError


def second_cache(path: Path, scenes: list[str], dense: str = "dense", **changes: np.ndarray | None) -> Path:
    """Another teacher of the same rooms; `changes` replace arrays of the first scene, None leaves one out everywhere."""
    writer = CacheWriter(path, {"seed": 0}, {"teacher": "uuuu"}, scenes)
    for i, scene in enumerate(scenes):
        arrays = clip(i, frames=4 + i % 2)
        arrays[dense] = (arrays["generative"] * 2 + 1).astype(np.float16)
        for name in ("semantic", "gate"):
            del arrays[name]
        for name, value in changes.items():
            if value is None:
                del arrays[name]
            elif i == 0:
                arrays[name] = value
        writer.add(scene, arrays)
    writer.finish()
    return path


@pytest.fixture
def pair(cache: FeatureCache, cache_path: Path, tmp_path: Path) -> tuple[Path, Path]:
    return cache_path, second_cache(tmp_path / "second", cache.scene_ids)


def test_one_path_is_that_cache(cache_path):
    for given in (cache_path, str(cache_path), [cache_path]):
        found = open_caches(given)
        assert type(found) is FeatureCache and found.path == cache_path


def test_streams_of_further_caches_carry_their_name(pair, cache):
    joined = open_caches([pair[0], f"other={pair[1]}"])
    assert isinstance(joined, JoinedCache) and joined.scene_ids == cache.scene_ids and joined.frames == cache.frames
    assert set(joined.streams) == {*cache.streams, "other_fused", "other_generative", "other_dense"}
    scene, second = cache.scene_ids[1], FeatureCache(pair[1])
    assert np.array_equal(joined.read(scene, "fused"), cache.read(scene, "fused"))
    assert np.array_equal(joined.read(scene, "other_dense"), second.read(scene, "dense"))
    assert np.array_equal(joined.frame(scene, 2, "other_dense"), second.frame(scene, 2, "dense"))
    assert np.array_equal(joined.view(scene, "rgb"), cache.view(scene, "rgb"))
    joined.verify()


def test_a_student_may_learn_from_both(pair):
    joined = open_caches([pair[0], f"other={pair[1]}"])
    names = ["fused", "other_dense"]
    assert check_streams(joined, names) == (2, 2)
    frames = load_frames(joined, joined.scene_ids[:3], names, None)
    assert {name: tuple(value.shape) for name, value in frames.targets.items()} == {
        "fused": (13, 4, 12),
        "other_dense": (13, 4, 8),
    }
    assert frames.lengths == (4, 5, 4)


def test_the_fingerprint_is_that_of_the_list(pair, another_cache_path, tmp_path):
    joined = open_caches([pair[0], f"other={pair[1]}"])
    assert joined.fingerprint == open_caches([pair[0], f"other={pair[1]}"]).fingerprint
    prints = {open_caches([pair[0], f"x={pair[1]}"]).fingerprint, joined.fingerprint, FeatureCache(pair[0]).fingerprint}
    assert len(prints) == 3 and joined.manifest["parents"] == {"teacher": "tttt"}, "named for the teacher of the frames"


def test_statistics_are_kept_with_the_cache_a_stream_lies_in(tmp_path):
    first = write_cache(tmp_path / "first", scenes=3)
    second = second_cache(tmp_path / "second", FeatureCache(first).scene_ids)
    joined = open_caches([first, f"other={second}"])
    _, mean = estimate_from(joined, "other_dense", joined.scene_ids, "standardize")
    kept = list((second / DERIVED).iterdir())
    assert len(kept) == 1 and not (first / DERIVED).exists()
    alone = FeatureCache(second)
    _, same = estimate_from(alone, "dense", alone.scene_ids, "standardize")
    assert torch.equal(mean, same) and list((second / DERIVED).iterdir()) == kept


def test_lists_that_cannot_be_meant_are_refused(pair):
    first, second = pair
    with pytest.raises(UserError, match="no cache given"):
        open_caches([])
    with pytest.raises(UserError, match=r"each after the first is written NAME=PATH.*dino=runs/dino"):
        open_caches([first, second])
    with pytest.raises(UserError, match="NAME must be letters"):
        open_caches([first, f"my-dino={second}"])
    with pytest.raises(UserError, match="'other' is given twice"):
        open_caches([first, f"other={second}", f"other={second}"])


def test_two_streams_of_one_name_are_refused(cache, pair, tmp_path):
    first = second_cache(tmp_path / "first", cache.scene_ids, dense="other_dense")
    with pytest.raises(UserError, match="stream 'other_dense' is there already; choose another NAME"):
        open_caches([first, f"other={pair[1]}"])
    assert "x_dense" in open_caches([first, f"x={pair[1]}"]).streams


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"frame_ids": np.arange(4, dtype=np.int64) + 1}, r"holds other frames of scene 'scene-000'"),
        ({"rgb": np.zeros((4, 32, 32, 3), np.uint8)}, r"shows something else than .* in scene 'scene-000'"),
    ],
)
def test_other_frames_under_the_same_names_are_refused(change, sentence, pair, cache, tmp_path):
    other = second_cache(tmp_path / "changed", cache.scene_ids, **change)
    with pytest.raises(UserError, match=sentence):
        open_caches([pair[0], f"other={other}"])


def test_a_cache_that_lacks_scenes_is_refused(pair, cache, tmp_path):
    other = second_cache(tmp_path / "short", cache.scene_ids[:-2])
    with pytest.raises(UserError, match=r"lacks 2 scenes of .*, for example 'scene-008'"):
        open_caches([pair[0], f"other={other}"])


def test_a_cache_without_frames_joins_by_its_ids(pair, cache, tmp_path):
    other = second_cache(tmp_path / "bare", cache.scene_ids, rgb=None)
    assert "bare_dense" in open_caches([pair[0], f"bare={other}"]).streams
