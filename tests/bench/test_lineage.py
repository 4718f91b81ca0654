"""Whose student an export is: the chain of manifests, and what breaks it."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest

from bench.lineage import check_student, run_of
from tests.bench.students import student_of
from vega_artifact import UserError, read_manifest, write_manifest


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A run of teacher t0, its export and an engine of that, beside each other and beside what is none of ours."""
    home = tmp_path / "home"
    export = read_manifest(student_of(home, "t0"), "export")
    write_manifest(home / "another", "run", {"seed": 1}, {"cache": "c0"}, teacher="t1")
    (home / "engine").mkdir()
    (home / "engine" / "engine.plan").write_bytes(b"")
    write_manifest(home / "engine", "engine", {}, {"export": export["fingerprint"]}, ["engine.plan"])
    for name, text in (("broken", "{"), ("list", "[]")):
        (home / name).mkdir()
        (home / name / "manifest.json").write_text(text)
    return home


@pytest.mark.parametrize("kind", ["export", "engine"])
def test_a_student_leads_to_its_teacher(kind: str, chain: Path) -> None:
    assert run_of(chain / kind)[1].name == "run"
    check_student(chain / kind, "t0", "a cache")
    with pytest.raises(UserError, match=rf"{kind}: a student of teacher t0 \(run .*run\), but a cache is of teacher t1"):
        check_student(chain / kind, "t1", "a cache")


def test_a_run_elsewhere_has_to_be_named(chain: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone" / "export"
    copytree(chain / "export", lone)
    with pytest.raises(UserError, match=r"its run \w+ is not beside it, .*; give that folder by --run"):
        check_student(lone, "t0", "a cache")
    check_student(lone, "t0", "a cache", chain / "run")
    with pytest.raises(UserError, match=r"its parents.run is \w+, but the run given is \w+; give the matching one"):
        check_student(lone, "t1", "a cache", chain / "another")
    copytree(chain / "engine", tmp_path / "lone" / "engine")
    (lone / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"its export \w+ is not beside it, .*; give the export itself"):
        check_student(tmp_path / "lone" / "engine", "t0", "a cache")


def test_what_is_no_export(chain: Path) -> None:
    with pytest.raises(UserError, match="a export expected, this is a run"):
        check_student(chain / "run", "t0", "a cache")
    with pytest.raises(UserError, match="is no finished export"):
        check_student(chain / "nothing", "t0", "a cache")
