"""One .tar.gz with all a device needs: the export, the torch-free runtime, the engine builder, the latency bench, a README.

Last step before the device. The same export gives the same bytes: names sorted, no times, owners or machine names inside.

    vega-edge bundle EXPORT --out student.tar.gz
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

from export.runtime.manifest import SAFE_NAME
from vega_artifact import MANIFEST, UserError, atomic_write, read_manifest, verify_files

ROOT = "vega-edge"
REPOSITORY = Path(__file__).resolve().parents[1]
CODE = ("vega_artifact.py", "export/__init__.py", "export/staging.py", "export/tensorrt.py", "bench/latency.py")
README = """# A VEGA-Edge student, ready to run

Precision {precision}, input {height}x{width} RGB, outputs: {outputs}. Export {fingerprint}, from run {run}.

Needs Python 3.10 or newer with numpy and onnxruntime (or onnxruntime-gpu); Pillow to read image files. No torch.
In this folder:

    sha256sum -c SHA256SUMS                                        every file is what was packed
    python3 -m export.runtime model --check                        this machine computes what torch computed
    python3 -m export.runtime model image.png --out features.npz   encode images
    python3 -m bench.latency model --out latency.json              how fast it is here
    python3 -c "from export import build_engine; build_engine('model', 'engine')"    a TensorRT engine for this very machine

From Python:

    from export.runtime import Encoder
    features = Encoder("model")(frames)      # frames uint8 (B, H, W, 3) -> name -> float32 (B, {tokens}, channels)
"""


def write_bundle(export: Path | str, out: Path | str) -> Path:
    """Pack an export for a device.

    Args:
        export: folder of kind "export". out: the .tar.gz to write; it unpacks into one folder `vega-edge/`.

    Returns:
        `out` as a path.

    Raises:
        UserError: no export, an altered file, an unsafe file name in its manifest, or `out` not named .tar.gz.
    """
    export, out = Path(export), Path(out)
    if not out.name.endswith(".tar.gz"):
        raise UserError(f"{out}: a name ending in .tar.gz expected")
    manifest = read_manifest(export, "export")
    for name in manifest["files"]:
        if not SAFE_NAME.fullmatch(name):
            raise UserError(f"{export / MANIFEST}: file name {name!r} is not a plain name; export the run again")
    verify_files(export, manifest)
    entries = {f"model/{name}": (export / name).read_bytes() for name in [MANIFEST, *manifest["files"]]}
    runtime = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "export" / "runtime").glob("*.py"))
    entries |= {name: (REPOSITORY / name).read_bytes() for name in [*CODE, *runtime]}
    entries["README.md"] = readme(manifest).encode()
    sums = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(entries.items())]
    entries["SHA256SUMS"] = "".join(sums).encode()
    atomic_write(out, lambda temporary: write_tar(temporary, entries))
    return out


def readme(manifest: dict[str, Any]) -> str:
    """The bundle's README for this export."""
    height, width = manifest["preprocess"]["size"]
    outputs = [f"{output['name']} ({output['tokens']} tokens x {output['channels']})" for output in manifest["outputs"]]
    return README.format(
        precision=manifest["config"]["precision"],
        height=height,
        width=width,
        outputs=", ".join(outputs),
        tokens=manifest["outputs"][0]["tokens"],
        fingerprint=manifest["fingerprint"],
        run=manifest["parents"].get("run", "unknown"),
    )


def write_tar(path: Path, entries: dict[str, bytes]) -> None:
    """Write name -> bytes as a gzipped tar whose bytes depend on nothing else."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in sorted(entries.items()):
                member = tarfile.TarInfo(f"{ROOT}/{name}")
                member.size, member.mode, member.mtime = len(data), 0o644, 0
                tar.addfile(member, io.BytesIO(data))
