"""What a graph is, as data: operators, attention, weights, and the range of every tensor on real pictures.

Between `export.structure` (which refuses) and the manifest (which records). Also the safe way to open an ONNX file that came
from somewhere else.

    from export.audit import load_model, audit
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from export.runtime import backends
from vega_artifact import UserError

OPSETS = range(17, 21)  # LayerNormalization begins at 17; TensorRT 10.0-10.3 (JetPack 6) end at 20
CARRYING = {"Cast", "Reshape", "Transpose", "QuantizeLinear", "DequantizeLinear"}  # the same numbers in another form
SCALING = CARRYING | {"Add", "Sub", "Mul", "Div", "Where"}  # what may happen to logits before their softmax
Ranges = dict[str, tuple[float, float]]


def load_model(path: Path | str) -> onnx.ModelProto:
    """Read an ONNX file of ours or of others, weights included.

    Raises:
        UserError: no such file, a truncated or foreign one, external data outside its folder or missing, another opset than
            `OPSETS`, operators outside the standard.
    """
    path = Path(path)
    again = "copy or export it again"
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it with `vega-edge export RUN --out DIR`") from None
    except DecodeError:
        raise UserError(f"{path}: truncated, or no ONNX file; {again}") from None
    _check_external(model.graph, path)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    if foreign := set(opsets) - {"ai.onnx"}:
        raise UserError(f"{path}: needs operators outside the ONNX standard ({', '.join(sorted(foreign))}); {again}")
    if opsets.get("ai.onnx") not in OPSETS:
        known = f"{OPSETS[0]} to {OPSETS[-1]}"
        raise UserError(f"{path}: opset {opsets.get('ai.onnx')}, but {known} are what devices read; {again}")
    onnx.load_external_data_for_model(model, str(path.parent))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(f"{path}: truncated or invalid ONNX ({str(error).splitlines()[0]}); {again}") from None
    return model


def _check_external(graph: onnx.GraphProto, path: Path) -> None:
    folder = path.resolve().parent
    for tensor in _tensors(graph):
        if not uses_external_data(tensor):
            continue
        location = ExternalDataInfo(tensor).location
        target = (folder / location).resolve()  # follows links: one inside may point outside
        if Path(location).is_absolute() or not target.is_relative_to(folder):
            raise UserError(f"{path}: weight {tensor.name} points outside its folder ({location}); refuse such files")
        if not target.is_file():
            raise UserError(f"{path}: its weights {location} are missing; copy them beside it")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph, also those in attributes and in graphs inside operators."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _tensors(inner)


def count_attention(graph: onnx.GraphProto) -> int:
    """Softmaxes between two matrix products, whatever scaling, bias, mask, cast or Q/DQ lies in between."""
    producers = {name: node for node in graph.node for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def before(name: str) -> bool:
        node = producers.get(name)
        if node is None or node.op_type == "MatMul":
            return node is not None
        return node.op_type in SCALING and any(before(source) for source in node.input[:2])

    def after(name: str) -> bool:
        return any(
            node.op_type == "MatMul" or (node.op_type in CARRYING and after(node.output[0])) for node in consumers.get(name, [])
        )

    return sum(node.op_type == "Softmax" and before(node.input[0]) and after(node.output[0]) for node in graph.node)


def weights_hash(model: onnx.ModelProto) -> str:
    """SHA-256 over all constants (type, shape, bytes) in an order that names and nodes have no part in."""
    digests = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        digests.append(hashlib.sha256(f"{tensor.data_type} {values.shape}".encode() + values.tobytes()).hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def audit(model: onnx.ModelProto, attention: dict[str, int], ranges: Ranges | None) -> dict[str, Any]:
    """Facts for the manifest beside those of `check_structure`.

    Args:
        attention: softmax attention layers the network ran, from `export.structure.count_layers`.
        ranges: from `measure_ranges`; None where nothing was measured.
    """
    counts = {"graph": count_attention(model.graph)} | attention
    found = {"attention": counts, "weights_sha256": weights_hash(model)}
    if ranges is None:
        return found
    rounded = {name: [float(f"{low:.4g}"), float(f"{high:.4g}")] for name, (low, high) in ranges.items()}
    return found | {"ranges": rounded}


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with producers before consumers, as the standard wants; converters append their nodes at the end."""
    ordered = onnx_ir.from_proto(model)
    ordered.graph.sort()
    return onnx_ir.to_proto(ordered)


def open_session(model: bytes, threads: int = 1) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU, silent but for errors."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return backends.open_session(model, options, ["CPUExecutionProvider"])


def measure_ranges(model: onnx.ModelProto, images: np.ndarray, batch: int = 4) -> Ranges:
    """`ranges_over` all `images`, (F, ...) as the only input of the graph takes them."""
    name = model.graph.input[0].name
    return ranges_over(model, ({name: images[start : start + batch]} for start in range(0, len(images), batch)))


def ranges_over(model: onnx.ModelProto, feeds: Iterable[Mapping[str, np.ndarray]]) -> Ranges:
    """Smallest and largest value of every floating activation of an fp32 graph, float inputs included.

    Args:
        feeds: what the graph's inputs are given, one call after the other.

    Raises:
        UserError: an activation is not finite: such a student cannot be calibrated.
    """
    inferred = onnx.shape_inference.infer_shapes(model)
    named = {output.name for output in model.graph.output}
    wanted = [value for value in inferred.graph.value_info if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(value for value in wanted if value.name not in named)
    session = open_session(watched.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    ranges: Ranges = {}
    for feed in feeds:
        given = {name: value for name, value in feed.items() if value.dtype == np.float32}
        for name, value in {**given, **dict(zip(names, session.run(names, dict(feed))))}.items():
            low, high = float(value.min()), float(value.max())
            if not np.isfinite([low, high]).all():
                raise UserError(f"the student's tensor {name} is not finite on the calibration frames; train it again")
            known = ranges.get(name, (low, high))
            ranges[name] = (min(low, known[0]), max(high, known[1]))
    return ranges
