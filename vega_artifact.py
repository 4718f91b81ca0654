"""Artifacts: folders with a `manifest.json` that name their parent, and the one error class users see.

Every stage (teacher bundle, cache, run, export, report) is such a folder. This leaf imports nothing of ours and nothing
heavy, so that every room may use it; `export/runtime` alone does without, because it travels to the device by itself.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

SCHEMA = 1
IDENTITY = ("kind", "config", "parents", "files")  # fields of every manifest that its fingerprint covers
MANIFEST = "manifest.json"
VERSIONED_TOOLS = ("torch", "diffusers", "transformers", "timm", "onnx", "onnxruntime-gpu", "onnxruntime", "numpy")


class UserError(Exception):
    """Bad input: one clear sentence (which file, what was expected, what to do). The command exits with code 2."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that no registry holds: lists the known ones and suggests the closest."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}")


def canonical(value: Any) -> Any:
    """Plain JSON types for dataclasses, paths, tuples and mappings, so that equal configs have equal text."""
    if is_dataclass(value) and not isinstance(value, type):
        return canonical(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [canonical(item) for item in value]
        return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    if hasattr(value, "item"):  # numpy scalars
        return value.item()
    return str(value)


def fingerprint(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space; safetensors says so in a class of its own, which is no OSError."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def atomic_write(path: Path | str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: a reader sees all of it or nothing.

    Raises:
        UserError: the disk is full; whatever stood at `path` before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)  # mkstemp makes private files; artifacts are to be shared
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if is_disk_full(error):
            raise UserError(f"{path}: the disk is full; free some space and run the same command again, it resumes") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    write_text(path, json.dumps(canonical(value), indent=1, sort_keys=True) + "\n")


def read_json(path: Path | str) -> Any:
    """Parse a JSON file; a missing or broken one is a UserError that names it."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except NotADirectoryError:
        raise UserError(f"{path.parent}: is a file; give the folder that holds it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); it was truncated or edited, make it again") from None


def tool_versions() -> dict[str, str]:
    """Versions of the tools that can change a number, without importing them."""
    found = {"python": platform.python_version()}
    for name in VERSIONED_TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_manifest(
    folder: Path | str,
    kind: str,
    config: Any,
    parents: Mapping[str, str] | None = None,
    files: Iterable[str] = (),
    contract: Iterable[str] = (),
    **extra: Any,
) -> dict[str, Any]:
    """Write `folder/manifest.json` last, so that its presence says the artifact is complete.

    Args:
        kind: what the folder is: "teacher", "cache", "run", "export", "report".
        config: the resolved configuration (a dataclass or mapping); part of the fingerprint.
        parents: stage name -> fingerprint of the artifact this one was made from.
        files: names relative to `folder` whose SHA-256 is recorded and later verified.
        contract: names of further fields that readers compute with (such as preprocess); part of the fingerprint, also where
            `extra` has none of that name.
        extra: further JSON fields (losses, metrics, index); not part of the fingerprint but for those of the contract.
    """
    folder = Path(folder)
    hashes = {name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size} for name in sorted(files)}
    if names := list(contract):
        extra["contract"] = names
    stated = {"kind": kind, "config": canonical(config), "parents": dict(parents or {}), "files": hashes, **extra}
    manifest = {"schema": SCHEMA, **stated, "fingerprint": fingerprint(identity(stated)), "versions": tool_versions()}
    write_json(folder / MANIFEST, manifest)
    return json.loads((folder / MANIFEST).read_text())


def identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the fingerprint of a manifest covers: `IDENTITY`, and the fields that its "contract" names.

    Artifacts of before there were contracts have none and stay as they are: their fingerprint still holds.
    """
    return {name: manifest.get(name) for name in (*IDENTITY, *manifest.get("contract", ()))}


def check_fingerprint(folder: Path | str, manifest: Mapping[str, Any]) -> None:
    """Refuse an edited manifest: raises UserError unless its fingerprint is that of its content."""
    try:
        same = fingerprint(identity(manifest)) == manifest.get("fingerprint")
    except TypeError:  # a contract that is no list of names
        same = False
    if not same:
        text = "its fingerprint is not that of its content, so it was edited"
        raise UserError(f"{Path(folder) / MANIFEST}: {text}; make the {manifest.get('kind')} again")


def read_manifest(folder: Path | str, kind: str) -> dict[str, Any]:
    """Read and check `folder/manifest.json`.

    Raises:
        UserError: no folder, a file in its place, no manifest, another schema, or an artifact of another kind.
    """
    path = Path(folder) / MANIFEST
    if not path.exists() and not Path(folder).is_file():
        raise UserError(f"{path}: missing, so {folder} is no finished {kind}; run (again) the command that writes a {kind}")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(f"{path}: schema {SCHEMA} expected, found {found}; it was written by something else or another version")
    if manifest.get("kind") != kind:
        raise UserError(f"{path}: a {kind} expected, this is a {manifest.get('kind')}")
    return manifest


def verify_files(folder: Path | str, manifest: Mapping[str, Any]) -> None:
    """Re-hash every file the manifest names; raises UserError naming the first missing or altered one."""
    for name, record in manifest["files"].items():
        path = Path(folder) / name
        if not path.exists():
            raise UserError(f"{path}: named in the manifest but missing; make the {manifest['kind']} again")
        if path.stat().st_size != record["bytes"] or file_sha256(path) != record["sha256"]:
            raise UserError(
                f"{path}: content differs from the manifest, it was cut or altered; make the {manifest['kind']} again"
            )


def check_parent(manifest: Mapping[str, Any], stage: str, expected: str, where: Path | str) -> None:
    """Refuse an artifact whose recorded parent is not `expected`; the sentence says which field differs."""
    found = manifest.get("parents", {}).get(stage)
    if found != expected:
        raise UserError(f"{where}: its parents.{stage} is {found}, but the {stage} given is {expected}; give the matching one")
