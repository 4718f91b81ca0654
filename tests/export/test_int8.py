"""INT8: which layers it takes, which it leaves, and that nobody takes or leaves one in silence.

python -m pytest tests/export/test_int8.py
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from export.audit import count_attention, measure_ranges, open_session
from export.int8 import check_quantized, count_quantized, to_int8, weighted_nodes
from export.parity import difference
from vega_artifact import UserError

from .graphs import GRID, WEIGHTED, images, small_graph


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    model = small_graph()
    return to_int8(model, measure_ranges(model, images()), WEIGHTED)


def test_layers_with_learned_weights_and_nothing_else() -> None:
    model = small_graph()
    assert weighted_nodes(model, [GRID]) == WEIGHTED
    assert weighted_nodes(model, [GRID.T]) == WEIGHTED  # the exporter stores it transposed
    assert weighted_nodes(model) == ["patch", "resample", "values", "head"]


def test_attention_residual_and_fixed_matrices_stay_float(quantized: onnx.ModelProto) -> None:
    made_by = {name: node.op_type for node in quantized.graph.node for name in node.output}
    for node in quantized.graph.node:
        sides = [made_by.get(name) == "DequantizeLinear" for name in node.input]
        assert any(sides) == (node.name in WEIGHTED), node.name
    assert count_quantized(quantized) == {"weights": 3, "activations": 3}
    assert count_attention(quantized.graph) == 1
    onnx.checker.check_model(quantized, full_check=True)
    assert {entry.domain for entry in quantized.opset_import} == {""}


def test_weights_are_symmetric_per_channel_and_no_bias_is_int32(quantized: onnx.ModelProto) -> None:
    kinds = Counter(tensor.data_type for tensor in quantized.graph.initializer)
    assert onnx.TensorProto.INT32 not in kinds and onnx.TensorProto.UINT8 not in kinds
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer}
    scales = {node.name: weights[node.input[1]] for node in quantized.graph.node if node.op_type == "DequantizeLinear"}
    assert sorted(scale.size for scale in scales.values()) == [1, 1, 1, 6, 8, 8]


def test_computes_nearly_the_same(quantized: onnx.ModelProto) -> None:
    given = {"images": images(seed=2)}
    exact, found = (open_session(m.SerializeToString()).run(None, given)[0] for m in (small_graph(), quantized))
    distance = difference(exact, found)
    assert 1e-4 < distance["relative"] < 0.05 and distance["cosine"] > 0.998


def test_ranges_decide_the_scale_and_clip() -> None:
    model = small_graph()
    ranges = {name: (low / 50, high / 50) for name, (low, high) in measure_ranges(model, images()).items()}
    clipped = to_int8(model, ranges, WEIGHTED)
    given = {"images": images(seed=2)}
    exact, found = (open_session(m.SerializeToString()).run(None, given)[0] for m in (model, clipped))
    assert difference(exact, found)["relative"] > 0.5


def test_nothing_to_quantize_and_missing_ranges_are_refused() -> None:
    model = small_graph()
    with pytest.raises(UserError, match=r"no layer with weights.*--precision fp16"):
        to_int8(model, {}, [])
    with pytest.raises(UserError, match=r"no measured range for images; calibrate with --cache CACHE"):
        to_int8(model, {"residual": (-1.0, 1.0), "normed": (-1.0, 1.0)}, WEIGHTED)


class TestAssertions:
    """What a quantizer does in silence must be noticed."""

    def test_a_layer_left_out(self, quantized: onnx.ModelProto) -> None:
        with pytest.raises(UserError, match="resample was not quantized as asked"):
            check_quantized(quantized, [*WEIGHTED, "resample"])

    def test_a_layer_taken_unasked(self, quantized: onnx.ModelProto) -> None:
        with pytest.raises(UserError, match=r"head \(MatMul\) was quantized unasked"):
            check_quantized(quantized, ["patch", "values"])

    def test_a_zero_point_tensorrt_refuses(self, quantized: onnx.ModelProto) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(quantized)
        node = next(node for node in copy.graph.node if node.op_type == "QuantizeLinear")
        zero = next(tensor for tensor in copy.graph.initializer if tensor.name == node.input[2])
        shifted = onnx.numpy_helper.to_array(zero) + np.int8(3)
        zero.CopyFrom(onnx.numpy_helper.from_array(shifted.astype(np.int8), zero.name))
        with pytest.raises(UserError, match="zero point of .* is not 0"):
            check_quantized(copy, WEIGHTED)
