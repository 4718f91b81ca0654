"""METEOR 1.5 by the original jar, in one Java process that is kept: it needs seconds to read its paraphrase table.

Between cleaned texts and the "meteor" of bench/tasks/captions.py. The corpus value is the jar's own, never the mean of the
items (35.0 against 54.2 on the same twelve answers).

    python -c "from bench.tasks.meteor import meteor; print(meteor(['a chair'], [['a chair']]))"
"""

from __future__ import annotations

import atexit
import functools
import subprocess
import threading
from collections.abc import Sequence

from bench.tasks.java import JAVA, jar_folder, one_line
from vega_artifact import UserError


def meteor(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
    """METEOR, English, -norm: the corpus value and the value per item, 0..1; line breaks become spaces.

    Raises:
        UserError: no Java, or the jar stopped.
    """
    return _process().score(predictions, answers)


@functools.cache
def _process() -> _Meteor:
    process = _Meteor()
    atexit.register(process.close)
    return process


class _Meteor:
    """The jar's line protocol: a SCORE line per item gives its statistics, one EVAL line of all statistics the values."""

    def __init__(self) -> None:
        folder = jar_folder("meteor")
        command = [*JAVA, "-Xmx2G", "-jar", str(folder / "meteor-1.5.jar"), "-", "-", "-stdio", "-l", "en", "-norm"]
        pipe = subprocess.PIPE
        self._java = subprocess.Popen(
            command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, encoding="utf-8"
        )
        self._lock = threading.Lock()  # two threads would read each other's lines

    def score(self, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        with self._lock:
            statistics = []
            for text, references in zip(predictions, answers, strict=True):
                text = one_line(text).replace("|||", "").replace("  ", " ")
                self._ask(" ||| ".join(("SCORE", *(one_line(reference) for reference in references), text)))
                statistics.append(self._answer())
            self._ask(" ||| ".join(("EVAL", *statistics)))
            values = [float(self._answer()) for _ in statistics]
            return float(self._answer()), values

    def close(self) -> None:
        self._java.kill()
        self._java.wait()

    def _ask(self, line: str) -> None:
        assert self._java.stdin
        try:
            self._java.stdin.write(line + "\n")
            self._java.stdin.flush()
        except BrokenPipeError:
            self._stopped()

    def _answer(self) -> str:
        assert self._java.stdout
        line = self._java.stdout.readline()
        if not line:
            self._stopped()
        return line.strip()

    def _stopped(self) -> None:
        _process.cache_clear()  # the next call starts a fresh one
        raise UserError("METEOR: the Java process stopped early; it needs 2 GB of memory, free some and run again")
