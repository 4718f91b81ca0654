"""Frames once per machine: the same in every process, in memory that is shared and gone when all are done."""

import threading
from functools import partial

import pytest
import torch

from distill import resident
from distill.dataset import load_frames
from distill.resident import mapped, once_per_machine, places, stored


@pytest.fixture
def load(cache):
    return partial(load_frames, cache, cache.scene_ids[:3], ["fused", "gate"], None)


def same(first, second) -> bool:
    pairs = [(first.images, second.images), *zip(first.targets.values(), second.targets.values(), strict=True)]
    return first.targets.keys() == second.targets.keys() and all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def test_what_one_process_stores_another_maps(load, tmp_path):
    plain, first = load(), stored(load, tmp_path / "place")
    second = mapped(tmp_path / "place")
    assert same(plain, first) and same(plain, second)
    assert (second.scenes, second.lengths) == (plain.scenes, plain.lengths)
    first.images[0, 0, 0, 0] ^= 255
    assert torch.equal(second.images, first.images), "one memory, not two"


class Process:
    """What a process of the run sees of accelerate."""

    def __init__(self, local: int, barrier: threading.Barrier) -> None:
        self.is_local_main_process, self.wait_for_everyone = local == 0, barrier.wait


@pytest.mark.parametrize("room", [0, 2**40])
def test_two_processes_read_once_and_leave_nothing_behind(load, tmp_path, monkeypatch, room):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(resident, "MEMORY", tmp_path / "memory")
    monkeypatch.setattr(resident.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    monkeypatch.setattr(resident, "_room", lambda folder: room)
    (tmp_path / "memory").mkdir()
    asked, found, barrier = [], {}, threading.Barrier(2)

    def counted():
        asked.append([place.exists() for place in places("run")])
        return load()

    def work(local: int) -> None:
        found[local] = once_per_machine(counted, Process(local, barrier), "run", needed=2**20)

    threads = [threading.Thread(target=work, args=(local,)) for local in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert asked == [[room > 0, room == 0]], "one process reads, into RAM where there is room"
    assert same(found[0], found[1]) and same(found[0], load())
    assert not any(place.exists() for place in places("run"))


def test_a_process_by_itself_reads_for_itself(load, monkeypatch):
    monkeypatch.setattr(resident, "stored", lambda *_: pytest.fail("nobody to share with"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert same(once_per_machine(load, None, "run", 0), load())
