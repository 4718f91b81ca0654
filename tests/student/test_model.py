"""The student as a module: grid resampling, preprocessing, determinism, and that it exports."""

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from student import Preprocess, create_student
from student.model import GridResample
from vega_artifact import UserError


@pytest.mark.parametrize("source, grid", [((8, 8), (14, 14)), ((14, 14), (8, 8)), ((9, 7), (5, 4))])
def test_resampling_is_antialiased_bilinear_row_major(source, grid):
    features = torch.randn(2, 3, *source)
    expected = interpolate(features, size=grid, mode="bilinear", antialias=True, align_corners=False)
    tokens = GridResample(source, grid)(features)
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_resampling_to_the_same_grid_changes_nothing_and_keeps_constants():
    features = torch.randn(1, 4, 6, 5)
    assert torch.equal(GridResample((6, 5), (6, 5))(features), features.flatten(2).transpose(1, 2))
    pooled = GridResample((6, 5), (3, 2))(torch.ones(1, 1, 6, 5))
    torch.testing.assert_close(pooled.flatten(), adaptive_avg_pool2d(torch.ones(1, 1, 6, 5), (3, 2)).flatten())


def test_preprocess_scales_normalises_and_resizes():
    look = Preprocess(mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0), size=(4, 4))
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = 255, 0, 51
    images = look(frames)
    assert images.shape == (1, 3, 4, 4) and images.dtype == torch.float32
    torch.testing.assert_close(images[0, :, 0, 0], torch.tensor([1.0, -1.0, 0.2]))
    assert look(np.zeros((2, 8, 6, 3), np.uint8)).shape == (2, 3, 4, 4)
    with pytest.raises(UserError, match="uint8"):
        look(np.zeros((1, 4, 4, 3), np.float32))


def test_same_seed_same_weights_and_the_callers_random_state_is_left_alone():
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first, second, other = create_student(seed=4), create_student(seed=4), create_student(seed=5)
    assert torch.equal(torch.rand(3), expected)
    pairs = zip(first.state_dict().values(), second.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)
    weight = "backbone.model.blocks.0.attn.qkv.weight"
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_an_image_does_not_depend_on_its_batch():
    student = create_student().eval()
    images = torch.randn(3, 3, 128, 128)
    with torch.no_grad():
        together, alone = student(images)["semantic"][1:2], student(images[1:2])["semantic"]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_forward_is_normalised_output_in_the_teachers_units():
    student = create_student(heads={"fused": 6}).eval()
    student.denormalizers["fused"].set(torch.arange(1.0, 7.0), torch.full((6,), 10.0))
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(student(images)["fused"], student.normalised(images)["fused"] * torch.arange(1.0, 7.0) + 10)


def test_it_can_be_traced_whole_with_another_batch_size():
    student = create_student("mobilenetv4_conv_small", heads={"fused": 5}, grid=(7, 6)).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(student, (torch.randn(2, 3, 128, 128),), dynamic_shapes=({0: batch},))
    images = torch.randn(3, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images)["fused"], student(images)["fused"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": {}}, "at least one head"),
        ({"heads": {"a/b": 3}}, "a/b"),
        ({"grid": (0, 8)}, "grid"),
        ({"head": "mlq"}, "'mlp'"),
    ],
)
def test_impossible_students_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        create_student(**change)
