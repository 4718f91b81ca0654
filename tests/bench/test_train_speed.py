"""The trainer's speed bench: a small real measurement, its arithmetic, and what it refuses.

python -m pytest tests/bench/test_train_speed.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vega_edge
from bench.train_speed import Settings, measure, row, table
from distill import RunConfig
from vega_artifact import UserError

SMALL = Settings(recipe="smoke", optimizer="adamw", batch=4, threads=(1,), steps=1, rounds=3, cpu=True)


def test_the_loop_is_measured_against_forward_and_backward() -> None:
    threads = torch.get_num_threads()
    result = measure(SMALL)
    (found,) = result["rows"]
    assert torch.get_num_threads() == threads
    assert (found["threads"], found["optimizer"], found["batch"]) == (1, "adamw", 4)
    assert found["ratio"] == pytest.approx(found["loop_images_s"] / found["pure_images_s"]) and found["ratio"] > 0
    assert 0 < found["data_part"] < 0.5 and 0 < found["update_part"] < 0.5
    assert all(len(result["samples"]["1"][side]) == 3 for side in ("loop", "pure"))
    text = table(result)
    assert "median of 3 turns of 1 steps" in text and "<- fastest" in text


def test_rates_are_medians_and_the_fastest_row_is_marked() -> None:
    class Done:
        config, precision = RunConfig(batch=10, optimizer="adamw"), "fp32"

    samples = {"loop": [1.0, 2.0, 9.0], "pure": [1.0, 1.0, 1.0], "waited": [1.2], "updating": [2.4]}
    slow = row(Done(), Settings(steps=4), 1, samples)
    assert slow["loop_images_s"] == 20 and slow["pure_images_s"] == 40 and slow["ratio"] == 0.5
    assert slow["ratio_range"] == pytest.approx([1 / 9, 1.0]) and slow["data_part"] == pytest.approx(0.1)
    assert slow["update_part"] == pytest.approx(0.2)
    fast = {**slow, "threads": 2, "loop_images_s": 30.0}
    where = {"accelerator": None, "device": "CPU", "cores": 2, "load_1min": 0.1}
    lines = table(
        {"rows": [slow, fast], "machine": where, "settings": {"recipe": "demo", "rounds": 3, "steps": 4}}
    ).splitlines()
    assert "fastest" not in lines[2] and lines[3].endswith("<- fastest")


def test_it_is_a_verb_and_bad_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--recipe",
        "smoke",
        "--optimizer",
        "adamw",
        "--batch",
        "2",
        "--threads",
        "1",
        "--steps",
        "1",
        "--rounds",
        "1",
        "--cpu",
    ]
    assert vega_edge.main(["bench", "train", *flags, "--out", str(tmp_path / "train.json")]) == 0
    assert json.loads((tmp_path / "train.json").read_text())["rows"][0]["batch"] == 2
    assert "ratio" in capsys.readouterr().out
    with pytest.raises(UserError, match="must be at least 1"):
        Settings(rounds=0)
    assert vega_edge.main(["bench", "train", "--recipe", "dem"]) == 2
    assert "unknown recipe 'dem'. Did you mean 'demo'" in capsys.readouterr().err
