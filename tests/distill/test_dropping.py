"""Dropping keeps the hardest stream of every frame and draws the others per sample."""

import numpy as np
import torch

from distill.dropping import coefficients, draw_keeps


def test_the_hardest_stream_of_each_frame_is_always_kept():
    losses = torch.tensor([[0.1, 0.9, 0.3], [0.5, 0.2, 0.4]])
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert coefficients(losses, nothing).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert coefficients(losses, torch.tensor([[True, False, False], [True, True, False]])).tolist() == [[1, 1, 0], [1, 1, 0]]
    assert coefficients(losses, ~nothing).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_draws_depend_on_the_sample_alone():
    together = draw_keeps(3, np.arange(8, 16), 4, 0.5)
    apart = torch.cat([draw_keeps(3, np.array([number]), 4, 0.5) for number in range(8, 16)])
    assert torch.equal(together, apart) and together.shape == (8, 4)
    assert not torch.equal(together, draw_keeps(4, np.arange(8, 16), 4, 0.5))


def test_the_share_that_is_dropped_is_the_one_asked_for():
    assert draw_keeps(0, np.arange(2000), 3, 0.3).float().mean(0).sub(0.7).abs().max() < 0.04
    assert draw_keeps(0, np.arange(50), 3, 0.0).all() and not draw_keeps(0, np.arange(50), 3, 1.0).any()
