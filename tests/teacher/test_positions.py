"""3D positions: the reference's numbers and its flaws, and what the masked variant does about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from teacher.positions import discretise, encode_clip, masked_means, reference_means, sin3d, token_points
from teacher.scenes.clip import PosedClip
from vega_artifact import UserError


@pytest.fixture
def clip() -> PosedClip:
    """One frame that looks along world x from (1, 2, 1.5) at a wall 4 m away; its left half has no depth."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    pose[:3, 3] = 1, 2, 1.5
    depth = np.full((1, 56, 56), 4.0, np.float32)
    depth[:, :, :28] = 0
    intrinsics = np.array([[56.0, 0, 28], [0, 56.0, 28], [0, 0, 1]])
    return PosedClip("wall", np.zeros((1, 56, 56, 3), np.uint8), depth, intrinsics, pose[None], np.zeros(1, np.int64))


def test_cells_of_the_reference() -> None:
    corners = torch.tensor([[0.0, 0, 0], [15, 15, 5], [-15, -15, -5], [99, -99, 7]])
    assert discretise(corners).tolist() == [[150, 150, 50], [300, 300, 100], [0, 0, 0], [300, 0, 100]]
    assert discretise(torch.full((1, 3), torch.nan)).isnan().all()


def test_encoding_of_the_reference() -> None:
    found = sin3d(torch.tensor([150.0, 150.0, 50.0]), 3584)
    assert found.shape == (3584,) and found.dtype == torch.float32
    torch.testing.assert_close(found[:4], torch.tensor([-0.7149, 0.6993, -0.0487, -0.9988]), rtol=0, atol=5e-5)
    assert torch.equal(found[1194:1196], found[:2])
    torch.testing.assert_close(found[2388:2390], torch.tensor([-0.2624, 0.9650]), rtol=0, atol=5e-5)
    assert found[-2:].tolist() == [0, 0]
    assert float(found.double().square().sum()) == pytest.approx(1791, abs=1e-3)
    with pytest.raises(UserError, match="width of at least 6, found 4"):
        sin3d(torch.zeros(3), 4)


def test_coordinates_in_bfloat16_reach_about_260_of_301_cells() -> None:
    x = torch.linspace(-15, 15, 30001)
    points = torch.stack((x, x, x.clamp(-5, 5)), dim=-1)
    coarse = discretise(points.bfloat16())[:, 0]
    assert 250 <= len(coarse.unique()) <= 270
    assert (coarse - discretise(points)[:, 0]).abs().max() in (1, 2)


def test_reference_counts_unknown_depth_as_the_camera(clip: PosedClip) -> None:
    found = token_points(clip, (14, 14), "reference").view(14, 14, 3).float()
    torch.testing.assert_close(found[:, 0], torch.tensor([1.0, 2.0, 1.5]).expand(14, 3), rtol=1e-2, atol=0)
    assert (found[:, 8:, 0] - 5).abs().max() < 0.05
    mixed = found[:, 7, 0]  # 192 of the first 378 pixels have no depth, 3 of them in this column of 27
    assert ((mixed - (1 + 4 * 24 / 27)).abs() < 0.05).all()


def test_masked_leaves_unknown_depth_out(clip: PosedClip) -> None:
    found = token_points(clip, (14, 14), "masked").view(14, 14, 3)
    assert found[:, :7].isnan().all()
    torch.testing.assert_close(found[:, 7:, 0], torch.full((14, 7), 5.0), rtol=1e-5, atol=0)
    coarse = token_points(clip, (2, 1), "masked")[0, :, 0]  # cells half of which are unknown
    torch.testing.assert_close(coarse, torch.full((2,), 5.0), rtol=1e-5, atol=0)
    assert torch.equal(encode_clip(clip, 32, (14, 14), "masked").view(14, 14, 32)[:, :7], torch.zeros(14, 7, 32))


def test_both_agree_where_all_depth_is_known_but_for_the_lost_border(clip: PosedClip) -> None:
    points = torch.rand(1, 384, 384, 3, generator=torch.Generator().manual_seed(0)) * 4
    kept = masked_means(points[:, :378, :378], (14, 14))
    torch.testing.assert_close(reference_means(points).float(), kept, rtol=0, atol=0.02)
    whole = replace(clip, depth=np.full((1, 56, 56), 4.0, np.float32))
    gap = (token_points(whole, (14, 14), "reference") - token_points(whole, (14, 14), "masked")).abs()
    assert 0.01 < gap[..., 1].max() < 0.1, "the reference drops 6 of 384 columns, so its tokens lie up to 1.5 % of a frame off"


def test_bad_input(clip: PosedClip) -> None:
    with pytest.raises(UserError, match="positions 'reference' are those of 14x14 tokens, the tokens given are 8x8"):
        token_points(clip, (8, 8), "reference")
    with pytest.raises(UserError, match="unknown positions 'mask'. Did you mean 'masked'"):
        token_points(clip, (8, 8), "mask")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="world points need depth"):
        token_points(replace(clip, depth=None), (8, 8), "masked")
