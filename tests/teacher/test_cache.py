"""The feature cache: what goes in comes out, resumes to identical bytes after SIGKILL, and refuses what is wrong with it."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from teacher import writer as cache_module
from teacher.cache import CacheWriter, FeatureCache
from teacher.writer import differences
from vega_artifact import UserError

CONFIG = {"teacher": "tiny", "sigma": 0.3, "block": 4}
PARENTS = {"teacher": "0123456789abcdef"}
ROOT = Path(__file__).resolve().parents[2]


def scene_names(count: int) -> list[str]:
    return [f"procedural-test-s1-{i:05d}" for i in range(count)]


def clip(scene_id: str) -> dict[str, np.ndarray]:
    """A clip that depends on its id alone; T differs between clips."""
    index = int(scene_id[-5:])
    frames, rng = 2 + index % 3, np.random.default_rng(index)
    return {
        "fused": rng.standard_normal((frames, 8, 4, 4)).astype(np.float16),
        "gate": rng.random((frames, 1, 4, 4)).astype(np.float16),
        "rgb": rng.integers(0, 256, (frames, 16, 16, 3), dtype=np.uint8),
        "frame_ids": np.arange(frames, dtype=np.int64) * 3,
    }


def fill(path: Path, count: int = 7, scenes_per_shard: int = 3, pause: float = 0.0) -> list[str]:
    """Make (or finish) the cache at `path`; returns the scenes that had to be computed."""
    writer = CacheWriter(path, CONFIG, PARENTS, scene_names(count), scenes_per_shard)
    todo = writer.missing()
    for scene_id in todo:
        time.sleep(pause)
        writer.add(scene_id, clip(scene_id))
    writer.finish()
    return todo


def content(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in sorted(path.iterdir())}


@pytest.fixture
def cache_path(tmp_path: Path) -> Path:
    fill(tmp_path / "cache")
    return tmp_path / "cache"


def test_what_goes_in_comes_out(cache_path: Path) -> None:
    cache = FeatureCache(cache_path)
    assert cache.scene_ids == scene_names(7) and len(cache) == 7
    assert cache.streams == {"fused": (8, 4, 4), "gate": (1, 4, 4)}
    assert cache.manifest["parents"] == PARENTS and cache.manifest["config"] == CONFIG
    for scene_id in reversed(cache.scene_ids):
        expected, found = clip(scene_id), cache[scene_id]
        assert found.keys() == expected.keys()
        for stream, array in expected.items():
            assert found[stream].dtype == array.dtype
            np.testing.assert_array_equal(found[stream], array)
            np.testing.assert_array_equal(cache.frame(scene_id, len(array) - 1, stream), array[-1])
        assert cache.frames[scene_id] == len(expected["rgb"])
    cache.verify()


def test_shards_hold_planned_scenes_whatever_the_order_of_adding(tmp_path: Path, cache_path: Path) -> None:
    writer = CacheWriter(tmp_path / "other", CONFIG, PARENTS, scene_names(7), 3)
    for scene_id in reversed(scene_names(7)):
        writer.add(scene_id, dict(reversed(clip(scene_id).items())))
    writer.finish()
    assert content(tmp_path / "other") == content(cache_path)


def test_handles_survive_pickling(cache_path: Path) -> None:
    cache = FeatureCache(cache_path)
    first = cache[cache.scene_ids[0]]["fused"]
    assert first.flags.writeable, "what is read is the reader's own"
    copy = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(copy[copy.scene_ids[0]]["fused"], first)


def test_views_copy_nothing_and_cannot_be_written_to(cache_path: Path) -> None:
    cache, scene = FeatureCache(cache_path), scene_names(7)[4]
    for stream, expected in clip(scene).items():
        seen = cache.view(scene, stream)
        np.testing.assert_array_equal(seen, expected)
        assert np.shares_memory(seen, cache.view(scene, stream)) and not np.shares_memory(seen, cache.read(scene, stream))
        with pytest.raises(ValueError, match="read-only"):
            seen[0] = 0
    del cache
    np.testing.assert_array_equal(seen, expected)  # a view outlives the cache object


def test_unknown_scene_stream_and_frame(cache_path: Path) -> None:
    cache = FeatureCache(cache_path)
    with pytest.raises(UserError, match=r"no scene 'procedural-test-s1-0000x'.*did you mean"):
        cache["procedural-test-s1-0000x"]
    with pytest.raises(UserError, match=r"unknown stream 'fussed'.*'fused'.*Known: frame_ids, fused, gate, rgb"):
        cache.frame(cache.scene_ids[0], 0, "fussed")
    with pytest.raises(IndexError, match="frame 2 of"):
        cache.frame(cache.scene_ids[0], 2, "fused")


@pytest.mark.parametrize("delays", [(None,), (0.0, 0.1, 0.25, 0.45)], ids=["after the first shard", "wherever it is"])
def test_killed_and_restarted_gives_identical_bytes(tmp_path: Path, cache_path: Path, delays: tuple[float | None, ...]) -> None:
    """A real process gets SIGKILL when its first shard is there, or several times at whatever it is doing."""
    target = tmp_path / "killed"
    code = "from pathlib import Path; from tests.teacher.test_cache import fill; print('go', flush=True); "
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    for delay in delays:
        command = [sys.executable, "-c", f"{code}fill(Path({str(target)!r}), pause={0.3 if delay is None else 0.04})"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        while delay is None and process.poll() is None and not (target / "shard-00000.json").exists():
            time.sleep(0.01)
        time.sleep(delay or 0.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL or delay, "it was to die in the middle"
    recomputed = fill(target)
    if delays == (None,):
        assert recomputed in (scene_names(7)[3:], scene_names(7)[6:]), "the finished shard was not reused"
    assert content(target) == content(cache_path)


def test_half_written_files_are_swept(tmp_path: Path, cache_path: Path) -> None:
    target = tmp_path / "cache2"
    writer = CacheWriter(target, CONFIG, PARENTS, scene_names(7), 3)
    for scene_id in scene_names(7)[:3]:
        writer.add(scene_id, clip(scene_id))
    (target / ".shard-00001.safetensors.abc.tmp").write_bytes(b"half")
    (target / ".manifest.json.abc.tmp").write_bytes(b"{")
    (target / "shard-00002.safetensors").write_bytes(b"shard without side-car: killed between the two")
    fill(target)
    assert content(target) == content(cache_path)


def test_finished_cache_is_reused(cache_path: Path) -> None:
    before, stamps = content(cache_path), {p.name: p.stat().st_mtime_ns for p in cache_path.glob("shard*")}
    assert fill(cache_path) == []
    assert content(cache_path) == before
    assert {p.name: p.stat().st_mtime_ns for p in cache_path.glob("shard*")} == stamps


def test_another_plan_is_refused_and_nothing_overwritten(cache_path: Path) -> None:
    before = content(cache_path)
    with pytest.raises(UserError, match=r"config\.sigma: 0\.3 -> 0\.5"):
        CacheWriter(cache_path, {**CONFIG, "sigma": 0.5}, PARENTS, scene_names(7), 3)
    with pytest.raises(UserError, match=r"parents\.teacher: '0123456789abcdef' -> 'other'"):
        CacheWriter(cache_path, CONFIG, {"teacher": "other"}, scene_names(7), 3)
    with pytest.raises(UserError, match=r"scene_ids: 7 -> 8 entries, first difference at 7"):
        CacheWriter(cache_path, CONFIG, PARENTS, scene_names(8), 3)
    assert content(cache_path) == before


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(UserError, match="is no cache"):
        CacheWriter(tmp_path, CONFIG, PARENTS, scene_names(2))
    assert content(tmp_path) == {"holiday.jpg": b"precious"}


def test_unfinished_cache_cannot_be_opened_or_finished(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", CONFIG, PARENTS, scene_names(4), 3)
    for scene_id in scene_names(4)[:3]:
        writer.add(scene_id, clip(scene_id))
    with pytest.raises(UserError, match="1 of 2 shards missing; run extract again"):
        writer.finish()
    with pytest.raises(UserError, match="no finished cache"):
        FeatureCache(tmp_path / "cache")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    writer = CacheWriter(tmp_path / "cache", CONFIG, PARENTS, scene_names(3), 1)
    bad = clip(scene_names(3)[1])
    bad["fused"][2, 5, 1, 1] = value
    with pytest.raises(UserError, match="'procedural-test-s1-00001', stream 'fused', frame 2: NaN or Inf"):
        writer.add(scene_names(3)[1], bad)
    assert writer.missing() == scene_names(3) and not writer.path.exists(), "a refused start leaves nothing behind"


def test_clips_must_agree(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache", CONFIG, PARENTS, scene_names(3), 3)
    names = scene_names(3)
    writer.add(names[0], clip(names[0]))
    with pytest.raises(UserError, match=r"fused\.dtype: 'float16' -> 'float32'"):
        writer.add(names[1], {**clip(names[1]), "fused": clip(names[1])["fused"].astype(np.float32)})
    with pytest.raises(UserError, match=r"same number T >= 1 of frames, found \[1, 3\]"):
        writer.add(names[1], {**clip(names[1]), "gate": clip(names[1])["gate"][:1]})
    with pytest.raises(UserError, match="'stray' is not in the plan"):
        writer.add("stray", clip(names[1]))


def test_disk_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CacheWriter(tmp_path / "cache", CONFIG, PARENTS, scene_names(3))
    usage = namedtuple("usage", "total used free")(10**9, 0, 10**9)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
    writer.check_space(10**9)
    with pytest.raises(UserError, match=r"needs 2.00 GB, the disk has 1.00 GB free"):
        writer.check_space(2 * 10**9)


def test_full_disk_keeps_the_finished_shards(tmp_path: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, names = tmp_path / "full", scene_names(7)
    writer = CacheWriter(target, CONFIG, PARENTS, names, 3)
    for scene_id in names[:5]:
        writer.add(scene_id, clip(scene_id))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda self, data: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(UserError, match=r"disk is full.*resumes"):
            writer.add(names[5], clip(names[5]))
    assert fill(target) == names[3:]
    assert content(target) == content(cache_path)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_shard(cache_path: Path, keep: int) -> None:
    shard = cache_path / "shard-00001.safetensors"
    os.truncate(shard, keep if keep >= 0 else shard.stat().st_size - 1)
    cache = FeatureCache(cache_path)
    assert cache[scene_names(7)[0]]["fused"].shape == (2, 8, 4, 4), "the other shards stay usable"
    with pytest.raises(UserError, match=r"shard-00001.safetensors: truncated.*run the same extract command"):
        cache[scene_names(7)[3]]
    with pytest.raises(UserError, match="shard-00001"):
        cache.verify()
    with pytest.raises(UserError, match="shard-00001"):
        CacheWriter(cache_path, CONFIG, PARENTS, scene_names(7), 3)


def test_one_flipped_bit_is_found_and_the_advice_works(tmp_path: Path, cache_path: Path) -> None:
    shutil.copytree(cache_path, tmp_path / "good")
    shard = cache_path / "shard-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-7] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-00001.safetensors: corrupt"):
        FeatureCache(cache_path).verify()
    with pytest.raises(UserError, match=r"shard-00001.safetensors: corrupt"):
        fill(cache_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"shard-00001.safetensors: shard named in the manifest but missing"):
        FeatureCache(cache_path)[scene_names(7)[3]]
    assert fill(cache_path) == scene_names(7)[3:6]
    assert content(cache_path) == content(tmp_path / "good")


@pytest.mark.parametrize(
    "header",
    [
        b"\xff" * 64,
        b"[]",
        b"{}",
        b'{"procedural-test-s1-00000/fused": {"dtype": "F16", "shape": [2, 8, 4, 4], "data_offsets": [0, 99999999]}}',
        b'{"procedural-test-s1-00000/fused": {"dtype": "F16", "shape": [2, 8, 4, 5], "data_offsets": [0, 512]}}',
        b'{"procedural-test-s1-00000/fused": {"dtype": "BF16", "shape": [2, 8, 4, 4], "data_offsets": [0, 512]}}',
        b'{"procedural-test-s1-00000/fused": {"dtype": "F16", "shape": [-2, 8, 4, 4], "data_offsets": [0, 512]}}',
        b'{"procedural-test-s1-00000/fused": {"dtype": "F16", "shape": "none"}}',
    ],
    ids=["noise", "list", "empty", "beyond the end", "another shape", "bfloat16", "negative", "no offsets"],
)
def test_broken_header(cache_path: Path, header: bytes) -> None:
    shard = cache_path / "shard-00000.safetensors"
    start = b"" if header.startswith(b"\xff") else len(header).to_bytes(8, "little")
    shard.write_bytes((start + header).ljust(shard.stat().st_size, b"\0"))
    with pytest.raises(UserError, match=r"shard-00000.safetensors: unreadable shard"):
        FeatureCache(cache_path)[scene_names(7)[0]]


def test_differences_name_the_field() -> None:
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}, "c": 2}) == []
    assert differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}) == ["a.b: 1 -> 2", "c: 'absent' -> 3"]
    assert differences({"a": None, "b": 1}, {"b": 1.0}) == ["a: None -> 'absent'", "b: 1 -> 1.0"]
