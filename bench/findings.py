"""What the rows say, in words: names, verdicts, key numbers, and the honest sentences at the top of a report.

Place in the chain: between the rows of report.json and the templates. Every word is derived from the
intervals, none is chosen by hand.
    python -c "from bench.findings import sentence; from bench.schema import load; print(sentence(load('DIR/report.json')))"
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.exhibits import ReportNotes

Row = Mapping[str, Any]
MIN_QUESTIONS = 100  # below this a type carries no claim: with n = 29 a prototype's +0.30 shrank to +0.03 over other seeds

TITLES = {
    "teacher": "Teacher",
    "teacher_reseeded": "Teacher, other noise",
    "teacher_random": "Teacher, random weights",
    "student": "Student (torch)",
    "student_exported": "Student (exported file)",
    "student_undistilled": "Student, not distilled",
    "teacher_fused": "Fused tokens of the teacher",
    "student_exported_fused": "Fused tokens of the exported file",
    "student_undistilled_fused": "Fused tokens, not distilled",
    "semantic": "Semantic encoder only",
    "raw_patches": "Raw image patches",
    "blind": "Blind (no image)",
}
METRIC_TITLES = {
    "depth_r2": "Depth probe, R²",
    "depth_delta1": "Depth probe, δ < 1.25",
    "correspondence_recall": "Correspondence recall",
    "correspondence_recall_centred": "Correspondence recall, centred",
    "voxel_consistency": "Voxel consistency, raw (near 1 for any features with a big mean)",
    "voxel_consistency_centred": "Voxel consistency, centred",
}
PARITY_WORDS = {"pass": "within the margin", "fail": "outside the margin", "inconclusive": "not settled"}


class KeyNumber(NamedTuple):
    value: str
    label: str
    detail: str


class Claim(NamedTuple):
    """One statement a reader will want to repeat; `held` is None when it was not measured."""

    text: str
    held: bool | None
    evidence: str


def find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The first row whose fields equal `wanted`."""
    return next((row for row in rows if all(row[key] == value for key, value in wanted.items())), None)


def signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def interval(row: Row, digits: int) -> str:
    return f"{row['low']:.{digits}f} to {row['high']:.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """Whole percent, never rounded up: 89.6 % must not read as the 90 % that was asked for."""
    return f"{math.floor(100 * share + 1e-9)} %".replace("-", "−")


def digits_of(row: Row) -> int:
    """Probe metrics are fractions (3 digits), task scores percent (1 digit)."""
    return 3 if row.get("metric") else 1


def direction(row: Row) -> str:
    """What a paired difference says: "better", "worse", or "open" when its interval holds zero or n is too small."""
    if row["task"] and row["n"] < MIN_QUESTIONS:
        return "open"
    return "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "open"


def kept_share(report: Row, metric: str = "depth_r2") -> float | None:
    """(exported student - raw patches) / (teacher - raw patches); None when the teacher gains nothing or a row is missing."""
    rows = [find(report["probes"], metric=metric, model=model) for model in ("teacher", "student_exported", "raw_patches")]
    if any(row is None for row in rows):
        return None
    teacher, student, raw = (row["value"] for row in rows if row is not None)
    return (student - raw) / (teacher - raw) if teacher > raw else None


def fastest(report: Row) -> Row | None:
    """The exported student's quickest row at its smallest batch."""
    rows = [row for row in report["latency"] if row["model"] == "student_exported"]
    return min(rows, key=lambda row: (row["batch"], row["p50_ms"]), default=None)


def machine_name(machine: Mapping[str, Any]) -> str:
    return next((str(machine[key]) for key in ("name", "gpu", "device", "cpu") if machine.get(key)), "the machine named below")


def kept_interval(notes: ReportNotes | None, metric: str = "depth_r2") -> str:
    """The 95 % interval of `kept_share` in words; empty when the notes hold none."""
    row = find(notes.retained, metric=metric) if notes is not None else None
    return f"95 %: {100 * row['low']:.0f} to {100 * row['high']:.0f} %".replace("-", "−") if row is not None else ""


def key_numbers(report: Row, notes: ReportNotes | None = None) -> list[KeyNumber]:
    """At most four numbers for the top of the page; what was not measured is left out."""
    numbers = []
    share, quick = kept_share(report), fastest(report)
    if share is not None:
        detail = "depth-probe R² above raw patches, exported file"
        detail = "; ".join(filter(None, (kept_interval(notes), detail)))
        numbers.append(KeyNumber(percent(share), "of the teacher's depth gain kept", detail))
    for metric, name in (("depth_r2", "depth-probe R²"), ("correspondence_recall_centred", "centred correspondence recall")):
        student = find(report["probes"], metric=metric, model="student_exported")
        teacher = find(report["probes"], metric=metric, model="teacher")
        if student is not None:
            beside = f"; teacher {teacher['value']:.2f}" if teacher is not None else ""
            raw = find(report["probes"], metric=metric, model="raw_patches")
            beside += f", raw patches {raw['value']:.2f}" if raw is not None else ""
            numbers.append(
                KeyNumber(f"{student['value']:.2f}", f"{name} of the exported file", f"95 %: {interval(student, 2)}{beside}")
            )
    if quick is not None:
        what = f"{quick['backend']} {quick['precision']}, batch {quick['batch']}, {quick['size'][0]}×{quick['size'][1]} px"
        numbers.append(
            KeyNumber(
                f"{quick['p50_ms'] / quick['batch']:.2g} ms", "per image, median", f"{what}, {machine_name(report['machine'])}"
            )
        )
    return numbers[:4]


def sentence(report: Row) -> str:
    """Headline and caveats together: true whatever came out."""
    return " ".join(filter(None, (headline(report), caveats(report))))


def headline(report: Row) -> str:
    """One sentence: how much survived, and whether the answers did."""
    share = kept_share(report)
    gain = find(report["paired"], metric="depth_r2", a="student_exported", b="student_undistilled")
    teacher = find(report["probes"], metric="depth_r2", model="teacher")
    if share is not None:
        start = f"The exported student keeps {percent(share)} of the teacher's depth gain over raw image patches"
    elif teacher is not None:
        start = "The share of the teacher's depth gain that survived is unknown: no gain over raw image patches was measured"
    else:
        start = "Depth was not probed"
    if gain is not None:
        start += {"better": " and beats the same network undistilled", "open": "; no gain from distillation is shown"}.get(
            direction(gain), "; distillation made it worse than the same network without it"
        )
    return f"{start}; {parity_clause(report)}."


def caveats(report: Row) -> str:
    """What a reader of the headline must know; empty where the rows for it are missing."""
    found = []
    matching = find(report["paired"], metric="correspondence_recall_centred", a="student_exported", b="raw_patches")
    if matching is not None and direction(matching) == "worse":
        fused = find(report["paired"], metric="correspondence_recall_centred", a="student_exported_fused", b="raw_patches")
        more = "; its fused tokens more often" if fused is not None and direction(fused) == "better" else ""
        found.append(f"Its generative stream finds places again in another view less often than raw patches do{more}.")
    alone = find(report["paired"], task="ladder", type="overall", a="teacher", b="semantic")
    if alone is not None:
        better = direction(alone) == "better"
        found.append("On the ladder fused tokens beat semantic ones." if better else "Semantic tokens alone answer as well.")
    return " ".join(found)


def parity_clause(report: Row) -> str:
    if not report["parity"]:
        return "downstream parity was not tested"
    groups = {word: [row["task"] for row in report["parity"] if row["verdict"] == word] for word in PARITY_WORDS}
    parts = [f"{PARITY_WORDS[word]} on {listed(list(dict.fromkeys(tasks)))}" for word, tasks in groups.items() if tasks]
    return "its answers, against the teacher's, are " + ", ".join(parts)


def listed(names: Sequence[str]) -> str:
    """The names as a sentence has them: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


EXPECTED = (
    ("teacher", "teacher_random", "Training the teacher matters: it beats the same network with random weights"),
    ("student_exported", "student_undistilled", "Distillation matters: the exported file beats the same student without it"),
    ("student_exported", "raw_patches", "The exported file's generative stream knows more than raw image patches"),
    ("student_exported_fused", "raw_patches", "The exported file's fused tokens know more than raw image patches"),
)

CLAIMED_TYPES = ("overall", "room_size_estimation")  # the other types stand in the table and claim nothing


def claims(report: Row, notes: ReportNotes | None = None) -> list[Claim]:
    """The statements this report is for, each with the rows that carry or refute it."""
    found = [paired_claim(report, a, b, text) for a, b, text in EXPECTED]
    share = kept_share(report)
    evidence = "not measured" if share is None else f"{100 * share:.1f} % kept ({kept_interval(notes) or 'point estimate'})"
    found.append(
        Claim(
            "At least 90 % of the teacher's depth R² above raw patches survives export",
            None if share is None else share >= 0.9,
            evidence,
        )
    )
    for row in report["paired"]:
        if row["type"] in CLAIMED_TYPES and row["a"] == "teacher" and row["b"] in ("blind", "semantic"):
            kind = row["type"].replace("_", " ")
            text = f"On {row['task']} ({kind}) the reader with teacher tokens beats {TITLES[row['b']].lower()}"
            found.append(Claim(text, direction(row) == "better", difference_text(row)))
    for row in report["parity"]:
        text = f"On {row['task']} the student stays within {row['margin']:g} points of the teacher"
        found.append(Claim(text, row["verdict"] == "pass", parity_text(report, row)))
    return found


def paired_claim(report: Row, a: str, b: str, text: str) -> Claim:
    rows = [find(report["paired"], metric=metric, a=a, b=b) for metric in ("depth_r2", "correspondence_recall_centred")]
    present = [row for row in rows if row is not None]
    if len(present) < 2:
        return Claim(text, None, "not measured on both depth R² and centred correspondence")
    evidence = "; ".join(f"{METRIC_TITLES[row['metric']]} {difference_text(row)}" for row in present)
    return Claim(text, all(direction(row) == "better" for row in present), evidence)


def difference_text(row: Row) -> str:
    digits = digits_of(row)
    return f"{signed(row['difference'], digits)} [{signed(row['low'], digits)}, {signed(row['high'], digits)}]"


def parity_text(report: Row, row: Row) -> str:
    """By how much the student differs, what decides, and how many questions would settle it."""
    pair = find(report["paired"], task=row["task"], protocol=row["protocol"], type="overall", a="student_exported", b="teacher")
    measured = (
        f"student − teacher {difference_text(pair)} points, n {pair['n']:,}" if pair is not None else "difference not listed"
    )
    needed = f"; about {row['needed_n']:,} questions would settle it" if row["needed_n"] else ""
    return f"{measured}; margin −{row['margin']:g}{needed}"


def supervision_text(notes: ReportNotes | None) -> str:
    """How the teacher learned, in words nobody can misread."""
    if notes is None:
        return "How this teacher was trained is not recorded beside this report; judge nothing about video generation by it."
    if notes.supervision == "auxiliary":
        return (
            f"The teacher “{notes.teacher}” was trained with depth or position as extra outputs (auxiliary supervision). "
            "Its depth probe asks for what it was taught directly, so this is no evidence that making video teaches geometry."
        )
    return (
        f"The teacher “{notes.teacher}” is purely generative: it was trained to generate video and was never shown "
        "depth, position or pose."
    )
