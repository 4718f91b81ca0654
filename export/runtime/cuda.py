"""The few CUDA calls an engine needs, through ctypes: no cuda-python, no torch; CUDA 12 (JetPack 6) and 13 (JetPack 7) alike.

Under `export.runtime.engine`. Failures of CUDA come out as one sentence with what to do.

    python -m export.runtime ENGINE --check
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from .manifest import RuntimeInputError

RUNTIMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "/usr/local/cuda/lib64/libcudart.so")
DRIVER = "libcuda.so.1"
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
PROCESSORS, SM_MAJOR, SM_MINOR = 16, 75, 76  # CUdevice_attribute
ADVICE = {
    2: "too little GPU memory: close other programs, or build the engine with a smaller --largest-batch",
    35: "the driver is older than the CUDA library: update the driver (on a Jetson, JetPack)",
    100: "no CUDA device: use --backend onnxruntime here",
}


@dataclass(frozen=True)
class Gpu:
    """The device engines are built for and run on.

    Attributes:
        name: as its driver says; every Orin, from Nano to AGX, says "Orin".
        sm: compute capability, such as "8.7" on every Orin.
        processors: number of multiprocessors, which tells them apart, and power modes that turn some off; None in the sidecar
            of an engine that was built before it was asked for.
    """

    name: str
    sm: str
    processors: int | None

    def __str__(self) -> str:
        return f"{self.name} (SM {self.sm}, {self.processors or 'unknown number of'} multiprocessors)"


def load_library(*names: str) -> Any | None:
    """The first of these shared libraries that loads, or None."""
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def find_gpu() -> Gpu | None:
    """The first GPU as its driver reports it, or None without a driver or a device; opens no context."""
    driver = load_library(DRIVER)
    if driver is None or driver.cuInit(0) != 0:
        return None
    device, name, numbers = c_int(), ctypes.create_string_buffer(128), [c_int(), c_int(), c_int()]
    answers = [driver.cuDeviceGet(byref(device), 0), driver.cuDeviceGetName(name, 128, device)]
    which = (SM_MAJOR, SM_MINOR, PROCESSORS)
    answers += [driver.cuDeviceGetAttribute(byref(number), kind, device) for number, kind in zip(numbers, which)]
    major, minor, processors = (number.value for number in numbers)
    return None if any(answers) else Gpu(name.value.decode(errors="replace"), f"{major}.{minor}", processors)


class Cuda:
    """The CUDA runtime with one stream of its own.

    Raises:
        RuntimeInputError: no CUDA library, no usable driver, or no device.
    """

    def __init__(self) -> None:
        library = load_library(*RUNTIMES)
        if library is None:
            text = f"no CUDA runtime found (tried {', '.join(RUNTIMES)})"
            raise RuntimeInputError(f"{text}; install it (on a Jetson, JetPack), or use --backend onnxruntime")
        self._library = library
        self.stream = c_void_p()
        self.call("cudaStreamCreate", byref(self.stream))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the runtime; a code other than 0 becomes a RuntimeInputError."""
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            raise RuntimeInputError(f"CUDA: {name} failed with error {code}; {ADVICE.get(code, 'see dmesg and nvidia-smi')}")

    def synchronize(self) -> None:
        """Wait until everything in the stream is done."""
        self.call("cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give the stream back."""
        if self.stream:
            self._library.cudaStreamDestroy(self.stream)
            self.stream = c_void_p()


class Buffer:
    """Device memory of a fixed size in bytes. Raises RuntimeInputError when there is too little."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        self._cuda, self.size = cuda, size
        self.pointer = c_void_p()
        cuda.call("cudaMalloc", byref(self.pointer), c_size_t(size))

    @property
    def address(self) -> int:
        """Where it lies in device memory."""
        return int(self.pointer.value or 0)

    def upload(self, array: np.ndarray) -> None:
        """Copy a C-contiguous array to the device, in the stream."""
        source = array.ctypes.data_as(c_void_p)
        self._cuda.call("cudaMemcpyAsync", self.pointer, source, c_size_t(array.nbytes), TO_DEVICE, self._cuda.stream)

    def download(self, array: np.ndarray) -> None:
        """Copy as many bytes as `array` has into it, in the stream; it holds them after `synchronize`."""
        target = array.ctypes.data_as(c_void_p)
        self._cuda.call("cudaMemcpyAsync", target, self.pointer, c_size_t(array.nbytes), TO_HOST, self._cuda.stream)

    def free(self) -> None:
        """Give the memory back; more than once does nothing."""
        if self.pointer:
            self._cuda.call("cudaFree", self.pointer)
            self.pointer = c_void_p()
