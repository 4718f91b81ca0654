"""Validation cosines: what they are for a perfect, a constant and a partial answer."""

import pytest
import torch
from torch import nn

from distill.dataset import load_frames
from distill.evaluate import validation_cosines
from student import Preprocess

LOOK = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=(32, 32))


class Oracle(nn.Module):
    """Answers with given tokens, in the order asked for."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.preprocess, self.answers, self.place = LOOK, answers, 0

    def film(self, images):
        self.place += len(images)
        return {"fused": self.answers[self.place - len(images) : self.place]}


@pytest.fixture
def frames(cache):
    return load_frames(cache, cache.scene_ids, ["fused"], None)


def test_a_perfect_student_scores_one_and_stays_in_training_mode(frames):
    student = Oracle(frames.targets["fused"].float())
    means = {"fused": frames.targets["fused"].float().mean((0, 1))}
    assert validation_cosines(student, frames, means)["fused"] == pytest.approx({"raw": 1.0, "centred": 1.0}, abs=1e-5)
    assert student.training


def test_the_mean_alone_scores_high_raw_and_nothing_centred(frames):
    mean = frames.targets["fused"].float().mean((0, 1))
    cosines = validation_cosines(Oracle(mean.expand(len(frames), 4, -1)), frames, {"fused": mean})["fused"]
    assert cosines["raw"] > 0.8 and abs(cosines["centred"]) < 1e-5


def test_a_limit_looks_at_evenly_spread_frames(frames):
    chosen = torch.linspace(0, len(frames) - 1, 5).round().long()
    student = Oracle(frames.targets["fused"].float()[chosen])
    cosines = validation_cosines(student, frames, {"fused": torch.zeros(12)}, limit=5)["fused"]
    assert student.place == 5 and cosines["raw"] == pytest.approx(1.0, abs=1e-5)
