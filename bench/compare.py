"""Two latency measurements against each other, or the rows of one: ratio of the medians with its interval, and a plain verdict.

Beside `bench.latency`: A.json and B.json -> rows. Calls in a row resemble one another, so blocks of them are resampled; within
one file the rounds are shared by all rows and resampled together, so that what disturbed a round cancels. Between two files
the interval knows nothing of what differed between the two occasions: machines, settings and versions that differ are named.

    vega-edge bench compare A.json B.json
    vega-edge bench compare A.json            # within A, per batch: every row against the first

Source: circular block bootstrap, Politis & Romano 1992, blocks of sqrt(n) calls; percentile interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vega_artifact import UserError, read_json

DRAWS = 2000
LEVEL = 0.95
SETTINGS = ("device", "gpu", "driver", "jetpack", "power_mode", "governor", "threads", "cores")
TOOLS = ("python", "numpy", "onnxruntime", "onnxruntime-gpu", "torch", "cuda", "tensorrt", "tensorrt_rtx")
BUSIER = 0.5  # cores: a difference in the load average that may by itself make a difference in latency
WHOLE = ("pre_ms", "infer_ms", "post_ms")


@dataclass(frozen=True)
class Measured:
    """One file of `vega-edge bench latency`: case -> float64 (n) milliseconds of whole calls; machine, versions; remarks."""

    path: Path
    calls: dict[str, np.ndarray]
    machine: Mapping[str, Any]
    restless: frozenset[str]


def read(path: Path) -> Measured:
    """Read the raw samples of a measurement.

    Raises:
        UserError: no such file, not JSON, or nothing that `vega-edge bench latency --out` wrote.
    """
    found = read_json(path)
    try:
        samples = found["samples"]
        calls = {name: np.sum([record[stage] for stage in WHOLE], axis=0) for name, record in samples.items()}
        restless = frozenset(name for name, record in samples.items() if not record["settled"])
        usable = bool(calls) and all(values.ndim == 1 and (values > 0).all() and len(values) for values in calls.values())
        machine = {**found["machine"].get("versions", {}), **found["machine"]}
    except (KeyError, TypeError, ValueError, AttributeError):
        usable = False
    if not usable:
        raise UserError(f"{path}: holds no raw samples of latency; write it with `vega-edge bench latency EXPORT --out {path}`")
    return Measured(Path(path), calls, machine, restless)


def compare(first: Path, second: Path | None = None, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Compare every case that both files have, or with one file each case with the first of its batch.

    Returns:
        {"compare": rows of {"a", "b", "a_ms", "b_ms": medians, "ratio": a over b (above 1: b is faster), "low", "high": 95 %,
        "verdict": "b faster" | "a faster" | "no difference shown", "paired"}, "differs": setting -> [in a, in b],
        "unsettled": names}

    Raises:
        UserError: an unusable file, or two files without a case in common.
    """
    a, b = read(first), read(first if second is None else second)
    pairs = within(list(a.calls)) if second is None else [(name, name) for name in a.calls if name in b.calls]
    if not pairs:
        advice = "batch, backend and precision must be the same" if second is not None else "it needs two cases of one batch"
        raise UserError(f"{first} and {second or 'itself'}: no cases to compare; {advice}")
    rows = [row(one, other, a.calls[one], b.calls[other], second is None, draws, seed) for one, other in pairs]
    return {
        "compare": rows,
        "differs": differences(a.machine, b.machine),
        "unsettled": sorted({name for pair in pairs for name in pair if name in a.restless | b.restless}),
    }


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, list[Any]]:
    """What was not the same on the two occasions: settings, versions, and how busy it was, by more than half a core."""
    found = {name: [a.get(name), b.get(name)] for name in (*SETTINGS, *TOOLS) if a.get(name) != b.get(name)}
    loads = [machine["load_1min"] for machine in (a, b) if machine.get("load_1min") is not None]
    if len(loads) == 2 and abs(loads[0] - loads[1]) > BUSIER:
        found["load_1min"] = loads
    return found


def within(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each case with the first that has the same batch and size, which the end of its name tells."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        batch = name.rsplit("/", 1)[1]
        if batch in first:
            pairs.append((first[batch], name))
        first.setdefault(batch, name)
    return pairs


def row(one: str, other: str, a: np.ndarray, b: np.ndarray, paired: bool, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """The ratio of two medians with its interval; `paired`: the same calls are drawn for both."""
    random = np.random.default_rng([seed, len(a), len(b)])
    picked = blocks(len(a), draws, random)
    drawn = np.median(a[picked], axis=1)
    others = np.median(b[picked if paired and len(a) == len(b) else blocks(len(b), draws, random)], axis=1)
    low, high = np.percentile(drawn / others, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    verdict = "b faster" if low > 1 else "a faster" if high < 1 else "no difference shown"
    a_ms, b_ms = float(np.median(a)), float(np.median(b))
    found = {"a": one, "b": other, "a_ms": a_ms, "b_ms": b_ms, "ratio": a_ms / b_ms, "low": float(low), "high": float(high)}
    return {**found, "verdict": verdict, "paired": paired}


def blocks(length: int, draws: int, random: np.random.Generator) -> np.ndarray:
    """int (draws, length): indices of a circular block bootstrap, blocks of sqrt(length)."""
    size = max(1, round(length**0.5))
    starts = random.integers(0, length, (draws, -(-length // size)))
    indices = (starts[:, :, None] + np.arange(size)) % length
    return indices.reshape(draws, -1)[:, :length]


def text(result: Mapping[str, Any]) -> str:
    """The comparison as lines for a terminal."""
    lines = [f"{'a':<44}{'a ms':>9}{'b ms':>9}{'a / b':>8}  95 % interval"]
    for found in result["compare"]:
        numbers = f"{found['a_ms']:>9.2f}{found['b_ms']:>9.2f}{found['ratio']:>8.2f}"
        lines.append(f"{found['a']:<44}{numbers}  [{found['low']:.2f}, {found['high']:.2f}] {found['verdict']}")
        if found["b"] != found["a"]:
            lines.append(f"  against {found['b']}")
    lines += [f"differs: {name}: {one} in a, {other} in b" for name, (one, other) in result["differs"].items()]
    if result["unsettled"]:
        lines.append(f"never settled, so read with care: {', '.join(result['unsettled'])}")
    return "\n".join(lines)
