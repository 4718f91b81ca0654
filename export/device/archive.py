"""A bundle, unpacked safely and checked byte for byte: nothing lands outside its folder, and no altered file passes.

Between `vega-edge bundle` and the device. `tar xzf` unpacks a bundle as well; `install_check` then does the same check.

    python3 -m export.device.archive student.tar.gz --into DIR
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any

from export.runtime.manifest import ENGINE, MODEL
from vega_artifact import MANIFEST, UserError, fingerprint, read_manifest, verify_files

ROOT = "vega-edge"
SUMS = "SHA256SUMS"
KIND = "bundle"
GZIP_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF])  # no name, no time, no system: what `write_bundle` writes
LARGEST = 8 << 30  # bytes unpacked; far above any student, far below a decompression bomb
ADVICE = "copy it again, or make it with `vega-edge bundle EXPORT --out FILE.tar.gz`"
SAFE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def manifest_text(manifest: dict[str, Any]) -> str:
    """The one spelling a bundle's manifest may have, so that not even a blank in it can change unseen."""
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def sums_text(manifest: dict[str, Any]) -> str:
    """The lines `sha256sum -c` reads: every file of the manifest, and the manifest itself."""
    hashes = {name: record["sha256"] for name, record in manifest["files"].items()}
    hashes[MANIFEST] = hashlib.sha256(manifest_text(manifest).encode()).hexdigest()
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))


def safe_name(name: str) -> bool:
    """Whether a name stays inside the folder it is unpacked to: plain parts, no "..", not absolute."""
    return all(SAFE_PART.fullmatch(part) for part in name.split("/"))


def check_bundle(folder: Path | str) -> dict[str, Any]:
    """Re-hash an unpacked bundle; returns its manifest. Files that are not the bundle's own, such as engines, are ignored.

    Raises:
        UserError: no bundle, or a missing or altered file, by its name.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, KIND)
    identity = {key: manifest.get(key) for key in ("kind", "config", "parents", "files")}
    expected = manifest_text({"schema": manifest["schema"], **identity, "fingerprint": fingerprint(identity)})
    if (folder / MANIFEST).read_bytes() != expected.encode() or not all(map(safe_name, manifest["files"])):
        raise UserError(f"{folder / MANIFEST}: altered since the bundle was made; unpack the bundle again")
    sums = folder / SUMS
    if not sums.is_file() or sums.read_bytes() != sums_text(manifest).encode():
        raise UserError(f"{sums}: missing or altered since the bundle was made; unpack the bundle again")
    verify_files(folder, manifest)
    return manifest


def unpack_bundle(archive: Path | str, into: Path | str) -> Path:
    """Unpack a bundle into `into/vega-edge`, which appears all at once and only if every byte is as it was packed.

    Raises:
        UserError: no bundle, a cut or altered archive, a link, a device, a sparse file, an absolute name or one that
            climbs out, a file where another needs a folder, or a `vega-edge` folder that is there already.
    """
    archive, into = Path(archive), Path(into)
    entries = read_entries(archive)
    out, partial = into / ROOT, into / f".{ROOT}.partial"
    if out.exists():
        raise UserError(f"{out}: exists already; move it away or unpack into another folder")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed attempt left
    try:
        for name, data in entries.items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        try:
            check_bundle(partial)
        except UserError as error:
            raise UserError(f"{archive}: {str(error).replace(str(partial), ROOT)}") from None
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def read_entries(archive: Path) -> dict[str, bytes]:
    """Name relative to the bundle -> bytes, after checking the archive's own sum and every name in it."""
    unpacked = decompress(archive)
    entries: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:  # packed once, and not again inside
            for member in tar:
                name = checked_name(archive, member, entries)
                if not 0 <= member.size <= len(unpacked) - sum(map(len, entries.values())):
                    raise tarfile.ReadError(f"{member.name!r} cannot have {member.size} bytes")
                stream = tar.extractfile(member)
                entries[name] = b"" if stream is None else stream.read()
    except (tarfile.TarError, ValueError) as error:  # ValueError: numbers that lead out of the archive
        raise UserError(f"{archive}: cut or altered ({error}); {ADVICE}") from None
    folders = {folder.as_posix() for name in entries for folder in PurePosixPath(name).parents}
    if both := sorted(folders & entries.keys()):
        raise UserError(f"{archive}: {both[0]!r} is a file and a folder in one; make the bundle again")
    return entries


def checked_name(archive: Path, member: tarfile.TarInfo, known: Container[str]) -> str:
    """Its name inside the bundle. Raises UserError for all but plain files; extended headers could make one sparse, too."""
    top, _, name = member.name.partition("/")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.pax_headers:
        raise UserError(f"{archive}: {member.name!r} is no plain file, and links are never unpacked; make it again")
    if top != ROOT or not safe_name(name) or name in known:
        raise UserError(f"{archive}: {member.name!r} is no name inside {ROOT}/; make the bundle again")
    return name


def decompress(archive: Path) -> bytes:
    """All of the tar, to its last byte: only then is gzip's checksum compared."""
    if archive.suffix in (Path(MODEL).suffix, Path(ENGINE).suffix):
        raise UserError(f"{archive}: is a model and no bundle; give the folder that holds it")
    try:
        data = archive.read_bytes()
        if data[: len(GZIP_HEADER)] != GZIP_HEADER:
            raise UserError(f"{archive}: not a bundle, or altered in its first bytes; {ADVICE}")
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            unpacked = stream.read(LARGEST + 1)
        if len(unpacked) > LARGEST:
            raise UserError(f"{archive}: unpacks to more than {LARGEST >> 30} GiB, which no bundle does; {ADVICE}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{archive}: cut or altered ({error}); {ADVICE}") from None
    return unpacked


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m export.device.archive", description="Unpack and check a bundle.")
    parser.add_argument("archive", type=Path)
    parser.add_argument("--into", type=Path, default=Path())
    options = parser.parse_args(arguments)
    try:
        print(unpack_bundle(options.archive, options.into))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
