"""Which machine this is, how it is set and what runs on it: processor, board, JetPack, power mode, versions, memory in use.

Stands beside the chain: every measurement carries it, because a latency without its power mode is not reproducible. Travels
in the device bundle, hence Python 3.10 and no library but numpy.

    python -m bench.device
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from export.runtime.backends import TENSORRT_LIBRARY, has_cuda_driver
from export.runtime.cuda import RUNTIMES
from export.runtime.engine import MODULES
from vega_artifact import tool_versions

L4T_RELEASE = re.compile(r"R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")  # first line of /etc/nv_tegra_release
# Exact releases from NVIDIA's JetPack archive; a release that is not here is reported by its L4T number alone, never guessed.
JETPACK = {
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
}
Command = Callable[[Sequence[str]], str]


def machine() -> dict[str, Any]:
    """Name of the processor (or the board), cores this process may use, load, system and Python."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return {
        "device": device_name(),
        "cores": cores,
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the tools that can change a latency; to be asked after the measurement.

    Packages as they are installed; "cuda", "tensorrt" and "tensorrt_rtx" only beside a GPU's driver, and as this process loaded
    them: what merely lies on the disk changed no number.
    """
    found = tool_versions()
    if not has_cuda_driver():
        return found
    for library in filter(None, map(loaded_library, RUNTIMES)):
        number = ctypes.c_int()
        if library.cudaRuntimeGetVersion(ctypes.byref(number)) == 0:
            found.setdefault("cuda", f"{number.value // 1000}.{number.value % 1000 // 10}")
    modules = {name: getattr(sys.modules.get(name), "__version__", None) for name in MODULES}
    found |= {name: str(version) for name, version in modules.items() if version}
    if (library := loaded_library(TENSORRT_LIBRARY)) is not None:  # by onnxruntime's provider; 10.3.0 says 100300
        number = library.getInferLibVersion()
        found.setdefault("tensorrt", f"{number // 10000}.{number // 100 % 100}.{number % 100}")
    return found


def loaded_library(name: str) -> Any | None:
    """A shared library this process has loaded already; None where it has not."""
    try:
        return ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except (OSError, AttributeError):  # AttributeError: systems without this mode
        return None


def device_name(model: Path = Path("/proc/device-tree/model"), cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """A Jetson tells its board's name; elsewhere the processor's name, or at least its architecture."""
    if board := read_text(model):
        return board
    names = [line.split(":", 1)[1].strip() for line in read_text(cpuinfo).splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def settings(root: Path = Path("/"), command: Command | None = None) -> dict[str, Any]:
    """How the machine is set, as far as it tells: only what was found is in the result.

    Args:
        root: where /etc and /sys lie. command: runs a program and returns what it prints, "" when it cannot.

    Returns:
        "l4t", "jetpack" (known releases only), "power_mode" (`nvpmodel -q`), "governor" of the first core, "gpu_locked":
        whether the GPU's lowest and highest clock are the same, as `jetson_clocks` sets them.
    """
    found: dict[str, Any] = {}
    if version := l4t_version(read_text(root / "etc/nv_tegra_release")):
        found["l4t"] = version
        if version in JETPACK:
            found["jetpack"] = JETPACK[version]
        if mode := power_mode((command or run_command)(["nvpmodel", "-q"])):
            found["power_mode"] = mode
    if governor := read_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"):
        found["governor"] = governor
    for gpu in sorted((root / "sys/class/devfreq").glob("*gpu*")) + sorted((root / "sys/class/devfreq").glob("*ga10b*")):
        lowest, highest = read_text(gpu / "min_freq"), read_text(gpu / "max_freq")
        if lowest and highest:
            found["gpu_locked"] = lowest == highest
    return found


def l4t_version(release: str) -> str | None:
    """`# R36 (release), REVISION: 4.3, GCID: ...` -> "36.4.3"; None where the line says nothing of the kind."""
    found = L4T_RELEASE.search(release)
    return f"{found[1]}.{found[2]}" if found else None


def power_mode(printed: str) -> str | None:
    """`NV Power Mode: MAXN_SUPER` and, on the next line, its number -> "MAXN_SUPER (2)"."""
    name = re.search(r"NV Power Mode:\s*(\S+)", printed)
    number = re.search(r"^\s*(\d+)\s*$", printed, re.MULTILINE)
    return None if name is None else f"{name[1]} ({number[1]})" if number else name[1]


def resident_mib(field: str = "VmRSS", status: Path = Path("/proc/self/status")) -> float | None:
    """Memory of this process in MiB: VmRSS (now) or VmHWM (peak); None on systems without /proc."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", read_text(status), re.MULTILINE)
    return int(found[1]) / 1024 if found else None


def read_text(path: Path) -> str:
    """What a file of /proc or /sys says, stripped; "" when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def run_command(words: Sequence[str]) -> str:
    """What a program prints; "" when it is absent, fails or hangs."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


if __name__ == "__main__":
    print(json.dumps({**machine(), **settings(), "versions": versions()}, indent=2))
