"""What a launcher tells the processes it started: how many they are, which one this is, and whether it started them at all.

Names of torchrun and accelerate, Open MPI, Intel MPI and MPICH, and Slurm.

    python -c "from teacher.launch import processes, rank; print(rank(), 'of', processes())"
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from multiprocessing import parent_process
from threading import Thread

RANK = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
LOCAL_RANK = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
# Not Slurm's: a job step of N tasks is no sign that they were told where to meet.
PROCESSES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
LOCAL_PROCESSES = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def rank() -> int:
    """Number of this process among those started together, 0 where nobody says so."""
    return _told(RANK, 0)


def local_rank() -> int:
    """The same within this machine."""
    return _told(LOCAL_RANK, 0)


def processes() -> int:
    """How many processes were started to work on one thing, 1 where nobody says so."""
    return _told(PROCESSES, 1)


def local_processes() -> int:
    """How many of them are on this machine; all, where nobody says so."""
    return _told(LOCAL_PROCESSES, processes())


def end_with_parent() -> None:
    """For a process of a pool to call first: it ends when the process that started it is gone, killed with -9 as well."""
    parent = parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, name="end with parent", daemon=True).start()


def lone_launch(environment: Mapping[str, str]) -> str | None:
    """What to tell a user whose launcher was asked for several processes and started one, None if it did not."""
    alone = not any(name in environment for name in RANK)
    if alone and environment.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in environment:
        return (
            "note: without --mpirun_hostfile accelerate starts one process on CPUs whatever --num_processes says; for N "
            "processes use torchrun --nproc_per_node N, or give that flag where MPI is there (pip install mpich)"
        )
    return None


def _told(names: Sequence[str], otherwise: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), otherwise)
