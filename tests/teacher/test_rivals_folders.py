"""Reading rivals' checkpoint folders: what is wrong with a folder is said in one sentence that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from teacher.rivals import RIVALS, load_rival
from teacher.rivals import folder as folders
from teacher.rivals.registry import hub_folder
from tests.teacher.rival_folders import BUILDERS, SIZES, cogvideox
from vega_artifact import UserError

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    paths = {name: tmp_path_factory.mktemp(name) for name in ("sd2.1", "sd-vae", "dinov3-l", "vjepa2-g", "ltx-video")}
    with torch.random.fork_rng():
        for name, path in paths.items():
            BUILDERS[name](path)
    return paths


def copy(stored: dict[str, Path], name: str, to: Path) -> Path:
    return Path(shutil.copytree(stored[name], to / "copy"))


def load(name: str, path: Path, **options: Any) -> Any:
    return load_rival(name, path, size=SIZES[name], **options)


def edit(path: Path, change: Any) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


def poison(state: dict[str, torch.Tensor]) -> None:
    state["conv_in.weight"][0, 0, 0, 0] = float("nan")


def test_missing_folder() -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; .*stable-diffusion"):
        load("sd2.1", Path("nowhere"))


def test_missing_part(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "sd2.1", tmp_path)
    shutil.rmtree(path / "vae")
    with pytest.raises(UserError, match=r"vae: no config.json, but a AutoencoderKL is expected"):
        load("sd2.1", path)


def test_missing_text_encoder_and_scheduler(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "sd2.1", tmp_path)
    (path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match="scheduler_config.json: no such file"):
        load("sd2.1", path)
    shutil.rmtree(path / "text_encoder")
    with pytest.raises(UserError, match="text encoder, needed once for the empty prompt, does not load"):
        load("sd2.1", path)
    (path / "model_index.json").unlink()
    with pytest.raises(UserError, match="model_index.json: no such file"):
        load("sd2.1", path)


def test_folder_of_another_model(stored: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a CogVideoXTransformer3DModel expected, config.json says LTXVideoTransformer3DModel"):
        load("cogvideox-2b", stored["ltx-video"])
    with pytest.raises(UserError, match="a vjepa2 expected, config.json says dinov3_vit"):
        load("vjepa2-g", stored["dinov3-l"])
    with pytest.raises(UserError, match="no config.json, but a UNetSpatioTemporalConditionModel is expected"):
        load("svd", stored["dinov3-l"])


@pytest.mark.parametrize("changes", [{"in_channels": 32}, {"patch_size_t": 2, "patch_bias": False}])
def test_another_variant_of_the_class(tmp_path: Path, changes: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        cogvideox(tmp_path, **changes)
    with pytest.raises(UserError, match="1.5 or image-to-video"):
        load("cogvideox-2b", tmp_path)


def test_truncated_weights(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "sd2.1", tmp_path)
    content = (path / UNET).read_bytes()
    (path / UNET).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="unet: does not load as UNet2DConditionModel"):
        load("sd2.1", path)
    (path / UNET).unlink()
    with pytest.raises(UserError, match="unet: does not load as UNet2DConditionModel"):
        load("sd2.1", path)


def test_incomplete_weights(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "sd2.1", tmp_path)
    edit(path / UNET, lambda state: state.pop("conv_in.weight"))
    with pytest.raises(UserError, match="unet: 1 weights of UNet2DConditionModel are missing, conv_in.weight first"):
        load("sd2.1", path)


def test_weights_that_are_not_finite(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "sd2.1", tmp_path)
    edit(path / UNET, poison)
    with pytest.raises(UserError, match="unet: weight conv_in.weight holds NaN or infinity"):
        load("sd2.1", path)


def test_weights_of_another_width(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "dinov3-l", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(UserError, match="does not load as DINOv3ViTModel"):
        load("dinov3-l", path)


def test_pickled_weights_are_never_read(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "sd-vae", tmp_path)
    weights = path / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match="vae: does not load as AutoencoderKL"):
        load("sd-vae", path)


def test_predictor_of_vjepa_is_not_needed(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "vjepa2-g", tmp_path)
    edit(path / "model.safetensors", lambda state: [state.pop(key) for key in list(state) if ".predictor." in key])
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    without, whole = (load("vjepa2-g", place).features(frames).blocks for place in (path, stored["vjepa2-g"]))
    torch.testing.assert_close(without, whole)
    edit(path / "model.safetensors", lambda state: state.pop("vjepa2.encoder.layernorm.weight"))
    with pytest.raises(UserError, match=r"weights of VJEPA2Model are missing, encoder.layernorm.weight first"):
        load("vjepa2-g", path)


def test_autoencoder_may_be_given_by_its_own_folder(stored: dict[str, Path]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    part, whole = (load("sd-vae", path) for path in (stored["sd-vae"] / "vae", stored["sd-vae"]))
    torch.testing.assert_close(part.features(frames).blocks, whole.features(frames).blocks)


def test_identity_follows_weights_and_settings_on_disk(stored: dict[str, Path], tmp_path: Path) -> None:
    parts = RIVALS["sd2.1"].parts
    path = copy(stored, "sd2.1", tmp_path)
    same = folders.Folder(path).identity(parts)
    assert same == folders.Folder(stored["sd2.1"]).identity(parts)
    assert folders.Folder(path, random_weights=0).identity(parts) != same
    schedule = path / "scheduler" / "scheduler_config.json"
    schedule.write_text(schedule.read_text().replace("0.012", "0.013"))
    changed = folders.Folder(path).identity(parts)
    assert changed != same
    edit(path / "vae" / "diffusion_pytorch_model.safetensors", lambda state: state["encoder.conv_in.weight"].mul_(2))
    assert folders.Folder(path).identity(parts) != changed
    alone = folders.Folder(stored["sd-vae"] / "vae").identity(("vae",))
    assert alone != folders.Folder(path / "vae").identity(("vae",))


def test_random_weights_need_no_weights_of_the_network(stored: dict[str, Path], tmp_path: Path) -> None:
    path = copy(stored, "sd2.1", tmp_path)
    (path / UNET).unlink()
    frames = np.zeros((1, 32, 64, 3), np.uint8)
    assert load("sd2.1", path, random_weights=0).features(frames).blocks[3].isfinite().all()


def test_hub_cache_is_used_only_when_complete(stored: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    here = copy(stored, "sd2.1", tmp_path)
    monkeypatch.setattr(folders, "cached", lambda hub_id, complete: here if complete(here) else None)
    monkeypatch.setattr(folders, "fetch", lambda hub_id, patterns: asked.append(patterns) or here)
    parts = RIVALS["sd2.1"].parts
    assert hub_folder("some/model", parts) == here and not asked
    (here / UNET).unlink()
    hub_folder("some/model", parts)
    assert "unet/diffusion_pytorch_model.safetensors" in asked[0]
    assert not [pattern for pattern in asked[0] if pattern.endswith(("*", ".bin", ".pt"))]
