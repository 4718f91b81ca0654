"""The bundle: complete, the same bytes again, safe to unpack, any flipped byte named, and it runs where nothing of ours is.

python -m pytest tests/export/test_bundle.py
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import vega_edge
from export import write_bundle
from export.bundle import carried_code, check_bundle, unpack_bundle
from export.device.__main__ import main as device_main
from export.device.archive import main as unpack_main
from export.device.archive import safe_name
from export.runtime.__main__ import main as runtime_main
from vega_artifact import UserError

ROOT = Path(__file__).resolve().parents[2]

LIBRARIES = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
BLOCKED = ("torch", "timm", "onnx", "onnxscript", "teacher", "student", "distill", "safetensors", "tyro", "accelerate")


@pytest.fixture(scope="module")
def bundle(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(exported, tmp_path_factory.mktemp("bundle") / "student.tar.gz")


@pytest.fixture(scope="module")
def unpacked(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_bundle(bundle, tmp_path_factory.mktemp("device"))


@pytest.fixture
def copy(unpacked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(unpacked, tmp_path / "vega-edge"))


def archive_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """A tar.gz with the bundle's own gzip header and any members whatever."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path.write_bytes(packed(raw.getvalue()))
    return path


def packed(tar: bytes) -> bytes:
    """Gzipped under the bundle's own header."""
    raw = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, raw, mtime=0) as stream:
        stream.write(tar)
    return raw.getvalue()


def header_with(places: dict[int, bytes]) -> bytes:
    """The tar header of an empty file with these bytes at these offsets, under a sum that fits."""
    header = bytearray(tarfile.TarInfo("vega-edge/x").tobuf(tarfile.GNU_FORMAT))
    for start, data in {**places, 148: b" " * 8}.items():
        header[start : start + len(data)] = data
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


class TestContents:
    def test_same_export_gives_the_same_bytes(self, exported: Path, bundle: Path, tmp_path: Path) -> None:
        again = write_bundle(shutil.copytree(exported, tmp_path / "moved"), tmp_path / "other-name.tar.gz")
        assert again.read_bytes() == bundle.read_bytes()

    def test_names_are_safe_and_nothing_tells_when_or_by_whom(self, bundle: Path) -> None:
        with tarfile.open(bundle) as tar:
            members = tar.getmembers()
        names = [member.name for member in members]
        assert names == sorted(names) and all(name.startswith("vega-edge/") and ".." not in name for name in names)
        assert all(member.isreg() and (member.mtime, member.uid, member.uname) == (0, 0, "") for member in members)

    def test_checksums_cover_every_file(self, unpacked: Path) -> None:
        sums = dict(reversed(line.split("  ")) for line in (unpacked / "SHA256SUMS").read_text().splitlines())
        files = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
        assert files - {"SHA256SUMS"} == set(sums)
        assert all(hashlib.sha256((unpacked / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
        assert set(check_bundle(unpacked)["files"]) == set(sums) - {"manifest.json"}

    def test_readme_describes_this_export(self, exported: Path, unpacked: Path) -> None:
        text = (unpacked / "README.md").read_text()
        manifest = json.loads((exported / "manifest.json").read_text())
        assert manifest["fingerprint"] in text and "input 64x64 RGB" in text and "fused (16 tokens x 24)" in text
        assert "JetPack 6" in text and "JetPack 7" in text and "@" not in text.replace("maintainer@", "")

    def test_samples_are_laid_out_as_their_tools_expect(self, unpacked: Path) -> None:
        package = unpacked / "ros2" / "vega_edge_ros"
        for name in ("package.xml", "setup.py", "setup.cfg", "resource/vega_edge_ros", "vega_edge_ros/node.py"):
            assert (package / name).is_file()
        assert (package / "vega_edge_ros" / "__init__.py").is_file() and (unpacked / "cpp" / "CMakeLists.txt").is_file()
        assert "height = 64, width = 64" in (unpacked / "cpp" / "student.hpp").read_text()

    def test_code_that_travels_is_python_3_10(self) -> None:
        names = carried_code()
        assert {"export/runtime/engine.py", "export/device/run.py", "export/staging.py", "vega_artifact.py"} <= set(names)
        assert not [name for name in names if name.startswith(("teacher/", "student/", "distill/"))]
        for name in names:
            ast.parse((ROOT / name).read_text(), feature_version=(3, 10))


class TestRuns:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["install_check"], "fused: relative difference"),
            (["bench", "model", "--repeats", "2", "--batches", "1"], "student_exported/onnxruntime/fp32/b1"),
        ],
    )
    def test_from_its_own_folder(
        self,
        unpacked: Path,
        isolated: Callable[..., subprocess.CompletedProcess[str]],
        arguments: list[str],
        expected: str,
    ) -> None:
        start = f"import runpy, export\nprint(export.__file__)\nsys.argv[1:] = {arguments}\n"
        code = f"{start}runpy.run_module('export.device', run_name='__main__')"
        done = isolated(code, blocked=BLOCKED, folder=unpacked)
        assert done.returncode == 0, done.stderr
        assert str(unpacked / "export") in done.stdout and expected in done.stdout

    def test_build_says_what_is_missing(
        self, unpacked: Path, isolated: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        code = "from export.device.__main__ import main; sys.exit(main(['build']))"
        done = isolated(code, blocked=(*BLOCKED, *LIBRARIES), folder=unpacked)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith("error: no TensorRT found")


class TestFlippedByte:
    def test_in_any_file_is_refused_by_its_name(self, copy: Path) -> None:
        check_bundle(copy)
        for path in sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size):
            data = path.read_bytes()
            for place in {0, len(data) // 2, len(data) - 1}:
                flipped = bytearray(data)
                flipped[place] ^= 0xFF
                path.write_bytes(flipped)
                with pytest.raises(UserError) as refusal:
                    check_bundle(copy)
                assert str(path) in str(refusal.value)
            path.write_bytes(data)
        check_bundle(copy)

    def test_not_even_a_blank_of_the_manifest_may_change(self, copy: Path) -> None:
        path = copy / "manifest.json"
        path.write_text(path.read_text().replace("{\n", "{ \n", 1))
        with pytest.raises(UserError, match=r"manifest\.json: altered since the bundle was made"):
            check_bundle(copy)

    def test_missing_file(self, copy: Path) -> None:
        (copy / "cpp" / "encode.cpp").unlink()
        with pytest.raises(UserError, match=r"encode\.cpp: named in the manifest but missing"):
            check_bundle(copy)

    def test_in_the_archive(self, bundle: Path, tmp_path: Path) -> None:
        data = bundle.read_bytes()
        path = tmp_path / "flipped.tar.gz"
        for place in [*range(12), len(data) // 2, *range(len(data) - 9, len(data))]:
            flipped = bytearray(data)
            flipped[place] ^= 0xFF
            path.write_bytes(flipped)
            with pytest.raises(UserError, match=r"flipped\.tar\.gz: (cut or altered|not a bundle, or altered)"):
                unpack_bundle(path, tmp_path / "out")
        path.write_bytes(data[:-20])
        with pytest.raises(UserError, match="cut or altered"):
            unpack_bundle(path, tmp_path / "out")
        assert not (tmp_path / "out" / "vega-edge").exists()


class TestUnpack:
    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "vega-edge/../../x", "other/x", "vega-edge//x", "vega-edge/.hidden", "vega-edge"]
    )
    def test_names_that_leave_the_folder(self, tmp_path: Path, name: str) -> None:
        path = archive_of(tmp_path / "bad.tar.gz", (tarfile.TarInfo(name), b"x"))
        with pytest.raises(UserError, match="is no name inside vega-edge/"):
            unpack_bundle(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
    def test_links_devices_and_folders(self, tmp_path: Path, kind: bytes) -> None:
        member = tarfile.TarInfo("vega-edge/model/student.onnx")
        member.type, member.linkname = kind, "/etc/passwd"
        path = archive_of(tmp_path / "bad.tar.gz", (member, b""))
        with pytest.raises(UserError, match="is no plain file"):
            unpack_bundle(path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_the_same_name_twice(self, tmp_path: Path) -> None:
        twice = [(tarfile.TarInfo("vega-edge/x"), b"1"), (tarfile.TarInfo("vega-edge/x"), b"2")]
        with pytest.raises(UserError, match="is no name inside"):
            unpack_bundle(archive_of(tmp_path / "bad.tar.gz", *twice), tmp_path)

    @pytest.mark.parametrize("names", [("a", "a/b"), ("a/b/c", "a"), ("a/b", "a/b/c/d")])
    def test_a_file_where_another_needs_a_folder(self, tmp_path: Path, names: tuple[str, str]) -> None:
        members = [(tarfile.TarInfo(f"vega-edge/{name}"), b"x") for name in names]
        with pytest.raises(UserError, match=r"'a(/b)?' is a file and a folder in one"):
            unpack_bundle(archive_of(tmp_path / "bad.tar.gz", *members), tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_sparse_file_is_refused_before_it_is_a_gigabyte(self, tmp_path: Path) -> None:
        path = tmp_path / "bad.tar.gz"
        one_gigabyte = {156: tarfile.GNUTYPE_SPARSE, 483: b"10000000000\0"}  # real size in octal, of which nothing is stored
        path.write_bytes(packed(header_with(one_gigabyte) + bytes(1024)))
        with tarfile.open(path) as tar:
            assert tar.getmembers()[0].isreg() and tar.getmembers()[0].size == 1 << 30, "what isreg() lets pass"
        with pytest.raises(UserError, match="is no plain file"):
            unpack_bundle(path, tmp_path / "out")

    @pytest.mark.parametrize("size", [-1024, 1 << 40])
    def test_sizes_that_cannot_be(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "bad.tar.gz"
        path.write_bytes(packed(header_with({124: (1 << 95 | size % (1 << 95)).to_bytes(12, "big")}) + bytes(1024)))
        with pytest.raises(UserError, match=r"bad\.tar\.gz: cut or altered \('vega-edge/x' cannot have"):
            unpack_bundle(path, tmp_path / "out")

    @pytest.mark.parametrize(
        "headers",
        [
            {"GNU.sparse.realsize": str(1 << 30), "GNU.sparse.major": "0", "GNU.sparse.map": "0,0"},
            {"size": str(1 << 40)},
        ],
    )
    def test_extended_headers(self, tmp_path: Path, headers: dict[str, str]) -> None:
        member = tarfile.TarInfo("vega-edge/x")
        member.pax_headers = headers
        path = tmp_path / "bad.tar.gz"
        path.write_bytes(packed(member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)))
        with pytest.raises(UserError, match="is no plain file"):
            unpack_bundle(path, tmp_path / "out")

    def test_a_tar_that_was_packed_twice(self, bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "twice.tar.gz"
        path.write_bytes(packed(bundle.read_bytes()))
        with pytest.raises(UserError, match="cut or altered"):
            unpack_bundle(path, tmp_path / "out")

    @pytest.mark.parametrize("kept", [0, 100, 512, 700, 1536])
    def test_a_tar_that_was_cut_before_it_was_packed(self, tmp_path: Path, kept: int) -> None:
        whole = archive_of(tmp_path / "whole.tar.gz", *[(tarfile.TarInfo(f"vega-edge/{name}"), b"x" * 512) for name in "ab"])
        path = tmp_path / "cut.tar.gz"
        path.write_bytes(packed(gzip.decompress(whole.read_bytes())[:kept]))
        with pytest.raises(UserError, match=r"cut\.tar\.gz: .+; (copy|make|run) [^\n]+$"):
            unpack_bundle(path, tmp_path / "out")

    def test_an_archive_that_is_no_bundle(self, tmp_path: Path) -> None:
        path = archive_of(tmp_path / "other.tar.gz", (tarfile.TarInfo("vega-edge/x"), b"1"))
        with pytest.raises(UserError, match=r"other\.tar\.gz: vega-edge/manifest\.json: missing"):
            unpack_bundle(path, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []

    @pytest.mark.parametrize("name", ["student.onnx", "engine.plan"])
    def test_a_model_in_place_of_its_folder(
        self, exported: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = Path(shutil.copy(exported / "student.onnx", tmp_path / name))
        out = str(tmp_path / "out")
        commands = [
            (vega_edge.main, ["bench", "latency", str(path)]),
            (vega_edge.main, ["build", str(path), "--out", out]),
            (vega_edge.main, ["bundle", str(path), "--out", f"{out}.tar.gz"]),
            (vega_edge.main, ["verify", str(path)]),
            (runtime_main, [str(path), "--check"]),
            (device_main, ["triton", str(path), "--out", out]),
        ]
        for main, arguments in commands:
            assert main(arguments) == 2
            assert re.search(rf"{name}: is a .*; give the folder that holds it\n$", capsys.readouterr().err)

    def test_an_existing_folder_stays(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "vega-edge").mkdir()
        with pytest.raises(UserError, match="vega-edge: exists already"):
            unpack_bundle(bundle, tmp_path)

    def test_from_the_command_line(self, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert unpack_main([str(bundle), "--into", str(tmp_path)]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / "vega-edge")
        assert unpack_main([str(tmp_path / "none.tar.gz")]) == 2
        assert "cut or altered" in capsys.readouterr().err

    @pytest.mark.parametrize("name", ["a/b.py", "ros2/x/__init__.py", "model/golden_a.npy"])
    def test_safe_names(self, name: str) -> None:
        assert safe_name(name)
        assert not safe_name(f"../{name}") and not safe_name(f"/{name}") and not safe_name(f"{name}\n")


def test_bad_input(exported: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.tar\.gz expected"):
        write_bundle(exported, tmp_path / "student.zip")
    with pytest.raises(UserError, match="a export expected, this is a run"):
        write_bundle(run, tmp_path / "student.tar.gz")
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    (copy / "student.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match="content differs"):
        write_bundle(copy, tmp_path / "student.tar.gz")
    edited = Path(shutil.copytree(exported, tmp_path / "edited"))
    text = (edited / "manifest.json").read_text()
    (edited / "manifest.json").write_text(text.replace('"peak": 0.0001', '"peak": 1000.0'))
    with pytest.raises(UserError, match=r"edited/manifest.json: .* so it was edited; make the export again"):
        write_bundle(edited, tmp_path / "student.tar.gz")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["../outside"] = {"sha256": "", "bytes": 0}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="not a plain name"):
        write_bundle(copy, tmp_path / "student.tar.gz")
    assert not (tmp_path / "student.tar.gz").exists()
