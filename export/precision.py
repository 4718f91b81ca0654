"""Precision lives in the graph: the fp16 variant is a typed graph, because TensorRT 11 knows nothing else.

Applied by `export.onnx` after the fp32 graph is made. Input and output stay float32, so the runtime never changes.

    vega-edge export RUN --out EXPORT --precision fp16
"""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx_ir

from vega_artifact import UserError

PRECISIONS = ("fp32", "fp16")
HALF_MAX = float(np.finfo(np.float16).max)


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an fp32 graph with half-precision weights and arithmetic and float32 input and outputs.

    onnxruntime's own converter is used because it is installed wherever the export runs; operators that need float32 keep it.

    Raises:
        UserError: a weight lies outside the range of half precision.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0.0))
            if largest > HALF_MAX:
                text = f"{tensor.name} reaches {largest:.3g}, half precision ends at {HALF_MAX:.0f}"
                raise UserError(f"precision fp16: weight {text}; export with --precision fp32")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    logging.getLogger("onnxruntime.transformers").setLevel(logging.ERROR)
    half = onnx_ir.from_proto(convert_float_to_float16(copy, keep_io_types=True))
    half.graph.sort()  # the converter appends its casts at the end; the standard wants producers before consumers
    return onnx_ir.to_proto(half)
