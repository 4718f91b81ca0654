"""The teacher against the reference implementation's own outputs (tests/golden/wan-teacher)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from teacher import load_teacher
from teacher.framing import frame_images
from teacher.latents import LatentEncoder
from teacher.loading import load_wan
from teacher.simulator import schedule, seeded_noise, snap_sigma
from vega_artifact import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "wan-teacher"
LAYOUTS = ("diffusers", "native")


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def golden_teacher(expected, layout="diffusers", **options):
    defaults = {"blocks": (0, 2), "size": (48, 80), "crop": "cover", "prompt_embeds": expected["prompt_context"]}
    return load_teacher(GOLDEN / layout, **(defaults | options))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", (300, 600))
def test_frame_mode_matches_the_reference(expected, layout, k):
    teacher = golden_teacher(expected, layout, sigma=k / 1000, grid=None)
    pooled = golden_teacher(expected, layout, sigma=k / 1000)
    features = teacher.features(expected["source_frames"], noise=expected["noise"])
    for block in (0, 2):
        assert relative(features.blocks[block], expected[f"block{block}_k{k}"]) < 2e-5
        maps = pooled.features(expected["source_frames"], noise=expected["noise"]).blocks[block]
        assert relative(maps, expected[f"block{block}_pooled14_k{k}"]) < 2e-5
    meta = json.loads((GOLDEN / "meta.json").read_text())["timesteps"][str(k)]
    assert features.timestep == meta["selected_timestep"]
    assert features.sigma == pytest.approx(meta["sigma"], abs=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_latents_noising_and_crop_match_the_reference(expected, layout):
    teacher = golden_teacher(expected, layout)
    assert relative(frame_images(expected["source_frames"], "cover", (48, 80), 16), expected["frames"]) < 1e-6
    latents = teacher.latents.frames(expected["frames"])
    assert relative(latents, expected["latents"]) < 2e-5
    clip = frame_images(expected["source_frames"].repeat(3, 1, 1, 1)[:9], "cover", (48, 80), 16)
    assert relative(teacher.latents.clip(clip), expected["clip_latents"]) < 2e-5
    assert relative(teacher.simulator.add_noise(latents, expected["noise"]), expected["noisy_k300"]) < 2e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_clip_mode_matches_the_reference(expected, layout):
    # the golden clip repeats the two source frames three times and keeps what the VAE takes of at most nine frames
    frames = expected["source_frames"].repeat(3, 1, 1, 1)[:9]
    teacher = golden_teacher(expected, layout, mode="clip", grid=None)
    features = teacher.features(frames, noise=expected["clip_noise"])
    for block in (0, 2):
        wanted = expected[f"clip_block{block}_k300"][0].movedim(-1, 1)
        assert relative(features.blocks[block], wanted) < 2e-5
    assert features.frame_index.tolist() == [0, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("k", (300, 600))
def test_velocity_matches_the_reference(expected, layout, k):
    """Through every fast path and out again: full depth, head and un-patchify."""
    simulator = golden_teacher(expected, layout, blocks=(3,), sigma=k / 1000).simulator
    assert relative(simulator.velocity(expected[f"noisy_k{k}"]), expected[f"velocity_k{k}"]) < 2e-5
    with pytest.raises(UserError, match="ask for block 3 too"):
        golden_teacher(expected, layout, blocks=(2,)).simulator.velocity(expected["noisy_k300"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_stays_near_the_reference(expected, layout):
    options = {"dtype": torch.bfloat16, "grid": None}
    teacher = golden_teacher(expected, layout, **options)
    features = teacher.features(expected["source_frames"], noise=expected["noise"])
    assert relative(teacher.latents.frames(expected["frames"]), expected["latents"]) < 2e-2
    clip = golden_teacher(expected, layout, mode="clip", **options)
    frames = expected["source_frames"].repeat(3, 1, 1, 1)[:9]
    clip_features = clip.features(frames, noise=expected["clip_noise"])
    for block in (0, 2):
        assert 0 < relative(features.blocks[block], expected[f"block{block}_k300"]) < 2e-2
        assert relative(clip_features.blocks[block], expected[f"clip_block{block}_k300"][0].movedim(-1, 1)) < 2e-2


def test_compiled_teacher_matches_the_reference(expected, monkeypatch):
    """What torch.compile captures, run without its minute of code generation: one graph for the VAE, one for all blocks."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    teacher = golden_teacher(expected, grid=None, compile=True)
    features = teacher.features(expected["source_frames"], noise=expected["noise"])
    for block in (0, 2):
        assert relative(features.blocks[block], expected[f"block{block}_k300"]) < 2e-5
    assert counters["stats"]["unique_graphs"] == 2


def test_folded_single_frame_vae_equals_the_video_vae(expected):
    _, vae = load_wan(GOLDEN / "diffusers")
    encoder = LatentEncoder(vae)
    folded = encoder.frames(expected["frames"])
    video = torch.cat([encoder.clip(frame[None]) for frame in expected["frames"]])
    assert relative(folded, video) < 1e-5


def test_truncated_depth_changes_nothing(expected):
    alone = golden_teacher(expected, blocks=(0,)).features(expected["source_frames"], noise=expected["noise"]).blocks[0]
    among = golden_teacher(expected, blocks=(0, 3)).features(expected["source_frames"], noise=expected["noise"]).blocks[0]
    assert torch.equal(alone, among)


def test_features_depend_on_scene_and_frame_alone(expected):
    teacher = golden_teacher(expected)
    frames = expected["source_frames"]
    both = teacher.features(frames, scene_id="a", frame_ids=[7, 9]).blocks[2]
    second = teacher.features(frames[1:], scene_id="a", frame_ids=[9]).blocks[2]
    assert torch.allclose(both[1:], second, atol=1e-5)
    reordered = teacher.features(frames.flip(0), scene_id="a", frame_ids=[9, 7]).blocks[2]
    assert torch.allclose(both.flip(0), reordered, atol=1e-5)
    assert not torch.allclose(both, teacher.features(frames, scene_id="b", frame_ids=[7, 9]).blocks[2], atol=1e-3)
    assert not torch.allclose(both, teacher.features(frames, scene_id="a", frame_ids=[7, 9], seed=1).blocks[2], atol=1e-3)


def test_noise_is_the_same_in_every_process_and_order():
    state = torch.random.get_rng_state()
    first = seeded_noise((16, 1, 2, 2), "scene", 3)
    assert torch.equal(state, torch.random.get_rng_state()), "seeded noise must not touch the global state"
    assert first.flatten()[:2].tolist() == pytest.approx(FIRST_NOISE, abs=1e-6)
    assert torch.equal(first, seeded_noise((16, 1, 2, 2), "scene", 3))
    assert not torch.equal(first, seeded_noise((16, 1, 2, 2), "scene", 3, draw=1))


FIRST_NOISE = [-0.10596775263547897, -2.630124092102051]


@pytest.mark.parametrize(
    ("k", "timestep", "sigma"),
    [
        (0, 4, 0.004975),
        (100, 101, 0.101010),
        (250, 251, 0.251396),
        (300, 299, 0.299924),
        (600, 601, 0.601348),
        (1000, 999, 0.999600),
    ],
)
def test_sigma_snaps_to_the_schedule(k, timestep, sigma):
    found = snap_sigma(k / 1000)
    assert found[0] == timestep
    assert found[1] == pytest.approx(sigma, abs=6e-7)


def test_schedule_invariants():
    timesteps, sigmas = schedule()
    assert sigmas[0] == pytest.approx(0.9997998, abs=1e-7)
    assert sigmas[-1] == pytest.approx(0.0049751, abs=1e-7)
    assert len(timesteps) - len(np.unique(timesteps)) == 382
    assert int(np.abs(timesteps - 300).argmin()) == 921
    assert snap_sigma(0.3, shift=1.0) == (300, pytest.approx(0.300699, abs=1e-6))


def test_bad_input_is_one_clear_sentence(expected, tmp_path):
    teacher = golden_teacher(expected)
    with pytest.raises(UserError, match="frame 1 holds NaN"):
        teacher.features(torch.stack([torch.zeros(3, 8, 8), torch.full((3, 8, 8), float("nan"))]))
    with pytest.raises(UserError, match="divide by 255"):
        teacher.features(torch.full((1, 3, 8, 8), 200.0))
    with pytest.raises(UserError, match="T >= 1"):
        teacher.features(np.zeros((0, 8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="noise: shape"):
        teacher.features(expected["source_frames"], noise=torch.zeros(2, 16, 1, 3, 3))
    with pytest.raises(UserError, match=r"indices in 0\.\.3"):
        golden_teacher(expected, blocks=(20,))
    with pytest.raises(UserError, match="no encoding of the empty prompt"):
        load_teacher(GOLDEN / "diffusers", blocks=(0,))
    with pytest.raises(UserError, match="tiny-geometry"):
        load_teacher("tny")


@pytest.mark.parametrize("damage", ("truncated", "nan", "foreign"))
def test_damaged_weights_are_named(expected, tmp_path, damage):
    root = tmp_path / "wan"
    shutil.copytree(GOLDEN / "native", root)
    path = root / "diffusion_pytorch_model.safetensors"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        state = load_file(path)
        name = "blocks.0.ffn.0.weight"
        state[name] = torch.full_like(state[name], float("nan")) if damage == "nan" else state[name][:1].contiguous()
        save_file(state, path)
    with pytest.raises(
        UserError, match={"truncated": "truncated", "nan": "NaN", "foreign": "another variant"}[damage]
    ) as caught:
        load_teacher(root, blocks=(0,), prompt_embeds=expected["prompt_context"])
    assert str(root) in str(caught.value)
