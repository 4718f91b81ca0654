"""What launchers say, and processes of a pool that do not outlive the one that started them."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from teacher import launch

POOL = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from teacher.launch import end_with_parent

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 60).result()
"""


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "4"}, (2, 4)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6"}, (5, 1)),  # tasks of Slurm are not told where to meet
    ],
)
def test_who_this_process_is(environment, found, monkeypatch):
    for name in (*launch.RANK, *launch.PROCESSES):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (launch.rank(), launch.processes()) == found


def test_a_lone_launch_is_told_from_one_by_mpi():
    alone = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
    assert "use torchrun --nproc_per_node N" in launch.lone_launch(alone)
    assert launch.lone_launch(alone | {"PMI_RANK": "0"}) is None and launch.lone_launch({}) is None


def test_a_pool_ends_with_whoever_started_it(tmp_path):
    (tmp_path / "pool.py").write_text(POOL)
    started = subprocess.Popen([sys.executable, tmp_path / "pool.py"], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(started.stdout.readline()))
    started.send_signal(signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + 30
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
