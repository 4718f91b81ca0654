"""How long one call takes: torch, onnxruntime and TensorRT engines, on the very file that is scored.

A leaf of the chain: EXPORTS or ENGINES (and the RUN they came from) -> rows of the report's `latency` table, the stages of each
call, scenarios, power, memory, raw samples. Preprocessing, inference and postprocessing are timed apart, on a GPU the copies
too. Travels in the device bundle, hence argparse and Python 3.10; torch rows, roofline and plot are left at home.

    python -m bench.latency EXPORT --out latency.json
    vega-edge bench latency EXPORT --run RUN --scenarios single_stream offline --out latency.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.cases import BACKENDS, GRAPH, Request, collect
from bench.device import machine, resident_mib, settings, versions
from bench.nvml import Nvml
from bench.power import Sampler, Source, open_source, throttled
from bench.scenarios import SCENARIOS, Rules, play
from bench.timing import COPIED, STAGES, Case, Clock, time_cases, warm_up_all
from export.runtime import RuntimeInputError
from vega_artifact import UserError, write_json


def measure(
    artifacts: Path | str | Sequence[Path | str],
    run: Path | str | None = None,
    batches: Sequence[int] = (1, 4),
    repeats: int = 50,
    threads: int = 1,
    clock: Clock = time.perf_counter_ns,
    *,
    backends: Sequence[str] | None = None,
    rules: Rules | None = None,
    sensors: Callable[[], Source | None] = open_source,
) -> dict[str, Any]:
    """Time exported students and engines, and with `run` the torch student they were made from, on this machine, in turns.

    Args:
        artifacts: folders of kind "export" or "engine"; several are interleaved, so that their ratios mean something.
        run: the parent of every export, for the torch rows.
        batches: frames per call. repeats: timed calls per row. threads: CPU threads of each backend.
        clock: returns nanoseconds; a parameter so that the arithmetic can be tested.
        backends: of `bench.cases.BACKENDS`; None takes all that run here at once.
        rules: scenarios to play after the turns. sensors: opens what tells watts, clocks and temperatures.

    Returns:
        {"latency": rows of report.json, "stages": case -> stage -> percentiles, "machine": {..., "versions": of tools},
        "samples": case -> raw milliseconds, "conditions": what `bench.power` saw meanwhile, "scenarios": rows, "memory":
        {"peak_mib": of this process, "gpu_before_mib", "gpu_mib": in use on the whole GPU before and after; None: not told}};
        a case is named model/backend/precision/bBATCH, with @HEIGHTxWIDTH behind it where sizes differ.

    Raises:
        UserError: no such artifact, a run that is not its parent, an unknown backend or one that cannot run here, two
            artifacts of the same rows, or numbers below 1.
    """
    paths = [Path(artifacts)] if isinstance(artifacts, (str, Path)) else [Path(path) for path in artifacts]
    if repeats < 1 or not paths:
        raise UserError(f"latency: repeats {repeats} and {len(paths)} artifacts found, but at least 1 of each is needed")
    request = Request(tuple(batches), threads, None if backends is None else tuple(backends))
    with ExitStack() as stack:
        if run is not None:
            from bench import torch_steps

            stack.enter_context(torch_steps.threads(threads))
        if (source := sensors()) is not None:
            stack.callback(source.close)
        before = gpu_mib(source)
        try:
            cases = collect(paths, None if run is None else Path(run), request)
            found = timed(cases, repeats, clock, rules or Rules(), source)
        except RuntimeInputError as error:
            raise UserError(str(error)) from None
        told = {**machine(), **settings(), **(source.settings() if source else {}), "versions": versions()}
        memory = {"peak_mib": resident_mib("VmHWM"), "gpu_before_mib": before, "gpu_mib": gpu_mib(source)}
    parts = sorted({case.artifact for case in cases})
    return {**found, "machine": {**told, "threads": threads, "artifacts": parts}, "memory": memory}


def gpu_mib(source: Source | None) -> float | None:
    """Memory in use on the whole GPU in MiB; None where no NVML tells."""
    return source.used_mib() if isinstance(source, Nvml) else None


def timed(cases: list[Case], repeats: int, clock: Clock, rules: Rules, source: Source | None) -> dict[str, Any]:
    """Warm up, take turns, play the scenarios; the measured parts of what `measure` returns."""
    cases = warmed_up(cases, clock)
    with Sampler(source) as sampler:
        time_cases(cases, repeats, clock)
    return {
        "latency": [case.row() for case in cases],
        "stages": {case.name: case.stages() for case in cases},
        "samples": {case.name: case.record() for case in cases},
        "conditions": sampler.summary(),
        "scenarios": play(cases, rules, clock, source),
    }


def warmed_up(cases: Sequence[Case], clock: Clock) -> list[Case]:
    """Warm up; a case whose CUDA graph is refused, which nothing but its first call can tell, is left out with a word.

    Raises:
        RuntimeInputError: another case refuses to run, or none is left.
    """
    left: list[Case] = []
    for case in cases:
        try:
            warm_up_all([case], clock, resident_mib)
            left.append(case)
        except RuntimeInputError as error:
            if GRAPH not in case.backend or (case is cases[-1] and not left):
                raise
            print(f"no {case.name} row: {error}", file=sys.stderr)
    return left


def table(result: dict[str, Any]) -> str:
    """The rows as text for a terminal: percentiles of the call, medians of its steps, frames per second at the median.

    Where the result has "roofline" rows with a bound, that is the last column, marked as no measurement.
    """
    where = result["machine"]
    told = [f"{where['device']}, {where['cores']} cores, {where['threads']} thread(s)"]
    told += [f"{key} {where[key]}" for key in ("gpu", "jetpack", "power_mode", "governor") if key in where]
    copies = any(COPIED[0] in stages for stages in result["stages"].values())
    shown = [*STAGES, *(COPIED if copies else ())]
    bounds = {_what(row): row["bound_ms"] for row in result.get("roofline", ()) if "bound_ms" in row}
    last = ("frames/s", "(bound)") if bounds else ("frames/s",)
    head = f"{'':<44}" + "".join(f"{name:>9}" for name in ("p50 ms", "p90", "p99", *shown, *last))
    lines = [", ".join(told), head]
    for row, (name, stages) in zip(result["latency"], result["stages"].items()):
        times = [row["p50_ms"], row["p90_ms"], row["p99_ms"]]
        times += [stages[stage]["p50_ms"] if stage in stages else float("nan") for stage in shown]
        numbers = "".join("        -" if value != value else f"{value:>9.2f}" for value in times)
        bound = f"{f'({bounds[_what(row)]:.3f})':>9}" if _what(row) in bounds else ""
        lines.append(f"{name:<44}{numbers}{1e3 * row['batch'] / row['p50_ms']:>9.1f}{bound}")
    return "\n".join([*lines, *remarks(result)])


def _what(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a measured row and its bound have in common."""
    return row["precision"], row["batch"], *row["size"]


def remarks(result: dict[str, Any]) -> list[str]:
    """What the reader must know beside the numbers: scenarios, throttling, warm-ups that did not settle."""
    lines = []
    for row in result.get("scenarios", ()):
        name = f"{row['model']}/{row['backend']}/{row['precision']}/b{row['batch']}"
        joules = f", {row['joule_per_frame']:.3f} J per frame" if "joule_per_frame" in row else ""
        judged = f"{row['value']:.2f} {row['metric']}{joules}"
        lines.append(f"{row['scenario']} {name}: {judged} ({row['queries']} calls, {row['seconds']:.1f} s)")
    restless = [name for name, record in result["samples"].items() if not record["settled"]]
    if restless:
        lines.append(f"not settled after the warm-up, so read with care: {', '.join(restless)}")
    if (why := throttled(result.get("conditions", {}))) is not None:
        lines.append(f"the machine was held back while it was measured: {why}")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description="Time exported students on this machine.")
    parser.add_argument("artifacts", type=Path, nargs="+", metavar="EXPORT", help="exports or engines; several take turns")
    parser.add_argument("--run", type=Path, help="the run they were exported from: adds the torch rows")
    parser.add_argument("--backends", nargs="+", help=f"of {', '.join(BACKENDS)}; none: all that run here at once")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scenarios", nargs="+", default=[], help=f"of {', '.join(SCENARIOS)}")
    parser.add_argument("--min-seconds", type=float, default=Rules.seconds, help="of each scenario")
    parser.add_argument("--min-count", type=int, default=Rules.queries, help="calls of each scenario")
    parser.add_argument("--out", type=Path, help="JSON with rows, machine and raw samples")
    given = parser.parse_args(arguments)
    try:
        rules = Rules(tuple(given.scenarios), given.min_seconds, given.min_count)
        settings = {"backends": given.backends, "rules": rules}
        result = measure(given.artifacts, given.run, given.batches, given.repeats, given.threads, **settings)
        if given.out:
            write_json(given.out, result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
