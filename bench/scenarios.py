"""MLPerf-style scenarios: SingleStream (one query after the other) and Offline (as many samples per second as go through), each
with a minimum count and a minimum duration.

Part of `bench.latency`: CASES -> rows. Names and stopping rule are LoadGen's, the rest is not: no accuracy run, no early
stopping, a shorter default duration, so no row is an MLPerf result. Unlike the rounds of `bench.timing` a scenario has the
machine for itself, so watts and throttling belong to it. Travels in the device bundle, hence Python 3.10.

    vega-edge bench latency EXPORT --scenarios single_stream offline --min-seconds 60

Source: MLPerf Inference rules: SingleStream is judged by the 90th percentile of latency, Offline by samples per second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.power import Sampler, Source, throttled
from bench.timing import Case, Clock, percentiles
from vega_artifact import UserError, unknown_name

SCENARIOS = ("single_stream", "offline")


@dataclass(frozen=True)
class Rules:
    """What is run and for how long at least.

    Attributes:
        names: of `SCENARIOS`. seconds, queries: both minima must be reached; a query is one call.

    Raises:
        UserError: an unknown scenario, or a minimum of nothing.
    """

    names: tuple[str, ...] = ()
    seconds: float = 10.0
    queries: int = 64

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in SCENARIOS:
                raise unknown_name("scenario", name, SCENARIOS)
        if self.queries < 1 or not self.seconds >= 0:
            text = f"min seconds {self.seconds} and min count {self.queries}"
            raise UserError(f"scenarios: {text} found, but at least 0 s and 1 call are needed; correct them")


def play(cases: Sequence[Case], rules: Rules, clock: Clock, source: Source | None = None) -> list[dict[str, Any]]:
    """Every scenario on every case it is for: SingleStream on cases of one frame, Offline per backend on the largest batch.

    Args:
        cases: warmed up. source: where watts are read meanwhile; None reads none.
    """
    rows = []
    for name in rules.names:
        for case in eligible(cases, name):
            with Sampler(source) as sampler:
                durations = repeat(case, rules, clock)
            rows.append(row(name, case, rules, durations, sampler.summary()))
    return rows


def eligible(cases: Sequence[Case], name: str) -> list[Case]:
    """The cases a scenario is for.

    Raises:
        UserError: SingleStream without a case of one frame per call.
    """
    if name == "single_stream":
        if not (singles := [case for case in cases if case.batch == 1]):
            raise UserError("scenario single_stream: one frame per call is needed; add 1 to the batches")
        return singles
    ordered = sorted(cases, key=lambda case: case.batch)
    largest = {(case.model, case.backend, case.precision, case.size): case for case in ordered}  # the last of each stays
    return list(largest.values())


def repeat(case: Case, rules: Rules, clock: Clock) -> list[int]:
    """Nanoseconds of every call, made until both minima are reached."""
    durations: list[int] = []
    start = clock()
    while len(durations) < rules.queries or clock() - start < rules.seconds * 1e9:
        durations.append(sum(case.run(clock)))
    return durations


def row(name: str, case: Case, rules: Rules, durations: Sequence[int], conditions: dict[str, Any]) -> dict[str, Any]:
    """One scenario's outcome, with its judged number first, joules per frame where watts are known, and the raw samples."""
    values = np.asarray(durations, np.float64)
    seconds = float(values.sum() / 1e9)
    frames = len(values) * case.batch
    times = percentiles(values)
    judged = (
        {"metric": "p90_ms", "value": times["p90_ms"]}
        if name == "single_stream"
        else {"metric": "samples_per_s", "value": frames / seconds}
    )
    joules = {"joule_per_frame": conditions["energy_j"] / frames} if "energy_j" in conditions else {}
    return {
        "scenario": name,
        **case.head(),
        **judged,
        **times,
        "samples_per_s": frames / seconds,
        "queries": len(values),
        "seconds": seconds,
        "min_queries": rules.queries,
        "min_seconds": rules.seconds,
        **joules,
        "throttled": throttled(conditions),
        "conditions": conditions,
        "samples_ms": (values / 1e6).tolist(),
    }
