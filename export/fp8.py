"""FP8 (E4M3) from INT8: the same layers, the same measured ranges, eight bits that hold an exponent. For Thor; Orin has none.

Called by `export.precision`. Where `export.int8` put Q/DQ pairs, their integers become E4M3 numbers: scale = largest absolute
value / 448, zero points 0, weights rounded anew from the float graph. TensorRT takes the pairs as FP8 layers.

    vega-edge export RUN --out EXPORT --precision fp8_fp16 --cache CACHE

Source: Micikevicius et al. 2022 (FP8 formats for deep learning); ONNX operators QuantizeLinear and DequantizeLinear, opset 19.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from ml_dtypes import float8_e4m3fn
from onnx import TensorProto, helper, numpy_helper

INT8_LARGEST, FP8_LARGEST = 127.0, 448.0
PAIR = ("QuantizeLinear", "DequantizeLinear")


def to_fp8(quantized: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an INT8 Q/DQ graph with E4M3 in place of INT8.

    Args:
        quantized: from `export.int8.to_int8`. original: the float32 graph it was made from, which has the exact weights.
    """
    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    exact = {tensor.name: tensor for tensor in original.graph.initializer}
    producers = {name: node for node in result.graph.node for name in node.output}
    pairs = [node for node in result.graph.node if node.op_type in PAIR]
    for name in {node.input[1] for node in pairs}:
        values = numpy_helper.to_array(tensors[name]) * np.float32(INT8_LARGEST / FP8_LARGEST)
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))
    for name in {node.input[2] for node in pairs}:
        zero = tensors[name]
        zero.CopyFrom(helper.make_tensor(name, TensorProto.FLOAT8E4M3FN, zero.dims, bytes(math.prod(zero.dims)), raw=True))
    for node in pairs:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors and node.input[0] not in producers:
            weight = tensors[node.input[0]]
            name = next(name for name in exact if weight.name.startswith(name) and exact[name].dims == weight.dims)
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            _round(weight, numpy_helper.to_array(exact[name]), numpy_helper.to_array(tensors[node.input[1]]), axis)
    typed = [value for value in result.graph.value_info if value.type.tensor_type.elem_type != TensorProto.INT8]
    del result.graph.value_info[:]
    result.graph.value_info.extend(typed)
    return result


def _round(weight: TensorProto, exact: np.ndarray, scale: np.ndarray, axis: int) -> None:
    shape = [1] * exact.ndim
    if scale.ndim:
        shape[axis] = scale.size
    values = np.clip(exact / scale.reshape(shape), -FP8_LARGEST, FP8_LARGEST).astype(float8_e4m3fn)
    weight.CopyFrom(helper.make_tensor(weight.name, TensorProto.FLOAT8E4M3FN, list(exact.shape), values.tobytes(), raw=True))
