"""What every rival promises, on very small checkpoints: shapes, seeds, independence of frames, settings, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from teacher.rivals import RIVALS, load_rival
from teacher.rivals.base import RivalTeacher
from tests.teacher.rival_folders import BUILDERS, SIZES
from vega_artifact import UserError, canonical

NAMES = list(BUILDERS)
NOISED = [name for name in NAMES if RIVALS[name].sigma]
PER_FRAME = [name for name in NAMES if "frame" in RIVALS[name].modes]
TRANSFORMERS = ["cogvideox-2b", "ltx-video", "hunyuan-video"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    with torch.random.fork_rng():
        for name, path in paths.items():
            BUILDERS[name](path)
    return paths


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 40, 56, 3), dtype=np.uint8)


def load(folders: dict[str, Path], name: str, **options: object) -> RivalTeacher:
    settings: dict[str, object] = {"size": SIZES[name], "grid": (2, 2), "crop": "square"} | options
    teacher = load_rival(name, folders[name], **settings)  # type: ignore[arg-type]
    assert isinstance(teacher, RivalTeacher)
    return teacher


def only(found: dict[int, torch.Tensor]) -> torch.Tensor:
    assert len(found) == 1
    return next(iter(found.values()))


def test_every_rival_is_tested() -> None:
    assert set(RIVALS) == set(NAMES) == set(SIZES)


@pytest.mark.parametrize("name", NAMES)
def test_gives_a_map_per_frame(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    teacher = load(folders, name)
    found = teacher.features(frames, scene_id="a")
    maps = only(found.blocks)
    assert list(found.blocks) == teacher.wanted
    assert maps.shape == (5, teacher.channels, 2, 2) and maps.dtype == torch.float32
    assert maps.isfinite().all() and maps.std() > 0
    assert np.array_equal(found.frame_index, np.arange(5)) and np.array_equal(teacher.frame_index(5), np.arange(5))
    assert found.sigma == teacher.sigma and (found.sigma > 0) == (name in NOISED)


@pytest.mark.parametrize("name", NAMES)
def test_native_grid_pooled_is_the_pooled_grid(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    native = only(load(folders, name, grid=None).features(frames).blocks)
    pooled = only(load(folders, name).features(frames).blocks)
    torch.testing.assert_close(pooled, F.adaptive_avg_pool2d(native, (2, 2)))


@pytest.mark.parametrize("name", NAMES)
def test_config_is_json_and_names_what_changes_a_feature(folders: dict[str, Path], name: str) -> None:
    teacher = load(folders, name)
    config = json.loads(json.dumps(canonical(vars(teacher.config))))
    assert (
        config["blocks"] == teacher.wanted
        and config["name"] == f"{name}={folders[name]}"
        and config["mode"] == RIVALS[name].modes[0]
    )
    assert load(folders, name).fingerprint == teacher.fingerprint
    assert load(folders, name, grid=(1, 2)).fingerprint != teacher.fingerprint
    assert load(folders, name, random_weights=1).fingerprint != teacher.fingerprint


@pytest.mark.parametrize("name", PER_FRAME)
def test_frames_do_not_see_each_other_in_frame_mode(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    teacher = load(folders, name, mode="frame")
    together = only(teacher.features(frames, scene_id="a").blocks)
    teacher.batch = 2
    torch.testing.assert_close(only(teacher.features(frames, scene_id="a").blocks), together, rtol=1e-4, atol=1e-5)
    order = [3, 0, 4]
    some = only(teacher.features(frames[order], scene_id="a", frame_ids=order).blocks)
    torch.testing.assert_close(some, together[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["svd", "vjepa2-g", "wan-vae", *TRANSFORMERS])
def test_frames_do_see_each_other_in_clip_mode(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    teacher = load(folders, name, mode="clip")
    frames = np.concatenate([frames] * 2)[:9]  # one latent of LTX holds eight frames
    changed = frames.copy()
    changed[1] = 255 - changed[1]
    before, after = (only(teacher.features(value).blocks) for value in (frames, changed))
    last = 7 if name == "svd" else -1  # clips of eight; the ninth frame is a clip of its own
    assert (before[last] - after[last]).abs().max() > 1e-6


@pytest.mark.parametrize(("name", "group"), [("wan-vae", 4), ("cogvideox-2b", 4), ("ltx-video", 8), ("hunyuan-video", 4)])
def test_clip_mode_gives_one_map_per_latent_frame(folders: dict[str, Path], frames: np.ndarray, name: str, group: int) -> None:
    teacher = load(folders, name, mode="clip")
    frames = np.concatenate([frames] * 3)[: 2 * group - 1]
    found = teacher.features(frames)
    assert found.frame_index.tolist() == [0, 1]
    assert only(found.blocks).shape == (2, teacher.channels, 2, 2)
    torch.testing.assert_close(teacher.features(frames[: 1 + group]).blocks, found.blocks)  # what fills no group is dropped


def test_svd_cuts_a_video_into_clips_of_eight(folders: dict[str, Path], frames: np.ndarray) -> None:
    teacher = load(folders, "svd")
    frames = np.concatenate([frames] * 2)
    whole = only(teacher.features(frames, scene_id="a").blocks)
    first = only(teacher.features(frames[:8], scene_id="a").blocks)
    second = only(teacher.features(frames[8:], scene_id="a", frame_ids=[8, 9]).blocks)
    torch.testing.assert_close(whole, torch.cat([first, second]))


def test_vjepa_gives_both_frames_of_a_tubelet_its_map(folders: dict[str, Path], frames: np.ndarray) -> None:
    maps = only(load(folders, "vjepa2-g").features(frames).blocks)
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[2], maps[3])
    assert not torch.equal(maps[1], maps[2]) and not torch.equal(maps[3], maps[4])


@pytest.mark.parametrize("name", NOISED)
def test_noise_is_keyed_by_scene_frame_and_seed(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    teacher = load(folders, name, mode="frame")
    base = only(teacher.features(frames[:1], scene_id="a").blocks)
    assert torch.equal(only(teacher.features(frames[:1], scene_id="a").blocks), base)
    assert torch.equal(only(load(folders, name, mode="frame", seed=1).features(frames[:1], scene_id="a", seed=0).blocks), base)
    for other in ({"scene_id": "b"}, {"scene_id": "a", "frame_ids": [7]}, {"scene_id": "a", "seed": 1}):
        assert not torch.equal(only(teacher.features(frames[:1], **other).blocks), base)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NOISED)
def test_draws_are_averaged(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    from teacher.simulator import seeded_noise

    two = load(folders, name, draws=2, mode="frame")
    shape = two.latents(torch.zeros(1, 1, 3, *SIZES[name])).shape[2:]  # type: ignore[attr-defined]
    each = [only(two.features(frames[:1], noise=seeded_noise(shape, "a", 0, draw, 0)[None]).blocks) for draw in range(2)]
    torch.testing.assert_close(only(two.features(frames[:1], scene_id="a").blocks), sum(each) / 2)


@pytest.mark.parametrize("name", NOISED)
def test_sigma_is_followed_and_reported(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    low, high = (load(folders, name, sigma=sigma, mode="frame") for sigma in (0.1, 0.9))
    assert low.sigma == pytest.approx(0.1, abs=0.01) and high.sigma == pytest.approx(0.9, abs=0.01)
    assert low.fingerprint != high.fingerprint
    one, two = (teacher.features(frames[:1], scene_id="a") for teacher in (low, high))
    assert one.timestep < two.timestep
    assert not torch.allclose(only(one.blocks), only(two.blocks))


@pytest.mark.parametrize("name", ["sd2.1", "svd", "dinov3-l", "vjepa2-g", *TRANSFORMERS])
def test_several_layers_in_one_pass(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    both = load(folders, name, blocks=(1, 0), grid=None).features(frames[:2])
    assert list(both.blocks) == [0, 1]
    for block in (0, 1):
        alone = load(folders, name, blocks=(block,), grid=None)
        torch.testing.assert_close(alone.features(frames[:2]).blocks[block], both.blocks[block])
        assert alone.channels == both.blocks[block].shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_close(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    full = only(load(folders, name).features(frames[:2]).blocks)
    half = only(load(folders, name, dtype=torch.bfloat16).features(frames[:2]).blocks)
    assert half.dtype == torch.float32
    assert 0 < (full - half).norm() / full.norm() < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_a_seeded_control(folders: dict[str, Path], frames: np.ndarray, name: str) -> None:
    trained = only(load(folders, name).features(frames[:1]).blocks)
    once, again, other = (only(load(folders, name, random_weights=s).features(frames[:1]).blocks) for s in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other) and not torch.equal(once, trained)


def test_aligned_keeps_the_aspect_and_square_presses_it(folders: dict[str, Path]) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (1, 32, 128, 3), dtype=np.uint8)
    aligned = load(folders, "dinov3-l", size=(64, 64), crop="aligned", grid=None).features(wide)
    square = load(folders, "dinov3-l", size=(64, 64), grid=None).features(wide)
    assert only(aligned.blocks).shape[2:] == (2, 8) and only(square.blocks).shape[2:] == (4, 4)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("sd2.1", {"mode": "clip"}, "sd2.1 offers frame"),
        ("sd2.1", {"sigma": 1.5}, r"sigma 1.5.*\[0, 1\]"),
        ("svd", {"sigma": 0.0}, r"sigma 0.0.*\[0.002, 700.0\]"),
        ("sd2.1", {"size": (40, 64)}, "positive multiples of 16"),
        ("sd2.1", {"size": (0, 64)}, "positive multiples of 16"),
        ("sd2.1", {"blocks": (4,)}, r"indices in 0\.\.3"),
        ("sd2.1", {"draws": 0}, "at least 1"),
        ("sd2.1", {"crop": "cover"}, "aligned, square"),
        ("dinov3-l", {"sigma": 0.3}, "clean frames"),
        ("sd-vae", {"draws": 2}, "clean frames"),
        ("vjepa2-g", {"size": (32, 64)}, "equal sides"),
        ("vjepa2-g", {"crop": "aligned"}, "equal sides"),
    ],
)
def test_settings_a_rival_does_not_have_are_refused(
    folders: dict[str, Path], name: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load(folders, name, **options)


def test_noise_that_does_not_fit_is_refused(folders: dict[str, Path], frames: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"noise: shape \(5, 4, 16, 32\) expected"):
        load(folders, "sd2.1").features(frames, noise=torch.zeros(1, 4, 16, 32))
    with pytest.raises(UserError, match="dinov3-l.* adds none"):
        load(folders, "dinov3-l").features(frames, noise=torch.zeros(5, 4, 16, 32))


def test_unknown_name_suggests_the_known_one() -> None:
    with pytest.raises(UserError, match=r"unknown rival 'dinov3'.*Did you mean 'dinov3-l'"):
        load_rival("dinov3")
