"""Charts from flat rows: training curves and latency against quality, as PNG bytes that do not change between runs.

Place in the chain: `bench/report.py` inlines them. They are drawn for 480 CSS pixels at double density, so that the text
stays readable when a phone shows them at 320.
    python -c "from bench.charts import curves; print(len(curves([{'step': i, 'loss': 1 / (i + 1)} for i in range(9)])))"
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there is no screen

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vega_artifact import UserError

INK, FAINT = "#1f2933", "#d9dee4"
# Okabe-Ito: told apart with any kind of colour vision. Black and greys go to the controls.
MODEL_COLOURS = {
    "teacher": "#0072B2",
    "teacher_reseeded": "#56B4E9",
    "teacher_random": "#9AA5B1",
    "student": "#E69F00",
    "student_exported": "#D55E00",
    "student_undistilled": "#CC79A7",
    "teacher_fused": "#004C75",
    "student_exported_fused": "#8F3E00",
    "student_undistilled_fused": "#8A4A6F",
    "semantic": "#009E73",
    "raw_patches": "#7B8794",
    "blind": "#3E4C59",
}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "P", "X", "v")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs, hence the same bytes, on every machine
    "font.size": 11,
    "axes.edgecolor": "#9AA5B1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
INCHES, DPI = 4.8, 200


def curves(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss over steps, and below it every cosine the log holds: of training batches solid, of validation rooms dashed; dotted
    the ceiling that the teacher's noise leaves to the latter, where it was measured.

    Args:
        rows: training log; rows have "step" and "loss", and may have {"cosine": {stream: x}} and
            {"validation": {stream: {"centred": x, "ceiling": x}}}.

    Raises:
        UserError: no row has a step and a loss.
    """
    flat = [flatten(row) for row in rows]
    losses = series(flat, "loss")
    if not losses:
        raise UserError("training curves: no row with step and loss; give the rows of log.jsonl")
    keys = sorted({key for row in flat for key in row if key.startswith(("cosine", "validation")) and not key.endswith(" raw")})
    cosines = {key: points for key in keys if (points := series(flat, key))}
    with matplotlib.rc_context(STYLE):
        panels = 2 if cosines else 1
        figure, axes = pyplot.subplots(panels, 1, figsize=(INCHES, 2.1 * panels + 0.5), sharex=True, squeeze=False)
        draw_series(axes[0, 0], {"loss": losses}, "loss")
        if panels == 2:
            for kind, dashes in (("cosine", "-"), ("validation", "--"), ("ceiling", ":")):  # a stream has one colour in all
                lines = {label(key): points for key, points in cosines.items() if kind_of(key) == kind}
                draw_series(axes[1, 0], lines, "cosine to target", dashes)
            axes[1, 0].legend(frameon=False, fontsize=10, loc="upper center", bbox_to_anchor=(0.45, -0.3), ncols=2)
        axes[-1, 0].set_xlabel("training step")
        return finish(figure)


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """{"cosine": {"fused": 1}} -> {"cosine fused": 1}, at any depth; everything else as it is."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        inner = flatten(value) if isinstance(value, Mapping) else {}
        flat |= {f"{key} {name}": item for name, item in inner.items()} if inner else {key: value}
    return flat


def kind_of(key: str) -> str:
    """What a line of the lower panel is: "cosine", "validation", or "ceiling" as in "validation fused ceiling"."""
    return "ceiling" if key.endswith(" ceiling") else key.partition(" ")[0]


def label(key: str) -> str:
    """ "cosine fused" -> "fused", "validation fused centred" -> "fused, validation (centred)", ceilings: "fused, ceiling"."""
    kind, _, rest = key.partition(" ")
    name = rest or "all"
    if kind_of(key) == "ceiling":
        return name.replace(" ceiling", ", ceiling")
    return (
        name
        if kind == "cosine"
        else name.replace(" centred", "") + ", validation" + (" (centred)" if "centred" in name else "")
    )


def series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float)) and "step" in row]


def draw_series(axes: Axes, lines: Mapping[str, list[tuple[float, float]]], name: str, dashes: str = "-") -> None:
    for index, (title, points) in enumerate(lines.items()):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=SERIES[index % len(SERIES)], linewidth=1.8, linestyle=dashes, label=title)
    axes.set_ylabel(name)
    axes.margins(x=0.01)


def latency_quality(
    latency: Sequence[Mapping[str, Any]],
    probes: Sequence[Mapping[str, Any]],
    metric: str = "depth_r2",
    metric_title: str | None = None,
    titles: Mapping[str, str] | None = None,
) -> bytes:
    """Milliseconds per image (log scale) against a probe metric with its 95 % interval; left and up is better.

    Args:
        latency, probes: rows of report.json; per model, backend and precision the smallest batch is drawn.
        metric: the probe metric on the vertical axis; models that were probed but not timed become horizontal lines.
        metric_title: heading of the chart.  titles: model -> name in the legend.

    Raises:
        UserError: no model has both a latency and this metric.
    """
    quality = {row["model"]: row for row in probes if row["metric"] == metric}
    timed = smallest_batches([row for row in latency if row["model"] in quality])
    if not timed:
        raise UserError(f"latency against quality: no model has both a latency row and {metric}; measure one of both kinds")
    names = titles or {}
    with matplotlib.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(INCHES, 3.6))
        milliseconds = [row["p50_ms"] / row["batch"] for row in timed]
        left, right = min(milliseconds) / 2, max(milliseconds) * 2
        drawn = {row["model"] for row in timed}
        for model in ("teacher", "raw_patches", "student_undistilled"):
            if model in quality and model not in drawn:
                draw_reference(axes, model, quality[model]["value"], names, left)
        for index, row in enumerate(timed):
            draw_timed(axes, row, quality[row["model"]], names, MARKERS[index % len(MARKERS)])
        axes.set(xscale="log", xlim=(left, right), xlabel="milliseconds per image, median (log scale)")
        axes.set_title(metric_title or metric, loc="left", fontsize=11.5, fontweight="bold")
        axes.margins(y=0.12)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False, fontsize=10, loc="upper center", bbox_to_anchor=(0.45, -0.19), ncols=1)
        return finish(figure)


def smallest_batches(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    best: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = (row["model"], row["backend"], row["precision"])
        if key not in best or row["batch"] < best[key]["batch"]:
            best[key] = row
    return list(best.values())


def draw_reference(axes: Axes, model: str, value: float, names: Mapping[str, str], left: float) -> None:
    axes.axhline(value, color=MODEL_COLOURS[model], linestyle="--", linewidth=1.3)
    axes.annotate(
        names.get(model, model),
        (left, value),
        xytext=(5, 3),
        textcoords="offset points",
        fontsize=10,
        color=MODEL_COLOURS[model],
    )


def draw_timed(axes: Axes, row: Mapping[str, Any], quality: Mapping[str, Any], names: Mapping[str, str], marker: str) -> None:
    value = quality["value"]
    spread = [[max(value - quality["low"], 0)], [max(quality["high"] - value, 0)]]
    text = f"{names.get(row['model'], row['model'])}: {row['backend']} {row['precision']}, batch {row['batch']}"
    colour = MODEL_COLOURS[row["model"]]
    axes.errorbar(
        row["p50_ms"] / row["batch"],
        value,
        yerr=spread,
        fmt=marker,
        color=colour,
        markersize=9,
        capsize=4,
        linewidth=1.6,
        label=text,
    )


def finish(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.align_ylabels()
    figure.savefig(stream, format="png", dpi=DPI, bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    pyplot.close(figure)
    return stream.getvalue()
