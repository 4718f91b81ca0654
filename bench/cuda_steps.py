"""The steps of a call on a GPU, one by one: copy in, compute, copy out; with the computation replayed as a CUDA graph or not.

Part of `bench.latency` for onnxruntime's CUDA provider and for TensorRT engines. Buffers are made once and reused, as CUDA
graphs demand and as an application would. Every step waits for the GPU, so that a clock on the host may time it. Travels in the
device bundle, hence Python 3.10 and no torch.

    vega-edge bench latency EXPORT --backends onnxruntime-cuda onnxruntime-cuda+graph
"""

from __future__ import annotations

import weakref
from ctypes import byref, c_int, c_ulonglong, c_void_p
from typing import Any

import numpy as np

from bench.timing import Step
from export.runtime import Encoder, RuntimeInputError
from export.runtime.backends import TYPES, open_session
from export.runtime.manifest import MODEL

RELAXED = 2  # cudaStreamCaptureMode: calls of other threads do not spoil the capture
CUDA_OPTIONS = {"use_tf32": "0"}  # as `export.runtime.backends`: the same arithmetic as the file was checked with


class BoundSession:
    """An onnxruntime session whose inputs and outputs stay in device memory, for one batch.

    Args:
        encoder: the export; opened anywhere, only its description is used. graph: replay the computation as a CUDA graph.
        device: "cuda", or "cpu", where the very same calls run without a GPU.

    Raises:
        RuntimeInputError: onnxruntime refuses the model or the provider does not start.
    """

    def __init__(self, encoder: Encoder, graph: bool = False, device: str = "cuda") -> None:
        import onnxruntime

        self._runtime, self._device = onnxruntime, device
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        wanted: Any = "CPUExecutionProvider"
        if device == "cuda":
            wanted = ("CUDAExecutionProvider", {**CUDA_OPTIONS, "enable_cuda_graph": "1" if graph else "0"})
        model = encoder.description.read(MODEL)
        try:
            self._session = open_session(model, options, [wanted])
        except Exception as error:  # onnxruntime's errors share no base class
            reason = str(error).splitlines()[0]
            raise RuntimeInputError(f"onnxruntime on {device} refuses the model ({reason}); leave this backend out") from None
        if device == "cuda" and self._session.get_providers()[0] != wanted[0]:
            raise RuntimeInputError("onnxruntime-cuda: its provider did not start; install CUDA's libraries or leave it out")
        self._binding = self._session.io_binding()
        self._input: Any = None
        self._outputs: list[Any] = []

    def upload(self, images: np.ndarray) -> None:
        """Copy float32 (B, 3, H, W) to the device; the first call makes the buffers, later ones need the same shape."""
        if self._input is None:
            self._bind(images)
        else:
            self._input.update_inplace(images)

    def _bind(self, images: np.ndarray) -> None:
        self._input = self._runtime.OrtValue.ortvalue_from_numpy(images, self._device, 0)
        self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, self._input)
        for node in self._session.get_outputs():
            shape = [len(images), *node.shape[1:]]
            kind = np.dtype(TYPES[node.type]).type
            value = self._runtime.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._device, 0)
            self._binding.bind_ortvalue_output(node.name, value)
            self._outputs.append(value)

    def compute(self, _: None = None) -> None:
        """Run the model on what was uploaded, and wait; the first run captures the graph.

        Raises:
            RuntimeInputError: onnxruntime refuses to run or to capture it.
        """
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's errors share no base class
            reason = str(error).splitlines()[0]
            raise RuntimeInputError(f"onnxruntime on {self._device} stopped ({reason}); leave this backend out") from None
        self._binding.synchronize_outputs()

    def download(self, _: None = None) -> list[np.ndarray]:
        """The outputs as arrays on the host, in the order of the manifest."""
        return [value.numpy() for value in self._outputs]


class EngineGraph:
    """A TensorRT engine's computation, captured once as a CUDA graph and replayed.

    Args:
        backend: `export.runtime.engine.EngineBackend`, with its inputs uploaded and computed once: the first run of an engine
            allocates, which no capture allows.

    Raises:
        RuntimeInputError: CUDA refuses the capture.
    """

    def __init__(self, backend: Any) -> None:
        self._backend, self._cuda = backend, backend._cuda
        graph, self._exec = c_void_p(), c_void_p()
        self._cuda.call("cudaStreamBeginCapture", self._cuda.stream, c_int(RELAXED))
        started = backend._context.execute_async_v3(self._cuda.stream.value or 0)
        self._cuda.call("cudaStreamEndCapture", self._cuda.stream, byref(graph))
        if not started:
            raise RuntimeInputError("engine: it cannot be captured as a CUDA graph; leave engine+graph out")
        self._cuda.call("cudaGraphInstantiate", byref(self._exec), graph, c_ulonglong(0))
        self._cuda.call("cudaGraphDestroy", graph)
        weakref.finalize(self, self._cuda.call, "cudaGraphExecDestroy", self._exec)

    def compute(self) -> None:
        """Replay the graph on the engine's buffers, and wait."""
        self._cuda.call("cudaGraphLaunch", self._exec, self._cuda.stream)
        self._cuda.synchronize()


def session_steps(encoder: Encoder, graph: bool, device: str = "cuda") -> tuple[Step, ...]:
    """Five steps of onnxruntime on a GPU, for one batch size; arguments as for `BoundSession`."""
    session = BoundSession(encoder, graph, device)
    return encoder.prepare, session.upload, session.compute, session.download, encoder.finish


def engine_steps(encoder: Encoder, graph: bool) -> tuple[Step, ...]:
    """Five steps of a TensorRT engine, for one batch size: the engine keeps the shape that was uploaded last."""
    backend: Any = encoder._backend
    captured: list[EngineGraph] = []

    def compute(_: None) -> None:
        if captured:
            return captured[0].compute()
        backend.compute()
        if graph:
            captured.append(EngineGraph(backend))

    return encoder.prepare, backend.upload, compute, lambda _: backend.download(), encoder.finish
