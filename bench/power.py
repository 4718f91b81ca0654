"""Watts, clocks, temperature and throttling while something is measured, from whichever source this machine has.

Stands around the timed part of `bench.latency`: a thread looks at the sensors a few times a second and keeps every reading. In
order: NVML, the board's own files, tegrastats. Travels in the device bundle, hence Python 3.10.

    python -m bench.power --seconds 5
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from bench.nvml import Nvml
from bench.sensors import Board, Reading, Tegrastats

INTERVAL_S = 0.2


class Source(Protocol):
    """Where readings come from."""

    name: str

    def settings(self) -> dict[str, Any]: ...

    def read(self) -> Reading: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Sample:
    """A reading and when it was taken, in seconds of a monotonic clock."""

    at: float
    reading: Reading


def open_source() -> Source | None:
    """The best source of this machine; None where nothing tells anything.

    Orin's NVML knows neither watts nor clocks, so it counts only where it reads power; a board without a power monitor under
    /sys is asked through tegrastats, and one without that still tells its clocks and temperatures.
    """
    if (gpu := Nvml.open()) is not None:
        if gpu.read().power_w is not None:
            return gpu
        gpu.close()
    board = Board()
    if board.read().power_w is None and (program := Tegrastats.open()) is not None:
        return program
    return board if board.tells else None


class Sampler:
    """Context manager that reads a source in a thread, once at either end and every `interval` seconds between.

    Args:
        source: None reads nothing, and `summary()` is empty. interval: seconds. clock: seconds, monotonic.

    Attributes:
        samples: every reading, in order.
    """

    def __init__(
        self, source: Source | None, interval: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.source, self.interval, self.samples = source, interval, list[Sample]()
        self._clock, self._stop = clock, threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        if self.source is not None:
            self._look()
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._look()

    def _follow(self) -> None:
        while not self._stop.wait(self.interval):
            self._look()

    def _look(self) -> None:
        if self.source is not None:
            self.samples.append(Sample(self._clock(), self.source.read()))

    def summary(self) -> dict[str, Any]:
        """`summarise` of what was read, and from where; empty without a source."""
        return {"source": self.source.name, **summarise(self.samples)} if self.source is not None else {}


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Readings -> what a report needs; what no reading told is left out.

    Returns:
        "seconds", "readings"; "energy_j": the counter's rise where the source has one, else watts integrated over time by the
        trapezoidal rule; "power_w": energy over seconds; "power_max_w"; "temperature_c": [first, highest]; "gpu_mhz",
        "cpu_mhz": [lowest, highest]; "over_current": events in between; "throttle": reasons seen at any time;
        "rails_w": mean watts of each.
    """
    readings = [sample.reading for sample in samples]
    seconds = samples[-1].at - samples[0].at if samples else 0.0
    found: dict[str, Any] = {"seconds": round(seconds, 3), "readings": len(samples)}
    energy = energy_joules(samples)
    if energy is not None and seconds > 0:
        found |= {"energy_j": energy, "power_w": energy / seconds}
    watts = told(readings, "power_w")
    if watts:
        found["power_max_w"] = max(watts)
    if degrees := told(readings, "temperature_c"):
        found["temperature_c"] = [degrees[0], max(degrees)]
    for name in ("gpu_mhz", "cpu_mhz"):
        if clocks := told(readings, name):
            found[name] = [min(clocks), max(clocks)]
    if events := told(readings, "over_current"):
        found["over_current"] = events[-1] - events[0]
    found["throttle"] = sorted({reason for reading in readings for reason in reading.throttle})
    names = sorted({name for reading in readings for name in reading.rails_w})
    if names:
        found["rails_w"] = {name: mean([r.rails_w[name] for r in readings if name in r.rails_w]) for name in names}
    return found


def energy_joules(samples: Sequence[Sample]) -> float | None:
    """Joules between the first and the last sample; None without a counter or two readings of power.

    A counter that fell was started anew with the driver, and the watts are integrated instead.
    """
    counters = told([sample.reading for sample in samples], "energy_j")
    if len(counters) >= 2 and counters[-1] > counters[0]:
        return counters[-1] - counters[0]
    points = [(sample.at, sample.reading.power_w) for sample in samples if sample.reading.power_w is not None]
    if len(points) < 2:
        return None
    return sum((later - now) * (watts + following) / 2 for (now, watts), (later, following) in itertools.pairwise(points))


def throttled(summary: dict[str, Any]) -> str | None:
    """What held the machine back while it was measured, in words; None when nothing is known to have."""
    reasons = list(summary.get("throttle", ()))
    if summary.get("over_current", 0) > 0:
        reasons.append(f"{summary['over_current']} over-current events")
    return ", ".join(reasons) or None


def told(readings: Sequence[Reading], name: str) -> list[float]:
    """The values of one field that are not None, in order."""
    return [value for reading in readings if (value := getattr(reading, name)) is not None]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the settings, the first reading and the summary of some seconds; 1 when this machine tells nothing."""
    parser = argparse.ArgumentParser(prog="python -m bench.power", description="What this machine tells about its power.")
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    source = open_source()
    if source is None:
        print("no NVML, no sensors under /sys, no tegrastats: this machine tells nothing about its power")
        return 1
    with Sampler(source) as sampler:
        time.sleep(options.seconds)
    told_now = {"settings": source.settings(), "now": asdict(sampler.samples[0].reading), "summary": sampler.summary()}
    source.close()
    print(json.dumps(told_now, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
