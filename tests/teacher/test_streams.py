"""The pipeline of the embedded teacher: every stream, and what may and what may not change it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from teacher import load_pipeline
from teacher.scenes import open_scenes
from teacher.streams import FusedTokens, Pipeline, SemanticTokens, weights_hash
from teacher.tiny.bundle import GRID, WIDTH
from vega_artifact import UserError

ROOT = Path(__file__).resolve().parents[2]
SCENES = "procedural:val?count=2&frames=3&size=64&seed=5"

Streams = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("tiny")


@pytest.fixture(scope="module")
def streams(pipeline: Pipeline) -> list[Streams]:
    return [run(pipeline, index) for index in range(2)]


def run(pipeline: Pipeline, index: int, **options: object) -> Streams:
    clip = open_scenes(SCENES)[index]
    return pipeline.streams(clip.rgb, clip.scene_id, clip.frame_ids, **options)  # type: ignore[arg-type]


def digests(found: Streams) -> dict[str, str]:
    return {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in found.items()}


def child() -> None:
    """What another process finds, last clip first: printed as JSON."""
    pipeline = load_pipeline("tiny")
    found = {str(index): digests(run(pipeline, index)) for index in (1, 0)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    marks = {"fingerprint": pipeline.fingerprint, "other_threads": load_pipeline("tiny").fingerprint}
    print(json.dumps({**marks, "threads": threads, "clips": found}))


@pytest.fixture(scope="module")
def elsewhere() -> dict:
    command = [sys.executable, "-c", "from tests.teacher.test_streams import child; child()"]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_shapes_dtypes_and_ranges(streams: list[Streams]) -> None:
    for found in streams:
        assert {name: value.shape for name, value in found.items()} == {
            "generative": (3, WIDTH, *GRID),
            "semantic": (3, WIDTH, *GRID),
            "fused": (3, WIDTH, *GRID),
            "gate": (3, 1, *GRID),
        }
        assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in found.values())
        assert 0 <= found["gate"].min() and found["gate"].max() <= 1
        assert all(value.std() > 1e-4 for value in found.values()), "no stream is constant"
        assert all(abs(value).max() < 65504 for value in found.values()), "the cache stores float16"


@pytest.mark.parametrize("batch", [1, 2])
def test_same_features_whatever_the_batch_size(pipeline: Pipeline, streams: list[Streams], batch: int) -> None:
    usual = pipeline.teacher.batch, pipeline.teacher.latents.batch, pipeline.semantic.batch
    pipeline.teacher.batch = pipeline.teacher.latents.batch = pipeline.semantic.batch = batch
    try:
        found = run(pipeline, 0)
    finally:
        pipeline.teacher.batch, pipeline.teacher.latents.batch, pipeline.semantic.batch = usual
    for name, value in found.items():
        np.testing.assert_allclose(value, streams[0][name], rtol=1e-4, atol=1e-4 * value.std(), err_msg=name)


def test_same_features_in_another_process_and_order(streams: list[Streams], elsewhere: dict) -> None:
    if elsewhere["threads"] != torch.get_num_threads():
        pytest.fail(f"the other process was to run with {torch.get_num_threads()} threads, not {elsewhere['threads']}")
    for index, found in enumerate(streams):
        assert elsewhere["clips"][str(index)] == digests(found)


def test_same_features_in_any_order_and_whatever_the_global_seed(pipeline: Pipeline, streams: list[Streams]) -> None:
    torch.manual_seed(1234)
    for index in (1, 0):
        assert digests(run(pipeline, index)) == digests(streams[index])


def test_a_frame_alone_is_the_frame_in_its_clip(pipeline: Pipeline, streams: list[Streams]) -> None:
    """Frame mode: a frame's features hang on its pixels, scene and frame id, never on its neighbours."""
    clip = open_scenes(SCENES)[0]
    alone = pipeline.streams(clip.rgb[2:], clip.scene_id, clip.frame_ids[2:])
    for name, value in alone.items():
        np.testing.assert_allclose(value[0], streams[0][name][2], rtol=1e-4, atol=1e-4 * value.std(), err_msg=name)


def test_noise_is_keyed_by_scene_and_frame(pipeline: Pipeline, streams: list[Streams]) -> None:
    clip = open_scenes(SCENES)[0]
    for scene, frames in ((clip.scene_id + "x", clip.frame_ids), (clip.scene_id, clip.frame_ids + 1)):
        found = pipeline.streams(clip.rgb, scene, frames)
        assert (found["generative"] != streams[0]["generative"]).any()
        assert (found["semantic"] == streams[0]["semantic"]).all()


def test_seed_changes_what_has_noise_in_it_and_nothing_else(pipeline: Pipeline, streams: list[Streams]) -> None:
    own = pipeline.teacher.config.seed
    assert digests(run(pipeline, 0, seed=own)) == digests(streams[0])
    found = run(pipeline, 0, seed=own + 1)
    assert (found["semantic"] == streams[0]["semantic"]).all()
    for name in ("generative", "fused"):
        change = np.abs(found[name] - streams[0][name]).reshape(3, -1).max(1)
        assert (change > 0).all(), f"{name}: every frame has its own noise"


def test_fingerprint_is_that_of_the_weights_and_settings(pipeline: Pipeline, elsewhere: dict) -> None:
    assert elsewhere["fingerprint"] == elsewhere["other_threads"] == pipeline.fingerprint == load_pipeline("tiny").fingerprint
    others = [load_pipeline("tiny", **options) for options in ({"random_weights": 0}, {"random_weights": 1}, {"sigma": 0.77})]
    marks = {pipeline.fingerprint, *(other.fingerprint for other in others)}
    assert len(marks) == 4
    assert load_pipeline("tiny", random_weights=1).fingerprint in marks, "fresh weights of a seed are always the same"


def test_fingerprint_sees_the_mixer_and_the_semantic_tower(pipeline: Pipeline) -> None:
    for module in (pipeline.mixer, pipeline.semantic):
        weight = next(module.parameters())
        kept, before = weight.detach().clone(), pipeline.fingerprint
        with torch.no_grad():
            weight.view(-1)[0] += 1
        changed = pipeline.fingerprint
        with torch.no_grad():
            weight.copy_(kept)
        assert changed != before == pipeline.fingerprint


def test_random_weights_keep_the_semantic_stream_and_bring_no_fused_one(streams: list[Streams]) -> None:
    found = run(load_pipeline("tiny", random_weights=0), 0)
    assert set(found) == {"generative", "semantic"}, "the fusion was trained for other features"
    assert (found["semantic"] == streams[0]["semantic"]).all()
    assert found["generative"].shape == streams[0]["generative"].shape
    assert (found["generative"] != streams[0]["generative"]).any()


def test_weights_hash_sees_the_smallest_change() -> None:
    torch.manual_seed(0)
    first = torch.nn.Linear(4, 4)
    same = torch.nn.Linear(4, 4)
    same.load_state_dict(first.state_dict())
    assert weights_hash(first) == weights_hash(same)
    with torch.no_grad():
        same.weight[0, 0] += 1e-6
    assert weights_hash(first) != weights_hash(same)


def test_gate_is_the_share_of_the_semantic_stream() -> None:
    """Gate logits driven to either end: the fused token then follows one stream alone."""
    torch.manual_seed(0)
    mixer = FusedTokens(6, 10, 8).eval()
    semantic, generative = torch.randn(2, 6, 4, 4), torch.randn(2, 10, 4, 4)
    assert mixer(semantic, generative).shape == (2, 8, 4, 4)
    middle = mixer.gate(semantic, generative)
    assert middle.shape == (2, 1, 4, 4) and 0 < middle.min() and middle.max() < 1
    last = [module for module in mixer.fusion.modules() if isinstance(module, torch.nn.Linear)][-1]
    assert last.out_features == 1
    for bias, share, silent in ((60.0, 1, "generative"), (-60.0, 0, "semantic")):
        with torch.no_grad():
            last.bias.fill_(bias)
        torch.testing.assert_close(mixer.gate(semantic, generative), torch.full((2, 1, 4, 4), float(share)))
        other = (semantic, generative * 2 + 1) if silent == "generative" else (semantic * 2 + 1, generative)
        torch.testing.assert_close(mixer(*other), mixer(semantic, generative))


def test_scale_divides_the_generative_stream() -> None:
    torch.manual_seed(0)
    one, ten = FusedTokens(6, 10, 8), FusedTokens(6, 10, 8, scale=10.0)
    state = {name: value for name, value in one.state_dict().items() if name != "scale"}
    ten.load_state_dict(state, strict=False)
    semantic, generative = torch.randn(1, 6, 4, 4), torch.randn(1, 10, 4, 4)
    torch.testing.assert_close(ten(semantic, 10 * generative), one(semantic, generative), rtol=1e-4, atol=1e-5)
    assert "scale" in one.state_dict(), "it travels with the weights"


def test_semantic_tokens_treat_every_cell_alone() -> None:
    torch.manual_seed(0)
    tokens = SemanticTokens(6, 8)
    maps = torch.randn(2, 6, 4, 5)
    found = tokens(maps)
    assert found.shape == (2, 8, 4, 5)
    torch.testing.assert_close(tokens(maps.flip(3)), found.flip(3))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.full((2, 3, 64, 64), np.nan, np.float32), "frame 0 holds NaN"),
        (np.zeros((0, 64, 64, 3), np.uint8), "T >= 1 expected"),
    ],
    ids=["nan", "none"],
)
def test_bad_frames_are_refused(pipeline: Pipeline, frames: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline.streams(frames, "room")
