"""Loading ahead: order, how far ahead, errors, stopping early.

python -m pytest tests/teacher/test_prefetch.py
"""

from __future__ import annotations

import threading

import pytest

from teacher.prefetch import prefetch


def test_results_come_in_order_from_another_thread() -> None:
    loaded = list(prefetch(lambda item: (item, threading.current_thread().name), range(20)))
    assert [item for item, _ in loaded] == list(range(20))
    assert {name.rsplit("_", 1)[0] for _, name in loaded} == {"prefetch"}


@pytest.mark.parametrize("ahead", (1, 3))
def test_the_next_are_loaded_while_the_present_is_used_and_no_further(ahead: int) -> None:
    begun: list[int] = []
    events = [threading.Event() for _ in range(10)]

    def load(item: int) -> int:
        begun.append(item)
        events[item].set()
        return item

    results = prefetch(load, range(10), ahead)
    assert next(results) == 0
    assert all(events[item].wait(5) for item in range(ahead + 1)), "the next ones are on their way"
    assert max(begun) <= ahead
    assert list(results) == list(range(1, 10))


def test_an_error_comes_in_its_place() -> None:
    def load(item: int) -> int:
        if item == 2:
            raise ValueError("frame 2 is unreadable")
        return item

    results = prefetch(load, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="frame 2"):
        next(results)


def test_stopping_early_starts_no_other_load() -> None:
    begun: list[int] = []
    results = prefetch(lambda item: begun.append(item), range(1000), ahead=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    count = len(begun)
    assert count <= 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert len(begun) == count


def test_nothing_to_load() -> None:
    assert list(prefetch(lambda item: item, [])) == []
