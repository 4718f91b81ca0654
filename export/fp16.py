"""Half precision as a typed graph, with float32 islands where measured ranges say that half would overflow or vanish.

Called by `export.precision`. TensorRT 11 has no weak typing: what the graph says is what runs. Input and outputs stay as they
were, so the runtime never changes.

    vega-edge export RUN --out EXPORT --precision fp16 --cache CACHE
"""

from __future__ import annotations

import logging

import numpy as np
import onnx

from export.audit import Ranges, in_order
from vega_artifact import UserError

HALF_MAX = float(np.finfo(np.float16).max)
HALF_TINY = float(np.finfo(np.float16).tiny)  # below it, half loses digits
MARGIN = 4.0  # pictures not seen at calibration reach further; two bits cost half precision nothing
SQUARING = {"LayerNormalization"}  # kernels that sum squares, on some devices in the type of their input


def islands(model: onnx.ModelProto, ranges: Ranges) -> list[str]:
    """Names of the nodes that must stay float32: a tensor beside them leaves half precision, or its squares do."""
    widest = {name: max(abs(low), abs(high)) for name, (low, high) in ranges.items()}
    found = []
    for node in model.graph.node:
        sizes = [widest[name] for name in [*node.input, *node.output] if name in widest]
        overflow = any(size > HALF_MAX / MARGIN for size in sizes)
        vanish = any(0 < size < HALF_TINY for size in sizes)
        squares = node.op_type in SQUARING and any(size**2 > HALF_MAX / MARGIN for size in sizes[:1])
        if overflow or vanish or squares:
            found.append(node.name)
    return found


def to_half(model: onnx.ModelProto, keep: list[str] | None = None) -> onnx.ModelProto:
    """A copy of an fp32 graph with half-precision weights and arithmetic and unchanged input and outputs.

    onnxruntime's own converter is used because it is installed wherever the export runs; operators that need float32 keep it.

    Args:
        keep: nodes that stay float32, from `islands`.

    Raises:
        UserError: a weight outside an island lies outside the range of half precision.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    kept = set(keep or ())
    used = {name for node in model.graph.node if node.name not in kept for name in node.input}
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and tensor.name in used:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
            if largest > HALF_MAX:
                text = f"{tensor.name} reaches {largest:.3g}, half precision ends at {HALF_MAX:.0f}"
                raise UserError(f"precision fp16: weight {text}; export with --precision fp32")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    half = convert_float_to_float16(copy, keep_io_types=True, node_block_list=sorted(kept))
    drop_repeated_casts(half.graph)
    join_islands(half.graph)
    del half.graph.value_info[:]  # recorded before casts and islands moved the types; parsers infer them anew
    return in_order(half)


def drop_repeated_casts(graph: onnx.GraphProto) -> None:
    """The converter casts a weight that several islands share once for each of them, under one name: keep one."""
    seen: set[str] = set()
    for node in list(graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            graph.node.remove(node)  # the first of equal ones; which of them is left makes no difference
        seen.update(node.output)


def join_islands(graph: onnx.GraphProto) -> None:
    """Between two float32 neighbours the converter passes the value through half, where it overflows: pass it directly."""
    producers = {name: node for node in graph.node for name in node.output}
    direct: dict[str, str] = {}
    for node in graph.node:
        if _casts(node, onnx.TensorProto.FLOAT) and _casts(producers.get(node.input[0]), onnx.TensorProto.FLOAT16):
            direct[node.output[0]] = producers[node.input[0]].input[0]
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in direct:
                node.input[index] = direct[name]
    _drop_unused_casts(graph, outputs)


def _casts(node: onnx.NodeProto | None, kind: int) -> bool:
    return node is not None and node.op_type == "Cast" and node.attribute[0].i == kind


def _drop_unused_casts(graph: onnx.GraphProto, outputs: set[str]) -> None:
    while True:
        used = {name for node in graph.node for name in node.input} | outputs
        unused = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]
        if not unused:
            return
        for node in unused:
            graph.node.remove(node)
