"""The published configurations, built without weights: channels, grids, layers and noise levels (spec/vega3d.md 3.3)."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from teacher.rivals import RIVALS
from teacher.rivals.autoencoders import StableAutoencoder, WanAutoencoder
from teacher.rivals.base import NoiseSource, RivalConfig, RivalTeacher
from teacher.rivals.cogvideox import CogVideoX
from teacher.rivals.dinov3 import Dinov3
from teacher.rivals.hunyuan_video import HunyuanVideo
from teacher.rivals.ltx_video import LtxVideo
from teacher.rivals.schedules import FlowMatching, VarianceExploding, VariancePreserving, flow_equivalent
from teacher.rivals.stable_diffusion import StableDiffusion
from teacher.rivals.stable_video import StableVideo
from teacher.rivals.video_dit import VideoTransformer
from teacher.rivals.vjepa2 import Vjepa2

DOWN, UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
ALPHAS = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
COG_ALPHAS = diffusers.CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True).alphas_cumprod


def image_vae() -> Any:
    return diffusers.AutoencoderKL(down_block_types=DOWN, up_block_types=UP, block_out_channels=(128, 256, 512, 512))


def sd21(config: RivalConfig) -> RivalTeacher:
    unet = diffusers.UNet2DConditionModel(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    return StableDiffusion(config, unet, image_vae(), torch.zeros(1, 77, 1024), ALPHAS, "meta")


def svd(config: RivalConfig) -> RivalTeacher:
    vae = diffusers.AutoencoderKLTemporalDecoder(down_block_types=DOWN, block_out_channels=(128, 256, 512, 512))
    encoder = transformers.CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        patch_size=14,
        projection_dim=1024,
    )
    unet = diffusers.UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20))
    return StableVideo(config, unet, vae, transformers.CLIPVisionModelWithProjection(encoder), "meta")


def dinov3(config: RivalConfig) -> RivalTeacher:
    options = transformers.DINOv3ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, num_register_tokens=4
    )
    return Dinov3(config, transformers.DINOv3ViTModel(options), "meta")


def vjepa2(config: RivalConfig) -> RivalTeacher:
    options = transformers.VJEPA2Config(
        hidden_size=1408, num_hidden_layers=40, num_attention_heads=22, mlp_ratio=48 / 11, crop_size=config.size[0]
    )
    return Vjepa2(config, transformers.VJEPA2Model(options), "meta")


def cogvideox(config: RivalConfig) -> RivalTeacher:
    vae = diffusers.AutoencoderKLCogVideoX()
    return CogVideoX(config, diffusers.CogVideoXTransformer3DModel(), vae, torch.zeros(1, 226, 4096), COG_ALPHAS, "meta")


def ltx(config: RivalConfig) -> RivalTeacher:
    vae = diffusers.AutoencoderKLLTXVideo()
    return LtxVideo(config, diffusers.LTXVideoTransformer3DModel(), vae, torch.zeros(1, 1, 4096), "meta")


def hunyuan(config: RivalConfig) -> RivalTeacher:
    vae, transformer = diffusers.AutoencoderKLHunyuanVideo(), diffusers.HunyuanVideoTransformer3DModel()
    return HunyuanVideo(config, transformer, vae, torch.zeros(1, 7, 4096), torch.zeros(1, 768), "meta")


# name: builder, default tap, channels, map of one frame at the default size
TRUE: dict[str, tuple[Any, int, int, tuple[int, int]]] = {
    "sd2.1": (sd21, 3, 1280, (14, 14)),
    "svd": (svd, 3, 1280, (14, 14)),
    "sd-vae": (lambda config: StableAutoencoder(config, image_vae(), "meta"), 0, 4, (28, 28)),
    "wan-vae": (lambda config: WanAutoencoder(config, diffusers.AutoencoderKLWan(), "meta"), 0, 16, (28, 28)),
    "dinov3-l": (dinov3, 23, 1024, (14, 14)),
    "vjepa2-g": (vjepa2, 39, 1408, (14, 14)),
    "cogvideox-2b": (cogvideox, 20, 1920, (30, 45)),
    "ltx-video": (ltx, 19, 2048, (16, 22)),
    "hunyuan-video": (hunyuan, 41, 3072, (34, 60)),
}


def settings(name: str, **options: Any) -> RivalConfig:
    rival = RIVALS[name]
    base = {"mode": rival.modes[0], "crop": rival.crop, "size": rival.size, "sigma": rival.sigma}
    return RivalConfig(name=name, weights="none", **(base | options))  # type: ignore[arg-type]


def built(name: str, **options: Any) -> RivalTeacher:
    with torch.device("meta"):
        return TRUE[name][0](settings(name, **options))


@pytest.mark.parametrize("name", TRUE)
@torch.no_grad()
def test_published_configuration(name: str) -> None:
    _, tap, channels, grid = TRUE[name]
    teacher = built(name)
    assert (teacher.wanted, teacher.channels) == ([tap], channels)
    rows = torch.arange(2)[None] if teacher.config.mode == "clip" else torch.arange(2)[:, None]
    clips = torch.zeros(*rows.shape, 3, *teacher.config.size, device="meta")
    noise = NoiseSource(None, "a", [0, 1], 0, teacher.frame_index(2))
    maps = teacher.maps(clips, rows, noise)[tap]
    assert maps.shape == (*rows.shape, channels, *grid)
    assert F.adaptive_avg_pool2d(maps.flatten(0, 1), (14, 14)).shape == (2, channels, 14, 14)


@pytest.mark.parametrize(("name", "frames", "maps"), [("cogvideox-2b", 9, 3), ("ltx-video", 17, 3), ("hunyuan-video", 9, 3)])
@torch.no_grad()
def test_video_latents_group_frames(name: str, frames: int, maps: int) -> None:
    teacher = built(name, mode="clip", size=(64, 64), blocks=(0,))
    assert isinstance(teacher, VideoTransformer)
    latents = teacher.latents(torch.zeros(1, frames, 3, 64, 64, device="meta"))
    assert latents.shape[:2] == (1, maps) and len(teacher.frame_index(frames)) == maps
    assert latents.shape[2] == {"ltx-video": 128}.get(name, 16)


def factors(schedule: Any) -> tuple[float, float]:
    """What clean latents and noise are multiplied by."""
    one, zero = torch.ones(1), torch.zeros(1)
    return float(schedule.noised(one, zero)), float(schedule.noised(zero, one))


def test_stable_diffusion_noise_level_is_that_of_timestep_250() -> None:
    schedule = VariancePreserving(ALPHAS, RIVALS["sd2.1"].sigma)
    assert schedule.timestep == 250
    assert factors(schedule) == pytest.approx((0.8208, 0.5711), abs=5e-5)
    assert float(ALPHAS[250]) == pytest.approx(0.6738, abs=5e-5)


def test_the_spatial_reasoning_noise_level_can_be_had() -> None:
    schedule = VariancePreserving(ALPHAS, 0.0413)
    assert schedule.timestep == 1
    assert factors(schedule) == pytest.approx((0.9991, 0.0413), abs=5e-5)


def test_svd_noise_level_has_the_ratio_of_stable_diffusion_and_the_reference_is_pure_noise() -> None:
    ours = VarianceExploding(RIVALS["svd"].sigma)
    clean, noise = factors(ours)
    assert noise / clean == pytest.approx(0.5711 / 0.8208, abs=2e-4)
    assert clean**2 + noise**2 == pytest.approx(1)
    reference = VarianceExploding(700.0)
    stock = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0
    )
    stock.set_timesteps(1000)
    nearest = int((stock.timesteps - 250).abs().argmin())
    assert nearest == 0 and float(stock.sigmas[nearest]) == pytest.approx(700, rel=1e-5)
    assert reference.timestep == pytest.approx(float(stock.timesteps[0]), abs=1e-4) == pytest.approx(1.6378, abs=1e-4)
    assert factors(reference)[0] < 0.0015


def test_cogvideox_noise_level_has_the_ratio_of_wan() -> None:
    schedule = VariancePreserving(COG_ALPHAS, RIVALS["cogvideox-2b"].sigma)
    clean, noise = factors(schedule)
    assert noise / clean == pytest.approx(0.3 / 0.7, rel=0.01)  # to the nearest of 1000 timesteps
    assert flow_equivalent(0.3) == pytest.approx(0.393919, abs=1e-6)


@pytest.mark.parametrize(("sigma", "timestep"), [(0.0, 0), (0.3, 300), (0.2996, 300), (1.0, 1000)])
def test_flow_sigma_snaps_to_a_thousandth(sigma: float, timestep: int) -> None:
    schedule = FlowMatching(sigma)
    assert (schedule.timestep, schedule.sigma) == (timestep, timestep / 1000)
    assert factors(schedule) == pytest.approx((1 - timestep / 1000, timestep / 1000))


def test_wan_tap_depth_is_the_rule_for_other_transformers() -> None:
    """21 of 30 blocks: the rule must give the paper's block for a model of Wan's depth, and the last layer elsewhere."""
    depths: dict[int, int] = {30: 20, 42: 28, 28: 19, 60: 41}
    assert {count: round(VideoTransformer.depth * count) - 1 for count in depths} == depths
    assert RivalTeacher.depth == 1.0


def test_a_layer_that_does_not_run_is_an_error() -> None:
    from teacher.rivals.taps import Taps

    layers = [torch.nn.Identity(), torch.nn.Identity()]
    with pytest.raises(RuntimeError, match="layer 1 did not run"):
        Taps(layers, [0, 1]).run(lambda: layers[0](torch.zeros(1)))
    found: dict[int, Tensor] = Taps(layers, [0]).run(lambda: layers[1](layers[0](torch.ones(1))))
    assert list(found) == [0]
    assert not layers[0]._forward_hooks
