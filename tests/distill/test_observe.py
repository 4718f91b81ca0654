"""Looking on the way: the weights that would be shipped, within a share of the time, without disturbing training."""

import dataclasses
import time

import torch
from torch import nn

from distill import train
from distill.log import read_log
from distill.observe import Findings, quick_frames
from student import load_student


def test_probes_and_pictures_land_beside_the_log_and_change_nothing(quick, cache_path, tmp_path):
    quick = dataclasses.replace(quick, optimizer="adamw", probe_share=1.0)
    seen = []

    def probes(student: nn.Module) -> Findings:
        torch.rand(100)
        seen.append({name: value.clone() for name, value in student.state_dict().items()})
        assert not student.training and not torch.is_grad_enabled()
        return Findings({"depth_r2": 0.5}, {"pca": b"\x89PNG"})

    watched = train(cache_path, tmp_path / "watched", quick, probes=probes)
    records = [record for record in read_log(watched / "log.jsonl") if "probes" in record]
    assert [record["step"] for record in records] == [6, 12] and records[0]["probes"] == {"depth_r2": 0.5}
    assert sorted(path.name for path in (watched / "pictures").iterdir()) == ["pca-00000006.png", "pca-00000012.png"]
    plain = load_student(train(cache_path, tmp_path / "plain", quick)).state_dict()
    assert all(torch.equal(value, seen[-1][name]) for name, value in plain.items()), "the last look is at what is shipped"
    assert any(not torch.equal(value, seen[0][name]) for name, value in plain.items())


def test_slow_probes_are_asked_once_on_the_way_and_at_the_end(quick, cache_path, tmp_path):
    def probes(student: nn.Module) -> Findings:
        time.sleep(0.2)
        return Findings({"slow": 1.0})

    config = dataclasses.replace(quick, optimizer="adamw", evaluate_every=2, probe_share=0.01)
    run = train(cache_path, tmp_path / "run", config, probes=probes)
    records = read_log(run / "log.jsonl")
    assert [record["step"] for record in records if "probes" in record] == [2, 12]
    assert [record["step"] for record in records if "validation" in record] == [2, 4, 6, 8, 10, 12]


def test_a_validation_on_the_way_costs_at_most_a_twentieth(quick):
    assert quick_frames(dataclasses.replace(quick, batch=48, evaluate_every=200)) == 96
    small = dataclasses.replace(quick, batch=8, evaluate_every=10)
    assert quick_frames(small) == 12, "as many forward passes as 5 % of 80 forward and backward ones, which cost three each"
    assert quick_frames(dataclasses.replace(small, evaluate_every=1, batch=1)) == 1


def test_the_best_validation_on_the_way_is_shipped_on_request(quick, cache_path, tmp_path):
    """Rates that ruin the student after step 4 make an early step the best."""
    config = dataclasses.replace(
        quick, optimizer="adamw", learning_rate=1.0, warmup=0.0, evaluate_every=2, ship="best", keep_every=2, ema=0.5
    )
    run = train(cache_path, tmp_path / "run", config)
    records = [record for record in read_log(run / "log.jsonl") if "validation" in record]
    scores = {record["step"]: record["validation"]["fused"]["centred"] for record in records[:-1]}
    best = max(scores, key=lambda step: scores[step])
    assert best < 12, "or the test shows nothing"
    kept = {path.name for path in (run / "kept").iterdir()}
    assert kept == {f"step-{step:08d}.safetensors" for step in range(2, 13, 2)}
    assert not list(run.glob("best*")), "the candidates go when the run is finished"
    shipped = (run / "student.safetensors").read_bytes()
    assert shipped == (run / "kept" / f"step-{best:08d}.safetensors").read_bytes()
    assert config.identity() != dataclasses.replace(config, evaluate_every=3).identity(), "where it looks decides what it ships"
