"""A transformer of eleven operators, written by hand: what the graph passes are tested on without tracing a network."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GRID = np.eye(4, dtype=np.float32)[::-1] * 0.5  # a fixed matrix nobody learned
WEIGHTED = ["patch", "values", "head"]


def small_graph(scale: float = 1.0) -> onnx.ModelProto:
    """images (batch, 3, 8, 8) -> fused (batch, 4, 6): convolution, norm, attention, residual, head.

    Args:
        scale: factor between the convolution and a division by it before the norm; 1e6 leaves half precision.
    """
    rng = np.random.default_rng(0)
    constants = {
        "patch.weight": rng.normal(0, 0.2, (8, 3, 4, 4)),
        "scale": np.array(scale),
        "unscale": np.array(1 / scale),
        "shape": np.array([0, 8, 4], np.int64),
        "norm.weight": rng.normal(1, 0.1, 8),
        "norm.bias": rng.normal(0, 0.1, 8),
        "values.weight": rng.normal(0, 0.4, (8, 8)),
        "values.bias": rng.normal(0, 0.1, 8),
        "grid": GRID,
        "head.weight": rng.normal(0, 0.4, (8, 6)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "patch.weight"], ["map"], "patch", strides=[4, 4]),
        helper.make_node("Mul", ["map", "scale"], ["large"], "enlarge"),
        helper.make_node("Mul", ["large", "unscale"], ["small"], "reduce"),
        helper.make_node("Reshape", ["small", "shape"], ["flat"], "flatten"),
        helper.make_node("MatMul", ["flat", "grid"], ["mixed"], "resample"),
        helper.make_node("Transpose", ["mixed"], ["tokens"], "tokens", perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["tokens", "norm.weight", "norm.bias"], ["normed"], "norm"),
        helper.make_node("Transpose", ["normed"], ["keys"], "keys", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["normed", "keys"], ["logits"], "attend"),
        helper.make_node("Softmax", ["logits"], ["shares"], "softmax"),
        helper.make_node("MatMul", ["normed", "values.weight"], ["product"], "values"),
        helper.make_node("Add", ["product", "values.bias"], ["value"], "bias"),
        helper.make_node("MatMul", ["shares", "value"], ["gathered"], "gather"),
        helper.make_node("Add", ["tokens", "gathered"], ["residual"], "residual"),
        helper.make_node("MatMul", ["residual", "head.weight"], ["fused"], "head"),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 8])
    fused = helper.make_tensor_value_info("fused", TensorProto.FLOAT, ["batch", 4, 6])
    kinds = {name: np.asarray(v) if np.asarray(v).dtype == np.int64 else np.float32(v) for name, v in constants.items()}
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in kinds.items()]
    graph = helper.make_graph(nodes, "small", [images], [fused], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized_convolution(channels: int, kernel: int, groups: int) -> onnx.ModelProto:
    """images (batch, channels, 16, 16) -> fused of the same shape: one int8 convolution."""
    shape = (channels, channels // groups, kernel, kernel)
    constants = {
        "weight": np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8),
        "weight.scale": np.full(channels, 0.01, np.float32),
        "weight.zero": np.zeros(channels, np.int8),
        "scale": np.array(0.05, np.float32),
        "zero": np.array(0, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["whole"], "quantize"),
        helper.make_node("DequantizeLinear", ["whole", "scale", "zero"], ["input"], "dequantize"),
        helper.make_node("DequantizeLinear", ["weight", "weight.scale", "weight.zero"], ["real"], "real", axis=0),
        helper.make_node("Conv", ["input", "real"], ["fused"], "convolve", group=groups, pads=[kernel // 2] * 4),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 16, 16]) for name in ("images", "fused")]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "convolution", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def images(count: int = 8, seed: int = 1) -> np.ndarray:
    """Input for `small_graph`, float32 (count, 3, 8, 8)."""
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)
