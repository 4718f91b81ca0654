"""One case to be timed, its warm-up, its raw samples, and turns for all: the arithmetic of `bench.latency`, with any clock.

    CASES -> raw nanoseconds -> percentiles

On a shared machine only ratios within one measurement mean something, so all cases take turns in every round and a disturbance
hits them all. Every raw sample is kept. Travels in the device bundle, hence Python 3.10.

    python -m pytest tests/bench/test_latency.py
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STAGES = ("pre", "infer", "post")
CUDA_STAGES = ("pre", "h2d", "compute", "d2h", "post")  # infer, where the copies to and from the GPU are steps of their own
COPIED = CUDA_STAGES[1:-1]
PERCENTILES = (50, 90, 99)
Clock = Callable[[], int]  # nanoseconds
Step = Callable[[Any], Any]


@dataclass
class Case:
    """One row to be: its steps, and the nanoseconds each of them took in every repeat.

    Attributes:
        model, backend, precision: fields of the report's row.
        frames: uint8 (B, H, W, 3), what the first step is given; each step is given what the one before returned.
        steps: three, timed as `STAGES`, or five, timed as `CUDA_STAGES`; each returns when its work is done.
        size: (height, width) of the model's input.
        samples: nanoseconds, one tuple per timed call. warmup: calls before. settled: whether they became stable.
        memory_mib: how far this process's memory rose while the case was warmed up; None where nothing tells.
        artifact: fingerprint of what is timed. tag: ends the name, where names alone would not tell cases apart.
    """

    model: str
    backend: str
    precision: str
    frames: np.ndarray
    steps: tuple[Step, ...]
    size: tuple[int, int] = (0, 0)
    samples: list[tuple[int, ...]] = field(default_factory=list)
    warmup: int = 0
    settled: bool = False
    memory_mib: float | None = None
    artifact: str = ""
    tag: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What its steps are called."""
        return STAGES if len(self.steps) == len(STAGES) else CUDA_STAGES

    @property
    def batch(self) -> int:
        return len(self.frames)

    @property
    def name(self) -> str:
        return f"{self.model}/{self.backend}/{self.precision}/b{self.batch}{self.tag}"

    def run(self, clock: Clock) -> tuple[int, ...]:
        """One call; returns the duration of each step in nanoseconds."""
        value: Any = self.frames
        marks = [clock()]
        for step in self.steps:
            value = step(value)
            marks.append(clock())
        return tuple(after - before for before, after in itertools.pairwise(marks))

    def warm_up(self, clock: Clock, window: int = 5, limit: int = 40) -> None:
        """Call until the medians of the last two windows differ by less than a tenth, or `limit` calls were made."""
        durations: list[int] = []
        while len(durations) < limit and not self.settled:
            durations.append(sum(self.run(clock)))
            if len(durations) >= 2 * window:
                before, now = np.median(durations[-2 * window : -window]), np.median(durations[-window:])
                self.settled = bool(abs(now - before) <= 0.1 * before)
        self.warmup = len(durations)

    def row(self) -> dict[str, Any]:
        """The report's row: percentiles of the whole call (all steps) in milliseconds."""
        whole = np.asarray(self.samples, np.float64).sum(axis=1)
        return {**self.head(), **percentiles(whole), "n": len(self.samples)}

    def head(self) -> dict[str, Any]:
        """The fields that tell this case from the others."""
        head = {"model": self.model, "backend": self.backend, "precision": self.precision}
        return {**head, "batch": self.batch, "size": list(self.size)}

    def stages(self) -> dict[str, dict[str, float]]:
        """The same percentiles for each step apart, and for `infer` as a whole."""
        return {stage: percentiles(values) for stage, values in self.durations().items()}

    def durations(self) -> dict[str, np.ndarray]:
        """Stage -> float64 (n) nanoseconds; with the copies apart, `infer` is their sum, so that every case has it."""
        times = np.asarray(self.samples, np.float64)
        found = {stage: times[:, index] for index, stage in enumerate(self.names)}
        return found if "infer" in found else {**found, "infer": np.sum([found[stage] for stage in COPIED], axis=0)}

    def record(self) -> dict[str, Any]:
        """Everything that was measured: raw samples in milliseconds, and whether the warm-up settled."""
        raw = {f"{stage}_ms": (values / 1e6).tolist() for stage, values in self.durations().items()}
        return {"warmup_calls": self.warmup, "settled": self.settled, "memory_mib": self.memory_mib, **raw}


def percentiles(nanoseconds: np.ndarray) -> dict[str, float]:
    """Samples -> p50_ms, p90_ms, p99_ms."""
    values = np.percentile(nanoseconds, PERCENTILES) / 1e6
    return {f"p{percent}_ms": float(value) for percent, value in zip(PERCENTILES, values)}


def warm_up_all(cases: Sequence[Case], clock: Clock, memory: Callable[[], float | None]) -> None:
    """Warm every case up, and note how far memory (in MiB) rose meanwhile: first calls allocate what later ones reuse."""
    for case in cases:
        before = memory()
        case.warm_up(clock)
        after = memory()
        case.memory_mib = None if before is None or after is None else round(after - before, 2)


def time_cases(cases: list[Case], repeats: int, clock: Clock) -> None:
    """Let all take turns; each round starts with another one."""
    for turn in range(repeats):
        start = turn % len(cases)
        for case in cases[start:] + cases[:start]:
            case.samples.append(case.run(clock))
