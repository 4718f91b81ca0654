"""The picture of a latency measurement: milliseconds per call and frames per second over the batch, and all samples in order.

Beside `bench.latency`; stays at home, no device carries matplotlib. Bounds are drawn as dashed lines that say what they are.

    vega-edge bench latency EXPORT --batches 1 2 4 8 --plot latency.png
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.charts import SERIES, STYLE, finish
from vega_artifact import atomic_write

PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def draw(result: Mapping[str, Any]) -> bytes:
    """The result of `bench.latency.measure`, with or without "roofline" rows -> PNG."""
    with matplotlib.rc_context(STYLE):
        figure, (calls, rate, raw) = pyplot.subplots(3, 1, figsize=(7.5, 9.5), layout="constrained")
        for index, (name, rows) in enumerate(curves(result).items()):
            colour = SERIES[index % len(SERIES)]
            batches = np.array([row["batch"] for row in rows])
            middle, high = (np.array([row[key] for row in rows]) for key in ("p50_ms", "p99_ms"))
            calls.errorbar(batches, middle, yerr=[0 * middle, high - middle], fmt="o-", color=colour, capsize=3, label=name)
            rate.plot(batches, 1e3 * batches / middle, "o-", color=colour, label=name)
        bounds(calls, result)
        samples(raw, result)
        calls.set(ylabel="ms per call, median to p99", yscale="log")
        rate.set(ylabel="frames per second", ylim=(0, None))
        raw.set(xlabel="round", ylabel="ms per call", yscale="log")
        for axes in (calls, rate):
            axes.set(xlabel="frames per call", xscale="log")
            axes.set_xticks(sorted({row["batch"] for row in result["latency"]}))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(PLAIN)
        for axes in (calls, raw):
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(PLAIN)
            axes.yaxis.set_minor_locator(NullLocator())
        calls.set_title(str(result["machine"]["device"]), loc="left", fontsize=11.5, fontweight="bold")
        for axes in (calls, raw):
            axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return finish(figure)


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Draw it into a file, atomically."""
    picture = draw(result)
    atomic_write(path, lambda temporary: temporary.write_bytes(picture))


def curves(result: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """One line per model, backend, precision and size: its rows by rising batch."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(result["latency"], key=lambda row: row["batch"]):
        name = f"{row['model']}, {row['backend']} {row['precision']}, {row['size'][0]}x{row['size'][1]}"
        found.setdefault(name, []).append(row)
    return found


def bounds(axes: Axes, result: Mapping[str, Any]) -> None:
    """Roofline bounds, dashed and named as such."""
    rows = [row for row in result.get("roofline", ()) if "bound_ms" in row]
    for precision in sorted({row["precision"] for row in rows}):
        points = sorted((row["batch"], row["bound_ms"]) for row in rows if row["precision"] == precision)
        label = f"bound, not measured: {rows[0]['device']} {precision}"
        axes.plot(*zip(*points), "--", color="#666666", linewidth=1.2, label=label)


def samples(axes: Axes, result: Mapping[str, Any]) -> None:
    """Every timed call in order: drift and throttling show here, which percentiles hide."""
    for index, (name, record) in enumerate(result["samples"].items()):
        whole = np.sum([record[stage] for stage in ("pre_ms", "infer_ms", "post_ms")], axis=0)
        axes.plot(whole, linewidth=0.9, color=SERIES[index % len(SERIES)], label=name)
