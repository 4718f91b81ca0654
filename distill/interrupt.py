"""Ctrl-C and SIGTERM as a wish that the trainer grants after the step it is at: save, then stop.

with Interrupt() as interrupt:
    while not interrupt.asked: ...
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # SIGTERM is what schedulers send before they kill


class Interrupt:
    """Notes the first signal in `asked`; a second one acts as it did before. Other threads than the main one get no signals."""

    def __init__(self) -> None:
        self.asked = False
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self.before = {name: signal.signal(name, self._note) for name in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for name, handler in self.before.items():
            signal.signal(name, handler)
        self.before = {}
