"""The bundle: complete, the same bytes again, and it runs where nothing of ours is installed.

python -m pytest tests/export/test_bundle.py
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from export import write_bundle
from vega_artifact import UserError


@pytest.fixture(scope="module")
def bundle(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(exported, tmp_path_factory.mktemp("bundle") / "student.tar.gz")


@pytest.fixture(scope="module")
def unpacked(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    with tarfile.open(bundle) as tar:
        tar.extractall(folder, filter="data")
    return folder / "vega-edge"


def test_same_export_gives_the_same_bytes(exported: Path, bundle: Path, tmp_path: Path) -> None:
    again = write_bundle(shutil.copytree(exported, tmp_path / "moved"), tmp_path / "other-name.tar.gz")
    assert again.read_bytes() == bundle.read_bytes()


def test_names_are_safe_and_nothing_tells_when_or_by_whom(bundle: Path) -> None:
    with tarfile.open(bundle) as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names == sorted(names) and all(name.startswith("vega-edge/") and ".." not in name for name in names)
    assert all(member.isreg() and (member.mtime, member.uid, member.uname) == (0, 0, "") for member in members)


def test_checksums_cover_every_file(unpacked: Path) -> None:
    lines = (unpacked / "SHA256SUMS").read_text().splitlines()
    sums = dict(reversed(line.split("  ")) for line in lines)
    files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert files - {"SHA256SUMS"} == set(sums)
    assert all(hashlib.sha256((unpacked / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["export.runtime", "model", "--check"], "fused: relative difference"),
        (["bench.latency", "model", "--repeats", "2", "--batches", "1"], "student_exported/onnxruntime/fp32/b1"),
    ],
)
def test_runs_from_its_own_folder(
    unpacked: Path, isolated: Callable[..., subprocess.CompletedProcess[str]], arguments: list[str], expected: str
) -> None:
    module, *rest = arguments
    blocked = ("torch", "timm", "onnx", "teacher", "student", "distill", "safetensors", "tyro")
    start = f"import runpy, export\nprint(export.__file__)\nsys.argv[1:] = {rest}\n"
    code = f"{start}runpy.run_module({module!r}, run_name='__main__')"
    done = isolated(code, blocked=blocked, folder=unpacked)
    assert done.returncode == 0, done.stderr
    assert str(unpacked / "export") in done.stdout and expected in done.stdout


def test_engine_builder_is_carried_and_says_what_is_missing(
    unpacked: Path, isolated: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    code = "from export import build_engine; build_engine('model', 'engine')"
    done = isolated(code, blocked=("torch", "timm", "onnx", "student", "tensorrt", "tensorrt_rtx"), folder=unpacked)
    assert "UserError: no TensorRT found" in done.stderr


def test_readme_describes_this_export(exported: Path, unpacked: Path) -> None:
    text = (unpacked / "README.md").read_text()
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["fingerprint"] in text and "input 64x64 RGB" in text and "fused (16 tokens x 24)" in text


def test_bad_input(exported: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.tar\.gz expected"):
        write_bundle(exported, tmp_path / "student.zip")
    with pytest.raises(UserError, match="a export expected, this is a run"):
        write_bundle(run, tmp_path / "student.tar.gz")
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "student.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="content differs"):
        write_bundle(copy, tmp_path / "student.tar.gz")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../outside"] = {"sha256": "", "bytes": 0}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not a plain name"):
        write_bundle(copy, tmp_path / "student.tar.gz")
    assert not (tmp_path / "student.tar.gz").exists()
