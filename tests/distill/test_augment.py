"""Photometric augmentation: seeded per sample, one affine colour map, nothing geometric."""

import numpy as np
import pytest
import torch

from distill.augment import LUMA, draw_factors, prepare

MEAN, STD = torch.zeros(3), torch.ones(3)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(60, 180, (3, 4, 5, 3), dtype=np.uint8))


def test_a_sample_looks_the_same_in_any_batch():
    together = draw_factors(3, np.arange(10, 20), 0.2)
    assert torch.equal(together[4:6], draw_factors(3, np.array([14, 15]), 0.2))
    assert not torch.equal(together, draw_factors(4, np.arange(10, 20), 0.2))
    assert len({tuple(row.tolist()) for row in together}) == 10


def test_factors_stay_within_the_strength():
    factors = draw_factors(0, np.arange(500), 0.2)
    assert (factors[:, :3] - 1).abs().max() <= 0.2 and (factors[:, 3:] - 1).abs().max() <= 0.05
    assert (factors[:, :3] - 1).abs().max(0).values.min() > 0.18, "the range is used"


def test_without_factors_it_is_the_students_own_preprocessing(images):
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.5])
    expected = (images.permute(0, 3, 1, 2) / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(prepare(images, None, mean, std), expected)
    torch.testing.assert_close(prepare(images, torch.ones(3, 6), mean, std), expected, atol=1e-5, rtol=1e-5)


def test_one_affine_map_equals_the_steps_one_after_the_other(images):
    factors = torch.tensor([[1.1, 0.9, 1.2, 1.02, 0.98, 1.0], [0.9, 1.2, 0.8, 1, 1, 1], [1, 1, 0, 1, 1, 1]])
    luma = torch.tensor(LUMA).view(1, 3, 1, 1)
    pixels = images.permute(0, 3, 1, 2) / 255
    brightness, contrast, saturation = (factors[:, k].view(-1, 1, 1, 1) for k in range(3))
    pixels = pixels * factors[:, 3:].view(-1, 3, 1, 1) * brightness
    grey = (pixels * luma).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = contrast * pixels + (1 - contrast) * grey
    pixels = saturation * pixels + (1 - saturation) * (pixels * luma).sum(1, keepdim=True)
    torch.testing.assert_close(prepare(images, factors, MEAN, STD), pixels.clamp(0, 1), atol=1e-5, rtol=1e-5)


def test_results_are_clipped_like_a_cameras(images):
    bright = prepare(images, torch.tensor([[3.0, 1, 1, 1, 1, 1]]).expand(3, 6), MEAN, STD)
    assert bright.max() == 1.0 and bright.min() >= 0.0


def test_places_stay_where_they_are():
    image = torch.full((1, 4, 4, 3), 50, dtype=torch.uint8)
    image[0, 1, 2] = 200
    changed = prepare(image, draw_factors(0, np.array([7]), 0.2), MEAN, STD)
    assert changed[0, 0].argmax().item() == 1 * 4 + 2
