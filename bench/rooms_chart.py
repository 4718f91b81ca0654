"""The curves of `bench.rooms_study`: score against training rooms per condition, as a picture and as a table.

python -m bench.rooms_study --work runs/tiny --out results/rooms-study
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import pyplot

from bench.charts import DPI, MODEL_COLOURS, STYLE

COLOURS = {
    **{name: MODEL_COLOURS[name] for name in ("blind", "semantic")},
    "fused": MODEL_COLOURS["teacher"],
    "oracle": "#D55E00",
}
COLUMNS = 3
CLAIM = 100  # questions below which nothing is said about a type
Rows = Mapping[str, Sequence[Mapping[str, Any]]]


def picture(rows: Rows) -> bytes:
    """PNG: one panel for overall and each type with enough questions, a line and its 95 % interval per condition."""
    kinds = _kinds(rows)
    height = -(-len(kinds) // COLUMNS)
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(height, COLUMNS, figsize=(4 * COLUMNS, 2.8 * height), squeeze=False, layout="tight")
        for axis, (task, kind) in zip(axes.flat, kinds, strict=False):
            for model, colour in COLOURS.items():
                found = [row for row in rows["tasks"] if (row["task"], row["type"], row["model"]) == (task, kind, model)]
                counts = [row["rooms"] for row in found]
                axis.plot(counts, [row["value"] for row in found], "o-", color=colour, label=model)
                axis.fill_between(counts, [r["low"] for r in found], [r["high"] for r in found], color=colour, alpha=0.15, lw=0)
            axis.set(title=f"{task}: {kind}", xscale="log", xlabel="training rooms", ylabel="score, %")
            axis.set_xticks(counts, [str(count) for count in counts], minor=False)
            axis.minorticks_off()
        for axis in list(axes.flat)[len(kinds) :]:
            axis.remove()
        figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(COLOURS), frameon=False)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=DPI // 2, metadata={"Software": None})
        pyplot.close(figure)
    return stream.getvalue()


def markdown(rows: Rows, steps: int) -> str:
    """Scores of all types per condition and number of rooms, then the paired differences at the most rooms."""
    counts = sorted({row["rooms"] for row in rows["tasks"]})
    value = {(row["task"], row["type"], row["model"], row["rooms"]): row["value"] for row in rows["tasks"]}
    cells = [(model, count) for model in COLOURS for count in counts]
    lines = [
        f"Score in percent of readers trained from scratch for {steps} steps, by number of training rooms; validation rooms.",
        "",
        "| task | type | n | " + " | ".join(f"{model} {count}" for model, count in cells) + " |",
        "| --- " * (3 + len(cells)) + "|",
    ]
    for task, kind in _kinds(rows, least=0):
        n = next(row["n"] for row in rows["tasks"] if (row["task"], row["type"]) == (task, kind))
        values = " | ".join(f"{value[task, kind, model, count]:.1f}" for model, count in cells)
        lines.append(f"| {task} | {kind} | {n} | {values} |")
    return "\n".join([*lines, "", *_differences(rows, counts[-1])]) + "\n"


def _differences(rows: Rows, count: int) -> list[str]:
    kept = [row for row in rows["paired"] if row["rooms"] == count]
    pairs = list(dict.fromkeys((row["a"], row["b"]) for row in kept))
    lines = [
        f"Paired differences in points at {count} rooms, validation rooms resampled for the 95 % interval, one reader each. "
        f"Bold: all of the interval on one side of 0, and at least {CLAIM} questions.",
        "",
        "| task | type | n | " + " | ".join(f"{a} − {b}" for a, b in pairs) + " |",
        "| --- " * (3 + len(pairs)) + "|",
    ]
    for task, kind in _kinds(rows, least=0):
        found = {(row["a"], row["b"]): row for row in kept if (row["task"], row["type"]) == (task, kind)}
        lines.append(f"| {task} | {kind} | {found[pairs[0]]['n']} | " + " | ".join(_gap(found[pair]) for pair in pairs) + " |")
    return lines


def _gap(row: Mapping[str, Any]) -> str:
    text = f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
    return f"**{text}**" if row["n"] >= CLAIM and row["low"] * row["high"] > 0 else text


def _kinds(rows: Rows, least: int = CLAIM) -> list[tuple[str, str]]:
    """Overall and every type with at least so many questions, as (task, type), in the order of the rows."""
    kept = (row for row in rows["tasks"] if row["type"] == "overall" or row["n"] >= least)
    return list(dict.fromkeys((row["task"], row["type"]) for row in kept))
