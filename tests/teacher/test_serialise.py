"""Token order: rows, newlines, frames, and the positions Qwen2.5-VL itself gives them."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from teacher.serialise import flat, grid_positions, one_after_the_other, with_newlines, wrapped

MAPS = torch.arange(2 * 3 * 4).view(2, 1, 3, 4).expand(2, 5, 3, 4).float()  # frame, row and column in row-major order


def test_a_newline_ends_every_row() -> None:
    found = with_newlines(MAPS, torch.full((5,), -1.0))[:, 0].tolist()
    rows = [list(range(start, start + 4)) for start in range(0, 24, 4)]
    assert found == [value for row in rows for value in [*row, -1]]
    assert flat(MAPS)[:, 0].tolist() == list(range(24))


def test_counts_of_the_reference() -> None:
    maps = torch.zeros(32, 1, 14, 14)
    assert len(flat(maps)) == 6272 and len(with_newlines(maps, torch.zeros(1))) == 6720
    assert len(one_after_the_other(maps, maps, torch.zeros(1))) == 2 * 6720


def test_sequence_concatenation_puts_all_semantic_tokens_first() -> None:
    found = one_after_the_other(MAPS, MAPS + 100, torch.full((5,), -1.0))
    assert torch.equal(found[:30], with_newlines(MAPS, torch.full((5,), -1.0)))
    assert found[30, 0] == 100


def test_gradients_reach_the_newline_from_every_row() -> None:
    newline = torch.zeros(5, requires_grad=True)
    with_newlines(MAPS, newline).sum().backward()
    assert newline.grad is not None and newline.grad.tolist() == [6.0] * 5
    with pytest.raises(ValueError, match=r"a newline of shape \(5,\) expected, found \(4,\)"):
        with_newlines(MAPS, torch.zeros(4))


def test_frames_are_wrapped() -> None:
    found = wrapped(MAPS, torch.full((5,), -1.0), torch.full((5,), -2.0))[:, 0].tolist()
    assert found == [-1, *range(12), -2, -1, *range(12, 24), -2]


@pytest.mark.parametrize(("frames", "grid"), [(1, (3, 4)), (3, (2, 5)), (2, (4, 2))])
def test_positions_are_those_of_qwen(frames: int, grid: tuple[int, int]) -> None:
    """Against transformers' own count, for `frames` images after three words, the newest call signature or the one before."""
    config = Qwen2_5_VLConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1},
        vision_config={"depth": 1, "hidden_size": 8, "num_heads": 1, "out_hidden_size": 8},
    )
    with torch.device("meta"):
        model = Qwen2_5_VLModel(config)
    image = [config.vision_start_token_id, *[config.image_token_id] * (grid[0] * grid[1]), config.vision_end_token_id]
    ids = torch.tensor([[1, 2, 3, *image * frames, 4]])
    kinds = (ids == config.image_token_id).int()
    sizes = torch.tensor([[1, 2 * grid[0], 2 * grid[1]]] * frames)
    options = {"input_ids": ids, "image_grid_thw": sizes, "attention_mask": torch.ones_like(ids)}
    try:
        expected, _ = model.get_rope_index(**options, mm_token_type_ids=kinds)
    except TypeError:
        expected, _ = model.get_rope_index(**options)
    assert torch.equal(grid_positions(frames, grid, 3), expected[:, 0, 3:-1])
