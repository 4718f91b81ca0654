"""What the teacher sees of a frame: the whole of it, a cut, or exactly the rows the reference keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from teacher.framing import CROPS, aligned_size, as_unit_images, frame_images
from vega_artifact import UserError

BUDGET, MULTIPLE = (480, 832), 16


@pytest.mark.parametrize(
    "frame", [(480, 832), (968, 1296), (720, 1280), (1280, 720), (384, 384), (64, 64), (2160, 4096)], ids=str
)
def test_aligned_keeps_aspect_within_one_multiple_and_the_budget(frame: tuple[int, int]) -> None:
    found = aligned_size(*frame, BUDGET, MULTIPLE)
    scale = math.sqrt(BUDGET[0] * BUDGET[1] / (frame[0] * frame[1]))
    assert all(side % MULTIPLE == 0 for side in found)
    assert all(abs(side - scale * given) <= MULTIPLE / 2 for side, given in zip(found, frame, strict=True))
    tokens, budget = found[0] * found[1] / MULTIPLE**2, BUDGET[0] * BUDGET[1] / MULTIPLE**2
    assert abs(tokens - budget) <= sum(scale * side for side in frame) / MULTIPLE / 2 + 1, "half a row and half a column"


def test_aligned_of_a_strip_has_at_least_one_token() -> None:
    assert aligned_size(2, 4000, (64, 64), 16)[0] == 16


def test_aligned_shows_the_whole_frame_and_leaves_a_fitting_one_alone() -> None:
    ramp = torch.linspace(0, 1, 300)[None, None, :, None].expand(2, 3, 300, 400)
    found = frame_images(ramp, "aligned", (96, 128), 16)
    assert found.shape == (2, 3, 96, 128)
    assert found.min() < 0.01 and found.max() > 0.99
    torch.testing.assert_close(found[0, 0, :, 0].mean(), torch.tensor(0.5), rtol=0, atol=1e-3)
    fitting = torch.rand(1, 3, 96, 128)
    assert torch.equal(frame_images(fitting, "aligned", (96, 128), 16), fitting)


def rows_384() -> torch.Tensor:
    """384x384 frame: rows 84..299 hold (row - 84) / 255, an exact 8-bit ramp; rows above and below are white."""
    column = torch.ones(384)
    column[84:300] = torch.arange(216) / 255
    return column[None, None, :, None].expand(1, 3, 384, 384).contiguous()


def test_reference_keeps_rows_280_to_999_of_1280() -> None:
    """384x384 -> 720x1280 passes through 1280x1280; source rows 84..299 become its rows 280..999."""
    found = frame_images(rows_384(), "reference", (720, 1280), 16)
    assert found.shape == (1, 3, 720, 1280)
    source = (torch.arange(280, 1000) + 0.5) * 384 / 1280 - 0.5
    inside = (source >= 84) & (source <= 299)  # the outermost two rows on either side mix with the white beyond
    assert int((~inside).sum()) == 4
    torch.testing.assert_close(found[0, 0, inside, 640], (source[inside] - 84) / 255, rtol=0, atol=1e-5)
    assert found[0, 0, ~inside].max() < 1, "no row that is all white, so none from beyond"
    torch.testing.assert_close(found[0, 0, :, 0], found[0, 0, :, -1])


def test_reference_squashes_first_and_cover_does_not() -> None:
    """A wide frame: squashed to a square its full width stays; covered, its sides are cut."""
    ramp = torch.linspace(0, 1, 1280)[None, None, None].expand(1, 3, 640, 1280)
    squashed = frame_images(ramp, "reference", (384, 384), 16)[0, 0, 100]
    covered = frame_images(ramp, "cover", (384, 384), 16)[0, 0, 100]
    assert squashed[0] < 0.01 and squashed[-1] > 0.99
    assert covered[0] == pytest.approx(0.25, abs=0.01) and covered[-1] == pytest.approx(0.75, abs=0.01)


def test_reference_works_on_eight_bits() -> None:
    """The reference resizes 8-bit frames, so what comes out of the square is a multiple of 1/255."""
    found = frame_images(torch.rand(1, 3, 500, 333), "reference", (384, 384), 16) * 255
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("crop", sorted(CROPS))
def test_every_crop_gives_unit_images_of_whole_tokens(crop: str) -> None:
    hard = (torch.rand(1, 3, 97, 131) > 0.5).float()  # sharp edges make a bicubic resize overshoot
    found = frame_images(hard, crop, (96, 128), 16)
    assert found.shape[2] % 16 == found.shape[3] % 16 == 0
    assert 0 <= found.min() and found.max() <= 1 + 1e-6


def test_unknown_crop_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"unknown crop 'alligned'\. Did you mean 'aligned'\? Known: aligned, cover, reference"):
        frame_images(torch.zeros(1, 3, 8, 8), "alligned", (64, 64), 8)


def test_size_must_be_whole_tokens() -> None:
    with pytest.raises(UserError, match=r"size \(64, 60\): both sides must be multiples of 8"):
        frame_images(torch.zeros(1, 3, 8, 8), "cover", (64, 60), 8)


def test_range_is_stated_by_the_dtype() -> None:
    dark = np.zeros((2, 4, 6, 3), np.uint8)
    dark[1, 0, 0, 0] = 1
    found = as_unit_images(dark)
    assert found.shape == (2, 3, 4, 6) and found.dtype == torch.float32
    assert found.max() == pytest.approx(1 / 255), "a dark 8-bit frame is not mistaken for a unit one"
    assert torch.equal(as_unit_images(found), found)


NAN = torch.zeros(3, 3, 4, 4)
NAN[1, 2, 3, 0] = float("nan")


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (NAN, "frame 1 holds NaN or infinity"),
        (torch.full((1, 3, 4, 4), float("inf")), "frame 0 holds NaN or infinity"),
        (torch.full((1, 3, 4, 4), 200.0), r"lie in \[0, 1\], found 200.000 to 200.000; divide by 255"),
        (torch.full((1, 3, 4, 4), -0.1), r"lie in \[0, 1\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "T >= 1 expected, found shape"),
        (np.zeros((4, 4, 3), np.uint8), r"found shape \(4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"uint8 frames must be \(T, H, W, 3\)"),
        (torch.zeros(2, 4, 4, 3), r"float frames must be \(T, 3, H, W\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), "int64"),
    ],
    ids=["nan", "inf", "0-255", "negative", "none", "one frame", "uint8 channels", "float channels", "integers"],
)
def test_bad_frames_are_refused(frames: torch.Tensor | np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_unit_images(frames)
