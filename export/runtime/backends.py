"""The engines that can run the exported graph: onnxruntime with TensorRT, with CUDA or on the CPU.

Third step of `export.runtime`. onnxruntime falls back to the CPU in silence when a provider cannot start, so a backend exists
only if the session says it really runs there. Engines built beforehand are run by `export.runtime.engine`.

    python -m export.runtime EXPORT --check --backend onnxruntime
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .cuda import DRIVER, load_library
from .manifest import MODEL, Description, RuntimeInputError

TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}  # onnxruntime's -> numpy's
TENSORRT_LIBRARY = "libnvinfer.so.10"  # what the TensorRT provider of onnxruntime's wheels links
PROVIDERS: dict[str, list[Any]] = {
    "onnxruntime": ["CPUExecutionProvider"],
    # TF32 keeps 10 bits of the mantissa; the self test's fp32 limits are tighter than that.
    "onnxruntime-cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"],
    "onnxruntime-tensorrt": [("TensorrtExecutionProvider", {}), "CUDAExecutionProvider", "CPUExecutionProvider"],
}


def has_cuda_driver() -> bool:
    """Whether an NVIDIA driver is installed; the CUDA provider being listed says nothing."""
    return load_library(DRIVER) is not None


def preload_libraries() -> None:
    """Load the CUDA libraries that pip installed: they are on no library path, and without them a GPU provider cannot start.

    Nothing to do without a driver, nor with an onnxruntime from before 1.21, which has to find them on the path.
    """
    import onnxruntime

    if has_cuda_driver() and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # what it misses shows when the provider does not start
            onnxruntime.preload_dlls()


def tensorrt_options(description: Description) -> dict[str, str]:
    """Options of the TensorRT provider: one profile over all batches, engines kept between starts, half precision allowed.

    Without the profile every new batch would build another engine, which takes minutes on a Jetson. The provider types weakly:
    unless the export is fp32, TensorRT may compute any layer in half, whatever type the graph gives it. Layer norms alone can
    be held back; other float32 islands are safe only in an engine of `vega-edge build`, where the graph's types are what runs.
    """

    def profile(batch: int) -> str:
        sides = {name: "x".join(str(side) for side in (batch, *shape)) for name, shape in description.inputs.items()}
        return ",".join(f"{name}:{shape}" for name, shape in sides.items())

    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vega-edge" / description.hashes[MODEL][:16]
    options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(kept), "trt_timing_cache_enable": "1"}
    options |= {"trt_profile_min_shapes": profile(1), "trt_profile_opt_shapes": profile(1)}
    options["trt_profile_max_shapes"] = profile(description.max_batch)
    if description.precision != "fp32":
        options |= {"trt_fp16_enable": "1", "trt_layer_norm_fp32_fallback": "1"}
    if description.precision.startswith("int8"):
        options["trt_int8_enable"] = "1"
    return options


def open_session(model: bytes, options: Any, providers: list[Any]) -> Any:
    """onnxruntime's session; a graph of FP8, which its optimiser moves to operators that do not take it, is run as it is."""
    import onnxruntime

    if providers != PROVIDERS["onnxruntime"]:
        preload_libraries()
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # its errors share no base class
        if "float8" not in str(error):
            raise
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(model, options, providers=providers)


class OnnxRuntimeBackend:
    """One onnxruntime session.

    Args:
        model: the bytes of the ONNX file.
        name: "onnxruntime", "onnxruntime-cuda" or "onnxruntime-tensorrt".
        threads: CPU threads inside one operator; None lets onnxruntime choose.
        options: further options of the provider the name stands for.

    Raises:
        RuntimeInputError: onnxruntime is not installed, refuses the model, or does not run on the wanted provider.
    """

    def __init__(self, model: bytes, name: str, threads: int | None = None, options: Mapping[str, str] | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise RuntimeInputError("onnxruntime is not installed; pip install onnxruntime (or onnxruntime-gpu)") from None
        session = onnxruntime.SessionOptions()
        session.log_severity_level = 3  # errors; a provider that cannot start is reported below in our own words
        session.inter_op_num_threads = 1
        if threads is not None:
            session.intra_op_num_threads = threads
        wanted = list(PROVIDERS[name])
        if options:
            wanted[0] = (wanted[0][0], {**wanted[0][1], **options})
        try:
            self._session = open_session(model, session, wanted)
        except Exception as error:  # onnxruntime's errors share no base class
            reason = str(error).splitlines()[0]
            raise RuntimeInputError(f"{name} refuses the model ({reason}); export the run again") from None
        self.name = name
        self.providers: list[str] = self._session.get_providers()
        first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
        if self.providers[0] != first:
            found = self.providers[0]
            raise RuntimeInputError(
                f"{name}: {first} did not start, {found} did; install its libraries, or name onnxruntime to use the CPU"
            )
        takes = self._session.get_inputs()
        self._takes = {node.name: (TYPES.get(node.type, node.type), tuple(node.shape[1:])) for node in takes}
        self.inputs = list(self._takes)
        self.outputs = [node.name for node in self._session.get_outputs()]

    def __call__(self, images: np.ndarray, state: Mapping[str, np.ndarray] | None = None) -> list[np.ndarray]:
        """The model's pictures, and a streaming model's memory by name -> one float32 array per output, as in `outputs`.

        Raises:
            RuntimeInputError: another dtype or shape than the model takes.
        """
        given = {self.inputs[0]: images, **(state or {})}
        for name, value in given.items():
            dtype, shape = self._takes[name]
            if (value.dtype.name, value.shape[1:]) != (dtype, shape):
                wanted = f"{dtype} of shape ({', '.join(map(str, ('batch', *shape)))})"
                raise RuntimeInputError(f"{name}: {wanted} expected, found {value.dtype} of shape {value.shape}")
        return self._session.run(None, given)


def float32_islands(description: Description) -> list[str]:
    """Nodes of an export of half precision that must stay float32, because half would overflow there or vanish."""
    manifest = json.loads((description.folder / "manifest.json").read_text(encoding="utf-8"))
    return list(manifest.get("structure", {}).get("float32_islands", []))


def candidates(precision: str, islands: Sequence[str] = ()) -> list[str]:
    """What "auto" tries, best first: TensorRT, CUDA, CPU; without a driver only the last.

    Not TensorRT for fp32: onnxruntime lets it round to TF32 and offers no switch, so the self test would fail. Nor for a graph
    with float32 islands, which it may compute in half all the same.
    """
    if not has_cuda_driver():
        return ["onnxruntime"]
    tensorrt = precision != "fp32" and not islands and load_library(TENSORRT_LIBRARY) is not None
    return [*(["onnxruntime-tensorrt"] if tensorrt else []), "onnxruntime-cuda", "onnxruntime"]


def open_backend(description: Description, name: str = "auto", threads: int | None = None) -> OnnxRuntimeBackend:
    """Open an export's model in the named backend; "auto" takes the best that truly starts.

    Where there is a driver and still only the CPU started, one line on stderr says why.

    Raises:
        RuntimeInputError: unknown name, altered model, or the named backend cannot run here.
    """
    if name != "auto" and name not in PROVIDERS:
        raise RuntimeInputError(f"unknown backend {name!r}; known: auto, {', '.join(PROVIDERS)}")
    model = description.read(MODEL)
    *hopeful, last = candidates(description.precision, float32_islands(description)) if name == "auto" else [name]
    for candidate in hopeful:
        try:
            return _open(model, candidate, threads, description)
        except RuntimeInputError as error:  # a driver without onnxruntime-gpu or without its libraries: the next one serves
            reason = error
    backend = _open(model, last, threads, description)
    if hopeful:
        print(f"auto: the CPU is used although an NVIDIA driver is installed ({reason})", file=sys.stderr)
    return backend


def _open(model: bytes, name: str, threads: int | None, description: Description) -> OnnxRuntimeBackend:
    options = None
    if name == "onnxruntime-tensorrt":
        options = tensorrt_options(description)
        _make_folder(Path(options["trt_engine_cache_path"]))
    return OnnxRuntimeBackend(model, name, threads, options)


def _make_folder(path: Path) -> None:
    """Make a folder and those above it, which onnxruntime does not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = "point XDG_CACHE_HOME at a folder that can be written"
        raise RuntimeInputError(f"{path}: engines cannot be kept there ({error.strerror}); {advice}") from None
