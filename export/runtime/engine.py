"""A TensorRT engine as a backend: the same call as onnxruntime's, on the GPU the engine was built for and on no other.

Beside `export.runtime.backends`, for ENGINE folders (`vega-edge build`). The folder's manifest is the engine's sidecar: GPU,
SM, number of multiprocessors, TensorRT version and the hash of the ONNX file it came from. TensorRT 10.3 to 11 and
TensorRT-RTX share the calls used.

    python -m export.runtime ENGINE --check
"""

from __future__ import annotations

import importlib
import math
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from .cuda import Buffer, Cuda, Gpu, find_gpu
from .manifest import MODEL, REBUILD, Description, RuntimeInputError

MODULES = ("tensorrt", "tensorrt_rtx")
BINDINGS = "_bindings"  # NVIDIA's wheels hold NAME_bindings; the package NAME, which only renames it, may be missing


def import_tensorrt(names: tuple[str, ...] = MODULES) -> ModuleType:
    """The first of these TensorRT modules that is installed, by that name or as bare bindings.

    Raises:
        RuntimeInputError: none is; names the ways to get one.
    """
    for module in (form for name in names for form in (name, name + BINDINGS)):
        try:
            return importlib.import_module(module)
        except (ImportError, OSError):  # OSError: bindings without their libraries
            continue
    raise RuntimeInputError(
        f"no TensorRT found (tried {', '.join(names)}): on a Jetson use JetPack's Python, on a workstation "
        "`pip install tensorrt` from NVIDIA's index or `pip install tensorrt-rtx`; onnxruntime works without one"
    )


def library_name(trt: ModuleType) -> str:
    """What engines know this module by, whichever way it is installed."""
    return trt.__name__.removesuffix(BINDINGS)


def check_machine(description: Description, version: str, gpu: Gpu | None) -> None:
    """Refuse an engine that was built elsewhere: TensorRT would crash, or run it slowly and wrongly.

    An engine of TensorRT-RTX that was built without a GPU is bound to no GPU, only to the version. One built for any GPU runs
    from Ampere (SM 8.0) on, one built for any version on its own and later ones.

    Raises:
        RuntimeInputError: no driver, another GPU, SM, number of multiprocessors or TensorRT version; with the command that
            builds it again.
    """
    built, where = description.engine, description.folder
    if gpu is None:
        raise RuntimeInputError(f"{where}: an engine needs an NVIDIA GPU and its driver; here use the export with onnxruntime")
    if not _version_fits(built, version):
        found = f"TensorRT {built['version']}, this machine has {version}"
        raise RuntimeInputError(f"{where}: built with {found}; build it again: {REBUILD}")
    if not _gpu_fits(built, gpu):
        wanted = Gpu(built["gpu"], built["sm"], built["processors"])
        raise RuntimeInputError(f"{where}: built for {wanted}, this machine has {gpu}; build it again: {REBUILD}")


def _version_fits(built: Mapping[str, Any], version: str) -> bool:
    return _numbers(version) >= _numbers(built["version"]) if built.get("any_version") else built["version"] == version


def _gpu_fits(built: Mapping[str, Any], gpu: Gpu) -> bool:
    if built["gpu"] is None:
        return True
    return _numbers(gpu.sm) >= (8, 0) if built.get("any_gpu") else Gpu(built["gpu"], built["sm"], built["processors"]) == gpu


def _numbers(version: str) -> tuple[int, ...]:
    """What can be compared of 10.3.0 or 8.7."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


class EngineBackend:
    """A deserialised engine with device buffers for its largest batch.

    Args:
        plan: the engine's bytes, as checked against the folder's manifest. description: that folder, which also holds the
            weights of an engine that was stripped of them.

    Attributes:
        inputs, outputs: tensor names, in the order of the manifest where they are the same.

    Raises:
        RuntimeInputError: another machine than it was built for, no TensorRT or CUDA, too little memory, or a broken engine.
    """

    def __init__(self, plan: bytes, description: Description) -> None:
        self.name = str(description.engine["library"])
        trt = self._trt = import_tensorrt((self.name,))
        check_machine(description, str(trt.__version__), find_gpu())
        self.providers = [f"{self.name} {trt.__version__}"]
        self._where, self._largest = description.folder, description.max_batch
        self._logger = trt.Logger(trt.Logger.ERROR)  # must outlive the runtime, as the runtime the engine
        self._runtime = trt.Runtime(self._logger)
        if description.engine.get("any_version"):
            self._runtime.engine_host_code_allowed = True  # such an engine carries its own runtime; its hash was checked
        if description.engine.get("dla") is not None:
            self._take_accelerator(description.engine["dla"])
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is not None and description.engine.get("strip"):
            self._refit(description.read(MODEL))
        self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            raise RuntimeInputError(f"{self._where}: {self.name} cannot load the engine; build it again: {REBUILD}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self.inputs = _ordered(inputs, list(description.inputs))
        outputs = [name for name in names if name not in inputs]
        self.outputs = _ordered(outputs, [*description.streams, *(f"next_{name}" for name in description.states)])
        self._types = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))) for name in names}
        self._cuda = Cuda()
        self._buffers: dict[str, Buffer] = {}
        weakref.finalize(self, _release, self._buffers, self._cuda)
        for name in names:
            shape = tuple(self._engine.get_tensor_shape(name))[1:]
            self._buffers[name] = Buffer(self._cuda, self._largest * math.prod(shape) * self._types[name].itemsize)
            self._context.set_tensor_address(name, self._buffers[name].address)

    def _take_accelerator(self, core: int) -> None:
        """Let the runtime use this one; left alone it takes its own choice. Raises RuntimeInputError where it is not here."""
        cores = int(self._runtime.num_DLA_cores)
        if not 0 <= core < cores:
            found = f"built for accelerator {core}, this machine has {cores} of them"
            raise RuntimeInputError(f"{self._where}: {found}; build it again: {REBUILD}")
        self._runtime.DLA_core = core

    def _refit(self, model: bytes) -> None:
        """Put the weights back. Raises RuntimeInputError where they are not those of the engine."""
        trt = self._trt
        refitter = trt.Refitter(self._engine, self._logger)
        parser = trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_bytes(model) or not refitter.refit_cuda_engine():
            raise RuntimeInputError(f"{self._where}: {self.name} cannot put the weights back; build it again: {REBUILD}")

    def __call__(self, images: np.ndarray, state: Mapping[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """The model's pictures, and a streaming model's memory by name -> one array per output, as in `outputs`."""
        self.upload(images, state)
        self.compute()
        return self.download()

    def upload(self, images: np.ndarray, state: Mapping[str, np.ndarray] | None = None) -> None:
        """Copy the inputs to the device and wait for it: the first of the three steps that `bench latency` times apart.

        Raises:
            RuntimeInputError: another dtype, shape or batch than the engine takes.
        """
        values = {self.inputs[0]: images, **(state or {})}
        for name in self.inputs:
            value = values[name]
            if value.dtype != self._types[name]:
                raise RuntimeInputError(f"{name}: {self._types[name]} expected, found {value.dtype}")
            if len(value) > self._largest or not self._context.set_input_shape(name, value.shape):
                wanted = tuple(self._engine.get_tensor_shape(name))[1:]
                raise RuntimeInputError(f"{name}: shape (1 to {self._largest}, *{wanted}) expected, found {value.shape}")
            self._buffers[name].upload(np.ascontiguousarray(value))
        self._cuda.synchronize()

    def compute(self) -> None:
        """Run the engine on what was uploaded and wait for it. Raises RuntimeInputError when it does not start."""
        if not self._context.execute_async_v3(self._cuda.stream.value or 0):
            raise RuntimeInputError(f"{self._where}: the engine did not run; build it again: {REBUILD}")
        self._cuda.synchronize()

    def download(self) -> list[np.ndarray]:
        """The outputs of the last `compute`, copied to the host, in the order of `outputs`."""
        arrays = [np.empty(tuple(self._context.get_tensor_shape(name)), self._types[name]) for name in self.outputs]
        for name, array in zip(self.outputs, arrays):
            self._buffers[name].download(array)
        self._cuda.synchronize()
        return arrays

    def close(self) -> None:
        """Give the device memory back."""
        _release(self._buffers, self._cuda)


def _ordered(found: list[str], wanted: list[str]) -> list[str]:
    """`wanted` if it holds the same names (an engine may list its tensors in an order of its own), else `found`."""
    return wanted if sorted(found) == sorted(wanted) else found


def _release(buffers: dict[str, Any], cuda: Cuda) -> None:
    while buffers:
        buffers.popitem()[1].free()
    cuda.close()
