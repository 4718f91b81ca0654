"""WAN-VACE as a teacher: both read-outs against straightforward re-computations with diffusers' own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.nn import functional as F

from teacher import load_teacher
from teacher.backbones import BACKBONES
from teacher.build import Build
from teacher.devices import parse_devices
from teacher.framing import as_unit_images
from teacher.vace import VaceTeacher
from tests.teacher.wan_folders import TEXT_DIM, edit_json, small_transformer, write_wan
from vega_artifact import UserError

SIZE = (32, 48)
LAYERS = 5
BLOCKS = (1, 2, 3)  # with hints at 0, 2 and 4: one without, one with, and one behind
LAYOUTS = ("diffusers", "native")
OPTIONS: dict[str, Any] = {"blocks": BLOCKS, "size": SIZE, "grid": None, "crop": "cover"}


def transformer() -> Any:
    return small_transformer("vace", num_layers=LAYERS, vace_layers=[0, 2, 4])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vace")
    return {layout: write_wan(root / layout, layout, transformer(), shards) for layout, shards in zip(LAYOUTS, (2, 1))}


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))


def load(folder: Path, readout: str = "corrected", **options: Any) -> VaceTeacher:
    """A teacher of the small folder; the read-out is what the two registry names differ in."""
    settings = OPTIONS | {"name": "small", "readout": readout} | options
    device = settings.pop("device", "cpu")
    build = Build("", None, torch.float32, parse_devices(device), None, {})
    return build.wan(folder, settings)  # type: ignore[return-value]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def control(teacher: VaceTeacher, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clean latents (T, 16, 1, h, w), the reference's (1, 16, 1, h, w) and the context (T, 96, 2, h, w), spelled out."""
    images = as_unit_images(frames)
    clean = torch.cat([teacher.latents.clip(frame[None]) for frame in images])
    grey = teacher.latents.clip(torch.full_like(images[:1], 0.5)).expand_as(clean)
    context = torch.zeros(len(clean), 96, 2, *clean.shape[3:])
    context[:, :16, 0] = clean[:1, :, 0]
    context[:, :16, 1], context[:, 16:32, 1], context[:, 32:, 1] = grey[:, :, 0], clean[:, :, 0], 1.0
    return clean, clean[:1], context


def prompt_rows(batch: int) -> Tensor:
    """The folder's encoding, zero-padded to 512 rows as Wan does."""
    return F.pad(torch.linspace(-1, 1, TEXT_DIM)[None], (0, 0, 0, 511)).expand(batch, -1, -1)


def test_corrected_equals_the_full_diffusers_forward(folders: dict[str, Path], frames: Tensor) -> None:
    teacher, model = load(folders["diffusers"]), transformer()
    clean, reference, context = control(teacher, frames)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    features = teacher.features(frames, noise=noise, scene_id="a")
    sigma = features.sigma
    own = teacher.noise(reference.shape, "a\x1freference", [0, 1, 2], 0)
    noisy = torch.cat([(1 - sigma) * reference + sigma * own, (1 - sigma) * clean + sigma * noise], dim=2)
    seen: dict[int, Tensor] = {}
    for index in BLOCKS:  # a block's input is the previous block's output with its hint
        hook = lambda _, arguments, index=index: seen.__setitem__(index, arguments[0].detach())  # noqa: E731
        model.blocks[index + 1].register_forward_pre_hook(hook)
    with torch.no_grad():
        model(noisy, torch.full((3,), features.timestep), prompt_rows(3), control_hidden_states=context)
    for index in BLOCKS:
        expected = seen[index].unflatten(1, (2, 2, 3))[:, 1].movedim(-1, 1)
        assert relative(features.blocks[index], expected) < 2e-5


class Masked(WanAttnProcessor):
    """Self-attention of the padded read-out: only the first half has rotary positions and may be attended to."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):  # type: ignore[no-untyped-def]
        length = hidden_states.shape[1]
        attention_mask = torch.zeros(length, length)
        attention_mask[:, length // 2 :] = float("-inf")
        cos, sin = rotary_emb
        identity = (torch.cat([cos, torch.ones_like(cos)], dim=1), torch.cat([sin, torch.zeros_like(sin)], dim=1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, identity)


def test_padded_equals_the_reference_recipe(folders: dict[str, Path], frames: Tensor) -> None:
    """spec 3.4: one noised latent frame, zero padding to the context's length, read-out of the padding positions."""
    teacher, model = load(folders["native"], "padded"), transformer()
    clean, _, context = control(teacher, frames)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    features = teacher.features(frames, noise=noise)
    noisy = (1 - features.sigma) * clean + features.sigma * noise
    for block in (*model.blocks, *model.vace_blocks):
        block.attn1.set_processor(Masked())
    with torch.no_grad():
        rotary = model.rope(noisy)
        _, time, text, _ = model.condition_embedder(torch.full((3,), features.timestep), prompt_rows(3))
        time = time.unflatten(1, (6, -1))
        hidden = model.patch_embedding(noisy).flatten(2).transpose(1, 2)
        hidden = torch.cat([hidden, torch.zeros_like(hidden)], dim=1)
        state = model.vace_patch_embedding(context).flatten(2).transpose(1, 2)
        hints = []
        for block in model.vace_blocks:
            hint, state = block(hidden, text, state, time, rotary)
            hints.append(hint)
        for index, block in enumerate(model.blocks):
            hidden = block(hidden, text, time, rotary)
            if index in (0, 2, 4):
                hidden = hidden + hints[index // 2]
            if index in BLOCKS:
                expected = hidden[:, hidden.shape[1] // 2 :].transpose(1, 2).unflatten(2, (2, 3))
                assert relative(features.blocks[index], expected) < 2e-5


class TestTeacher:
    def test_layouts_agree(self, folders: dict[str, Path], frames: Tensor) -> None:
        maps = [load_teacher(folder, **OPTIONS).features(frames, scene_id="a").blocks for folder in folders.values()]
        assert all(torch.equal(maps[0][block], maps[1][block]) for block in BLOCKS)

    def test_a_folder_is_corrected_unless_the_padded_name_is_given(self, folders: dict[str, Path]) -> None:
        teacher = load_teacher(folders["native"], **OPTIONS)
        assert isinstance(teacher, VaceTeacher)
        assert teacher.config.readout == "corrected"
        assert BACKBONES["wan2.1-vace-1.3b-padded"].defaults["readout"] == "padded"
        assert "readout" not in BACKBONES["wan2.1-vace-1.3b"].defaults
        assert teacher.wanted == list(BLOCKS)
        assert teacher.channels == 24
        assert teacher.fingerprint != load(folders["native"], "padded").fingerprint

    def test_readouts_differ_and_noise_is_seeded_per_frame(self, folders: dict[str, Path], frames: Tensor) -> None:
        teacher = load(folders["diffusers"])
        both = teacher.features(frames, scene_id="a", frame_ids=[4, 7, 9]).blocks[2]
        part = teacher.features(frames[[0, 2]], scene_id="a", frame_ids=[4, 9]).blocks[2]
        assert torch.allclose(both[[0, 2]], part, atol=1e-5)
        assert not torch.allclose(both, teacher.features(frames, scene_id="b", frame_ids=[4, 7, 9]).blocks[2], atol=1e-3)
        padded = load(folders["diffusers"], "padded").features(frames, scene_id="a", frame_ids=[4, 7, 9]).blocks[2]
        assert not torch.allclose(both, padded, atol=1e-2)

    def test_the_reference_frame_is_part_of_the_input(self, folders: dict[str, Path], frames: Tensor) -> None:
        for readout in ("corrected", "padded"):
            teacher = load(folders["diffusers"], readout)
            first = teacher.features(frames[[0, 2]], frame_ids=[0, 2]).blocks[2][1]
            other = teacher.features(frames[[1, 2]], frame_ids=[0, 2]).blocks[2][1]
            assert not torch.allclose(first, other, atol=1e-4)

    def test_draws_are_averaged(self, folders: dict[str, Path], frames: Tensor) -> None:
        one, two = load(folders["native"]), load(folders["native"], draws=2)
        assert not torch.allclose(one.features(frames).blocks[1], two.features(frames).blocks[1], atol=1e-4)

    def test_clip_mode_gives_a_map_per_latent_frame(self, folders: dict[str, Path]) -> None:
        teacher = load(folders["native"], mode="clip")
        clip = torch.rand(6, 3, *SIZE, generator=torch.Generator().manual_seed(2))
        features = teacher.features(clip)
        assert features.blocks[2].shape == (2, 24, 2, 3)
        assert features.frame_index.tolist() == [0, 1]

    def test_several_devices_change_nothing(self, folders: dict[str, Path], frames: Tensor) -> None:
        maps = [load(folders["native"], device=device).features(frames).blocks for device in ("cpu", "cpu,cpu")]
        assert all(torch.equal(maps[0][block], maps[1][block]) for block in BLOCKS)

    def test_low_precision_is_close(self, folders: dict[str, Path], frames: Tensor) -> None:
        exact = load_teacher(folders["native"], **OPTIONS).features(frames).blocks[2]
        half = load_teacher(folders["native"], **OPTIONS, dtype=torch.bfloat16).features(frames).blocks[2]
        assert half.dtype == torch.float32
        assert relative(half, exact) < 3e-2

    def test_control_blocks_behind_the_last_wanted_one_are_not_kept(self, folders: dict[str, Path]) -> None:
        teacher = load_teacher(folders["diffusers"], **(OPTIONS | {"blocks": (1,)}))
        assert len(teacher.simulator.control_blocks) == 1
        assert len(teacher.simulator.blocks) == 2

    def test_random_weights(self, folders: dict[str, Path], frames: Tensor) -> None:
        control = load_teacher(folders["native"], **OPTIONS, random_weights=5)
        assert control.config.weights == "random-5"
        assert control.features(frames).blocks[2].isfinite().all()


class TestBadInput:
    def test_settings(self, folders: dict[str, Path], frames: Tensor) -> None:
        with pytest.raises(UserError, match="unknown read-out 'correct'.*Did you mean 'corrected'"):
            load(folders["native"], "correct")
        with pytest.raises(UserError, match="padded read-out exists for single frames only"):
            load(folders["native"], "padded", mode="clip")
        with pytest.raises(UserError, match=r"noise: shape \(3, 16, 1, 4, 6\) expected"):
            load(folders["native"]).features(frames, noise=torch.zeros(3, 16, 2, 4, 6))

    @pytest.mark.parametrize(
        ("layout", "changes", "sentence"),
        [
            ("native", {"vace_layers": [0, 2]}, "number of vace_layers 2 expected by this config, found 3"),
            ("native", {"vace_in_dim": 80}, "vace_in_dim 80 expected by this config, found 96"),
            ("native", {"vace_layers": None}, "field vace_layers is missing"),
            ("native", {"model_type": "t2v"}, "has no place in it"),
            ("diffusers", {"vace_in_channels": 80}, "vace_in_channels 80 expected by this config, found 96"),
        ],
    )
    def test_a_config_of_another_variant(
        self, folders: dict[str, Path], tmp_path: Path, layout: str, changes: dict[str, Any], sentence: str
    ) -> None:
        root = write_wan(tmp_path / "wan", layout, transformer())
        edit_json(root / "config.json" if layout == "native" else root / "transformer" / "config.json", **changes)
        with pytest.raises(UserError, match=sentence):
            load_teacher(root, **OPTIONS)
