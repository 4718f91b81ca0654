"""A teacher that runs in place of a cache: what it leaves, resumes, and which options do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import live
from bench.live import Live, chosen
from teacher.streams import load_pipeline
from tests.bench.students import student_of
from vega_artifact import UserError
from vega_edge import main

SCENES = "procedural:test?count=2&frames=1&size=64&seed=5"
NOW = ("--backbone", "tiny", "--scenes", SCENES)


def test_the_embedded_teacher_runs_and_is_reused(tmp_path: Path) -> None:
    student = student_of(tmp_path, load_pipeline("tiny").fingerprint)
    watched = Live("tiny", SCENES, tmp_path / "out" / "teacher")
    cache = watched.cache(student)
    assert len(cache) == 2 and {"rgb", "fused", "semantic"} <= set(cache.manifest["streams"])
    assert cache.manifest["config"]["asked_for"] == "tiny", "so that its noise floor can be extracted by the same name"
    shard = next(cache.path.glob("*.safetensors"))
    before = shard.stat().st_mtime_ns
    assert watched.cache(student).fingerprint == cache.fingerprint and shard.stat().st_mtime_ns == before


def test_a_foreign_student_is_refused_before_anything_is_extracted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "extract", lambda *given, **options: pytest.fail("extracted"))
    with pytest.raises(UserError, match=r"a student of teacher t0 .*, but --backbone tiny is of teacher"):
        Live("tiny", SCENES, tmp_path / "out").cache(student_of(tmp_path, "t0"))


def test_options_that_go_together(tmp_path: Path) -> None:
    assert chosen("live", "tiny", SCENES, tmp_path) == Live("tiny", SCENES, tmp_path)
    assert chosen("runs/cache", None, None, tmp_path) == Path("runs/cache")
    assert chosen("./live", None, None, tmp_path) == Path("live"), "a folder of that name, when it is told as a path"
    with pytest.raises(UserError, match="lacks --backbone and --scenes; give"):
        chosen("live", None, None, tmp_path)
    with pytest.raises(UserError, match="lacks --scenes; give"):
        chosen("live", "tiny", None, tmp_path)
    with pytest.raises(UserError, match="belong to --teacher live, but --teacher is runs/cache"):
        chosen("runs/cache", None, SCENES, tmp_path)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--backbone", "tinny"], "--teacher live runs a teacher now and lacks --scenes"),
        (["--backbone", "tinny", "--scenes", SCENES], "unknown teacher (or folder of weights) 'tinny'. Did you mean 'tiny'?"),
        ([*NOW, "--task", "sqa3d"], "sqa3d: readers are asked ladder, scanqa, vsibench here"),
        ([*NOW, "--reader", "none"], "none: no such reader; give 'embedded' alone"),
        ([*NOW, "--reader", "teacher"], "missing, so teacher is no finished fit"),
        ([*NOW, "--protocol", "strict"], "unknown ladder protocol 'strict'"),
        ([*NOW, "--margin", "0"], "the margin of a parity claim must be above 0"),
        ([*NOW, "--questions", "none.json"], "none.json: no such file"),
    ],
)
def test_the_command_refuses_at_once(
    options: Sequence[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # where `teacher` is a folder, but no fit
    task = [] if "--task" in options else ["--task", "ladder"]
    fixed = ["--teacher", "live", "--student", str(student_of(tmp_path, "t0")), "--out", str(tmp_path / "out")]
    assert main(["bench", "parity", *task, *fixed, *options]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
