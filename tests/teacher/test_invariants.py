"""What any faithful teacher must satisfy, whatever its weights (spec/vega3d.md 10): shapes, counts, identities, independence.

python -m pytest tests/teacher/test_invariants.py
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from bench.reference import TEXT_ROWS, random_wan
from teacher import load_teacher
from teacher.features import FeatureTeacher, Teacher, TeacherConfig
from teacher.framing import frame_images
from teacher.frozen_block import FrozenBlock
from teacher.latents import LatentEncoder
from teacher.simulator import WanSimulator
from vega_artifact import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "wan-teacher"
META = torch.device("meta")
SIZES = {(720, 1280): (45, 80), (480, 832): (30, 52)}  # frame -> token grid


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


def small_teacher(expected: dict[str, Tensor], **options: object) -> Teacher:
    defaults = {"blocks": (2,), "size": (48, 80), "crop": "cover", "prompt_embeds": expected["prompt_context"]}
    return load_teacher(GOLDEN / "diffusers", **(defaults | options))


@pytest.fixture(scope="module")
def true_teacher() -> Teacher:
    """The true 1.3B configuration without storage."""
    transformer, vae = random_wan(30, device=META)
    config = TeacherConfig(name="meta", weights="none", size=(720, 1280))
    return Teacher(transformer, vae, torch.zeros(1, 4096), config, META)


def test_true_parameter_counts() -> None:
    transformer, vae = random_wan(30, device=META)
    assert count(transformer) == 1_418_996_800
    assert count(transformer.blocks[0]) == 46_440_704
    kept = [transformer.patch_embedding, transformer.condition_embedder, *transformer.blocks[:21]]
    assert count(*kept) == 1_000_929_024
    assert count(vae) == 126_892_531
    assert count(vae.encoder, vae.quant_conv) == 53_596_928


def test_only_what_the_wanted_block_needs_is_held(true_teacher: Teacher) -> None:
    """Not even the text, time and key/value weights of the 21 blocks, which became constants."""
    held = count(true_teacher.simulator)
    square = 1536 * 1536
    assert len(true_teacher.simulator.blocks) == 21
    assert held < 1_000_929_024 - 21 * 3 * square


@pytest.mark.parametrize("size", SIZES)
def test_true_latent_and_token_shapes(true_teacher: Teacher, size: tuple[int, int]) -> None:
    latents = true_teacher.latents.frames(torch.empty(2, 3, *size, device=META))
    assert latents.shape == (2, 16, 1, size[0] // 8, size[1] // 8)
    assert true_teacher.simulator(latents)[20].shape == (2, 1, *SIZES[size], 1536)


def test_true_pooled_maps_of_a_scene(true_teacher: Teacher) -> None:
    latents = torch.empty(32, 16, 1, 90, 160, device=META)
    maps = true_teacher.maps(latents, latents)[20]
    assert maps.shape == (32, 1536, 14, 14)
    assert maps.numel() == 9_633_792 and maps.to(torch.bfloat16).nbytes == 19_267_584


def test_rotary_dimensions_and_a_still_first_frame() -> None:
    transformer, _ = random_wan(1, device=META)
    transformer.to_empty(device="cpu")
    rope = WanSimulator(transformer, (0,), torch.zeros(1, 4096)).rope
    assert (rope.t_dim, rope.h_dim, rope.w_dim) == (44, 42, 42)
    cos, sin = rope(torch.empty(1, 16, 1, 6, 10))
    assert (cos[..., :44] == 1).all() and (sin[..., :44] == 0).all(), "one frame stands at time 0"
    assert (sin[..., 44:] != 0).any()
    assert (rope(torch.empty(1, 16, 2, 6, 10))[1][..., :44] != 0).any(), "a second frame does not"


def test_rotary_angles_survive_a_cast_of_the_weights(expected: dict[str, Tensor]) -> None:
    half, full = (small_teacher(expected, dtype=dtype).simulator.rope for dtype in (torch.bfloat16, torch.float32))
    assert torch.equal(half.freqs_cos, full.freqs_cos) and half.freqs_cos.dtype == torch.float32


@pytest.mark.parametrize("real", (1, 3))
def test_two_text_keys_equal_512_padded_rows(real: int) -> None:
    """diffusers' own cross-attention over all rows, in float64, against the folded one over the real rows and one with a bias.

    (Summing 512 rows in float32 is itself off by more than 1e-6.)
    """
    torch.manual_seed(0)
    block = WanTransformerBlock(48, 96, 4, cross_attn_norm=True).eval().requires_grad_(False)
    rows = torch.randn(real + 1, 48)  # after the text MLP: the padding is one row like any other
    context = torch.cat([rows[:real], rows[real:].expand(TEXT_ROWS - real, -1)])[None]
    x = torch.randn(2, 15, 48)
    wanted = copy.deepcopy(block.attn2).double()(x.double(), context.double()).float()
    bias = torch.zeros(real + 1)
    bias[-1] = torch.tensor(TEXT_ROWS - real).log()
    frozen = FrozenBlock(block, torch.zeros(1, 6, 48), rows[None], bias)
    torch.testing.assert_close(frozen._read_text(x), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    other = FrozenBlock(block, torch.zeros(1, 6, 48), rows[None], torch.zeros(real + 1))
    assert not torch.allclose(other._read_text(x), wanted, atol=1e-3), "the bias is what makes them equal"


def test_features_do_not_change_with_the_other_frames(expected: dict[str, Tensor]) -> None:
    teacher = small_teacher(expected)
    frames, noise = expected["source_frames"], expected["noise"]
    other = frames.clone()
    other[1] = 1 - other[1]
    first, second = (teacher.features(value, noise=noise).blocks[2] for value in (frames, other))
    assert torch.equal(first[0], second[0])
    assert not torch.allclose(first[1], second[1], atol=1e-3)


def test_clip_mode_lets_frames_see_each_other(expected: dict[str, Tensor]) -> None:
    teacher = small_teacher(expected, mode="clip")
    frames = expected["source_frames"].repeat(3, 1, 1, 1)[:5]
    other = frames.clone()
    other[1:] = 1 - other[1:]
    first, second = (teacher.features(value, scene_id="a").blocks[2] for value in (frames, other))
    assert not torch.allclose(first[0], second[0], atol=1e-4)


@pytest.mark.parametrize("options", ({"batch": 1}, {"batch": 2}, {"memory": 1e-9}), ids=str)
def test_same_seed_same_features_whatever_the_split(expected: dict[str, Tensor], options: dict[str, float]) -> None:
    teacher = small_teacher(expected)
    frames = expected["source_frames"].repeat(3, 1, 1, 1)
    whole = teacher.features(frames, scene_id="a").blocks[2]
    assert torch.equal(whole, teacher.features(frames, scene_id="a").blocks[2])
    for name, value in options.items():
        setattr(teacher, name, value)
        setattr(teacher.latents, name, value)
    split = teacher.features(frames, scene_id="a").blocks[2]
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-6 * float(whole.abs().max()))


def test_a_memory_budget_must_be_positive(expected: dict[str, Tensor]) -> None:
    teacher = small_teacher(expected)
    teacher.latents.memory = 0.0
    with pytest.raises(UserError, match="positive budget in GiB"):
        teacher.features(expected["source_frames"])


def test_first_latent_of_a_clip_is_that_of_its_first_frame(expected: dict[str, Tensor]) -> None:
    encoder = LatentEncoder(AutoencoderKLWan.from_pretrained(GOLDEN / "diffusers" / "vae"))
    clip = expected["frames"].repeat(3, 1, 1, 1)[:5]
    alone, together = encoder.frames(clip[:1]), encoder.clip(clip)
    assert together.shape[2] == 2
    torch.testing.assert_close(together[:, :, :1], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


def test_covering_720p_from_a_square_keeps_the_middle_rows() -> None:
    square = torch.rand(1, 3, 384, 384)
    whole = F.interpolate(square, (1280, 1280), mode="bilinear", align_corners=False)
    assert torch.equal(frame_images(square, "cover", (720, 1280), 16), whole[:, :, 280:1000])


def test_the_teacher_leaves_the_models_it_was_given_as_they_were() -> None:
    transformer, vae = random_wan_small()
    before = {name: value.clone() for name, value in {**transformer.state_dict(), **vae.state_dict()}.items()}
    config = TeacherConfig(name="small", weights="none", blocks=(0,), size=(32, 32), grid=None)
    Teacher(transformer, vae, torch.zeros(1, 8), config).features(torch.rand(1, 3, 32, 32))
    after = {**transformer.state_dict(), **vae.state_dict()}
    assert len(transformer.blocks) == 2
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def random_wan_small() -> tuple[WanTransformer3DModel, AutoencoderKLWan]:
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=8, freq_dim=8, ffn_dim=16, num_layers=2
    )
    return transformer, AutoencoderKLWan(base_dim=4, num_res_blocks=1)


def test_a_wan_teacher_is_what_the_chain_asks_for(expected: dict[str, Tensor]) -> None:
    teacher: FeatureTeacher = small_teacher(expected, blocks=(-1, 0), sigma=0.3)
    assert teacher.wanted == [0, 3] and teacher.sigma == pytest.approx(0.299924, abs=1e-6)
    features = teacher.features(expected["source_frames"])
    assert sorted(features.blocks) == teacher.wanted and features.sigma == teacher.sigma
    assert all(value.shape[1] == teacher.channels and value.dtype == torch.float32 for value in features.blocks.values())
