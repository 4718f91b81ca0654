"""What a board's sensors say: power rails (INA3221, INA238), temperatures, clocks, over-current events; or a tegrastats line.

Sources of readings for `bench.power` on Jetsons. Travels in the device bundle, hence Python 3.10 and no library at all.

    python -c "from bench.sensors import Board; print(Board().read())"

Formats: the kernel's hwmon, thermal and devfreq interfaces; the lines that tegrastats prints under JetPack 4 to 7.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.device import read_text

MONITORS = ("ina3221", "ina238", "ina226")
INPUTS = ("VDD_IN", "POM_5V_IN", "VIN")  # rails that feed the whole module; where there is none the rails are summed
IMPOSSIBLE_C = -200.0  # a powered-down zone reads -256
RAIL = re.compile(r"\b((?:VDD|POM|VIN|CV|CPU|GPU|SOC|SYS)[A-Z0-9_]*)\s+(\d+)(?:mW(?:/\d+mW)?|/\d+)(?=\s|$)")
TEMPERATURE = re.compile(r"\b([A-Za-z][A-Za-z0-9_]*)@(-?[\d.]+)C\b")
GPU_LOAD = re.compile(r"\bGR3D_FREQ\s+(\d+)%(?:@\[?(\d+))?")
CORES = re.compile(r"\bCPU\s*\[([^\]]*)\]")


@dataclass(frozen=True)
class Reading:
    """One look at the sensors; None is "not told".

    Attributes:
        power_w: of the whole module or GPU, watts; rails_w: its parts. energy_j: a counter of joules, from any start.
        temperature_c: the hottest zone. gpu_mhz, cpu_mhz: clocks, of the fastest core.
        throttle: why the clocks are held down, in words. over_current: a counter of events, from any start.
    """

    power_w: float | None = None
    rails_w: Mapping[str, float] = field(default_factory=dict)
    energy_j: float | None = None
    temperature_c: float | None = None
    gpu_mhz: float | None = None
    cpu_mhz: float | None = None
    throttle: tuple[str, ...] = ()
    over_current: int | None = None


class Board:
    """The kernel's own interfaces under /sys.

    Args:
        root: where they lie; a parameter so that recorded trees can be read.
    """

    name = "sysfs"

    def __init__(self, root: Path = Path("/sys")) -> None:
        self.root = root
        monitors = [folder for folder in (root / "class/hwmon").glob("*") if read_text(folder / "name") in MONITORS]
        self._rails = {name: paths for folder in sorted(monitors) for name, paths in rails_of(folder).items()}
        self._zones = sorted((root / "class/thermal").glob("thermal_zone*/temp"))
        self._gpu = sorted(path / "cur_freq" for path in (root / "class/devfreq").glob("*") if is_gpu(path.name))
        self._cores = sorted((root / "devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        self._events = sorted((root / "class/hwmon").glob("*/oc*_event_cnt"))

    @property
    def tells(self) -> bool:
        """Whether there is anything to read at all."""
        return bool(self._rails or self._zones or self._gpu or self._cores or self._events)

    def settings(self) -> dict[str, Any]:
        """Nothing of its own: `bench.device.settings` reads how a board is set."""
        return {}

    def read(self) -> Reading:
        """The state now."""
        rails = {name: watts for name, paths in self._rails.items() if (watts := rail_watts(paths)) is not None}
        degrees = [value / 1000 for value in map(number, self._zones) if value is not None and value / 1000 > IMPOSSIBLE_C]
        gpu = [value / 1e6 for value in map(number, self._gpu) if value is not None]
        cores = [value / 1e3 for value in map(number, self._cores) if value is not None]
        events = [int(value) for value in map(number, self._events) if value is not None]
        return Reading(
            power_w=total_watts(rails),
            rails_w=rails,
            temperature_c=max(degrees, default=None),
            gpu_mhz=max(gpu, default=None),
            cpu_mhz=max(cores, default=None),
            over_current=sum(events) if events else None,
        )

    def close(self) -> None:
        """Nothing is held open."""


class Tegrastats:
    """The program tegrastats, for boards whose power monitor is not under /sys; its newest line is the reading.

    Args:
        program: its path. milliseconds: between its lines.
    """

    name = "tegrastats"

    def __init__(self, program: str, milliseconds: int = 200) -> None:
        words = [program, "--interval", str(milliseconds)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._last = Reading()
        threading.Thread(target=self._follow, daemon=True).start()

    @classmethod
    def open(cls) -> Tegrastats | None:
        """The running program, or None where it is not installed or does not start."""
        program = shutil.which("tegrastats")
        try:
            return cls(program) if program else None
        except OSError:
            return None

    def _follow(self) -> None:
        for line in self._process.stdout or ():
            self._last = parse_tegrastats(line)

    def settings(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def read(self) -> Reading:
        """What its newest line said."""
        return self._last

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        self._process.wait(timeout=5)


def parse_tegrastats(line: str) -> Reading:
    """One line of tegrastats; what it does not tell stays None.

    Rails are written `VDD_IN 7450mW/7021mW` (JetPack 5 and later) or `POM_5V_IN 2213/2213` (before), the first number being
    the present one; the GPU's clock `GR3D_FREQ 99%@[918]`, `99%@918` or left out; cores `12%@1510` or `off`.
    """
    rails = {name: int(now) / 1000 for name, now in RAIL.findall(line)}
    degrees = [float(value) for _, value in TEMPERATURE.findall(line) if float(value) > IMPOSSIBLE_C]
    gpu, cores = GPU_LOAD.search(line), CORES.search(line)
    clocks = [int(value) for value in re.findall(r"%@(\d+)", cores[1])] if cores else []
    return Reading(
        power_w=total_watts(rails),
        rails_w=rails,
        temperature_c=max(degrees, default=None),
        gpu_mhz=float(gpu[2]) if gpu and gpu[2] else None,
        cpu_mhz=float(max(clocks)) if clocks else None,
    )


def rails_of(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Label -> files to read, (power,) in microwatts or (voltage, current) in mV and mA; unconnected channels left out."""
    found: dict[str, tuple[Path, ...]] = {}
    for label in sorted(folder.glob("in*_label")):
        name, channel = read_text(label), label.name[2 : -len("_label")]
        current = folder / f"curr{channel}_input"
        if name and name != "NC" and current.is_file():  # "sum of shunt voltages" has no current of its own
            found[name] = (folder / f"in{channel}_input", current)
    if not found and (folder / "power1_input").is_file():
        found[read_text(folder / "power1_label") or "VIN"] = (folder / "power1_input",)
    return found


def rail_watts(paths: tuple[Path, ...]) -> float | None:
    """Watts of one rail: its power, or its voltage times its current; None when a file cannot be read."""
    values = [number(path) for path in paths]
    if len(values) == 1:
        return None if values[0] is None else values[0] / 1e6
    millivolts, milliamperes = values
    return None if millivolts is None or milliamperes is None else millivolts * milliamperes / 1e6


def total_watts(rails: Mapping[str, float]) -> float | None:
    """The rail that feeds the module, or the sum of all where none does (AGX boards)."""
    for name in INPUTS:
        if name in rails:
            return rails[name]
    return sum(rails.values()) if rails else None


def is_gpu(name: str) -> bool:
    """Whether a devfreq device is the GPU: `17000000.gpu` on Orin, `gpu-gpc-0` on Thor, `57000000.gpu` on the first Nano."""
    return "gpu" in name or name.endswith((".ga10b", ".gv11b", ".gp10b"))


def number(path: Path) -> float | None:
    try:
        return float(read_text(path))
    except ValueError:
        return None
