"""What a step sees: the same frames however they are dealt out, crops of frame and map that agree."""

import dataclasses

import numpy as np
import pytest
import torch

from distill.batches import Batches, places
from distill.crop import cropped, cropped_tokens, draw_boxes
from distill.dataset import load_frames
from distill.normalize import estimate
from student import Preprocess
from vega_artifact import UserError

LOOK = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=(32, 32))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def frames(cache):
    return load_frames(cache, cache.scene_ids, ["fused"], None)


def batches(frames, config, processes=1, rank=0):
    normalizers = {"fused": estimate("standardize", [frames.targets["fused"].flatten(0, 1)])}
    return Batches(frames, normalizers, LOOK, (2, 2), config, CPU, processes, rank)


@pytest.mark.parametrize("crop", [0.0, 0.6])
def test_processes_and_parts_together_see_the_frames_of_one(frames, quick, crop):
    config = dataclasses.replace(quick, crop=crop)
    with batches(frames, config) as whole:
        expected = whole.take(3, 0)
    shares = []
    for rank in range(2):
        with batches(frames, dataclasses.replace(config, accumulate=2), 2, rank) as dealt:
            shares += [dealt.take(3, part) for part in range(2)]
    assert [len(part.pixels) for part in shares] == [2, 2, 2, 2]
    torch.testing.assert_close(torch.cat([part.pixels for part in shares]), expected.pixels)
    torch.testing.assert_close(torch.cat([part.targets["fused"] for part in shares]), expected.targets["fused"])


def test_what_was_fetched_ahead_is_what_is_asked_for(frames, quick):
    with batches(frames, quick) as ahead:
        in_order = [ahead.take(step, 0).pixels for step in range(4)]
        again = ahead.take(1, 0).pixels  # out of order: what waits is of another step
    assert torch.equal(again, in_order[1]) and not torch.equal(in_order[1], in_order[2])


def test_an_error_while_fetching_ahead_comes_out_of_the_step_it_belongs_to(frames, quick, monkeypatch):
    with batches(frames, quick) as ahead:
        fetch = ahead._fetch
        monkeypatch.setattr(ahead, "_fetch", lambda step, part: fetch(step, part) if step == 0 else 1 / 0)
        ahead.take(0, 0)
        with pytest.raises(ZeroDivisionError):
            ahead.take(1, 0)


def test_a_batch_larger_than_the_data_is_refused(frames, quick):
    with pytest.raises(UserError, match="batch 48 is larger than the data, 45 frames of 10 training scenes; lower batch"):
        batches(frames, dataclasses.replace(quick, batch=48))


def test_frames_are_named_by_scene_and_number(cache, frames):
    names = places(cache, frames.scenes)
    assert len(names) == len(frames) and names[:5] == [*(f"scene-000/{k}" for k in range(4)), "scene-001/0"]


def test_boxes_lie_inside_and_depend_on_the_sample_alone():
    boxes = draw_boxes(3, np.arange(400), 0.5)
    assert boxes[:, 2:].min() >= 0.5 and boxes[:, :2].min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 1 + 1e-6
    assert boxes[:, 2:].min() < 0.51 and boxes[:, 2:].max() > 0.99, "the range is used"
    assert torch.equal(boxes[7:9], draw_boxes(3, np.array([7, 8]), 0.5))


def test_the_whole_frame_as_box_changes_nothing_and_a_quarter_is_that_quarter():
    maps = torch.randn(2, 3, 8, 8)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    torch.testing.assert_close(cropped(maps, whole), maps)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # a column's value is its place, so a crop reads places off
    right = cropped(ramp, torch.tensor([[0.0, 0.5, 0.5, 0.5]]))[0, 0, 0]
    torch.testing.assert_close(right[:-1], 3.75 + 0.5 * torch.arange(7))  # pixel k of the half lies at 4 + (k + 0.5) / 2 - 0.5


def test_frame_and_map_are_cropped_to_the_same_place():
    """A frame whose pixels say where they are, and a map that says the same per cell, still agree after the crop."""
    rows = (torch.arange(32) + 0.5) / 32
    frame = rows[None, None, :, None].expand(40, 1, 32, 32)
    tokens = ((torch.arange(8) + 0.5) / 8)[:, None].expand(8, 8).reshape(1, 64, 1).expand(40, 64, 1)
    boxes = draw_boxes(0, np.arange(40), 0.5)
    seen = cropped(frame, boxes).reshape(40, 8, 4, 8, 4).mean((2, 4))
    said = cropped_tokens(tokens, boxes, (8, 8)).reshape(40, 8, 8)
    inner = slice(1, -1)  # the rim of the coarse map has no neighbour to interpolate with
    torch.testing.assert_close(said[:, inner], seen[:, inner], atol=0.03, rtol=0)
