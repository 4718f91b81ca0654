"""Which students there are, and that every preset gives tokens on the teacher's grid."""

import pytest
import torch
from safetensors.torch import save_file

from student import create_student, list_students
from student.registry import create_backbone, outline, resolve
from vega_artifact import UserError


def test_presets_are_listed_and_filtered_by_wildcard():
    assert {"vit_micro", "vit_tiny", "vit_small", "deit_tiny", "mobilenetv4_conv_small", "repvit_m1"} <= set(list_students())
    assert list_students("vit_*") == ["vit_micro", "vit_small", "vit_small_dinov3", "vit_tiny", "vit_tiny_dinov3"]
    assert "timm:vit_tiny_patch16_224" in list_students("timm:vit_tiny*")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UserError, match=r"unknown student 'vit_mikro'.*'vit_micro'.*Known: .*repvit_m1"):
        resolve("vit_mikro")
    with pytest.raises(UserError, match=r"unknown timm model 'vit_tinny_patch16_224'.*'vit_tiny_patch16_224'"):
        resolve("timm:vit_tinny_patch16_224")


@pytest.mark.parametrize("name", list_students())
def test_every_preset_answers_on_the_grid(name):
    student = create_student(name, heads={"fused": 12}, image_size=(128, 96), grid=(7, 5)).eval()
    with torch.no_grad():
        tokens = student(torch.randn(1, 3, 128, 96))["fused"]
    assert tokens.shape == (1, 35, 12) and torch.isfinite(tokens).all()
    assert student.preprocess.size == (128, 96)


def test_channels_last_pyramids_work_too():
    student = create_student("timm:swin_tiny_patch4_window7_224", heads={"fused": 4}, image_size=(224, 224)).eval()
    assert student.backbone.channels == 384 + 768
    with torch.no_grad():
        assert student(torch.randn(1, 3, 224, 224))["fused"].shape == (1, 64, 4)


def test_a_network_with_windows_of_a_fixed_size_is_refused_before_training():
    with pytest.raises(UserError, match=r"swin_tiny\S* does not take images of 192x448 pixels .*doesn't match"):
        create_backbone("timm:swin_tiny_patch4_window7_224", (192, 448))


def test_micro_is_the_documented_network():
    student = create_student("vit_micro")
    assert student.backbone.map_size == (8, 8) and student.backbone.channels == 192 and student.backbone.prefix == 0
    assert len(student.backbone.model.blocks) == 6
    assert student.backbone.model.blocks[0].attn.num_heads == 3


@pytest.mark.parametrize("name, size", [("vit_micro", (120, 128)), ("repvit_m1", (128, 100)), ("vit_micro", (0, 0))])
def test_sizes_a_backbone_cannot_take_are_refused(name, size):
    with pytest.raises(UserError, match=f"student '{name}'.*{size[0]}x{size[1]}"):
        create_student(name, image_size=size)


def test_the_size_that_is_wanted_is_that_of_the_networks_own_patch():
    with pytest.raises(UserError, match="image size 200x208 does not fit, it takes multiples of 16x16"):
        outline("timm:beit_base_patch16_224", (200, 208))
    with pytest.raises(UserError, match="image size 200x208 does not fit, it takes multiples of 32x32"):
        outline("timm:resnet18", (200, 208))


def test_weights_from_a_file_are_taken_and_wrong_ones_refused(tmp_path):
    source, _ = create_backbone("vit_tiny", (224, 224))
    state = source.model.state_dict()
    save_file(state, tmp_path / "tiny.safetensors")
    loaded, _ = create_backbone("vit_tiny", (128, 128), tmp_path / "tiny.safetensors")
    assert torch.equal(loaded.model.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])
    assert loaded.model.pos_embed.shape == (1, 65, 192), "position embedding resampled from 14x14 to 8x8"
    with pytest.raises(UserError, match=r"student 'vit_small' cannot be built .*tiny\.safetensors"):
        create_backbone("vit_small", (128, 128), tmp_path / "tiny.safetensors")
    with pytest.raises(UserError, match="no such weight file"):
        create_backbone("vit_tiny", (128, 128), tmp_path / "absent.safetensors")


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth: no readable state dict"):
        create_backbone("vit_tiny", (128, 128), tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()
