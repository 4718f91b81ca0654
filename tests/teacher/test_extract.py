"""`vega-edge extract` as a user runs it: killed and resumed, refused, and on two processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import vega_edge
from teacher import load_pipeline
from teacher import writer as cache_module
from teacher.cache import FeatureCache
from teacher.extract import extract
from teacher.launch import LOCAL_RANK
from teacher.scenes import open_scenes
from teacher.verbs import Extract
from vega_artifact import UserError, file_sha256

ROOT = Path(__file__).resolve().parents[2]
ROOMS = 24
SHARDS = 8
SCENES = f"procedural:val?count={ROOMS}&frames=4&size=64&seed=3"
FEW = "procedural:val?count=4&frames=2&size=64&seed=3"


def arguments(out: Path, scenes: str = SCENES, *more: str) -> list[str]:
    size = str(ROOMS // SHARDS)
    return ["extract", "--teacher", "tiny", "--scenes", scenes, "--out", str(out), "--scenes-per-shard", size, *more]


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


@pytest.fixture(scope="module")
def four_rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("few") / "cache"
    extract("tiny", FEW, out, scenes_per_shard=2)
    return out


@pytest.fixture
def small(four_rooms: Path, tmp_path: Path) -> Path:
    """A finished cache of four rooms in two shards, to be damaged at will."""
    return Path(shutil.copytree(four_rooms, tmp_path / "cache"))


def refused(out: Path, capsys: pytest.CaptureFixture[str], *more: str, scenes: str = SCENES) -> str:
    """Run extract, which must end with code 2 and one sentence; returns that."""
    assert vega_edge.main(arguments(out, scenes, *more)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vega-edge: ")]
    return line


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


def test_the_plan_alone_writes_nothing_and_tells_the_bytes(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vega_edge.main(arguments(tmp_path / "new", FEW, "--plan")) == 0
    said = capsys.readouterr().out
    assert "4 of 4 clips to make, 8 frames (2 a clip)" in said and "measured on one clip" in said
    stored = sum(array.nbytes for scene in FeatureCache(small) for array in FeatureCache(small)[scene].values())
    assert f"disk: {stored / 1e3:.1f} kB (" in said
    assert not (tmp_path / "new").exists()


def test_a_plan_says_what_is_left(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ("--scenes-per-shard", "2", "--plan")
    command = ["extract", "--teacher", "tiny", "--scenes", FEW, "--out", str(small), *same]
    (small / "shard-00001.safetensors").unlink()
    assert vega_edge.main(command) == 0
    assert "2 of 4 clips to make, 4 frames" in capsys.readouterr().out
    extract("tiny", FEW, small, scenes_per_shard=2)
    assert vega_edge.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("storage", ["int8", "pca:16"])
def test_reduced_storage(
    storage: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "reduced"
    assert vega_edge.main(arguments(out, FEW, "--storage", storage)) == 0
    full, reduced = FeatureCache(small), FeatureCache(out)
    assert reduced.manifest["storage"] == storage == reduced.manifest["config"]["storage"]
    assert reduced.streams == full.streams
    for scene in full:
        given, found = full.read(scene, "generative"), reduced.read(scene, "generative")
        assert found.dtype == np.float16 and (found != given).any()
        one, other = (array.astype(np.float64) - given.mean(dtype=np.float64) for array in (given, found))
        assert (one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other) > (0.999 if storage == "int8" else 0.8)
        assert (reduced.read(scene, "rgb") == full.read(scene, "rgb")).all()
    before = hashes(out)
    assert vega_edge.main(["verify", str(out)]) == 0, "the teacher's features are compared as they would be stored"
    assert "extracted again and equal" in capsys.readouterr().out
    for item in out.glob("shard-*"):
        item.unlink()
    monkeypatch.setenv("RANK", "7")  # another process of a bigger job, which begins elsewhere
    assert vega_edge.main(arguments(out, FEW, "--storage", storage)) == 0
    assert hashes(out) == before


def posed_folder(folder: Path, damaged: bool) -> None:
    """Two scenes of five frames of an odd size; in the second one frame is cut in the middle of its data."""
    for number, name in enumerate(("scene_a", "scene_b")):
        (folder / name).mkdir(parents=True)
        np.savetxt(folder / name / "intrinsic.txt", np.diag([60.0, 60.0, 1.0]))
        for t in range(5):
            picture = np.random.default_rng([number, t]).integers(0, 256, (37, 51, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / name / f"{t:05d}.jpg")
            np.savetxt(folder / name / f"{t:05d}.txt", np.eye(4))
    if damaged:
        os.truncate(folder / "scene_b" / "00002.jpg", 300)


def test_an_unreadable_frame_is_an_error_or_left_out_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posed_folder(tmp_path / "whole", damaged=False)
    posed_folder(tmp_path / "damaged", damaged=True)
    scenes, out = f"scannet:{tmp_path}/damaged", tmp_path / "cache"
    said = refused(out, capsys, "--scenes-per-shard", "1", scenes=scenes)
    assert "scene_b/00002.jpg: cannot be read as an image" in said
    assert (out / "shard-00000.json").exists() and not (out / "manifest.json").exists(), "the good scene is kept"
    whole = extract("tiny", f"scannet:{tmp_path}/whole", tmp_path / "all")
    assert whole.manifest["dropped"] == {"count": 0, "scenes": {}}
    kept = tmp_path / "kept"
    assert vega_edge.main(arguments(kept, scenes, "--on-bad-frame", "skip")) == 0
    assert "9 frames; 1 left out, listed in manifest.json" in capsys.readouterr().out
    cache = FeatureCache(kept)
    assert cache.manifest["dropped"]["count"] == 1 and list(cache.manifest["dropped"]["scenes"]) == ["scene_b"]
    assert cache.manifest["dropped"]["scenes"]["scene_b"][0].startswith("00002.jpg: cannot be read as an image")
    assert cache.frames == {"scene_a": 5, "scene_b": 4}
    assert cache.read("scene_b", "frame_ids").tolist() == [0, 1, 3, 4]
    np.testing.assert_array_equal(cache.read("scene_b", "generative"), whole.read("scene_b", "generative")[[0, 1, 3, 4]])
    assert "on_bad_frame=skip" in cache.manifest["config"]["scenes"], "whoever opens these scenes again gets the same frames"
    assert vega_edge.main(["verify", str(kept)]) == 0


def test_a_scene_without_any_readable_frame_is_an_error_even_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    posed_folder(tmp_path / "damaged", damaged=True)
    for path in (tmp_path / "damaged" / "scene_b").glob("*.jpg"):
        path.write_bytes(b"")
    said = refused(tmp_path / "cache", capsys, "--on-bad-frame", "skip", scenes=f"scannet:{tmp_path}/damaged")
    assert "scene_b: none of its frames can be read" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--storage", "int7"), "unknown storage 'int7'"),
        (("--storage", "pca:999"), "no stream has more channels"),
        (("--scenes-per-shard", "0"), "scenes_per_shard >= 1"),
        (("--sigma", "1.5"), "sigma 1.5"),
        (("--blocks", "99"), "blocks"),
        (("--size", "65", "64"), "size (65, 64)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_be(
    more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(tmp_path / "cache", capsys, *more, scenes=FEW)
    assert not list((tmp_path).glob("cache/shard*"))


def test_zero_frames_and_one_pixel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "frames" in refused(tmp_path / "cache", capsys, scenes="procedural:val?count=1&frames=0")
    (tmp_path / "dots" / "scene").mkdir(parents=True)
    Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(tmp_path / "dots" / "scene" / "00000.jpg")
    for name, matrix in (("00000", np.eye(4)), ("intrinsic", np.eye(3))):
        np.savetxt(tmp_path / "dots" / "scene" / f"{name}.txt", matrix)
    cache = extract("tiny", f"folder:{tmp_path}/dots", tmp_path / "dot")
    assert np.isfinite(cache.read("scene", "generative")).all(), "the smallest frame there is"


def test_flags_reach_the_teacher(tmp_path: Path, four_rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    made = FeatureCache(four_rooms)
    monkeypatch.setattr("teacher.extract.extract", lambda *places, **options: asked.update(options) or made)
    line = "--blocks 2 4 --mode clip --size 96 64 --grid native --dtype bfloat16 --prompt p.safetensors --device cuda:0,cuda:1"
    assert vega_edge.main(arguments(tmp_path, FEW, *line.split(), "--no-frames")) == 0
    assert asked == {
        "seed": 0,
        "store_frames": False,
        "scenes_per_shard": ROOMS // SHARDS,
        "storage": "float16",
        "on_bad_frame": "error",
        "blocks": (2, 4),
        "mode": "clip",
        "size": (96, 64),
        "grid": None,
        "dtype": torch.bfloat16,
        "prompt_embeds": Path("p.safetensors"),
        "device": "cuda:0,cuda:1",
    }


@pytest.mark.parametrize(
    ("told", "gpus", "device"),
    [({}, 0, "cpu"), ({}, 4, "cuda:0"), ({"LOCAL_RANK": "3"}, 2, "cuda:1"), ({"SLURM_LOCALID": "1"}, 4, "cuda:1")],
)
def test_each_process_takes_a_gpu_of_its_own(
    told: dict[str, str], gpus: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in LOCAL_RANK:
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert Extract(teacher="tiny", scenes=FEW, out=Path("x")).chosen_device() == device


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
            return namedtuple("Clip", "scene_id rgb frame_ids dropped")(clip.scene_id, pixels, clip.frame_ids, ())

    monkeypatch.setattr("teacher.extract.open_scenes", lambda uri: Source())
    with pytest.raises(UserError, match="frame 1 holds NaN or infinity"):
        extract("tiny", FEW, tmp_path / "cache", scenes_per_shard=2)
    assert {item.name for item in (tmp_path / "cache").glob("shard*")} == {"shard-00000.json", "shard-00000.safetensors"}
    broken.clear()
    assert len(extract("tiny", FEW, tmp_path / "cache", scenes_per_shard=2)) == 4


TORCHRUN = ("torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0")
ACCELERATE = ("accelerate.commands.launch", "--num_processes", "2", "--cpu", "--main_process_port", "0")


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "started"), [(TORCHRUN, 2), (ACCELERATE, 1)], ids=["torchrun", "accelerate"])
def test_a_launched_worker_is_killed_and_one_process_goes_on(
    launcher: tuple[str, ...], started: int, tmp_path: Path, undisturbed: Path
) -> None:
    """Launchers stop everyone when one dies; the finished shards stay, and the bytes are those of one undisturbed process."""
    out = tmp_path / "cache"
    command = [sys.executable, "-m", *launcher, "-m", "vega_edge", *arguments(out)]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        while process.poll() is None and not list(out.glob("shard-*.json")):
            time.sleep(0.002)
        workers = [child for child in psutil.Process(process.pid).children() if "vega_edge" in child.cmdline()]
        assert len(workers) == started, (tmp_path / "log").read_text()
        workers[-1].kill()
        assert process.wait(timeout=300) != 0, "a lost worker must not look like success"
    noted = "accelerate starts one process on CPUs" in (tmp_path / "log").read_text()
    assert noted == (started == 1), "who asked for two processes and got one is told"
    kept = {item.name: item.stat().st_mtime_ns for item in out.glob("shard-*.json")}
    assert not (out / "manifest.json").exists() and 1 <= len(kept) < SHARDS
    with pytest.raises(UserError, match="no finished cache"):
        FeatureCache(out)
    assert vega_edge.main(arguments(out)) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept, "finished shards are not made again"
    assert hashes(out) == hashes(undisturbed)
    FeatureCache(out).verify()
