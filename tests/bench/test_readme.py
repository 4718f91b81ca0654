"""The README's measured table: rows become cells, absent rows stay visible as absent, everything outside the markers stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import readme
from bench.exhibits import ReportNotes
from bench.schema import validate
from vega_artifact import UserError

NO_TASK = {"task": None, "protocol": None, "type": None}
PAGE = f"# Title\n\nbefore\n{readme.BEGIN}\nrun make demo\n{readme.END}\nafter\n"


def made_up_report() -> dict[str, Any]:
    """Three models, one of them without questions; differences above, across and below zero. No number means anything."""
    probe = {"metric": "depth_r2", "low": 0.5, "high": 0.75, "scenes": 40}
    vsi = {"task": "vsibench", "protocol": "official", "low": 30.0, "high": 50.0}
    gap = {"metric": "depth_r2", **NO_TASK, "n": 40}
    room = {**vsi, "type": "room_size_estimation", "metric": None, "a": "teacher", "b": "blind", "low": 2.0, "high": 6.0}
    return {
        "schema": 1,
        "created": "2026-01-02T03:04:05+00:00",
        "machine": {"device": "Made-up CPU", "cores": 2},
        "stages": {name: letter * 16 for name, letter in zip(("teacher", "cache", "run", "export"), "abcd")},
        "probes": [
            {**probe, "model": model, "value": value}
            for model, value in (("student_exported", 0.68), ("teacher", 0.7), ("raw_patches", 0.5))
        ],
        "tasks": [{**vsi, "model": model, "type": "overall", "value": 40.0, "n": 900} for model in ("teacher", "blind")],
        "paired": [
            {**gap, "a": "student_exported", "b": "raw_patches", "difference": 0.18, "low": 0.1, "high": 0.25},
            {**gap, "a": "student_exported", "b": "teacher", "difference": -0.02, "low": -0.05, "high": 0.01},
            {**room, "difference": 4.0, "n": 99},
        ],
        "parity": [{"task": "vsibench", "protocol": "official", "margin": 1.0, "verdict": "inconclusive", "needed_n": 4100}],
        "latency": [],
    }


def cells(text: str, name: str) -> list[str]:
    """The cells of the one table row that starts with `name`."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


class TestRender:
    def test_values_with_intervals_and_a_dash_for_what_was_not_measured(self) -> None:
        text = readme.render(validate(made_up_report()))
        assert cells(text, "Teacher") == ["0.700 [0.500 to 0.750]", "–", "–", "40.0 [30.0 to 50.0]", "–"]
        assert cells(text, "Raw image patches") == ["0.500 [0.500 to 0.750]", "–", "–", "–", "–"]
        assert cells(text, "Blind (no image)")[0] == "–"

    def test_every_table_row_has_as_many_cells_as_its_heading(self) -> None:
        rows = [line for line in readme.render(made_up_report()).splitlines() if line.startswith("|")]
        assert {row.count("|") for row in rows} == {len(readme.COLUMNS) + 2, len(readme.GAP_COLUMNS) + 2}

    def test_bold_only_where_the_interval_leaves_zero_and_questions_suffice(self) -> None:
        text = readme.render(made_up_report())
        assert cells(text, "Student (exported file) − raw image patches")[0] == "**+0.180 [+0.100, +0.250]**"
        assert cells(text, "Student (exported file) − teacher")[0] == "−0.020 [−0.050, +0.010]"
        assert cells(text, "Teacher − blind (no image)")[-1] == "+4.0 [+2.0, +6.0]"  # 99 questions: no claim
        assert "Teacher − semantic" not in text  # nothing measured, no empty row

    def test_names_machine_date_verdict_and_artifacts(self) -> None:
        text = readme.render(made_up_report())
        assert "Measured 2026-01-02, Made-up CPU, 2 cores." in text
        assert "Parity on vsibench: **inconclusive, not settled**" in text and "4,100 questions would settle it" in text
        assert "teacher `aaaaaaaaaaaaaaaa`" in text
        assert "keeps 90 % (point estimate)" in text

    def test_says_how_the_teacher_was_supervised(self) -> None:
        notes = ReportNotes(teacher="t", supervision="auxiliary", scenes="40 test rooms", shows=("Probes read one stream.",))
        text = readme.render(made_up_report(), notes)
        assert "no evidence that making video teaches geometry" in text
        assert "2 cores, 40 test rooms." in text and "Probes read one stream." in text
        assert "not recorded" in readme.render(made_up_report())


class TestCommand:
    def test_replaces_what_is_between_the_markers_and_nothing_else(self, tmp_path: Path) -> None:
        source, target = tmp_path / "report.json", tmp_path / "README.md"
        source.write_text(json.dumps(made_up_report()))
        target.write_text(PAGE)
        assert readme.main([str(source), str(target)]) == 0
        first = target.read_text()
        assert first.startswith(f"# Title\n\nbefore\n{readme.BEGIN}\n") and first.endswith(f"\n{readme.END}\nafter\n")
        assert "run make demo" not in first and "0.680" in first
        assert readme.main([str(source), str(target)]) == 0
        assert target.read_text() == first

    @pytest.mark.parametrize(
        "page", ["no markers", PAGE + readme.END, f"{readme.END}\n{readme.BEGIN}"], ids=["none", "twice", "swapped"]
    )
    def test_refuses_a_page_without_one_place_for_the_table(self, page: str) -> None:
        with pytest.raises(UserError, match="once each, in this order"):
            readme.insert(page, "results", "README.md")

    def test_a_wrong_report_leaves_the_page_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source, target = tmp_path / "report.json", tmp_path / "README.md"
        source.write_text(json.dumps(made_up_report() | {"parity": [{"task": "vsibench"}]}))
        target.write_text(PAGE)
        assert readme.main([str(source), str(target)]) == 2
        assert "parity[0].protocol is missing" in capsys.readouterr().err
        assert target.read_text() == PAGE

    def test_names_a_missing_page_and_wrong_arguments(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        source = tmp_path / "report.json"
        source.write_text(json.dumps(made_up_report()))
        assert readme.main([str(source), str(tmp_path / "absent.md")]) == 2
        assert "absent.md: no such file" in capsys.readouterr().err
        assert readme.main([]) == 2

    def test_the_repositorys_own_readme_has_a_place_for_it(self) -> None:
        page = Path(readme.__file__).parents[1] / "README.md"
        assert readme.insert(page.read_text(encoding="utf-8"), "results", page).count("results\n" + readme.END) == 1
