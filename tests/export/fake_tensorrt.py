"""TensorRT and CUDA without a GPU: stand-ins that keep every call, hold "device" memory on the host and truly compute.

An engine of this TensorRT is the ONNX file itself, run by onnxruntime when executed; so what the runtime copies in, runs and
copies out can be compared with what torch computed.
"""

from __future__ import annotations

import ctypes
import sys
import types
from typing import Any

import numpy as np
import onnxruntime
import pytest

from export.runtime import cuda

PREFIX = b"plan of "


class FakeCudart:
    """libcudart: memory of the host, copies that check their bounds, and an error code for any function named in `codes`."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.blocks: dict[int, Any] = {}
        self.codes: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, *arguments))
            action = FakeCudart.ACTIONS.get(name)
            return self.codes.get(name) or (action(self, *arguments) if action else 0) or 0

        return call

    def malloc(self, pointer: Any, size: ctypes.c_size_t) -> None:
        block = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(block)
        self.blocks[ctypes.addressof(block)] = block

    def free(self, pointer: ctypes.c_void_p) -> None:
        del self.blocks[pointer.value or 0]

    def copy(self, target: Any, source: Any, size: ctypes.c_size_t, kind: int, _stream: Any) -> None:
        device = ctypes.cast(target if kind == 1 else source, ctypes.c_void_p).value or 0
        assert size.value <= len(self.blocks[device]), "copied beyond the end of device memory"
        ctypes.memmove(target, source, size.value)

    def create_stream(self, stream: Any) -> None:
        stream._obj.value = 7

    ACTIONS = types.MappingProxyType(
        {"cudaMalloc": malloc, "cudaFree": free, "cudaMemcpyAsync": copy, "cudaStreamCreate": create_stream}
    )

    def sizes(self) -> list[int]:
        """Bytes of every allocation, in order."""
        return [call[2].value for call in self.calls if call[0] == "cudaMalloc"]


class FakeDriver:
    """libcuda with one device of this name, compute capability and number of multiprocessors."""

    def __init__(self, name: str, sm: tuple[int, int], processors: int = 16) -> None:
        self.name = name
        self.attributes = {cuda.SM_MAJOR: sm[0], cuda.SM_MINOR: sm[1], 16: processors}  # 16: as in cuda.h

    def cuInit(self, _flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, _index: int) -> int:
        device._obj.value = 0
        return 0

    def cuDeviceGetName(self, buffer: Any, _size: int, _device: Any) -> int:
        buffer.value = self.name.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, which: int, _device: Any) -> int:
        value._obj.value = self.attributes[which]
        return 0


class FakeEngine:
    """Both engine and context. Its tensors are listed in reverse, as a real engine may."""

    def __init__(self, plan: bytes, library: FakeCudart) -> None:
        self.session = onnxruntime.InferenceSession(plan.removeprefix(PREFIX), providers=["CPUExecutionProvider"])
        self.library = library
        self.nodes = {node.name: node for node in [*self.session.get_inputs(), *self.session.get_outputs()]}
        self.names = list(self.nodes)[::-1]
        self.num_io_tensors = len(self.names)
        self.takes = {node.name for node in self.session.get_inputs()}
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def create_execution_context(self) -> FakeEngine:
        return self

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.takes else "out"

    def get_tensor_dtype(self, name: str) -> str:
        return self.nodes[name].type

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self.shapes.values()))[0] if self.shapes else -1
        return (batch, *self.nodes[name].shape[1:])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if tuple(shape[1:]) != tuple(self.nodes[name].shape[1:]):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.library.calls.append(("execute_async_v3", stream))
        feeds = {name: self._values(name).reshape(self.shapes[name]).copy() for name in self.takes}
        for node, value in zip(self.session.get_outputs(), self.session.run(None, feeds)):
            self._values(node.name)[: value.size] = value.ravel()
        return True

    def _values(self, name: str) -> np.ndarray:
        kind = np.uint8 if self.nodes[name].type == "tensor(uint8)" else np.float32
        block = np.frombuffer(self.library.blocks[self.addresses[name]], kind)
        return block[: np.prod(self.shapes[name])] if name in self.takes else block


class FakeBuilder:
    """Builder, network, parser, config, profile and timing cache in one; the engine is the graph that was parsed."""

    def __init__(self, calls: list[tuple], accepts: bool, builds: bool) -> None:
        self.calls, self.accepts, self.builds = calls, accepts, builds
        self.num_errors = 1
        self.num_DLA_cores = 2
        self.num_layers = 3
        self.on_dla = (0, 1)

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return self

        return call

    def parse(self, model: bytes) -> bool:
        self.calls.append(("parse", len(model)))
        self.model = model
        return self.accepts

    def get_layer(self, index: int) -> int:
        return index

    def can_run_on_DLA(self, layer: int) -> bool:
        return layer in self.on_dla

    def get_error(self, index: int) -> str:
        return f"error {index}: unsupported"

    def set_timing_cache(self, _cache: Any, ignore_mismatch: bool) -> bool:
        self.calls.append(("set_timing_cache", ignore_mismatch))
        return True

    def serialize(self) -> bytes:
        return b"timings"

    def build_serialized_network(self, _network: Any, _config: Any) -> bytes | None:
        return PREFIX + self.model if self.builds else None


class Refitter:
    """Refitter and its parser in one; takes the weights of `machine.weights` alone."""

    def __init__(self, machine: Machine, engine: FakeEngine) -> None:
        self.machine, self.engine = machine, engine

    def refit_from_bytes(self, model: bytes) -> bool:
        self.machine.calls.append(("refit_from_bytes", len(model)))
        return self.machine.refits

    def refit_cuda_engine(self) -> bool:
        self.machine.calls.append(("refit_cuda_engine",))
        return True


class Machine:
    """What the tests look at: every call to TensorRT's builder, and the CUDA library."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.builder: Any = None
        self.runtime: Any = None
        self.refits = True
        self.cudart = FakeCudart()
        self.driver: FakeDriver | None = FakeDriver("Orin", (8, 7))
        self.tensorrt = types.ModuleType("tensorrt")

    def load(self, *names: str) -> Any:
        """In place of `export.runtime.cuda.load_library`."""
        return self.driver if names == (cuda.DRIVER,) else self.cudart if names == cuda.RUNTIMES else None


def install(
    monkeypatch: pytest.MonkeyPatch, *, flag: int | None = 1, accepts: bool = True, builds: bool = True, version: str = "10.3.0"
) -> Machine:
    """Put the stand-ins in place of any real TensorRT and CUDA. `flag`: STRONGLY_TYPED's number, None where it was removed."""
    machine = Machine()
    module: Any = machine.tensorrt
    builder = FakeBuilder(machine.calls, accepts, builds)

    def deserialize(plan: bytes) -> FakeEngine | None:
        machine.calls.append(("deserialize", machine.runtime.DLA_core))
        return FakeEngine(plan, machine.cudart) if plan.startswith(PREFIX) else None

    module.Logger = lambda _level: object()
    module.Logger.ERROR = 2
    module.Builder = lambda _logger: builder
    module.OnnxParser = lambda _network, _logger: builder
    machine.builder = builder
    machine.runtime = types.SimpleNamespace(deserialize_cuda_engine=deserialize, num_DLA_cores=2, DLA_core=-1)
    module.Runtime = lambda _logger: machine.runtime
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(**({} if flag is None else {"STRONGLY_TYPED": flag}))
    flags = ("TF32", "VERSION_COMPATIBLE", "STRIP_PLAN", "REFIT_IDENTICAL", "GPU_FALLBACK")
    module.BuilderFlag = types.SimpleNamespace(**{name: name for name in flags})
    module.HardwareCompatibilityLevel = types.SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS")
    module.DeviceType = types.SimpleNamespace(DLA="DLA")
    module.Refitter = lambda engine, _logger: Refitter(machine, engine)
    module.OnnxParserRefitter = lambda refitter, _logger: refitter
    module.MemoryPoolType = types.SimpleNamespace(WORKSPACE="WORKSPACE")
    module.TensorIOMode = types.SimpleNamespace(INPUT="in", OUTPUT="out")
    module.nptype = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}.__getitem__
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(cuda, "load_library", machine.load)
    return machine
