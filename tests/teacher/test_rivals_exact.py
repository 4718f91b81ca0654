"""Every rival equals the plain, whole model of its library, hooked where the reference taps it, to float tolerance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from teacher.rivals import load_rival
from tests.teacher.rival_folders import BUILDERS, SIZES

Prepared = tuple[Path, Tensor, Tensor]  # folder, images (2, 3, H, W) in [0, 1], noise of the latents


def output_of(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """The first output of `layer` while the whole model runs."""
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    run()
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def part(folder: Path, name: str, kind: Any) -> Any:
    return kind.from_pretrained(folder / name).eval()


def prepared(name: str, folder: Path, latent: tuple[int, ...]) -> Prepared:
    with torch.random.fork_rng():
        BUILDERS[name](folder)
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(2, 3, *SIZES[name], generator=generator) * 255).round() / 255
    return folder, images, torch.randn(2, *latent, generator=generator)


def ours(name: str, prepared: Prepared, **options: Any) -> Tensor:
    folder, images, noise = prepared
    teacher = load_rival(name, folder, size=SIZES[name], grid=None, crop="square", **options)
    frames = (images * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return teacher.features(frames, noise=noise if teacher.sigma else None).blocks[teacher.wanted[0]]


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_stable_diffusion_is_what_enters_the_mid_block(tmp_path: Path) -> None:
    at = prepared("sd2.1", tmp_path, (4, 16, 32))
    folder, images, noise = at
    unet = part(folder, "unet", diffusers.UNet2DConditionModel)
    vae = part(folder, "vae", diffusers.AutoencoderKL)
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder / "scheduler")
    latents = vae.encode(images * 2 - 1).latent_dist.mode() * 0.18215
    noisy = scheduler.add_noise(latents, noise, torch.tensor([250, 250]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    ids = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    prompt = part(folder, "text_encoder", transformers.CLIPTextModel)(ids).last_hidden_state.expand(2, -1, -1)
    seen: list[Tensor] = []
    unet.mid_block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    unet(noisy, 250, encoder_hidden_states=prompt)
    close(ours("sd2.1", at), seen[0])


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.6958, 700.0])
def test_stable_video_is_what_enters_the_mid_block(tmp_path: Path, sigma: float) -> None:
    at = prepared("svd", tmp_path, (4, 16, 32))
    folder, images, noise = at
    unet = part(folder, "unet", diffusers.UNetSpatioTemporalConditionModel)
    vae = part(folder, "vae", diffusers.AutoencoderKLTemporalDecoder)
    condition = vae.encode(images * 2 - 1).latent_dist.mode()
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0
    )
    scheduler.set_timesteps(sigmas=[sigma, 0.0])
    noisy = scheduler.scale_model_input(condition * vae.config.scaling_factor + sigma * noise, scheduler.timesteps[0])
    pipeline = diffusers.StableVideoDiffusionPipeline(
        vae,
        part(folder, "image_encoder", transformers.CLIPVisionModelWithProjection),
        unet,
        scheduler,
        transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
    )
    image = stock_embedding(pipeline, images[:1])
    seen: list[Tensor] = []
    unet.mid_block.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["hidden_states"]), with_kwargs=True
    )
    unet(
        torch.cat([noisy, condition], dim=1)[None],
        scheduler.timesteps[0],
        encoder_hidden_states=image,
        added_time_ids=torch.tensor([[6.0, 127.0, 0.02]]),
    )
    close(ours("svd", at, sigma=sigma), seen[0])


def stock_embedding(pipeline: Any, image: Tensor) -> Tensor:
    """The pipeline's own image embedding; it resizes to 224, so the small encoder is told to accept that."""
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    small = (_resize_with_antialiasing(image * 2 - 1, (16, 16)) + 1) / 2
    return pipeline._encode_image(small, "cpu", 1, False)


@torch.no_grad()
def test_autoencoders_are_the_normalised_posterior_mode(tmp_path: Path) -> None:
    folder, images, _ = at = prepared("sd-vae", tmp_path / "sd", (4, 8, 16))
    vae = part(folder, "vae", diffusers.AutoencoderKL)
    close(ours("sd-vae", at), vae.encode(images * 2 - 1).latent_dist.mode() * 0.18215)
    folder, images, _ = at = prepared("wan-vae", tmp_path / "wan", (16, 2, 4))
    wan = part(folder, "vae", diffusers.AutoencoderKLWan)
    mean, std = (torch.tensor(value).view(1, -1, 1, 1) for value in (wan.config.latents_mean, wan.config.latents_std))
    close(ours("wan-vae", at), (wan.encode(images[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0] - mean) / std)
    clip = wan.encode(images.movedim(0, 1)[None] * 2 - 1).latent_dist.mode()[0].movedim(0, 1)
    close(ours("wan-vae", at, mode="clip"), ((clip - mean) / std)[:1])


@torch.no_grad()
def test_dinov3_is_the_last_normalised_patch_tokens(tmp_path: Path) -> None:
    folder, images, _ = at = prepared("dinov3-l", tmp_path, (1,))
    processor = transformers.DINOv3ViTImageProcessor(do_resize=False, do_rescale=False)
    pixels = processor(images, return_tensors="pt").pixel_values
    tokens = part(folder, "", transformers.DINOv3ViTModel)(pixels).last_hidden_state
    close(ours("dinov3-l", at), tokens[:, -8:].transpose(1, 2).unflatten(2, (2, 4)))


@torch.no_grad()
def test_vjepa_is_the_encoder_of_a_model_made_for_this_size(tmp_path: Path) -> None:
    folder, images, _ = at = prepared("vjepa2-g", tmp_path, (1,))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((images - mean) / std)[None]
    model = transformers.VJEPA2Model.from_pretrained(folder, crop_size=32).eval()
    tokens = model(pixels, skip_predictor=True).last_hidden_state
    expected = tokens[0].unflatten(0, (2, 2)).movedim(-1, 0)[None].expand(2, -1, -1, -1)
    found = ours("vjepa2-g", at)
    close(found, expected)
    wrong = transformers.VJEPA2Model.from_pretrained(folder).eval()(pixels, skip_predictor=True).last_hidden_state
    assert (wrong - tokens).abs().max() > 1e-4, "positions laid out for another size must matter, or this test shows nothing"


def clip_images(images: Tensor) -> Tensor:
    return images[:, :, None] * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("rotary", [False, True])
def test_cogvideox_is_the_residual_stream_after_a_block(tmp_path: Path, rotary: bool) -> None:
    at = prepared("cogvideox-2b", tmp_path, (16, 4, 8))
    folder, images, noise = at
    if rotary:
        from tests.teacher.rival_folders import cogvideox

        cogvideox(folder, use_rotary_positional_embeddings=True)
    transformer = part(folder, "transformer", diffusers.CogVideoXTransformer3DModel)
    vae = part(folder, "vae", diffusers.AutoencoderKLCogVideoX)
    pipeline = diffusers.CogVideoXPipeline.from_pretrained(folder, transformer=transformer, vae=vae)
    latents = vae.encode(clip_images(images)).latent_dist.mode().transpose(1, 2) * vae.config.scaling_factor
    noisy = pipeline.scheduler.add_noise(latents, noise[:, None], torch.tensor([59, 59]))
    prompt, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False, max_sequence_length=4, device="cpu")
    angles = pipeline._prepare_rotary_positional_embeddings(32, 64, 1, torch.device("cpu")) if rotary else None
    tokens = output_of(
        transformer.transformer_blocks[1],
        lambda: transformer(noisy, prompt.expand(2, -1, -1), torch.tensor([59, 59]), image_rotary_emb=angles),
    )
    close(ours("cogvideox-2b", at, blocks=(1,)), tokens.transpose(1, 2).unflatten(2, (2, 4)))


@torch.no_grad()
def test_ltx_is_the_residual_stream_after_a_block(tmp_path: Path) -> None:
    at = prepared("ltx-video", tmp_path, (8, 2, 4))
    folder, images, noise = at
    transformer = part(folder, "transformer", diffusers.LTXVideoTransformer3DModel)
    vae = part(folder, "vae", diffusers.AutoencoderKLLTXVideo)
    pipeline = diffusers.LTXPipeline.from_pretrained(folder, transformer=transformer, vae=vae, scheduler=None)
    latents = pipeline._normalize_latents(
        vae.encode(clip_images(images)).latent_dist.mode(), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    noisy = 0.7 * latents + 0.3 * noise[:, :, None]
    prompt, mask, _, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False, device="cpu")
    assert prompt.shape[1] == 128 and mask.sum() == 1  # ours leaves the 127 masked rows out
    tokens = output_of(
        transformer.transformer_blocks[1],
        lambda: transformer(
            pipeline._pack_latents(noisy),
            prompt.expand(2, -1, -1),
            torch.tensor([300.0, 300.0]),
            mask.expand(2, -1),
            num_frames=1,
            height=2,
            width=4,
            rope_interpolation_scale=(8 / 25, 32, 32),
        ),
    )
    close(ours("ltx-video", at, blocks=(1,)), tokens.transpose(1, 2).unflatten(2, (2, 4)))


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2])
def test_hunyuan_is_the_residual_stream_after_a_block_of_either_kind(tmp_path: Path, block: int) -> None:
    at = prepared("hunyuan-video", tmp_path, (4, 4, 8))
    folder, images, noise = at
    transformer = part(folder, "transformer", diffusers.HunyuanVideoTransformer3DModel)
    vae = part(folder, "vae", diffusers.AutoencoderKLHunyuanVideo)
    pipeline = diffusers.HunyuanVideoPipeline.from_pretrained(folder, transformer=transformer, vae=vae, scheduler=None)
    latents = vae.encode(clip_images(images)).latent_dist.mode() * vae.config.scaling_factor
    noisy = 0.7 * latents + 0.3 * noise[:, :, None]
    rows, pooled, mask = pipeline.encode_prompt("", device=torch.device("cpu"))
    assert 0 < mask.sum() < mask.numel()  # ours leaves the masked rows out
    layer = [*transformer.transformer_blocks, *transformer.single_transformer_blocks][block]
    tokens = output_of(
        layer,
        lambda: transformer(
            noisy,
            torch.tensor([300.0, 300.0]),
            rows.expand(2, -1, -1),
            mask.expand(2, -1),
            pooled.expand(2, -1),
            guidance=torch.tensor([6000.0, 6000.0]),
        ),
    )
    close(ours("hunyuan-video", at, blocks=(block,)), tokens.transpose(1, 2).unflatten(2, (2, 4)))


@pytest.mark.parametrize("name", ["sd2.1", "svd", "hunyuan-video"])
def test_what_lies_behind_the_tap_is_released(tmp_path: Path, name: str) -> None:
    with torch.random.fork_rng():
        BUILDERS[name](tmp_path)
    teacher: Any = load_rival(name, tmp_path, size=SIZES[name], blocks=(0,))
    network = teacher.transformer if name == "hunyuan-video" else teacher.unet
    whole = part(tmp_path, "transformer" if name == "hunyuan-video" else "unet", type(network))
    count = [sum(weight.numel() for weight in model.parameters()) for model in (network, whole)]
    assert count[0] < 0.8 * count[1]
    assert teacher.features(np.zeros((1, *SIZES[name], 3), np.uint8)).blocks[0].shape[:2] == (1, teacher.channels)
