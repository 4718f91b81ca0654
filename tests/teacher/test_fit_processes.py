"""`vega-edge fit` by several processes: two with one scene each learn what one learns with two.

Also what they run: torchrun --nproc_per_node 2 -m tests.teacher.test_fit_processes WORK OUT
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from teacher.fit import FitConfig
from teacher.fit_folder import WEIGHTS
from tests.teacher.fit_rooms import SHORT, make_rooms, run
from vega_artifact import UserError

ROOT = Path(__file__).parents[2]
CONFIG = replace(SHORT, steps=5, questions=2, rate=0.01, language_rate=0.01)
FUSIONS = ("token_gated", "only", "blind", "context_gated")  # two of them leave parameters out of the loss


def fits(work: Path, out: Path, config: FitConfig) -> None:
    for fusion in FUSIONS:
        run(work, out / fusion, config, fusion=fusion, language="full")


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_learn_what_one_does_from_twice_the_batch(tmp_path: Path) -> None:
    work = make_rooms(tmp_path / "work")
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", __name__, work, tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-m", *map(str, command)]
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    fits(work, tmp_path / "one", replace(CONFIG, accumulate=2))
    for fusion in FUSIONS:
        one, two = (tmp_path / name / fusion for name in ("one", "two"))
        assert losses(two) == pytest.approx(losses(one), abs=1e-4), "one line per step: only one of the two writes"
        ours, theirs = load_file(one / WEIGHTS), load_file(two / WEIGHTS)
        assert ours.keys() == theirs.keys()
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


def test_a_launcher_that_starts_one_process_where_two_were_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)  # what `accelerate launch --cpu --num_processes 2` leaves
    with pytest.raises(UserError, match="one process on CPUs .*; use torchrun --nproc_per_node N"):
        run(tmp_path, tmp_path / "out")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(UserError, match="cache"):
        run(tmp_path, tmp_path / "out")  # mpirun started them; only the cache is missing


if __name__ == "__main__":
    fits(Path(sys.argv[1]), Path(sys.argv[2]), replace(CONFIG, accumulate=1))
