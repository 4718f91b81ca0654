"""INT8 by Q/DQ around the layers that hold weights, and nothing else: attention and residuals keep their precision.

Called by `export.precision`. The defaults of quantizers harm transformers: residual additions and attention products in INT8
cost most of the quality, int32 biases and zero points are refused by TensorRT. Activations are symmetric per tensor, weights
symmetric per channel, biases stay floating, outputs are not quantized.

    vega-edge export RUN --out EXPORT --precision int8 --cache CACHE
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx

from export.audit import Ranges, in_order
from vega_artifact import UserError

OPERATORS = ("Conv", "Gemm", "MatMul")


def weighted_nodes(model: onnx.ModelProto, fixed: Iterable[np.ndarray] = ()) -> list[str]:
    """Names of the Conv, Gemm and MatMul nodes whose second input is a learned constant.

    Args:
        fixed: constants that nobody learned (resampling to the teacher's grid, way back into its units): they stay exact.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    known = {_key(side) for value in fixed for side in (value, np.swapaxes(value, -1, -2) if value.ndim > 1 else value)}
    found = []
    for node in model.graph.node:
        if node.op_type in OPERATORS and node.input[1] in constants:
            if _key(onnx.numpy_helper.to_array(constants[node.input[1]])) not in known:
                found.append(node.name)
    return found


def _key(value: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return value.shape, np.ascontiguousarray(value, np.float32).tobytes()


def to_int8(model: onnx.ModelProto, ranges: Ranges, nodes: list[str]) -> onnx.ModelProto:
    """A copy of an fp32 graph with Q/DQ before both inputs of `nodes`; all else stays float32.

    Args:
        ranges: of every activation, from `export.audit.measure_ranges`. nodes: from `weighted_nodes`.

    Raises:
        UserError: there is nothing to quantize, or a range is missing.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    if not nodes:
        raise UserError("precision int8: this student has no layer with weights to quantize; export with --precision fp16")
    sources = {node.input[0] for node in model.graph.node if node.name in set(nodes)}
    if lacking := sorted(sources - set(ranges)):
        raise UserError(f"precision int8: no measured range for {lacking[0]}; calibrate with --cache CACHE")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        copy,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, data),
        nodes_to_quantize=nodes,
        nodes_to_exclude=[],
        op_types_to_quantize=list(OPERATORS),
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(OPERATORS),
            "QDQDisableWeightAdjustForInt32Bias": True,
        },
    )
    quantizer.quantize_model()
    spare_others(quantizer.model.model, set(nodes))
    result = in_order(quantizer.model.model)
    check_quantized(result, nodes)
    return result


def spare_others(model: onnx.ModelProto, wanted: set[str]) -> None:
    """The quantizer rounds a tensor for everyone who reads it, a residual too: give all but `wanted` the exact one back."""
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.name in wanted or node.op_type == "DequantizeLinear":
            continue
        for index, name in enumerate(node.input):
            dequantized = producers.get(name)
            if dequantized is not None and dequantized.op_type == "DequantizeLinear":
                rounded = producers.get(dequantized.input[0])
                if rounded is not None:
                    node.input[index] = rounded.input[0]


def check_quantized(model: onnx.ModelProto, nodes: list[str]) -> None:
    """Refuse a graph TensorRT would, or one whose quantizer left out a layer or took one it should not.

    Raises:
        UserError: naming the first layer that breaks the rule.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantized = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    wanted = set(nodes)
    for node in model.graph.node:
        sides = [name in dequantized for name in node.input]
        if node.name in wanted and (sides[:2] != [True, True] or any(sides[2:])):
            raise UserError(f"precision int8: {node.name} was not quantized as asked; export with --precision fp16")
        if node.name not in wanted and any(sides):
            raise UserError(f"precision int8: {node.name} ({node.op_type}) was quantized unasked; export with --precision fp16")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero = onnx.numpy_helper.to_array(constants[node.input[2]])
            if zero.dtype != np.int8 or zero.any():
                text = f"zero point of {node.name} is not 0 in int8"
                raise UserError(f"precision int8: {text}, which TensorRT refuses; export with --precision fp16")


def count_quantized(model: onnx.ModelProto) -> dict[str, int]:
    """How many layers hold INT8 weights, and how many activations are rounded for them."""
    constants = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    weights = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants}
    return {
        "weights": sum(bool(weights & set(node.input[1:2])) for node in model.graph.node if node.op_type in OPERATORS),
        "activations": sum(node.op_type == "QuantizeLinear" for node in model.graph.node),
    }
