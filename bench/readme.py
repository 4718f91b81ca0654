"""The measured table of the README, from report.json: what was measured, on which machine, when.

Place in the chain: after the report. Replaces what stands between two markers and nothing else; no number is typed by hand.

    python -m bench.readme runs/demo/report/report.json            # fills ./README.md; another file may be named after it
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench import findings
from bench.exhibits import ReportNotes, model_order
from bench.findings import TITLES, Row, find
from bench.schema import load
from vega_artifact import UserError, write_text

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
NONE = "–"
COLUMNS: dict[str, dict[str, str]] = {  # heading -> the fields that pick its rows
    "depth R²": {"metric": "depth_r2"},
    "correspondence recall, centred": {"metric": "correspondence_recall_centred"},
    "ladder, %": {"task": "ladder", "type": "overall"},
    "VSI, %": {"task": "vsibench", "type": "overall"},
    "ScanQA EM, %": {"task": "scanqa", "type": "overall"},
}
GAP_COLUMNS = COLUMNS | {"VSI room size, %": {"task": "vsibench", "type": "room_size_estimation"}}  # the one type with a claim
PAIRS = [(a, b) for a, b, _ in findings.EXPECTED]
PAIRS += [
    ("student_exported_fused", "student_undistilled_fused"),
    ("teacher_fused", "semantic"),
    ("student_exported", "teacher"),
    ("teacher", "semantic"),
    ("teacher", "blind"),
]


def render(report: Row, notes: ReportNotes | None = None) -> str:
    """The Markdown between the markers, from a validated report.json and the notes beside it (they name teacher and rooms)."""
    models = model_order({row["model"] for kind in ("probes", "tasks") for row in report[kind]})
    values = {TITLES[model]: [value(report, model, wanted) for wanted in COLUMNS.values()] for model in models}
    every = {pair: [gap(report, *pair, wanted) for wanted in GAP_COLUMNS.values()] for pair in PAIRS}
    gaps = {f"{TITLES[a]} − {TITLES[b].lower()}": cells for (a, b), cells in every.items() if set(cells) != {NONE}}
    about = [findings.supervision_text(notes), *(notes.shows if notes else ())]
    blocks = [f"> {notes.banner}"] if notes and notes.banner else []
    blocks += [f"**{findings.headline(report)}** {findings.caveats(report)}".strip(), " ".join(about)]
    blocks += [f"{setting(report, notes)} Value [95 % interval]:"]
    blocks.append(table("model", values, list(COLUMNS)))
    if gaps:
        bold = f"Bold: all of the interval on one side of 0, and at least {findings.MIN_QUESTIONS} questions."
        blocks += [f"Paired differences, the same rooms resampled for both. {bold}", table("a − b", gaps, list(GAP_COLUMNS))]
    return "\n\n".join([*blocks, "\n".join(closing(report, notes))])


def setting(report: Row, notes: ReportNotes | None) -> str:
    """Machine, date and rooms in one sentence."""
    machine = report["machine"]
    cores = [f"{machine['cores']} cores"] if machine.get("cores") else []
    rooms = [notes.scenes] if notes and notes.scenes else []
    return ", ".join([f"Measured {report['created'][:10]}", findings.machine_name(machine), *cores, *rooms]) + "."


def table(corner: str, rows: dict[str, list[str]], headings: Sequence[str]) -> str:
    lines = [[corner, *headings], ["---"] * (len(headings) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def value(report: Row, model: str, wanted: dict[str, str]) -> str:
    rows, digits = (report["probes"], 3) if "metric" in wanted else (report["tasks"], 1)
    row = find(rows, model=model, **wanted)
    return f"{row['value']:.{digits}f} [{findings.interval(row, digits)}]" if row is not None else NONE


def gap(report: Row, a: str, b: str, wanted: dict[str, str]) -> str:
    row = find(report["paired"], a=a, b=b, **wanted)
    mark = "" if row is None or findings.direction(row) == "open" else "**"
    return f"{mark}{findings.difference_text(row)}{mark}" if row is not None else NONE


def closing(report: Row, notes: ReportNotes | None) -> list[str]:
    """List items: parity verdicts, kept share, latency, and the artifacts behind the numbers."""
    lines = []
    for row in report["parity"]:
        verdict = f"{row['verdict']}, {findings.PARITY_WORDS[row['verdict']]}"
        lines.append(f"- Parity on {row['task']}: **{verdict}** ({findings.parity_text(report, row)}).")
    if (share := findings.kept_share(report)) is not None:
        lines.append(
            f"- Of the teacher's depth R² above raw patches the exported file keeps {findings.percent(share)}"
            f" ({findings.kept_interval(notes) or 'point estimate'})."
        )
    if (quick := findings.fastest(report)) is not None:
        what = f"{quick['backend']} {quick['precision']}, batch {quick['batch']}, {quick['size'][0]}×{quick['size'][1]} px"
        lines.append(
            f"- One call of the exported file ({what}): median {quick['p50_ms']:.1f} ms, p99 {quick['p99_ms']:.1f} ms."
        )
    return [*lines, f"- Artifacts: {', '.join(f'{stage} `{mark}`' for stage, mark in report['stages'].items())}."]


def insert(text: str, results: str, where: Path | str) -> str:
    """`text` with `results` between its markers; UserError unless each stands there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{where}: {BEGIN} and {END} expected, once each, in this order; put them around the table's place")
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{results}\n{text[text.index(END) :]}"


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2):
        print("usage: python -m bench.readme REPORT.json [README.md]", file=sys.stderr)
        return 2
    source, target = Path(arguments[0]), Path([*arguments, "README.md"][1])
    try:
        results = render(load(source), ReportNotes.load(source.parent))
        if not target.is_file():
            raise UserError(f"{target}: no such file; run this in the repository, or name the README after the report")
        write_text(target, insert(target.read_text(encoding="utf-8"), results, target))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{target}: results of {source}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
