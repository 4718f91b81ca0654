"""Second look at a cache: equal clips pass, altered ones and another teacher are named."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from teacher import rerun as module
from teacher.cache import CacheWriter
from teacher.extract import own_device
from vega_artifact import UserError

SCENES = [f"room-{index}" for index in range(6)]
TEACHER = {
    "name": "stub",
    "weights": "random-3",
    "blocks": [2, 4],
    "sigma": 0.3,
    "mode": "clip",
    "crop": "aligned",
    "size": [64, 64],
    "grid": None,
    "dtype": "bfloat16",
    "shift": 5.0,
    "seed": 7,
    "draws": 2,
}


def record(name: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(SCENES.index(name))
    return {"generative": random.normal(size=(2, 4, 3, 3)).astype(np.float16), "frame_ids": np.arange(2)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = {"teacher": TEACHER, "scenes": "stub:", "scenes_fingerprint": "s0", "seed": 0, "store_frames": False}
    writer = CacheWriter(tmp_path / "cache", config, {"teacher": "t0"}, SCENES, 2)
    for name in SCENES:
        writer.add(name, record(name))
    writer.finish()

    class Source(list):
        fingerprint = "s0"
        scene_ids = tuple(SCENES)

    monkeypatch.setattr(module, "load_pipeline", lambda name, **options: SimpleNamespace(fingerprint="t0"))
    monkeypatch.setattr(module, "open_scenes", lambda uri: Source(SCENES))
    monkeypatch.setattr(module, "clip_record", lambda pipeline, clip, seed, store_frames: record(clip))
    return tmp_path / "cache"


def test_equal_clips(cache: Path) -> None:
    names = module.rerun(cache, 3)
    assert len(names) == len(set(names)) == 3 and set(names) <= set(SCENES)
    assert module.rerun(cache, 3) == names, "the choice is seeded"
    assert module.rerun(cache, 99) == SCENES
    assert module.rerun(cache, 0) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda found: found | {"generative": found["generative"] + np.float16(0.1)},
            r"stream generative is not what .* computes",
        ),
        (lambda found: found | {"generative": found["generative"][:1]}, r"generative is of shape \(2, 4, 3, 3\) where"),
        (lambda found: found | {"fused": found["generative"]}, "stream fused is absent"),
        (lambda found: found | {"frame_ids": found["frame_ids"] + 1}, "stream frame_ids is not"),
        (lambda found: found | {"generative": found["generative"] * np.float16(np.nan)}, "stream generative is not"),
    ],
)
def test_a_difference_is_named(cache: Path, change, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "clip_record", lambda pipeline, clip, seed, store_frames: change(record(clip)))
    with pytest.raises(UserError, match=message):
        module.rerun(cache, 1)


def test_rounding_is_no_difference(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = lambda found: found | {"generative": found["generative"] * np.float16(1.002)}  # noqa: E731
    monkeypatch.setattr(module, "clip_record", lambda pipeline, clip, seed, store_frames: near(record(clip)))
    assert len(module.rerun(cache, 2)) == 2


def test_another_teacher_or_other_scenes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = module.open_scenes("stub:")
    source.fingerprint = "s1"
    monkeypatch.setattr(module, "open_scenes", lambda uri: source)
    with pytest.raises(UserError, match="no longer those it was made from"):
        module.rerun(cache, 1)
    monkeypatch.setattr(module, "load_pipeline", lambda name, **options: SimpleNamespace(fingerprint="t1"))
    with pytest.raises(UserError, match="made by teacher t0, but 'stub' is now t1"):
        module.rerun(cache, 1)


def test_the_teacher_is_loaded_as_it_was(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(
        module, "load_pipeline", lambda name, **options: asked.update(options) or SimpleNamespace(fingerprint="t0")
    )
    module.rerun(cache, 1)
    assert asked == {
        "blocks": (2, 4),
        "sigma": 0.3,
        "mode": "clip",
        "crop": "aligned",
        "size": (64, 64),
        "grid": None,
        "dtype": torch.bfloat16,
        "seed": 7,
        "draws": 2,
        "random_weights": 3,
        "device": own_device(),
    }


def test_a_prompt_from_a_file_of_its_own_is_read_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(
        module, "load_pipeline", lambda name, **options: asked.update(options) or SimpleNamespace(fingerprint="t0")
    )
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["config"]["prompt"] = "somewhere/prompt.safetensors"
    (cache / "manifest.json").write_text(json.dumps(manifest))
    module.rerun(cache, 1)
    assert asked["prompt_embeds"] == Path("somewhere/prompt.safetensors")


def test_a_teacher_that_has_no_crop() -> None:
    rival = {key: value for key, value in TEACHER.items() if key != "crop"}
    assert "crop" not in module.teacher_options(rival) and module.teacher_options(rival)["mode"] == "clip"
