"""A process that carries out commands of `vega-edge`, one after another: Python and torch start once, not once per command.

The study's way to the teacher and to the probes, which this room must not import; artifacts are the only interface.

    with Workers(Path("runs/study"), jobs=2) as workers:
        workers.each(lambda worker, name: worker.ask("list", name), ["recipes", "students"], "lists")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import TypeVar

import psutil
from rich.console import Console
from rich.progress import track

from vega_artifact import UserError

# One command per line of standard input, its exit code per line of standard output; all else goes to the log.
SERVE = """
import contextlib, json, sys, vega_edge
answers = sys.stdout
for line in sys.stdin:
    with contextlib.redirect_stdout(sys.stderr):
        code = vega_edge.main(json.loads(line))
    print(code, file=answers, flush=True)
"""
INTERRUPTED = 130
PATIENCE = 30.0  # seconds a process that was told to end may take: it writes a checkpoint first

Item = TypeVar("Item")


class Worker:
    """The process; started with the first command, ended by `close` or, by itself, with whoever started it.

    Args:
        log: file that whatever the commands print is appended to.
        threads: CPU threads of its arithmetic.
    """

    def __init__(self, log: Path, threads: int) -> None:
        self.log, self.threads = log, threads
        self.process: subprocess.Popen[str] | None = None
        self.stopped, self.lock = False, Lock()

    def ask(self, *command: str) -> None:
        """Carry out one command.

        Raises:
            UserError: it failed; the sentence is the one it printed.
            KeyboardInterrupt: it was interrupted.
        """
        with self.lock:
            if self.stopped:  # by the failure of another command
                raise UserError(f"vega-edge {' '.join(command[:2])} was not begun, since another command failed")
            process = self.process = self.process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if answer == str(INTERRUPTED):
            raise KeyboardInterrupt
        if answer != "0":
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1].removeprefix("vega-edge: ") if lines else "not a word"
            if not answer:  # killed, or refused by the parser of its flags
                said = f"its process is gone ({process.wait(PATIENCE)}), and said last: {said}"
            raise UserError(f"vega-edge {' '.join(command[:2])} failed: {said} (all of it in {self.log})")

    def _start(self) -> subprocess.Popen[str]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        with open(self.log, "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-c", SERVE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )

    def close(self, stop: bool = False) -> None:
        """End the process when it is idle; with `stop` at once, and no other is started."""
        with self.lock:
            process, self.process, self.stopped = self.process, None, stop
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        if stop:
            process.terminate()
        with suppress(OSError):  # it may be gone already
            process.stdin.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Workers:
    """Several of them, which share the cores; a `with` block ends them.

    Args:
        folder: where their logs go.
    """

    def __init__(self, folder: Path, jobs: int) -> None:
        said = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(said) if said.isdecimal() else max(1, (psutil.cpu_count(logical=False) or 1) // jobs)
        self.all = [Worker(folder / f"worker-{number}.log", threads) for number in range(jobs)]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self.all:
            worker.close(stop=kind is not None)

    def each(self, work: Callable[[Worker, Item], None], items: Sequence[Item], what: str) -> None:
        """Call `work(worker, item)` for all items; the first failure ends it and is raised, what is finished stays."""
        free: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.all:
            free.put(worker)

        def do(item: Item) -> None:
            worker = free.get()
            try:
                work(worker, item)
            finally:
                free.put(worker)

        with ThreadPoolExecutor(len(self.all)) as pool:
            jobs = [pool.submit(do, item) for item in items]
            try:
                for job in track(as_completed(jobs), description=what, total=len(jobs), console=Console(stderr=True)):
                    job.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in self.all:
                    worker.close(stop=True)
                raise
