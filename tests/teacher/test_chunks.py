"""Chunk sizes from a memory budget.

python -m pytest tests/teacher/test_chunks.py
"""

from __future__ import annotations

import pytest
import torch

from teacher import chunks
from teacher.chunks import GIB, frames_per_chunk
from vega_artifact import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("frames_that_fit", "chunk"), [(1000.0, 24), (24.0, 24), (23.9, 16), (16.0, 16), (15.9, 8), (3.0, 2), (1.0, 1), (0.2, 1)]
)
def test_largest_power_of_two_that_fits_below_the_cap(frames_that_fit: float, chunk: int) -> None:
    assert frames_per_chunk(GIB // 8, CPU, frames_that_fit / 8, most=24) == chunk


def test_without_a_budget_half_of_what_is_free_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "free_bytes", lambda device: 100)
    assert frames_per_chunk(6, CPU, None, most=32) == 8
    monkeypatch.setattr(chunks, "free_bytes", lambda device: 110)
    assert frames_per_chunk(6, CPU, None, most=32) == 8, "a little more or less free changes nothing"


def test_free_memory_of_this_machine_is_counted() -> None:
    assert 1 << 20 < chunks.free_bytes(CPU) < 1 << 50


@pytest.mark.parametrize("memory", (0, -1.0, float("nan")))
def test_a_budget_that_is_none_is_refused(memory: float) -> None:
    with pytest.raises(UserError, match="positive budget in GiB"):
        frames_per_chunk(1, CPU, memory, most=4)
