"""The report: its schema, its inputs, its pictures, and the page. All data here is made up; no number means anything."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import findings, report, schema
from bench.exhibits import Matches, ReportNotes, ReportPictures
from vega_artifact import UserError

DEPTH = {"teacher": 0.70, "teacher_reseeded": 0.69, "teacher_random": 0.57, "student": 0.68, "student_exported": 0.68}
DEPTH |= {"student_undistilled": 0.53, "semantic": 0.55, "raw_patches": 0.49}
TYPES = {
    "object_counting": 518,
    "object_rel_direction": 467,
    "object_abs_distance": 704,
    "room_size_estimation": 120,
    "obj_appearance_order": 29,
}


def made_up_rows() -> dict[str, Any]:
    """A report.json with a positive, an open and a negative difference, and a type too small for a claim."""
    probes = [
        {
            "model": model,
            "metric": metric,
            "value": value * factor,
            "low": value * factor - 0.03,
            "high": value * factor + 0.03,
            "scenes": 40,
        }
        for metric, factor in (
            ("depth_r2", 1.0),
            ("depth_delta1", 1.08),
            ("correspondence_recall_centred", 0.63),
            ("voxel_consistency_centred", 0.5),
        )
        for model, value in DEPTH.items()
    ]
    boost = {"blind": 0, "semantic": 4, "student_undistilled": 3, "teacher": 9, "student_exported": 8}
    tasks = [
        {
            "task": task,
            "protocol": protocol,
            "model": model,
            "type": kind,
            "value": 40.0 + gain + n % 11,
            "low": 37.0 + gain + n % 11,
            "high": 43.0 + gain + n % 11,
            "n": n,
        }
        for task, protocol in (("vsibench", "official"), ("ladder", "vega3d"))
        for kind, n in {"overall": 1838, **TYPES}.items()
        for model, gain in boost.items()
    ]
    pairs = [
        ("teacher", "teacher_random", 0.13),
        ("teacher", "teacher_reseeded", 0.01),
        ("student_exported", "student_undistilled", 0.15),
    ]
    pairs += [("student_exported", "raw_patches", 0.19), ("student_exported", "teacher", -0.06)]
    pairs += [("student_exported_fused", "raw_patches", 0.2)]
    nothing = {"task": None, "protocol": None, "type": None}
    paired = [
        {"metric": metric, **nothing, "a": a, "b": b, "difference": gap, "low": gap - 0.04, "high": gap + 0.04, "n": 40}
        for metric in ("depth_r2", "correspondence_recall_centred")
        for a, b, gap in pairs
    ]
    paired += [
        {
            "metric": None,
            "task": task,
            "protocol": protocol,
            "type": kind,
            "a": a,
            "b": b,
            "difference": gap,
            "low": gap - 1.5,
            "high": gap + 1.5,
            "n": n,
        }
        for task, protocol in (("vsibench", "official"), ("ladder", "vega3d"))
        for a, b, gap, kind, n in (
            ("teacher", "blind", 9.0, "overall", 1838),
            ("teacher", "semantic", 1.0, "overall", 1838),
            ("student_exported", "teacher", -1.0, "overall", 1838),
            ("teacher", "blind", 8.0, "obj_appearance_order", 29),
        )
    ]
    latency = [
        {
            "model": model,
            "backend": backend,
            "precision": "fp32",
            "batch": batch,
            "size": [128, 128],
            "p50_ms": ms,
            "p90_ms": ms * 1.2,
            "p99_ms": ms * 1.6,
            "n": 200,
        }
        for model, backend, batch, ms in (
            ("teacher", "torch", 1, 96.0),
            ("student", "torch", 1, 9.1),
            ("student_exported", "onnxruntime", 1, 3.8),
            ("student_exported", "onnxruntime", 8, 24.0),
        )
    ]
    parity = [{"task": "vsibench", "protocol": "official", "margin": 2.0, "verdict": "inconclusive", "needed_n": 4100}]
    parity += [{"task": "ladder", "protocol": "vega3d", "margin": 3.0, "verdict": "pass", "needed_n": None}]
    stages = {name: f"{index:x}" * 16 for index, name in enumerate(("teacher", "cache", "run", "export"), start=10)}
    machine = {"cpu": "Made-up CPU, 2 cores", "memory_gib": 8, "system": "Linux x86_64", "python": "3.11"}
    return {
        "schema": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "machine": machine,
        "stages": stages,
        "probes": probes,
        "tasks": tasks,
        "paired": paired,
        "parity": parity,
        "latency": latency,
    }


def made_up_views(views: int = 6, side: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Shaded boxes before a wall: (N, H, W, 3) uint8 and metres (N, H, W) float32."""
    y, x = np.mgrid[0:side, 0:side] / side
    frames, depths = [], []
    for view in range(views):
        depth = 4.0 - 2.0 * np.abs(y - 0.45)
        colour = np.stack([0.75 - 0.2 * y, 0.72 - 0.15 * y, 0.65 + 0 * y], axis=-1)
        for index, tint in enumerate(((0.7, 0.3, 0.2), (0.2, 0.45, 0.7), (0.3, 0.6, 0.35))):
            left, top = (0.12 + 0.3 * index + 0.05 * view) % 0.85, 0.4 + 0.1 * index
            inside = (x > left) & (x < left + 0.2) & (y > top) & (y < top + 0.3)
            depth[inside], colour[inside] = 1.2 + 0.6 * index, np.array(tint) * (0.7 + 0.3 * x[inside][:, None])
        depth[:4, :4] = 0
        frames.append((colour * 255).astype(np.uint8))
        depths.append(depth.astype(np.float32))
    return np.stack(frames), np.stack(depths)


def made_up_pictures() -> ReportPictures:
    rng = np.random.default_rng(0)
    frames, depth = made_up_views()
    cells = frames.reshape(6, 8, 16, 8, 16, 3).mean(axis=(2, 4)) / 255
    cell_depth = depth.reshape(6, 8, 16, 8, 16).mean(axis=(2, 4))
    mixing = rng.normal(size=(4, 32))
    base = np.moveaxis(np.concatenate([cells, cell_depth[..., None] / 3], axis=-1) @ mixing, -1, 1)
    noisy = {
        name: base + rng.normal(size=base.shape) * level
        for name, level in (("teacher", 0.05), ("student_exported", 0.2), ("student_undistilled", 2.0))
    }
    cells_a = np.array([row * 8 + column for row in range(1, 8) for column in range(0, 8, 2)])
    centres = np.stack([cells_a % 8 + 0.5, cells_a // 8 + 0.5], axis=1) * 16
    hits = {
        model: rng.random(len(cells_a)) < share
        for model, share in (("teacher", 0.8), ("student_exported", 0.7), ("raw_patches", 0.3))
    }
    found = {
        model: np.where(right[:, None], centres + (6, 0), rng.random(centres.shape) * 128) for model, right in hits.items()
    }
    matches = Matches(0, 1, centres, found, hits)
    guesses = {
        name: cell_depth + rng.normal(size=cell_depth.shape) * level
        for name, level in (("teacher", 0.15), ("student_exported", 0.25), ("raw_patches", 0.8))
    }
    log = [
        {
            "step": step,
            "loss": 1 / (1 + step / 90),
            "cosine": {"fused": 1 - 0.6 / (1 + step / 80), "generative": 1 - 0.7 / (1 + step / 80)},
        }
        for step in range(0, 600, 10)
    ]
    log += [
        {"step": step, "validation": {"fused": {"raw": 0.9, "centred": 0.5 + step / 2000}}} for step in range(100, 600, 100)
    ]
    return ReportPictures(
        frames=frames,
        captions=tuple(f"made-up room, view {view}" for view in range(6)),
        features=noisy,
        gates=np.clip(0.5 + 0.1 * rng.normal(size=(6, 1, 8, 8)), 0, 1),
        depth=depth,
        depth_predictions=guesses,
        matches=matches,
        curves={"student": log, "teacher": [{"step": row["step"], "loss": row["loss"]} for row in log if "loss" in row]},
    )


def made_up_notes() -> ReportNotes:
    return ReportNotes(
        teacher="tiny-geometry",
        supervision="auxiliary",
        scenes="40 made-up rooms",
        shows=("That the page renders.",),
        does_not_show=("Anything about real rooms: every number on this page is invented.",),
        retained=({"metric": "depth_r2", "value": 0.905, "low": 0.84, "high": 0.97, "n": 40},),
        chance={"vsibench": {"object_rel_direction": 33.3, "obj_appearance_order": 25.0}},
        banner="Synthetic data: every number and picture on this page is made up for a test.",
    )


def fill(folder: Path) -> Path:
    """Everything `write` reads."""
    (folder / "report.json").write_text(json.dumps(made_up_rows()))
    made_up_pictures().save(folder)
    made_up_notes().save(folder)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(fill(tmp_path_factory.mktemp("report")))


def test_page_is_self_contained_small_and_complete(page: Path) -> None:
    html = page.read_text()
    assert page.stat().st_size < 6_000_000
    links = re.findall(r'(?:src|href)="([^"]{0,40})', html)
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?://|@import|url\(", html)
    for part in ("look", "find", "depth", "probes", "differences", "tasks", "parity", "speed", "training", "chain", "honest"):
        assert f'id="{part}"' in html, part
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]+>", html))
    assert html.count("no claim") >= 4  # two tables and two forest plots
    assert "95 %: 84 to 97 %" in html and "Auxiliary-supervised teacher" in html and "Synthetic data" in html
    assert all(print_ in html for print_ in made_up_rows()["stages"].values())


def test_markdown_has_the_same_numbers(page: Path) -> None:
    text = page.with_suffix(".md").read_text()
    assert "| Teacher | 0.700 [0.670, 0.730] |" in text
    assert "| obj_appearance_order (no claim) | 29 | 25.0 |" in text
    assert "inconclusive" in text and "about 4,100 questions would settle it" in text


def test_same_input_gives_the_same_bytes(page: Path, tmp_path: Path) -> None:
    again = report.write(fill(tmp_path))
    assert again.read_bytes() == page.read_bytes()


def test_page_without_pictures_or_notes_still_renders_the_numbers(tmp_path: Path) -> None:
    empty = {**made_up_rows(), "tasks": [], "paired": [], "parity": [], "latency": []}
    (tmp_path / "report.json").write_text(json.dumps(empty))
    html = report.write(tmp_path).read_text()
    assert "<img" not in html and "Nothing was timed" in html and "is not recorded" in html


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    rows = made_up_rows()
    rows["machine"]["cpu"] = "<script>alert(1)</script>"
    (tmp_path / "report.json").write_text(json.dumps(rows))
    assert "<script>alert" not in report.write(tmp_path).read_text()


def test_valid_rows_pass_and_schema_is_documented() -> None:
    rows = made_up_rows()
    assert schema.validate(rows) is rows
    text = schema.describe()
    assert all(f"`{name}`" in text for fields in schema.ROWS.values() for name in fields)


BROKEN = {
    r"probes\[3\]\.metric: one of depth_r2": lambda rows: rows["probes"][3].update(metric="depth"),
    r"probes\[2\]\.value: a finite number expected, found nan": lambda rows: rows["probes"][2].update(value=float("nan")),
    r"tasks\[0\]\.n is missing": lambda rows: rows["tasks"][0].pop("n"),
    r"tasks\[1\]\.seed: no such field": lambda rows: rows["tasks"][1].update(seed=3),
    r"tasks\[4\]\.n: a whole number": lambda rows: rows["tasks"][4].update(n=True),
    r"paired\[0\]: either metric or all of task": lambda rows: rows["paired"][0].update(task="scanqa"),
    r"paired\[1\]: low 0.9 is above high": lambda rows: rows["paired"][1].update(low=0.9),
    r"latency\[1\]: p50_ms <= p90_ms": lambda rows: rows["latency"][1].update(p50_ms=50.0),
    r"latency\[0\]\.size: \[height, width\]": lambda rows: rows["latency"][0].update(size=128),
    r"probes\[32\]: repeats row 0": lambda rows: rows["probes"].append(dict(rows["probes"][0])),
    r"parity\[0\]\.verdict: one of pass": lambda rows: rows["parity"][0].update(verdict="ok"),
    r"stages\.export is missing": lambda rows: rows["stages"].pop("export"),
    r"stages\.run: 8-64 hex digits": lambda rows: rows["stages"].update(run="latest"),
    r"schema: 1 expected, found 2": lambda rows: rows.update(schema=2),
    r"probes: a list of rows": lambda rows: rows.update(probes={}),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_first_wrong_row_is_named(sentence: str) -> None:
    rows = made_up_rows()
    BROKEN[sentence](rows)
    with pytest.raises(UserError, match=sentence):
        schema.validate(rows, "here.json")


def test_missing_report_and_command_line_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert "report.json: no such file" in capsys.readouterr().err
    (tmp_path / "report.json").write_text("{}")
    assert schema.main([str(tmp_path / "report.json")]) == 2
    assert "schema is missing" in capsys.readouterr().err


def test_pictures_survive_the_disk(tmp_path: Path) -> None:
    before = made_up_pictures()
    before.save(tmp_path)
    after = ReportPictures.load(tmp_path)
    assert after is not None and after.matches is not None and before.matches is not None
    np.testing.assert_array_equal(after.frames, before.frames)
    np.testing.assert_allclose(after.features["teacher"], before.features["teacher"], rtol=1e-6)
    np.testing.assert_array_equal(after.matches.hits["teacher"], before.matches.hits["teacher"])
    assert after.captions == before.captions and after.curves == before.curves
    assert ReportPictures.load(tmp_path / "nowhere") is None


def test_wrong_pictures_and_notes_are_refused_in_words(tmp_path: Path) -> None:
    frames, depth = made_up_views(2)
    with pytest.raises(UserError, match=r"depth: \(2, 128, 128\) expected"):
        ReportPictures(frames, depth=depth[:1])
    with pytest.raises(UserError, match="raw_patches"):
        ReportPictures(frames, features={"teacher": np.zeros((2, 4, 8, 8)), "raw_patches": np.zeros((2, 4, 8, 8))})
    with pytest.raises(UserError, match="NaN"):
        ReportPictures(frames, features={"teacher": np.full((2, 4, 8, 8), np.nan)})
    with pytest.raises(UserError, match="views below 2"):
        ReportPictures(frames, matches=Matches(0, 5, np.zeros((1, 2)), {}, {}))
    (tmp_path / "pictures.safetensors").write_bytes(b"truncated")
    with pytest.raises(UserError, match="not the pictures of a report"):
        ReportPictures.load(tmp_path)
    (tmp_path / "notes.json").write_text('{"teacher": "tiny", "colour": "red"}')
    with pytest.raises(UserError, match=r"notes\.json"):
        ReportNotes.load(tmp_path)
    with pytest.raises(UserError, match="generative"):
        ReportNotes("tiny", "generativ")


def test_words_follow_the_intervals() -> None:
    rows = made_up_rows()
    assert findings.kept_share(rows) == pytest.approx(0.19 / 0.21)
    assert "keeps 90 %" in findings.sentence(rows) and "not settled on vsibench" in findings.sentence(rows)
    assert [claim.held for claim in findings.claims(rows)][:4] == [True, True, True, True]
    for row in rows["paired"]:
        if row["b"] == "student_undistilled":
            row.update(low=-0.2, high=-0.1, difference=-0.15)
    assert "made it worse" in findings.sentence(rows)
    assert [claim.held for claim in findings.claims(rows)][:3] == [True, False, True]
    few = {"metric": None, "task": "t", "low": 1.0, "high": 2.0, "n": 29}
    assert findings.direction(few) == "open" and findings.direction({**few, "n": 100}) == "better"
    tie = {"metric": None, "task": "ladder", "type": "overall", "a": "teacher", "b": "semantic"}
    others = [row for row in rows["paired"] if (row["a"], row["b"], row["task"]) != ("teacher", "semantic", "ladder")]
    told = {**rows, "paired": [*others, tie | {"low": -0.9, "high": 0.8, "difference": -0.1, "n": 2636}]}
    assert findings.sentence(told).endswith("Semantic tokens alone answer as well.")
    told["paired"] = [*others, tie | {"low": 0.1, "high": 0.8, "difference": 0.4, "n": 2636}]
    assert findings.sentence(told).endswith("On the ladder fused tokens beat semantic ones.")
    metric = {"metric": "correspondence_recall_centred", "b": "raw_patches", "task": None, "n": 40, "difference": 0.0}
    kept = [row for row in rows["paired"] if (row["metric"], row["b"]) != (metric["metric"], metric["b"])]
    less = metric | {"a": "student_exported", "low": -0.1, "high": -0.05}
    more = metric | {"a": "student_exported_fused", "low": 0.05, "high": 0.1}
    assert "Its generative stream finds places again in another view less often" in findings.sentence(
        {**rows, "paired": [*kept, less]}
    )
    assert "do; its fused tokens more often." in findings.sentence({**rows, "paired": [*kept, less, more]})
    bare = {**rows, "probes": [], "paired": [], "parity": [], "latency": []}
    assert findings.sentence(bare) == "Depth was not probed; downstream parity was not tested."
    assert findings.key_numbers(bare) == [] and all(claim.held is None for claim in findings.claims(bare))
