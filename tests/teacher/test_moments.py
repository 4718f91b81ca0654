"""Streamed moments equal those of all rows at once, in any split, and survive a large mean."""

from __future__ import annotations

import numpy as np
import pytest

from teacher.moments import Moments


@pytest.fixture
def rows() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 1e4


def gather(parts: list[np.ndarray], covariance: bool) -> Moments:
    moments = Moments(6, covariance)
    for part in parts:
        moments.update(part)
    return moments


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize("cuts", [[], [1], [7, 7, 300]])
def test_batches_equal_all_at_once(rows: np.ndarray, covariance: bool, cuts: list[int]) -> None:
    moments = gather(np.split(rows, cuts), covariance)
    assert moments.count == 500
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-9)
    if covariance:
        np.testing.assert_allclose(moments.covariance, np.cov(rows.T, bias=True), rtol=1e-7, atol=1e-9)
        assert np.array_equal(moments.covariance, moments.covariance.T)


@pytest.mark.parametrize("covariance", [False, True])
def test_parts_merge_into_the_whole(rows: np.ndarray, covariance: bool) -> None:
    left, right = gather([rows[:123]], covariance), gather([rows[123:200], rows[200:]], covariance)
    right_before = right.mean.copy()
    for merged in (Moments(6, covariance), left):
        if merged is not left:
            merged.merge(left)
        merged.merge(right)
        merged.merge(Moments(6, covariance))
        np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-13)
        np.testing.assert_allclose(merged.variance, rows.var(0), rtol=1e-9)
    assert np.array_equal(right.mean, right_before) and right.count == 377


def test_half_precision_maps_with_channels_second() -> None:
    maps = (np.random.default_rng(1).standard_normal((4, 6, 8, 8)) * 0.1 + 300).astype(np.float16)
    moments = Moments(6)
    moments.update(maps[:1], axis=1)
    moments.update(maps[1:], axis=1)
    exact = maps.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, exact.var((0, 2, 3)), rtol=1e-9)


def test_misuse_is_refused_and_leaves_the_moments_alone(rows: np.ndarray) -> None:
    moments = gather([rows], False)
    before = moments.mean.copy(), moments.variance.copy(), moments.count
    bad = rows[:3].copy()
    bad[1, 4] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf in channel 4"):
        moments.update(bad)
    with pytest.raises(ValueError, match="6 channels expected on axis -1, found 5"):
        moments.update(rows[:, :5])
    with pytest.raises(ValueError, match="different kinds"):
        moments.merge(Moments(6, covariance=True))
    moments.update(rows[:0])
    assert (
        np.array_equal(moments.mean, before[0]) and np.array_equal(moments.variance, before[1]) and moments.count == before[2]
    )
    with pytest.raises(ValueError, match="no covariance was kept"):
        _ = moments.covariance
    with pytest.raises(ValueError, match="before the first update"):
        _ = Moments(6).variance
