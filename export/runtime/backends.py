"""The engines that can run the exported graph: onnxruntime on the CPU or on a CUDA device.

Third step of `export.runtime`. onnxruntime falls back to the CPU in silence when a provider cannot start, so a backend exists
only if the session says it really runs there.

    python -m export.runtime EXPORT --check --backend onnxruntime
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from .manifest import RuntimeInputError

INPUT = "images"
PROVIDERS: dict[str, list[Any]] = {
    "onnxruntime": ["CPUExecutionProvider"],
    # TF32 keeps 10 bits of the mantissa; the self test's fp32 limits are tighter than that.
    "onnxruntime-cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
}


def has_cuda_driver() -> bool:
    """Whether an NVIDIA driver is installed; the CUDA provider being listed says nothing."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class OnnxRuntimeBackend:
    """One onnxruntime session.

    Args:
        model: the bytes of the ONNX file.
        name: "onnxruntime" or "onnxruntime-cuda".
        threads: CPU threads inside one operator; None lets onnxruntime choose.

    Raises:
        RuntimeInputError: onnxruntime is not installed, refuses the model, or does not run on the wanted provider.
    """

    def __init__(self, model: bytes, name: str, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise RuntimeInputError("onnxruntime is not installed; pip install onnxruntime (or onnxruntime-gpu)") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; a provider that cannot start is reported below in our own words
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        wanted = PROVIDERS[name]
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=wanted)
        except Exception as error:  # onnxruntime's errors share no base class
            reason = str(error).splitlines()[0]
            raise RuntimeInputError(f"{name} refuses the model ({reason}); export the run again") from None
        self.name = name
        self.providers: list[str] = self._session.get_providers()
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if self.providers[0] != first:
            found = self.providers[0]
            raise RuntimeInputError(f"{name}: {first} did not start, {found} did; install its libraries or use auto")
        self.inputs = [node.name for node in self._session.get_inputs()]
        self.outputs = [node.name for node in self._session.get_outputs()]

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """float32 (B, 3, H, W) -> one float32 (B, N, C) per output, in the order of `outputs`."""
        return self._session.run(None, {INPUT: images})


def open_backend(model: bytes, name: str = "auto", threads: int | None = None) -> OnnxRuntimeBackend:
    """Open the named backend; "auto" takes CUDA where it truly starts and the CPU otherwise.

    Raises:
        RuntimeInputError: unknown name, or the named backend cannot run here.
    """
    if name == "auto":
        if has_cuda_driver():
            try:
                return OnnxRuntimeBackend(model, "onnxruntime-cuda", threads)
            except RuntimeInputError:  # a driver without onnxruntime-gpu or without its CUDA libraries: the CPU serves
                pass
        return OnnxRuntimeBackend(model, "onnxruntime", threads)
    if name not in PROVIDERS:
        raise RuntimeInputError(f"unknown backend {name!r}; known: auto, {', '.join(PROVIDERS)}")
    return OnnxRuntimeBackend(model, name, threads)
