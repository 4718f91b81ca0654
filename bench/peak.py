"""Peak memory of one piece of work, by what the machine itself counts.

On CUDA: torch's own peak of allocated bytes. On Linux: the peak resident set (VmHWM), which the kernel starts anew when 5 is
written to /proc/self/clear_refs; freed heap is handed back first, so that what earlier work left behind is not counted.

    with PeakMemory(device) as peak: ...
    print(peak.bytes)
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import torch

GIB = 1 << 30
PROCESS = Path("/proc/self")


class PeakMemory:
    """Context manager; afterwards `bytes` is how far memory rose above its level at the start, None where none can tell."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes, self._start = device, None, 0
        self.bytes: int | None

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._start = torch.cuda.memory_allocated(self.device)
        else:
            self._start = restart_peak() or 0
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._start
        elif self._start:
            self.bytes = resident("VmHWM") - self._start


def restart_peak() -> int | None:
    """Let the kernel's peak begin at the present resident set and return that; None on systems without it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (PROCESS / "clear_refs").write_text("5")
        return resident("VmRSS")
    except (OSError, AttributeError):  # not Linux, not glibc, or not permitted
        return None


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", (PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}")
    return int(found[1]) * 1024
