"""The contest: shares of the teacher's sense that are kept, its report, and one tiny run of it from caches to report."""

import re
from pathlib import Path

import numpy as np
import pytest

from distill import contest
from distill.contest import Contest
from distill.contest_report import write
from distill.study_scores import kept
from distill.study_worker import Worker
from teacher.extract import extract
from vega_artifact import UserError, read_json

RECALL = "correspondence_recall_centred"


def recall_sums(seeds: int, rooms: int, part: float, seed: int) -> np.ndarray:
    """(seeds, rooms, 2) about `part` of 1,000 matches found in every room."""
    hits = np.random.default_rng(seed).binomial(1000, part, (seeds, rooms)).astype(float)
    return np.stack([hits, np.full((seeds, rooms), 1000.0)], axis=-1)


class TestKept:
    def test_half_way_between_floor_and_teacher_is_half(self):
        found = kept(recall_sums(3, 40, 0.5, 0), recall_sums(1, 40, 0.6, 1), recall_sums(1, 40, 0.4, 2), RECALL)
        assert found.low < found.value < found.high and len(found.seeds) == 3
        assert found.value == pytest.approx(0.5, abs=0.05)

    def test_the_teacher_keeps_all_of_itself_and_the_floor_nothing(self):
        teacher, floor = recall_sums(1, 40, 0.6, 1), recall_sums(1, 40, 0.4, 2)
        assert kept(teacher, teacher, floor, RECALL).value == 1
        assert kept(floor, teacher, floor, RECALL).value == 0

    def test_rooms_are_the_same_for_all_three(self):
        """Hard rooms lower all alike: drawn apart they would blow the interval up."""
        hard = np.random.default_rng(3).uniform(0.2, 0.9, 40)
        tables = [np.stack([1000 * hard * part, np.full(40, 1000.0)], axis=-1)[None] for part in (0.9, 1.0, 0.5)]
        found = kept(*tables, RECALL)
        assert found.high - found.low < 1e-6 and found.value == pytest.approx(0.8)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("contest")
    for split, rooms in {"train": 3, "val": 1, "test": 2}.items():
        extract("tiny-geometry", f"procedural:{split}?count={rooms}&seed=5&frames=4", folder / split)
    return {split: folder / split for split in ("train", "val", "test")}


def test_from_caches_to_report_and_again_from_what_is_there(caches, tmp_path, monkeypatch):
    tiny = Contest(**caches, recipes=("smoke",), seeds=(0, 1), steps=2, out=tmp_path / "contest")
    text = tiny.run().read_text()
    found = read_json(tmp_path / "contest" / "contest.json")
    score = found["rows"][0]["scores"]["depth_r2"]
    gap = found["references"]["teacher"]["depth_r2"]["value"] - found["references"]["raw_patches"]["depth_r2"]["value"]
    assert score["kept"]["value"] == pytest.approx(score["above_raw"]["value"] / gap)
    assert len(score["seeds"]) == 2 and score["seeds"][0] != score["seeds"][1]
    assert re.search(r"\| `smoke` \(vit_micro\) \| \d\.\d\d M \| 16 \| ", text) and "| smoke − raw patches |" in text

    monkeypatch.setattr(Worker, "ask", lambda self, *command: pytest.fail(f"made again: {command}"))
    assert tiny.run().read_text() == text
    next((tiny.out / "scores").glob("references-*.json")).unlink()
    asked = []
    monkeypatch.setattr(Worker, "ask", lambda self, *command: asked.append(command))
    with pytest.raises(UserError, match="no such file"):  # the command that would have made it was replaced
        tiny.run()
    assert [command[:2] for command in asked] == [("bench", "probe")]


def test_the_report_says_who_beats_the_first(tmp_path):
    def score(gain):
        apart = dict(zip(("value", "low", "high"), gain)) | {"seeds": [gain[0]]}
        return {"value": 0.7, "low": 0.6, "high": 0.8, "seeds": [0.7], "above_raw": apart, "kept": apart, "above_first": apart}

    about = {"student": "vit_tiny", "steps": 10, "batch": 8, "parameters": 5_500_000, "cosine": [0.9, 0.8]}
    rows = [{"recipe": "best", "scores": {"depth_r2": score((0.03, 0.02, 0.04)), RECALL: score((-0.01, -0.02, 0.01))}} | about]
    teacher = {"depth_r2": score((0, 0, 0)), RECALL: score((0, 0, 0))}
    settings = {"recipes": ["first", "best"], "seeds": [0]}
    found = {"settings": settings, "parents": {"test": "abc"}, "references": {"teacher": teacher}, "rows": rows}
    text = write(tmp_path, found).read_text()
    assert "| best − first | **+0.030 [+0.020, +0.040]** | −0.010 [−0.020, +0.010] |" in text
    assert "| `best` (vit_tiny) | 5.50 M | 80 | 0.700 [0.600 to 0.800] |" in text


def test_bad_flags(caches, capsys):
    with pytest.raises(UserError, match="seeds .* must be different"):
        Contest(**caches, seeds=(1, 1))
    with pytest.raises(UserError, match="unknown recipe 'vit_tinny'. Did you mean 'vit_tiny'"):
        Contest(**caches, recipes=("vit_tinny",))
    with pytest.raises(UserError, match="jobs and steps must be at least 1"):
        Contest(**caches, jobs=0)
    assert contest.main(["--train", "a", "--val", "b", "--test", "c"]) == 2
    assert "distill.contest: a/manifest.json: missing" in capsys.readouterr().err
