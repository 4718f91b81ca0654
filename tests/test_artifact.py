"""Artifacts: nothing half-written, nothing foreign accepted, and one sentence for everything that is wrong.

python -m pytest tests/test_artifact.py
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import vega_artifact
from vega_artifact import UserError, atomic_write, read_manifest, verify_files, write_manifest, write_text


@dataclass(frozen=True)
class Config:
    blocks: tuple[int, ...] = (2, 3)
    sigma: float = 0.3
    path: Path = Path("a/b")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "weights.bin").write_bytes(b"0123456789")
    write_manifest(tmp_path, "run", Config(), parents={"cache": "c0ffee"}, files=["weights.bin"], losses=[1.0, 0.5])
    return tmp_path


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestAtomicWrite:
    def test_replaces_the_old_bytes(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "file.txt"
        write_text(target, "old")
        write_text(target, "new")
        assert target.read_text() == "new"
        assert leftovers(target.parent) == ["file.txt"]
        assert target.stat().st_mode & 0o777 == 0o644

    def test_failure_keeps_the_old_bytes(self, tmp_path: Path) -> None:
        target = tmp_path / "file.bin"
        target.write_bytes(b"old")

        def half(temporary: Path) -> None:
            temporary.write_bytes(b"ne")
            raise RuntimeError("killed half-way")

        with pytest.raises(RuntimeError, match="half-way"):
            atomic_write(target, half)
        assert target.read_bytes() == b"old"
        assert leftovers(tmp_path) == ["file.bin"]

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
    def test_full_disk_while_writing(self, tmp_path: Path, number: int) -> None:
        target = tmp_path / "file.bin"
        target.write_bytes(b"old")

        def full(temporary: Path) -> None:
            temporary.write_bytes(b"n")
            raise OSError(number, os.strerror(number))

        with pytest.raises(UserError, match=r"file\.bin: the disk is full.*resumes"):
            atomic_write(target, full)
        assert target.read_bytes() == b"old"
        assert leftovers(tmp_path) == ["file.bin"]

    def test_full_disk_at_the_flush(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A full disk may show only when the kernel writes the pages back."""

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        target = tmp_path / "file.txt"
        write_text(target, "old")
        monkeypatch.setattr(vega_artifact.os, "fsync", full)
        with pytest.raises(UserError, match="disk is full"):
            write_text(target, "new")
        assert target.read_text() == "old"

    def test_full_disk_seen_by_safetensors(self, tmp_path: Path) -> None:
        from safetensors import SafetensorError

        def full(temporary: Path) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        with pytest.raises(UserError, match="disk is full"):
            atomic_write(tmp_path / "x.safetensors", full)

    def test_other_errors_are_not_dressed_up(self, tmp_path: Path) -> None:
        def denied(temporary: Path) -> None:
            raise PermissionError(errno.EACCES, "denied")

        with pytest.raises(PermissionError):
            atomic_write(tmp_path / "file", denied)


class TestManifest:
    def test_round_trip(self, artifact: Path) -> None:
        manifest = read_manifest(artifact, "run")
        assert manifest["parents"] == {"cache": "c0ffee"}
        assert manifest["config"] == {"blocks": [2, 3], "sigma": 0.3, "path": "a/b"}
        assert manifest["losses"] == [1.0, 0.5]
        assert manifest["versions"]["python"].startswith("3.")
        verify_files(artifact, manifest)

    def test_fingerprint_follows_what_can_change_a_value(self, artifact: Path) -> None:
        first = read_manifest(artifact, "run")["fingerprint"]

        def again(config: Config, cache: str = "c0ffee", **extra: object) -> str:
            return write_manifest(artifact, "run", config, {"cache": cache}, ["weights.bin"], **extra)["fingerprint"]

        assert again(Config(), seconds=12.5) == first, "a measurement must not change the identity"
        assert again(Config(sigma=0.4)) != first
        assert again(Config(), cache="decaf") != first
        (artifact / "weights.bin").write_bytes(b"012345678X")
        assert again(Config()) != first

    def test_fields_of_the_contract_are_part_of_the_fingerprint(self, artifact: Path) -> None:
        def written(**extra: object) -> dict:
            return write_manifest(artifact, "run", Config(), contract=("mean", "states"), seconds=1, **extra)

        first = written(mean=[0.5])
        assert written(mean=[0.5])["fingerprint"] == first["fingerprint"] != written(mean=[0.4])["fingerprint"]
        vega_artifact.check_fingerprint(artifact, first | {"seconds": 2})
        without = {name: value for name, value in first.items() if name != "contract"}
        for edited in (first | {"mean": [0.4]}, first | {"states": []}, without, first | {"contract": 5}):
            with pytest.raises(UserError, match=r"manifest\.json: .* it was edited; make the run again"):
                vega_artifact.check_fingerprint(artifact, edited)

    def test_without_a_contract_the_fingerprint_is_what_it_always_was(self, artifact: Path) -> None:
        """Runs and caches on disk were written so."""
        manifest = read_manifest(artifact, "run")
        assert "contract" not in manifest
        fields = {name: manifest[name] for name in ("kind", "config", "parents", "files")}
        assert manifest["fingerprint"] == vega_artifact.fingerprint(fields)
        vega_artifact.check_fingerprint(artifact, manifest)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"manifest\.json: missing.*no finished cache"):
            read_manifest(tmp_path / "nowhere", "cache")

    def test_other_kind(self, artifact: Path) -> None:
        with pytest.raises(UserError, match="a cache expected, this is a run"):
            read_manifest(artifact, "cache")

    @pytest.mark.parametrize("schema", [0, vega_artifact.SCHEMA + 1, "1", None])
    def test_foreign_schema(self, artifact: Path, schema: object) -> None:
        manifest = json.loads((artifact / "manifest.json").read_text())
        manifest["schema"] = schema
        (artifact / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match=rf"schema {vega_artifact.SCHEMA} expected, found {schema}"):
            read_manifest(artifact, "run")

    @pytest.mark.parametrize("text", ["[1, 2]", '"manifest"', "null"])
    def test_json_of_something_else(self, artifact: Path, text: str) -> None:
        (artifact / "manifest.json").write_text(text)
        with pytest.raises(UserError, match="schema 1 expected"):
            read_manifest(artifact, "run")

    @pytest.mark.parametrize("content", [b'{"schema": 1, "kind', b"", b"\xff\xfe\x00"])
    def test_truncated(self, artifact: Path, content: bytes) -> None:
        (artifact / "manifest.json").write_bytes(content)
        with pytest.raises(UserError, match="not valid JSON"):
            read_manifest(artifact, "run")


class TestVerify:
    def test_altered_file_of_the_same_size(self, artifact: Path) -> None:
        (artifact / "weights.bin").write_bytes(b"0123456780")
        with pytest.raises(UserError, match=r"weights\.bin: content differs"):
            verify_files(artifact, read_manifest(artifact, "run"))

    def test_truncated_file(self, artifact: Path) -> None:
        (artifact / "weights.bin").write_bytes(b"01234")
        with pytest.raises(UserError, match=r"weights\.bin: content differs"):
            verify_files(artifact, read_manifest(artifact, "run"))

    def test_missing_file(self, artifact: Path) -> None:
        (artifact / "weights.bin").unlink()
        with pytest.raises(UserError, match=r"weights\.bin: named in the manifest but missing"):
            verify_files(artifact, read_manifest(artifact, "run"))

    def test_parent(self, artifact: Path) -> None:
        manifest = read_manifest(artifact, "run")
        vega_artifact.check_parent(manifest, "cache", "c0ffee", artifact)
        with pytest.raises(UserError, match=r"parents\.cache is c0ffee, but the cache given is decaf"):
            vega_artifact.check_parent(manifest, "cache", "decaf", artifact)
        with pytest.raises(UserError, match=r"parents\.teacher is None"):
            vega_artifact.check_parent(manifest, "teacher", "decaf", artifact)


class TestNames:
    def test_unknown_name_lists_and_suggests(self) -> None:
        text = str(vega_artifact.unknown_name("recipe", "dmeo", {"smoke", "demo"}))
        assert text == "unknown recipe 'dmeo'. Did you mean 'demo'? Known: demo, smoke"
        assert "Did you mean" not in str(vega_artifact.unknown_name("recipe", "zzz", ["demo"]))

    def test_fingerprint_ignores_order_and_container(self) -> None:
        assert vega_artifact.fingerprint({"a": 1, "b": (1, 2)}) == vega_artifact.fingerprint({"b": [1, 2], "a": 1})
        assert vega_artifact.fingerprint({"a": 1}) != vega_artifact.fingerprint({"a": 2})
        assert len(vega_artifact.fingerprint(None)) == 16
