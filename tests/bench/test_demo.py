"""The whole chain at its smallest: one run end to end, the report it leaves, and a second run that finds everything done."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import demo, downstream, schema
from bench.demo import DemoConfig
from teacher.cache import FeatureCache
from vega_artifact import UserError, read_json, read_manifest, verify_files

CONFIG = DemoConfig(train=6, val=3, test=4, probe=4, random_seeds=(0, 1))
SEEDS = (0,)
FUSED = {"teacher_fused", "student_exported_fused", "student_undistilled_fused"}
MODELS = {"teacher", "teacher_reseeded", "teacher_random", "student_exported", "student_undistilled", "semantic", "raw_patches"}


@dataclass(frozen=True)
class Twice:
    """A finished demo, and one answer file lost before it was run again.

    Attributes:
        first, second: file -> when it was last written, after either run. lost: the file and its content.
    """

    out: Path
    html: Path
    first: dict[str, int]
    second: dict[str, int]
    lost: tuple[str, str]
    printed: str


def stamps(out: Path) -> dict[str, int]:
    """File below the artifacts -> modification time in ns."""
    kept = ("cache-train", "cache-val", "cache-test", "controls", "run", "export", "probes.json", "latency.json")
    files = [path for path in out.rglob("*") if path.is_file()]
    below = [path for path in files if path.relative_to(out).parts[0].startswith((*kept, "answers-"))]
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in below}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Twice:
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downstream, "QUESTIONS", 12)  # the chain is what is tested, not the answers of the readers
        patch.setattr(demo, "READER_SEEDS", SEEDS)
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        html = demo.run(out, "smoke", CONFIG)
        first = stamps(out)
        (answers,) = out.glob("answers-*/blind-0.json")
        lost = str(answers.relative_to(out)), answers.read_text()
        answers.unlink()
        assert demo.run(out, "smoke", CONFIG) == html
    return Twice(out, html, first, stamps(out), lost, "\n".join(said))


def found(done: Twice) -> dict:
    return read_json(done.out / "report" / "report.json")


@pytest.mark.slow
def test_report_is_valid_and_complete(done: Twice) -> None:
    report = schema.load(done.out / "report" / "report.json")
    assert {row["model"] for row in report["probes"]} == MODELS | FUSED | {"student"}
    assert {row["metric"] for row in report["probes"]} == set(schema.METRICS)
    assert all(row["scenes"] == CONFIG.test for row in report["probes"])
    assert {row["model"] for row in report["tasks"]} == set(demo.CONDITIONS)
    assert {row["task"] for row in report["tasks"]} == {row["task"] for row in report["parity"]} == set(downstream.PROTOCOLS)
    assert {(row["model"], row["backend"]) for row in report["latency"]} >= {
        ("student", "torch"),
        ("student_exported", "onnxruntime"),
    }
    pairs = {(row["a"], row["b"]) for row in report["paired"] if row["metric"] == "depth_r2"}
    assert {("teacher", "teacher_random"), ("student_exported", "student_undistilled")} <= pairs


@pytest.mark.slow
def test_html_and_printed_summary(done: Twice) -> None:
    assert done.html == done.out / "report" / "report.html" and "<html" in done.html.read_text(encoding="utf-8")
    assert f"report: {done.html}" in done.printed
    assert all(any(line.startswith(model) for line in done.printed.splitlines()) for model in (*MODELS, "blind"))


@pytest.mark.slow
def test_stages_are_those_of_the_manifests(done: Twice) -> None:
    manifests = {
        "cache": read_manifest(done.out / "cache-train", "cache"),
        "cache_test": read_manifest(done.out / "cache-test", "cache"),
        "run": read_manifest(done.out / "run", "run"),
        "export": read_manifest(done.out / "export", "export"),
    }
    stages = found(done)["stages"]
    assert stages == {name: manifest["fingerprint"] for name, manifest in manifests.items()} | {
        "teacher": manifests["cache"]["parents"]["teacher"]
    }
    assert manifests["run"]["parents"]["cache"] == stages["cache"]
    assert manifests["export"]["parents"]["run"] == stages["run"]
    report = read_manifest(done.out / "report", "report")
    verify_files(done.out / "report", report)
    assert report["parents"] == stages


@pytest.mark.slow
def test_splits_share_no_room_and_controls_differ_from_the_teacher(done: Twice) -> None:
    caches = {split: FeatureCache(done.out / f"cache-{split}") for split in demo.SPLITS}
    rooms = [scene for cache in caches.values() for scene in cache.scene_ids]
    assert len(rooms) == len(set(rooms)) == CONFIG.train + CONFIG.val + CONFIG.test
    teacher = caches["test"]
    scene = teacher.scene_ids[0]
    for name, same in (("reseeded", True), ("random0", False), ("random1", False)):
        control = FeatureCache(done.out / "controls" / f"{name}-test")
        assert control.scene_ids == teacher.scene_ids
        assert (control.manifest["parents"]["teacher"] == teacher.manifest["parents"]["teacher"]) is same
        assert (control.read(scene, "generative") != teacher.read(scene, "generative")).any()
        assert (control.read(scene, "semantic") == teacher.read(scene, "semantic")).all()


@pytest.mark.slow
def test_second_run_makes_what_is_missing_and_nothing_else(done: Twice) -> None:
    kinds = {Path(name).parts[0].split("-")[0] for name in done.first}
    assert kinds == {"cache", "controls", "run", "export", "probes.json", "latency.json", "answers"}
    changed = {name for name in {*done.first, *done.second} if done.first.get(name) != done.second.get(name)}
    assert changed == {done.lost[0]}
    assert (done.out / done.lost[0]).read_text() == done.lost[1], "the same reader gives the same answers"


@pytest.mark.slow
def test_another_plan_in_the_same_folder_is_refused(done: Twice) -> None:
    before = stamps(done.out)
    with pytest.raises(UserError, match=r"cache-train: holds a cache of another plan \(config\.scenes.*count=6.*count=7"):
        demo.run(done.out, "smoke", DemoConfig(train=7, val=3, test=4, probe=4, random_seeds=(0, 1)))
    assert stamps(done.out) == before


def test_unknown_recipe_fails_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'smoek'. Did you mean 'smoke'\? Known: .*demo"):
        demo.run(tmp_path / "out", "smoek", CONFIG)
    assert os.listdir(tmp_path) == []


def row(model: str, metric: str, value: float) -> dict:
    return {"model": model, "metric": metric, "value": value}


RANDOM = {
    "probes": [
        row("teacher", "depth_r2", 0.9),
        row("random0", "depth_r2", 0.5),
        row("random1", "depth_r2", 0.6),
        row("teacher", "voxel_consistency", 0.4),
        row("random0", "voxel_consistency", 0.3),
        row("random1", "voxel_consistency", -0.2),
    ],
    "paired": [
        {"metric": metric, "a": a, "b": b, "difference": difference}
        for metric, a, b, difference in (
            ("depth_r2", "teacher", "raw_patches", 0.2),
            ("depth_r2", "teacher", "random0", 0.4),
            ("depth_r2", "teacher", "random1", 0.3),
            ("voxel_consistency", "teacher", "random0", 0.1),
            ("voxel_consistency", "teacher", "random1", 0.6),
        )
    ],
}


def test_best_random_keeps_the_best_of_each_metric() -> None:
    kept = demo.best_random(copy.deepcopy(RANDOM), ["random0", "random1"])
    assert [(r["model"], r["metric"], r["value"]) for r in kept["probes"]] == [
        ("teacher", "depth_r2", 0.9),
        ("teacher_random", "depth_r2", 0.6),
        ("teacher", "voxel_consistency", 0.4),
        ("teacher_random", "voxel_consistency", 0.3),
    ]
    assert [(r["metric"], r["a"], r["b"], r["difference"]) for r in kept["paired"]] == [
        ("depth_r2", "teacher", "raw_patches", 0.2),
        ("depth_r2", "teacher", "teacher_random", 0.3),
        ("voxel_consistency", "teacher", "teacher_random", 0.1),
    ]


@pytest.mark.slow
def test_reader_answers_follow_the_readers(monkeypatch: pytest.MonkeyPatch, done: Twice) -> None:
    """Answers of an older bundle must not be taken for those of a newer one, whose readers may be others."""
    caches = {"test": FeatureCache(done.out / "cache-test")}
    run, export = done.out / "run", done.out / "export"
    before = demo.answers_key(caches, run, export)
    assert demo.answers_key(caches, run, export) == before
    real = demo.read_manifest
    monkeypatch.setattr(
        demo,
        "read_manifest",
        lambda folder, kind: real(folder, kind) | ({"fingerprint": "0" * 16} if kind == "teacher" else {}),
    )
    assert demo.answers_key(caches, run, export) != before
