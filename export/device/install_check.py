"""What this machine has, whether every file of the bundle is as it was packed, and whether the model computes the same here.

The first command to run on a device; every line that is not ok says what to do next.

    python3 -m export.device install_check
"""

from __future__ import annotations

import argparse
import importlib
import platform
import re
import sys
from pathlib import Path

from export.runtime import RuntimeInputError
from export.runtime.backends import has_cuda_driver
from export.runtime.cuda import RUNTIMES, find_gpu, load_library
from export.runtime.encoder import open_encoder
from export.runtime.engine import import_tensorrt, library_name
from export.runtime.manifest import read_description
from vega_artifact import MANIFEST, UserError

from .archive import check_bundle
from .build import ENGINE, MODEL

L4T = Path("/etc/nv_tegra_release")
JETPACKS = {"36.4": "6.1 or 6.2", "36.5": "6.2.2", "38": "7.0 or 7.1", "39": "7.2"}  # as jetson-stats maps them
OLDEST = (3, 10)


def jetpack(text: str) -> str:
    """L4T and JetPack from the text of /etc/nv_tegra_release, such as "# R36 (release), REVISION: 4.3, ..."."""
    found = re.search(r"R(\d+)\D+REVISION:\s*(\d+)", text)
    if not found:
        return "a Jetson of unknown release"
    major, minor = found.groups()
    name = JETPACKS.get(f"{major}.{minor}") or JETPACKS.get(major)
    return f"L4T {major}.{minor}, JetPack {name or 'unknown'}"


def version_of(name: str) -> str:
    """The version of a package, or that it is missing."""
    try:
        return str(getattr(importlib.import_module(name), "__version__", "present"))
    except (ImportError, OSError) as error:
        return f"missing ({error})"


def machine_facts() -> dict[str, str]:
    """What the machine has of what could be used; nothing here is an error by itself."""
    gpu = find_gpu()
    facts = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    if L4T.is_file():
        facts["jetson"] = jetpack(L4T.read_text(errors="replace"))
    facts["gpu"] = str(gpu) if gpu else "none (no NVIDIA driver, or no device); onnxruntime's CPU serves"
    facts["cuda"] = "found" if load_library(*RUNTIMES) is not None else "no libcudart; engines need it"
    try:
        library = import_tensorrt()
        facts["tensorrt"] = f"{library_name(library)} {library.__version__}"
    except RuntimeInputError as error:
        facts["tensorrt"] = str(error)
    for name in ("numpy", "onnxruntime", "PIL", "cv2", "av"):
        facts[name] = version_of(name)
    return facts


def check_lineage(engine: Path, model: Path) -> None:
    """Raise RuntimeInputError unless the engine was built from this very ONNX file."""
    built, given = read_description(engine).engine["onnx"], read_description(model).hashes["student.onnx"]
    if built != given:
        raise RuntimeInputError(f"{engine}: built from another model than {model}; run `python3 -m export.device build` again")


def check(folder: Path, model: Path, engine: Path, backend: str) -> list[str]:
    """All checks; returns the lines to print.

    Raises:
        UserError: a file of the bundle is missing or altered.
        RuntimeInputError: the self test fails, a backend cannot run, or the engine is not of this model or machine.
    """
    if sys.version_info < OLDEST:
        raise UserError(f"Python {platform.python_version()}: 3.10 or newer expected; on a Jetson use JetPack 6 or 7")
    lines = [f"{name:<12} {text}" for name, text in machine_facts().items()]
    if (folder / MANIFEST).exists():
        lines.append(f"{'files':<12} {len(check_bundle(folder)['files'])} files, each as it was packed")
    models = [model]
    if (engine / MANIFEST).exists():
        check_lineage(engine, model)
        models.append(engine)
    for path in models:
        encoder = open_encoder(path, "auto" if path == engine else backend)
        for stream, difference in encoder.check().items():
            lines.append(f"{path.name:<12} {stream}: relative difference {difference['relative']:.1e}, ok on {encoder.backend}")
    if len(models) == 1 and has_cuda_driver():
        lines.append(f"{'next':<12} python3 -m export.device build")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """The command; raises what `check` raises."""
    parser = argparse.ArgumentParser(prog="python3 -m export.device install_check", description="Check machine, files, model.")
    parser.add_argument("--bundle", type=Path, default=Path(), help="the unpacked bundle")
    parser.add_argument("--model", type=Path, default=MODEL, help="the export")
    parser.add_argument("--engine", type=Path, default=ENGINE, help="the engine, tested too where it exists")
    parser.add_argument("--backend", default="auto", help="what runs the export")
    options = parser.parse_args(arguments)
    print("\n".join(check(options.bundle, options.model, options.engine, options.backend)))
    return 0
