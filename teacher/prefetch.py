"""Loads what comes next while the present is computed: one thread, in order, never far ahead.

Place in the chain: between `teacher.scenes` (reading and decoding, which leave the interpreter free) and the teacher.

    for scene_id, clip in zip(scene_ids, prefetch(load, scene_ids)): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def prefetch(load: Callable[[Item], Loaded], items: Iterable[Item], ahead: int = 1) -> Iterator[Loaded]:
    """`load(item)` for every item, in order, with up to `ahead` results held ready while the consumer works.

    An error of `load` is raised where its result would have come, after all results before it. Stopping early (or an error)
    waits for the load in progress and starts no other.
    """
    pending: deque[Future[Loaded]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        try:
            for item in items:
                pending.append(pool.submit(load, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
