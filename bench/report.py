"""One self-contained report.html (and report.md) from report.json, the saved pictures and notes.

Place in the chain: last. It reads a folder, draws, and changes no number; nothing in the page is fetched from elsewhere.
    python -m bench.report DIR        # DIR holds report.json, and if available pictures.safetensors and notes.json
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.ticker import MaxNLocator

from bench import charts, findings, pictures
from bench.exhibits import ReportNotes, ReportPictures, model_order
from bench.findings import METRIC_TITLES, MIN_QUESTIONS, TITLES, Row
from bench.schema import METRICS, MODELS, load
from vega_artifact import UserError, write_text

TEMPLATES = Path(__file__).parent / "templates"
STAGE_WORDS = {
    "scenes": "rooms and videos",
    "teacher": "frozen video generator",
    "fusion": "gate between two streams",
    "cache": "its features on disk",
    "reader": "answers questions from tokens",
    "run": "the distilled student",
    "export": "ONNX file for the device",
    "engine": "built on the device",
}


DIRECTION_COLOURS = {"better": "#0072B2", "worse": "#D55E00", "open": "#7B8794"}


class Strip(NamedTuple):
    """One labelled row of pictures."""

    label: str
    detail: str
    images: list[str]
    alts: list[str]
    pixelated: bool


class Dot(NamedTuple):
    """One line of a dot-and-whisker plot; positions in percent of its width."""

    label: str
    value: float
    low: float
    high: float
    text: str
    spoken: str
    colour: str
    word: str
    muted: bool


class DotPlot(NamedTuple):
    title: str
    dots: list[Dot]
    ticks: list[tuple[float, str]]
    zero: float | None
    folded: bool = False


def inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def write(folder: Path | str) -> Path:
    """Render `folder`/report.html and `folder`/report.md from report.json; return the path of the HTML.

    Raises:
        UserError: no report.json, a row that breaks the schema (named), or pictures and notes that do not fit.
    """
    folder = Path(folder)
    report = load(folder / "report.json")
    page = gather(report, ReportPictures.load(folder), ReportNotes.load(folder))
    for name in ("report.md", "report.html"):
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=name.endswith("html"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        write_text(folder / name, environment.get_template(f"{name}.j2").render(page))
    return folder / "report.html"


def gather(report: dict[str, Any], shown: ReportPictures | None, notes: ReportNotes | None) -> dict[str, Any]:
    """Everything the templates need, already in words, percentages and data URIs."""
    return {
        "report": report,
        "notes": notes,
        "headline": findings.headline(report),
        "caveats": findings.caveats(report),
        "supervision": findings.supervision_text(notes),
        "key_numbers": findings.key_numbers(report, notes),
        "claims": findings.claims(report, notes),
        "views": strips(shown) if shown else [],
        "gates": gate_strips(shown) if shown else None,
        "matches": match_pictures(shown) if shown else [],
        "depths": depth_strips(shown) if shown else None,
        "training": [(stage, inline(charts.curves(rows))) for stage, rows in shown.curves.items() if rows] if shown else [],
        "probe_plots": probe_plots(report["probes"]),
        "probe_table": probe_table(report["probes"]),
        "paired_plots": paired_plots(report["paired"]),
        "task_tables": task_tables(report["tasks"], notes),
        "parity": [(row, findings.parity_text(report, row), findings.PARITY_WORDS[row["verdict"]]) for row in report["parity"]],
        "latency_pictures": latency_pictures(report),
        "latency": [dict(row, title=TITLES[row["model"]]) for row in report["latency"]],
        "stages": [(stage, STAGE_WORDS.get(stage, ""), report["stages"][stage]) for stage in stage_order(report["stages"])],
        "min_questions": MIN_QUESTIONS,
        "aspect": f"{shown.frames.shape[2]} / {shown.frames.shape[1]}" if shown else "1",
    }


def stage_order(stages: dict[str, str]) -> list[str]:
    known = list(STAGE_WORDS)
    return sorted(stages, key=lambda stage: (known.index(stage) if stage in known else len(known), stage))


def strips(shown: ReportPictures) -> list[Strip]:
    """The frames, and below them every model's features in the teacher's PCA basis."""
    captions = shown.captions or tuple(f"view {index + 1}" for index in range(len(shown.frames)))
    frames = [inline(pictures.photo(frame)) for frame in shown.frames]
    rows = [Strip("What they see", "the frame", frames, [f"Test frame: {caption}" for caption in captions], False)]
    if not shown.features:
        return rows
    others = {model: value for model, value in shown.features.items() if model != "teacher"}
    maps = pictures.pca_maps(shown.features["teacher"], others)
    for model in model_order(maps):
        images = [inline(image) for image in maps[model]]
        alts = [f"{TITLES[model]}: PCA colours of {caption}" for caption in captions]
        cosine = pictures.centred_cosine(shown.features[model], shown.features["teacher"])
        detail = "the basis comes from here" if model == "teacher" else f"centred cosine to teacher {cosine:.2f}"
        rows.append(Strip(TITLES[model], detail.replace("-", "−"), images, alts, True))
    return rows


def gate_strips(shown: ReportPictures) -> dict[str, Any] | None:
    if shown.gates is None:
        return None
    span = pictures.gate_span(shown.gates)
    images = [inline(pictures.gate_overlay(frame, gate, span)) for frame, gate in zip(shown.frames, shown.gates, strict=True)]
    alts = [f"Gate of view {index + 1}, mean {gate.mean():.2f}" for index, gate in enumerate(shown.gates)]
    return {
        "strip": Strip("Gate", f"mean {shown.gates.mean():.2f}", images, alts, False),
        "low": f"{0.5 - span:.2f}",
        "high": f"{0.5 + span:.2f}",
    }


def match_pictures(shown: ReportPictures) -> list[dict[str, Any]]:
    if shown.matches is None:
        return []
    matches = shown.matches
    rgb_a, rgb_b = shown.frames[matches.view_a], shown.frames[matches.view_b]
    cards = []
    for model in model_order(matches.found):
        hits = matches.hits[model]
        image = pictures.correspondence_lines(rgb_a, rgb_b, matches.points_a, matches.found[model], hits)
        cards.append(
            {
                "title": TITLES[model],
                "image": inline(image),
                "right": int(hits.sum()),
                "asked": len(hits),
                "drawn": min(len(hits), pictures.LINE_LIMIT),
            }
        )
    return cards


def depth_strips(shown: ReportPictures) -> dict[str, Any] | None:
    if shown.depth is None:
        return None
    panel = pictures.depth_panel(
        shown.depth, {model: shown.depth_predictions[model] for model in model_order(shown.depth_predictions)}
    )
    rows = []
    for name, images in panel.items():
        title, detail = ("Ground truth", "metres") if name == "truth" else (TITLES[name], "")
        if name != "truth":
            detail = f"mean error {pictures.depth_error(shown.depth_predictions[name], shown.depth):.2f} m here"
        alts = [f"{title}: depth of view {index + 1}" for index in range(len(images))]
        rows.append(Strip(title, detail, [inline(image) for image in images], alts, name != "truth"))
    low, high = pictures.depth_range(shown.depth)
    ticks = [f"{low + (high - low) * part / 4:.1f} m" for part in range(5)]
    return {"frames": strips(shown)[0], "strips": rows, "ticks": ticks, "gradient": pictures.depth_gradient()}


def dot_plot(title: str, rows: Sequence[Row], labels: Sequence[str], colours: Sequence[str], key: str, zero: bool) -> DotPlot:
    """Place values and intervals on one axis that holds all of them (and zero, for differences)."""
    ends = [end for row in rows for end in (row["low"], row["high"], row[key])] + ([0.0] if zero else [])
    pad = (max(ends) - min(ends)) * 0.06 or 0.01
    low, high = min(ends) - pad, max(ends) + pad

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    dots = []
    for row, label, colour in zip(rows, labels, colours, strict=True):
        digits = findings.digits_of(row)
        text = findings.difference_text(row) if zero else f"{row[key]:.{digits}f}"
        spoken = f"{label}: {text}, 95 % interval {findings.interval(row, digits)}"
        word = {"better": "above 0", "worse": "below 0", "open": "not shown"}[findings.direction(row)] if zero else ""
        muted = bool(row.get("task")) and row["n"] < MIN_QUESTIONS
        dots.append(
            Dot(
                label,
                place(row[key]),
                place(row["low"]),
                place(row["high"]),
                text,
                spoken,
                colour,
                "no claim" if muted else word,
                muted,
            )
        )
    ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return DotPlot(title, dots, [(place(tick), f"{tick:g}".replace("-", "−")) for tick in ticks], place(0.0) if zero else None)


def probe_plots(probes: Sequence[Row]) -> list[DotPlot]:
    plots = []
    for metric in METRICS:
        found = {row["model"]: row for row in probes if row["metric"] == metric}
        models = model_order(found)
        if found:
            rows, colours = [found[model] for model in models], [charts.MODEL_COLOURS[model] for model in models]
            plots.append(
                dot_plot(METRIC_TITLES[metric], rows, [TITLES[model] for model in models], colours, "value", zero=False)
            )
    return plots


def probe_table(probes: Sequence[Row]) -> dict[str, Any]:
    metrics = [metric for metric in METRICS if any(row["metric"] == metric for row in probes)]
    models = model_order({row["model"] for row in probes})
    rows = [(TITLES[model], [findings.find(probes, model=model, metric=metric) for metric in metrics]) for model in models]
    scenes = sorted({row["scenes"] for row in probes})
    heads = [METRIC_TITLES[metric].partition(" (")[0] for metric in metrics]  # the explanation stands over the chart
    return {"metrics": heads, "rows": rows, "scenes": " or ".join(map(str, scenes))}


def paired_plots(paired: Sequence[Row]) -> list[DotPlot]:
    """One forest plot per metric and task, each with its own scale; a task's single types are folded away below its overall."""
    groups: dict[tuple[str, bool], list[Row]] = {}
    for row in paired:
        title = METRIC_TITLES[row["metric"]] if row["metric"] else f"{row['task']} ({row['protocol']}), percent points"
        groups.setdefault((title, row["type"] not in (None, "overall")), []).append(row)
    plots = []
    for (title, folded), rows in groups.items():
        names = [f"{TITLES[row['a']]} − {TITLES[row['b']].lower()}" for row in rows]
        if folded:
            names = [f"{row['type'].replace('_', ' ')}: {name}" for row, name in zip(rows, names, strict=True)]
        colours = [DIRECTION_COLOURS[findings.direction(row)] for row in rows]
        plot = dot_plot(title, rows, names, colours, "difference", zero=True)
        plots.append(plot._replace(folded=folded, title=f"{title}, by question type" if folded else title))
    return plots


def task_tables(tasks: Sequence[Row], notes: ReportNotes | None) -> list[dict[str, Any]]:
    """Per task and protocol a table of types x models, "overall" first; types with few questions are marked, not hidden."""
    tables = []
    for task, protocol in dict.fromkeys((row["task"], row["protocol"]) for row in tasks):
        rows = [row for row in tasks if (row["task"], row["protocol"]) == (task, protocol)]
        models = sorted(
            {row["model"] for row in rows}, key=lambda model: (model != "blind", model != "semantic", MODELS.index(model))
        )
        chance = notes.chance.get(task, {}) if notes else {}
        lines = []
        for kind in sorted({row["type"] for row in rows}, key=lambda kind: (kind != "overall", kind)):
            cells = [findings.find(rows, type=kind, model=model) for model in models]
            n = min(cell["n"] for cell in cells if cell is not None)
            lines.append({"type": kind, "n": n, "muted": n < MIN_QUESTIONS, "chance": chance.get(kind), "cells": cells})
        overall = [findings.find(rows, type="overall", model=model) for model in models]
        present = [row for row in overall if row is not None]
        plot = None
        if present:
            colours = [charts.MODEL_COLOURS[row["model"]] for row in present]
            plot = dot_plot(
                "Overall, percent", present, [TITLES[row["model"]] for row in present], colours, "value", zero=False
            )
        tables.append(
            {
                "task": task,
                "protocol": protocol,
                "models": [TITLES[model] for model in models],
                "lines": lines,
                "plot": plot,
                "chance": bool(chance),
            }
        )
    return tables


def latency_pictures(report: Row) -> list[tuple[str, str]]:
    """One chart per headline metric that some timed model was probed for; the table stands without them."""
    drawn = []
    for metric in ("depth_r2", "correspondence_recall_centred"):
        probed = {row["model"] for row in report["probes"] if row["metric"] == metric}
        if any(row["model"] in probed for row in report["latency"]):
            title = METRIC_TITLES[metric]
            image = charts.latency_quality(report["latency"], report["probes"], metric, title, TITLES)
            drawn.append((title, inline(image)))
    return drawn


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m bench.report DIR", file=sys.stderr)
        return 2
    try:
        print(write(arguments[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
