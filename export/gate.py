"""The CPU gate: NVIDIA's own compiler reads an export and builds it ahead of time, without a GPU, and says what it fused.

Beside the chain: EXPORT -> a verdict. TensorRT-RTX parses what TensorRT 10 and 11 parse and needs no driver to build; it gives
no times and no outputs. Target is compute capability 8.6, the nearest it knows to Orin's 8.7. Where its package is absent the
gate is skipped, and says so.

    vega-edge export RUN --out EXPORT --precision fp16 --check
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from export.audit import load_model
from export.runtime.manifest import MODEL
from export.tensorrt import input_shapes, strongly_typed_flag
from vega_artifact import UserError, read_manifest, verify_files

LIBRARIES = ("tensorrt_rtx", "tensorrt_rtx_bindings")  # the second: its wheels without the package that only renames them
LAYER = re.compile(r"Name: ([^,{}\n]+), LayerType: (\w+)")  # a line of the build log at detailed verbosity
DATATYPE = re.compile(r"(?:Format/)?Datatype: (\w+)")  # of TensorRT-RTX 1.4 and of 1.7
EXPECTED_TYPE = {"fp32": "Float", "fp16": "Half", "int8": "Int8", "int8_fp16": "Int8", "fp8_fp16": "FP8"}
TARGET = {"fp8_fp16": "SM89"}  # the first with FP8; all else is built for SM86
MEMORY = re.compile(r"Total (Weights|Activation) Memory: (\d+) bytes")
PART = 0.1  # by which the weights of an engine may differ from the file's
WHOLE = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)  # shapes and indices, which the compiler folds: no weights
SLACK = 1 << 16  # bytes of constants that the compiler adds to the weights of a small network
DEPTHWISE = 4  # bytes that TensorRT-RTX 1.7 takes for an int8 weight of a depthwise convolution; a test builds one and counts


def check_export(export: Path | str) -> dict[str, Any]:
    """Parse and build an export with TensorRT-RTX and hold the engine against what the manifest promises.

    Returns:
        {"skipped": reason} where the package is absent; else library, version, layers, mha (fused attention kernels), types
        (tensors by data type, from the build log), bytes of the engine, of the weights it holds, of those it should hold, and
        of its activations at the largest batch. What an engine has beyond its weights are kernels, some megabytes.

    Raises:
        UserError: no export, an altered file, a graph the compiler refuses, attention that was not fused, types other than the
            precision asks for, or an engine whose weights differ by 10 % from those it should hold.
    """
    export = Path(export)
    manifest = read_manifest(export, "export")
    verify_files(export, manifest)
    model = load_model(export / MODEL)
    try:
        trt = compiler()
    except (ImportError, OSError) as error:  # OSError: bindings without their libraries
        wheels = "tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings"
        return {"skipped": f"{LIBRARIES[0]} cannot be imported here ({error}); pip install {wheels}"}
    target = TARGET.get(manifest["config"]["precision"], "SM86")
    largest = int(manifest["config"]["max_batch"])
    plan, log = build(trt, (export / MODEL).read_bytes(), input_shapes(manifest), largest, target)
    names = [name for name, _ in LAYER.findall(log)]
    memory = {name.lower(): int(size) for name, size in MEMORY.findall(log)}
    found = {
        "library": LIBRARIES[0],
        "version": str(trt.__version__),
        "layers": len(names),
        "mha": sum("mha" in name for name in names),
        "types": dict(Counter(DATATYPE.findall(log))),
        "bytes": len(plan),
        "engine_weights": memory.get("weights"),
        "activations": memory.get("activation"),
        "weights": expected_weights(model.graph),
    }
    judge(export, manifest, found)
    return found


def expected_weights(graph: onnx.GraphProto) -> int:
    """Bytes that an engine should hold: those of the file, but `DEPTHWISE` for an int8 weight of a depthwise convolution."""
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type not in WHOLE}
    stored = {node.output[0]: node.input[0] for node in graph.node if node.op_type in ("DequantizeLinear", "Cast")}
    total = sum(len(tensor.raw_data) for tensor in tensors.values())
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1]
        while name in stored:
            name = stored[name]
        tensor = tensors.get(name)
        if tensor is not None and tensor.data_type == onnx.TensorProto.INT8 and tensor.dims[1] == 1:
            total += (DEPTHWISE - 1) * len(tensor.raw_data)
    return total


def compiler() -> Any:
    """The module of TensorRT-RTX, under whichever name it is installed; the first name's error if under none."""
    try:
        return importlib.import_module(LIBRARIES[0])
    except ImportError:
        if importlib.util.find_spec(LIBRARIES[1]) is None:
            raise
        return importlib.import_module(LIBRARIES[1])


def build(trt: Any, model: bytes, shapes: dict[str, tuple[int, ...]], largest: int, target: str = "SM86") -> tuple[bytes, str]:
    """The engine's bytes and the whole build log. Raises UserError with the compiler's own words.

    Every object stays in a variable until the end: a network collected while its parser lives crashes the process.
    """
    lines: list[str] = []

    class Listener(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            lines.append(text)

    logger = Listener()
    builder = trt.Builder(logger)
    network = builder.create_network(strongly_typed_flag(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UserError(f"{LIBRARIES[0]} refuses the graph ({reasons}); export it again, or choose another student")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, *((batch, *shape) for batch in (1, 1, largest)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"{LIBRARIES[0]} could not build the graph ({lines[-1] if lines else 'no reason given'})")
    return bytes(plan), "\n".join(lines)


def judge(export: Path, manifest: dict[str, Any], found: dict[str, Any]) -> None:
    """Hold what was built against the manifest; raises UserError with the first thing that is not as promised.

    Attention is expected to fuse in half precision only: float32 attention never does.
    """
    precision = manifest["config"]["precision"]
    if not found["layers"] or found["engine_weights"] is None:
        name = f"{LIBRARIES[0]} {found['version']}"
        raise UserError(f"{export}: the build log of {name} lists no layers or no weights; its format is another one")
    if "attention" not in manifest["structure"]:
        raise UserError(f"{export}: written by an older version, which did not count attention layers; export it again")
    expected = manifest["structure"]["attention"]["fusable"]
    if precision in ("fp16", "int8_fp16", "fp8_fp16") and found["mha"] != expected:
        text = f"{found['mha']} of {expected} attention layers became one kernel"
        raise UserError(f"{export}: {text}; this student will be slow on the device, choose another one")
    if EXPECTED_TYPE[precision] not in found["types"]:
        text = f"tensors of types {found['types']}, none is {EXPECTED_TYPE[precision]}"
        raise UserError(f"{export}: the engine has {text} though {precision} was asked; export it again")
    if abs(found["engine_weights"] - found["weights"]) > PART * found["weights"] + SLACK:
        text = f"{found['engine_weights'] / 1e6:.1f} MB of weights where {found['weights'] / 1e6:.1f} MB were expected"
        raise UserError(f"{export}: the engine holds {text}; the compiler stores them otherwise than asked")
