"""How long one call takes: torch against onnxruntime, on the very file that is scored.

A leaf of the chain: EXPORT (and RUN) -> rows of the report's `latency` table. Preprocessing, inference and postprocessing
are timed apart; every raw sample is kept. On a shared machine only ratios within one measurement mean something, so all cases
take turns in every round and a disturbance hits them all. Travels in the device bundle, hence argparse and Python 3.10.

    python -m bench.latency EXPORT --run RUN --out latency.json
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime import Encoder, RuntimeInputError
from export.runtime.backends import has_cuda_driver
from vega_artifact import UserError, check_parent, read_manifest, write_json

STAGES = ("pre", "infer", "post")
PERCENTILES = (50, 90, 99)
Clock = Callable[[], int]  # nanoseconds


@dataclass
class Case:
    """One row to be: three steps, and the nanoseconds each of them took in every repeat."""

    model: str
    backend: str
    precision: str
    frames: np.ndarray
    steps: tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]
    samples: list[tuple[int, int, int]] = field(default_factory=list)
    warmup: int = 0
    settled: bool = False

    def run(self, clock: Clock) -> tuple[int, int, int]:
        """One call; returns the duration of each step in nanoseconds."""
        value: Any = self.frames
        marks = [clock()]
        for step in self.steps:
            value = step(value)
            marks.append(clock())
        return marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2]

    def warm_up(self, clock: Clock, window: int = 5, limit: int = 40) -> None:
        """Call until the medians of the last two windows differ by less than a tenth, or `limit` calls were made."""
        durations: list[int] = []
        while len(durations) < limit and not self.settled:
            durations.append(sum(self.run(clock)))
            if len(durations) >= 2 * window:
                before, now = np.median(durations[-2 * window : -window]), np.median(durations[-window:])
                self.settled = bool(abs(now - before) <= 0.1 * before)
        self.warmup = len(durations)

    @property
    def name(self) -> str:
        return f"{self.model}/{self.backend}/{self.precision}/b{len(self.frames)}"

    def row(self, size: Sequence[int]) -> dict[str, Any]:
        """The report's row: percentiles of the whole call (all three steps) in milliseconds."""
        whole = np.asarray(self.samples, np.float64).sum(axis=1)
        head = {"model": self.model, "backend": self.backend, "precision": self.precision, "batch": len(self.frames)}
        return {**head, "size": list(size), **percentiles(whole), "n": len(self.samples)}

    def stages(self) -> dict[str, dict[str, float]]:
        """The same percentiles for each step apart."""
        return {stage: percentiles(np.asarray(self.samples, np.float64)[:, index]) for index, stage in enumerate(STAGES)}

    def record(self) -> dict[str, Any]:
        """Everything that was measured: raw samples in milliseconds, and whether the warm-up settled."""
        raw = {f"{stage}_ms": [times[index] / 1e6 for times in self.samples] for index, stage in enumerate(STAGES)}
        return {"warmup_calls": self.warmup, "settled": self.settled, **raw}


def percentiles(nanoseconds: np.ndarray) -> dict[str, float]:
    values = np.percentile(nanoseconds, PERCENTILES) / 1e6
    return {f"p{percent}_ms": float(value) for percent, value in zip(PERCENTILES, values)}


def measure(
    export: Path | str,
    run: Path | str | None = None,
    batches: Sequence[int] = (1, 4),
    repeats: int = 50,
    threads: int = 1,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, Any]:
    """Time the exported student, and with `run` the torch student it was made from, on this machine.

    Args:
        export: folder of kind "export". run: its parent, for the torch rows.
        batches: frames per call. repeats: timed calls per row. threads: CPU threads of each backend.
        clock: returns nanoseconds; a parameter so that the arithmetic can be tested.

    Returns:
        {"latency": rows of report.json, "stages": case -> pre/infer/post -> percentiles, "machine": {...}, "samples": case ->
        raw milliseconds}; a case is named model/backend/precision/bBATCH.

    Raises:
        UserError: no export, a run that is not its parent, or numbers below 1.
    """
    if repeats < 1 or threads < 1 or not batches or min(batches) < 1:
        raise UserError(f"latency: repeats {repeats}, threads {threads} and batches {list(batches)} must all be at least 1")
    manifest = read_manifest(export, "export")
    with torch_threads(threads if run is not None else None):
        try:
            cases = make_cases(Path(export), manifest, None if run is None else Path(run), batches, threads)
        except RuntimeInputError as error:
            raise UserError(str(error)) from None
        time_cases(cases, repeats, clock)
    size = manifest["preprocess"]["size"]
    return {
        "latency": [case.row(size) for case in cases],
        "stages": {case.name: case.stages() for case in cases},
        "machine": {**machine(), "threads": threads, "export": manifest["fingerprint"]},
        "samples": {case.name: case.record() for case in cases},
    }


def time_cases(cases: list[Case], repeats: int, clock: Clock) -> None:
    """Warm every case up, then let all take turns; each round starts with another one."""
    for case in cases:
        case.warm_up(clock)
    for turn in range(repeats):
        start = turn % len(cases)
        for case in cases[start:] + cases[:start]:
            case.samples.append(case.run(clock))


def make_cases(export: Path, manifest: dict[str, Any], run: Path | None, batches: Sequence[int], threads: int) -> list[Case]:
    """One case per batch and backend that truly runs here."""
    encoders = [Encoder(export, "onnxruntime", threads)]
    if has_cuda_driver():
        try:
            encoders.append(Encoder(export, "onnxruntime-cuda", threads))
        except RuntimeInputError as error:  # a driver, but an onnxruntime without CUDA or without its libraries
            print(f"no CUDA row: {error}", file=sys.stderr)
    precision = manifest["config"]["precision"]
    student = None if run is None else load_parent(run, manifest, export)
    cases = []
    for batch in batches:
        height, width = encoders[0].description.size
        frames = np.random.default_rng(batch).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
        if student is not None:
            cases.append(Case("student", "torch", "fp32", frames, torch_steps(student, encoders[0])))
        for encoder in encoders:
            steps = (encoder.prepare, encoder.infer, encoder.finish)
            cases.append(Case("student_exported", encoder.backend, precision, frames, steps))
    return cases


def load_parent(run: Path, manifest: dict[str, Any], export: Path) -> Any:
    """The torch student of the run the export was made from. Raises UserError for any other run."""
    check_parent(manifest, "run", read_manifest(run, "run")["fingerprint"], export)
    from student import load_student

    return load_student(run)


def torch_steps(student: Any, encoder: Encoder) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Any]]:
    """The same three steps with torch in the middle: same preprocessing, same streams, numpy at both ends."""
    import torch

    names = list(encoder.description.streams)

    def infer(images: np.ndarray) -> list[Any]:
        with torch.inference_mode():
            streams = student(torch.from_numpy(images))
        return [streams[name] for name in names]

    return encoder.prepare, infer, lambda outputs: encoder.finish([value.numpy() for value in outputs])


@contextmanager
def torch_threads(threads: int | None):
    """Set torch's CPU threads for the block and put the old number back; None leaves torch alone, unimported."""
    if threads is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine() -> dict[str, Any]:
    """Name of the processor (or the board), cores this process may use, load, system and versions."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return {
        "device": device_name(),
        "cores": cores,
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def device_name(model: Path = Path("/proc/device-tree/model"), cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A Jetson tells its board's name; elsewhere the processor's name, or at least its architecture."""
    try:
        return model.read_text().strip("\0 \n")
    except OSError:
        pass
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(result: dict[str, Any]) -> str:
    """The rows as text for a terminal; the last three columns are the medians of the steps."""
    head = f"{'':<40}{'p50 ms':>9}{'p90':>9}{'p99':>9}{'pre':>9}{'infer':>9}{'post':>9}"
    where = result["machine"]
    lines = [f"{where['device']}, {where['cores']} cores, {where['threads']} thread(s)", head]
    for row, (name, stages) in zip(result["latency"], result["stages"].items()):
        times = [row["p50_ms"], row["p90_ms"], row["p99_ms"], *(stages[stage]["p50_ms"] for stage in STAGES)]
        lines.append(f"{name:<40}" + "".join(f"{value:>9.2f}" for value in times))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description="Time an exported student on this machine.")
    parser.add_argument("export", type=Path)
    parser.add_argument("--run", type=Path, help="the run it was exported from: adds the torch rows")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="JSON with rows, machine and raw samples")
    options = parser.parse_args(arguments)
    try:
        result = measure(options.export, options.run, options.batches, options.repeats, options.threads)
        if options.out:
            write_json(options.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
