"""`vega-edge extract` as a user runs it: killed and resumed, refused, and on two processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import vega_edge
from teacher import cache as cache_module
from teacher import load_pipeline
from teacher.cache import FeatureCache
from teacher.extract import extract
from teacher.scenes import open_scenes
from vega_artifact import UserError, file_sha256

ROOT = Path(__file__).resolve().parents[2]
ROOMS = 40  # three shards of up to 16
SCENES = f"procedural:val?count={ROOMS}&frames=4&size=64&seed=3"
FEW = "procedural:val?count=4&frames=2&size=64&seed=3"


def arguments(out: Path, scenes: str = SCENES, *more: str) -> list[str]:
    return ["extract", "--teacher", "tiny", "--scenes", scenes, "--out", str(out), *more]


def environment() -> dict[str, str]:
    """As many threads as this process has: sums over more threads may differ in the last bit."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}


def hashes(folder: Path) -> dict[str, str]:
    return {item.name: file_sha256(item) for item in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("extract") / "cache"
    assert vega_edge.main(arguments(out)) == 0
    return out


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A finished cache of four rooms in two shards."""
    extract("tiny", FEW, tmp_path / "cache", scenes_per_shard=2)
    return tmp_path / "cache"


def refused(out: Path, capsys: pytest.CaptureFixture[str], *more: str, scenes: str = SCENES) -> str:
    """Run extract, which must end with code 2 and one sentence; returns that."""
    assert vega_edge.main(arguments(out, scenes, *more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vega-edge: ")]
    return line


@pytest.mark.slow
def test_killed_after_the_first_shard_and_resumed(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "cache"
    command = [sys.executable, "-m", "vega_edge", *arguments(out)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        while process.poll() is None and not (out / "shard-00000.json").exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (out / "manifest.json").exists(), "it was to die before the end"
    with pytest.raises(UserError, match="no finished cache"):
        FeatureCache(out)
    first = {name: (out / name).stat().st_mtime_ns for name in ("shard-00000.safetensors", "shard-00000.json")}
    assert vega_edge.main(arguments(out)) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in first} == first, "the finished shard was not made again"
    assert hashes(out) == hashes(undisturbed)
    FeatureCache(out).verify()


def test_what_the_cache_holds(undisturbed: Path) -> None:
    cache = FeatureCache(undisturbed)
    assert len(cache) == ROOMS and set(cache.frames.values()) == {4}
    assert cache.streams == dict.fromkeys(("fused", "generative", "semantic"), (128, 8, 8)) | {"gate": (1, 8, 8)}
    pipeline = load_pipeline("tiny")
    assert cache.manifest["parents"] == {"teacher": pipeline.fingerprint}
    clip = open_scenes(SCENES)[17]
    stored = cache[clip.scene_id]
    assert (stored["rgb"] == clip.rgb).all() and (stored["frame_ids"] == clip.frame_ids).all()
    for name, value in pipeline.streams(clip.rgb, clip.scene_id, clip.frame_ids).items():
        np.testing.assert_array_equal(stored[name], value.astype(np.float16))


def test_finished_cache_is_left_alone(undisturbed: Path) -> None:
    before = {item.name: item.stat().st_mtime_ns for item in undisturbed.glob("shard*")}
    assert vega_edge.main(arguments(undisturbed)) == 0
    assert {item.name: item.stat().st_mtime_ns for item in undisturbed.glob("shard*")} == before


def test_without_frames_and_with_another_seed(small: Path, tmp_path: Path) -> None:
    first = FeatureCache(small)
    other = extract("tiny", FEW, tmp_path / "seed", seed=9, store_frames=False, scenes_per_shard=2)
    assert "rgb" in first.manifest["streams"] and "rgb" not in other.manifest["streams"]
    scene = first.scene_ids[3]
    assert (first.read(scene, "semantic") == other.read(scene, "semantic")).all()
    assert (first.read(scene, "generative") != other.read(scene, "generative")).any()
    assert first.fingerprint != other.fingerprint and other.manifest["config"]["seed"] == 9


@pytest.mark.parametrize(
    ("more", "field"),
    [
        (("--sigma", "0.77"), r"config\.teacher\.sigma: [0-9.]+ -> 0\.77"),
        (("--seed", "4"), r"config\.seed: 0 -> 4"),
        (("--crop", "cover"), r"config\.teacher\.crop: 'aligned' -> 'cover'"),
    ],
    ids=["sigma", "seed", "crop"],
)
def test_another_setting_is_refused_by_name(
    undisturbed: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], field: str
) -> None:
    before = hashes(undisturbed)
    said = refused(undisturbed, capsys, *more)
    assert "holds a cache of another plan" in said and re.search(field, said), said
    assert hashes(undisturbed) == before


def test_other_scenes_are_refused(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.scenes" in refused(undisturbed, capsys, scenes=FEW)


def test_another_teacher_is_refused(small: Path) -> None:
    with pytest.raises(UserError, match=r"another plan \(config.*parents\.teacher|another plan .*weights.*random-0"):
        extract("tiny", FEW, small, scenes_per_shard=2, random_weights=0)


def test_corrupt_shard_is_refused_and_the_advice_works(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "good")
    shard = small / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 4
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-00001.safetensors: corrupt.*delete that file and run the same extract"):
        extract("tiny", FEW, small, scenes_per_shard=2)
    os.truncate(shard, 1000)
    with pytest.raises(UserError, match=r"shard-00001.safetensors: truncated or altered, 1000 bytes"):
        extract("tiny", FEW, small, scenes_per_shard=2)
    shard.unlink()
    extract("tiny", FEW, small, scenes_per_shard=2)
    assert hashes(small) == hashes(tmp_path / "good")


def test_corrupt_shard_on_the_command_line(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = small / "shard-00000.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert vega_edge.main(["verify", str(small)]) == 2
    assert "shard-00000.safetensors" in capsys.readouterr().err


def test_full_disk_is_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda path: usage)
    said = refused(tmp_path / "cache", capsys, scenes=FEW)
    assert "the disk has 0.00 GB free; free some space" in said
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    pipeline = load_pipeline("tiny")
    pipeline.mixer.scale.zero_()
    with pytest.raises(UserError, match=r"scene 'procedural-val-s3-00000', stream 'fused', frame 0: NaN or Inf"):
        extract(pipeline, FEW, tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_frames_that_are_not_numbers_are_refused_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third room of a source turns out to hold NaN: the first shard stays, and a mended source finishes the cache."""
    source = open_scenes(FEW)
    broken = {source.scene_ids[2]}

    class Source:
        uri, fingerprint, scene_ids = source.uri, source.fingerprint, source.scene_ids

        def __getitem__(self, index: int) -> object:
            clip = source[index]
            if clip.scene_id not in broken:
                return clip
            pixels = clip.rgb.transpose(0, 3, 1, 2) / 255
            pixels[1, 0, 5, 5] = np.nan
            return namedtuple("Clip", "scene_id rgb frame_ids")(clip.scene_id, pixels, clip.frame_ids)

    monkeypatch.setattr("teacher.extract.open_scenes", lambda uri: Source())
    with pytest.raises(UserError, match="frame 1 holds NaN or infinity"):
        extract("tiny", FEW, tmp_path / "cache", scenes_per_shard=2)
    assert {item.name for item in (tmp_path / "cache").glob("shard*")} == {"shard-00000.json", "shard-00000.safetensors"}
    broken.clear()
    assert len(extract("tiny", FEW, tmp_path / "cache", scenes_per_shard=2)) == 4


@pytest.mark.slow
def test_two_processes_make_the_cache_of_one(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "cache"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, "-m", "vega_edge", *arguments(out)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hashes(out) == hashes(undisturbed)
