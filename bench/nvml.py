"""NVIDIA's management library, by ctypes: power, clocks, temperature, memory and why the clocks are held down.

A source of readings for `bench.power` on machines with a discrete GPU and on Jetsons whose driver has it (Thor). No package:
the library comes with the driver. Travels in the device bundle, hence Python 3.10.

    python -c "from bench.nvml import Nvml; print(Nvml.open())"

Names and numbers: NVIDIA's nvml.h.
"""

from __future__ import annotations

import ctypes
from typing import Any

from bench.sensors import Reading

LIBRARY = "libnvidia-ml.so.1"
TEMPERATURE_GPU = 0
CLOCK_SM = 1
MIB = 1 << 20
# nvmlClocksEventReasons: those that mean the GPU was slower than asked; idling and user settings are none of them.
THROTTLE = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


class Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Nvml:
    """One GPU. A value its driver does not tell is None.

    Args:
        library: the loaded library, already initialised. index: of the GPU.
    """

    name = "nvml"

    def __init__(self, library: Any, index: int = 0) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(self._handle)):
            raise OSError(f"{LIBRARY}: no GPU {index}")

    @classmethod
    def open(cls, index: int = 0) -> Nvml | None:
        """The GPU, or None on a machine without the library, a driver, or a GPU."""
        try:
            library = ctypes.CDLL(LIBRARY)
            return None if library.nvmlInit_v2() else cls(library, index)
        except (OSError, AttributeError):
            return None

    def settings(self) -> dict[str, Any]:
        """Name of the GPU, driver version and enforced power limit in watts, as far as they are told."""
        limit = self._number("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint())
        text = ctypes.create_string_buffer(96)
        name = "" if self._call("nvmlDeviceGetName", self._handle, text, ctypes.c_uint(96)) else text.value.decode()
        driver = "" if self._call("nvmlSystemGetDriverVersion", text, ctypes.c_uint(96)) else text.value.decode()
        found = {"gpu": name, "driver": driver, "power_limit_w": None if limit is None else limit / 1000}
        return {key: value for key, value in found.items() if value}

    def read(self) -> Reading:
        """The state now: watts, joules since the driver was loaded, hottest degree, MHz, MiB, reasons of throttling."""
        watts = self._number("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        energy = self._number("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        reasons = self._number("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())
        return Reading(
            power_w=None if watts is None else watts / 1000,
            energy_j=None if energy is None else energy / 1000,
            temperature_c=self._number("nvmlDeviceGetTemperature", ctypes.c_uint(), ctypes.c_int(TEMPERATURE_GPU)),
            gpu_mhz=self._number("nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_int(CLOCK_SM)),
            throttle=tuple(text for bit, text in THROTTLE.items() if (reasons or 0) & bit),
        )

    def used_mib(self) -> float | None:
        """Memory in use on the whole GPU, by all processes, in MiB."""
        memory = Memory()
        failed = self._call("nvmlDeviceGetMemoryInfo", self._handle, ctypes.byref(memory))
        return None if failed else memory.used / MIB

    def close(self) -> None:
        """Let go of the library."""
        self._library.nvmlShutdown()

    def _number(self, function: str, holder: Any, *arguments: Any) -> int | None:
        failed = self._call(function, self._handle, *arguments, ctypes.byref(holder))
        return None if failed else int(holder.value)

    def _call(self, function: str, *arguments: Any) -> int:
        """The function's return code, 0 for success; 1 when this driver does not have it."""
        try:
            return int(getattr(self._library, function)(*arguments))
        except AttributeError:
            return 1
