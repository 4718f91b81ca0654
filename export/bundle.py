"""One .tar.gz with all a device needs: the export, the torch-free runtime, engine builder, commands, samples, a README.

Last step before the device. The same export gives the same bytes: names sorted, no times, owners or machine names inside; a
manifest holds the SHA-256 of every file, and `unpack_bundle` and the device's `install_check` refuse any that differs.

    vega-edge bundle EXPORT --out student.tar.gz
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

from export.audit import load_model
from export.device.archive import KIND, ROOT, SUMS, check_bundle, manifest_text, sums_text, unpack_bundle
from export.runtime.manifest import MODEL, PIXELS, SAFE_NAME
from vega_artifact import (
    MANIFEST,
    SCHEMA,
    UserError,
    atomic_write,
    check_fingerprint,
    fingerprint,
    read_manifest,
    verify_files,
)

__all__ = ["check_bundle", "unpack_bundle", "write_bundle"]

REPOSITORY = Path(__file__).resolve().parents[1]
DEVICE = REPOSITORY / "export" / "device"
CODE = ("export/__init__.py", "export/build_options.py", "export/tensorrt.py", "bench/latency.py", "vega_artifact.py")
ROS_NAME = "vega_edge_ros"
ROS = f"ros2/{ROS_NAME}"
SAMPLES = {  # in the bundle -> below export/device
    "cpp/CMakeLists.txt": "cpp/CMakeLists.txt",
    "cpp/encode.cpp": "cpp/encode.cpp",
    f"{ROS}/package.xml": "ros2/package.xml",
    f"{ROS}/setup.cfg": "ros2/setup.cfg",
    f"{ROS}/setup.py": "ros2/setup.py",
    f"{ROS}/{ROS_NAME}/__init__.py": "ros2/__init__.py",
    f"{ROS}/{ROS_NAME}/node.py": "ros2/node.py",
}


def write_bundle(export: Path | str, out: Path | str) -> Path:
    """Pack an export for a device.

    Args:
        export: folder of kind "export". out: the .tar.gz to write; it unpacks into one folder `vega-edge/`.

    Returns:
        `out` as a path.

    Raises:
        UserError: no export, an altered file or manifest, an unsafe file name in its manifest, a graph that devices do not
            read, or `out` not named .tar.gz.
    """
    export, out = Path(export), Path(out)
    if not out.name.endswith(".tar.gz"):
        raise UserError(f"{out}: a name ending in .tar.gz expected")
    manifest = read_manifest(export, "export")
    for name in manifest["files"]:
        if not SAFE_NAME.fullmatch(name):
            raise UserError(f"{export / MANIFEST}: file name {name!r} is not a plain name; export the run again")
    verify_files(export, manifest)
    check_fingerprint(export, manifest)
    load_model(export / MODEL)
    entries = {f"model/{name}": (export / name).read_bytes() for name in [MANIFEST, *manifest["files"]]}
    entries |= {name: (REPOSITORY / name).read_bytes() for name in carried_code()}
    entries |= {name: (DEVICE / source).read_bytes() for name, source in SAMPLES.items()}
    entries[f"{ROS}/resource/{ROS_NAME}"] = b""  # the marker by which ROS finds the package
    entries["cpp/student.hpp"] = student_header(manifest).encode()
    entries["README.md"] = readme(manifest).encode()
    described = describe(entries, manifest)
    entries[MANIFEST] = manifest_text(described).encode()
    entries[SUMS] = sums_text(described).encode()
    atomic_write(out, lambda temporary: write_tar(temporary, entries))
    return out


def describe(entries: dict[str, bytes], manifest: dict[str, Any]) -> dict[str, Any]:
    """The bundle's own manifest: an artifact like all others, whose parent is the export."""
    hashes = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in entries.items()}
    config = {"precision": manifest["config"]["precision"], "size": list(manifest["preprocess"]["size"])}
    identity = {"kind": KIND, "config": config, "parents": {"export": manifest["fingerprint"]}, "files": hashes}
    return {"schema": SCHEMA, **identity, "fingerprint": fingerprint(identity)}


def carried_code() -> list[str]:
    """The sources that travel: the runtime, the device's commands, `CODE`, and of ours whatever these import to start."""
    runtime = [*(REPOSITORY / "export" / "runtime").glob("*.py"), *DEVICE.glob("*.py")]
    waiting = [*CODE, *(path.relative_to(REPOSITORY).as_posix() for path in runtime)]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imported_sources(REPOSITORY / name)
    return sorted(found)


def imported_sources(path: Path) -> list[str]:
    """Sources of ours that a file imports at its top level, by absolute name; what is imported later may be absent."""
    names: list[str] = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    files = [f"{name.replace('.', '/')}.py" for name in names]
    return [file for file in files if (REPOSITORY / file).is_file()]


def readme(manifest: dict[str, Any]) -> str:
    """The bundle's README for this export."""
    height, width = manifest["preprocess"]["size"]
    outputs = [f"{output['name']} ({output['tokens']} tokens x {output['channels']})" for output in manifest["outputs"]]
    facts = {
        "PRECISION": manifest["config"]["precision"],
        "HEIGHT": height,
        "WIDTH": width,
        "OUTPUTS": ", ".join(outputs),
        "TOKENS": manifest["outputs"][0]["tokens"],
        "ENCODER": "StreamingEncoder" if manifest.get("states") else "Encoder",
        "FINGERPRINT": manifest["fingerprint"],
        "RUN": manifest["parents"].get("run", "unknown"),
    }
    text = (DEVICE / "README.md").read_text(encoding="utf-8")
    for name, value in facts.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def student_header(manifest: dict[str, Any]) -> str:
    """What the C++ sample must know of this export, as constants."""
    height, width = manifest["preprocess"]["size"]
    mean, std = (", ".join(f"{float(value)!r}f" for value in manifest["preprocess"][key]) for key in ("mean", "std"))
    pixels = "true" if manifest.get("input", {}).get("name") == PIXELS else "false"
    return f"""// Written by `vega-edge bundle` for export {manifest["fingerprint"]}; do not edit.
#pragma once
#include <vector>

namespace student {{

struct Tensor {{
  const char* name;
  int tokens, channels;
}};

constexpr bool pixels = {pixels};  // the model takes uint8 (height, width, 3) and normalises by itself
constexpr int height = {height}, width = {width};
constexpr float mean[3] = {{{mean}}}, std[3] = {{{std}}};
inline const std::vector<Tensor> outputs{{{cpp_tensors(manifest["outputs"])}}};
inline const std::vector<Tensor> states{{{cpp_tensors(manifest.get("states", []))}}};

}}  // namespace student
"""


def cpp_tensors(tensors: list[dict[str, Any]]) -> str:
    """Tensors of the manifest as a C++ initializer."""
    return ", ".join(f'{{"{tensor["name"]}", {tensor["tokens"]}, {tensor["channels"]}}}' for tensor in tensors)


def write_tar(path: Path, entries: dict[str, bytes]) -> None:
    """Write name -> bytes as a gzipped tar whose bytes depend on nothing else."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in sorted(entries.items()):
                member = tarfile.TarInfo(f"{ROOT}/{name}")
                member.size, member.mode, member.mtime = len(data), 0o644, 0
                tar.addfile(member, io.BytesIO(data))
