"""FP8 from INT8: the same layers, E4M3 numbers, and a graph that nearly computes the same.

python -m pytest tests/export/test_fp8.py
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from ml_dtypes import float8_e4m3fn

from export.audit import measure_ranges, open_session
from export.fp8 import to_fp8
from export.int8 import to_int8
from export.parity import difference
from export.precision import FP8, VARIANTS

from .graphs import WEIGHTED, images, small_graph


@pytest.fixture(scope="module")
def graphs() -> tuple[onnx.ModelProto, onnx.ModelProto, onnx.ModelProto]:
    """The float graph, its INT8 and its FP8."""
    model = small_graph()
    quantized = to_int8(model, measure_ranges(model, images()), WEIGHTED)
    return model, quantized, to_fp8(quantized, model)


def test_every_integer_became_e4m3_and_nothing_else_changed(graphs) -> None:
    _, quantized, found = graphs
    kinds, before = (Counter(tensor.data_type for tensor in g.graph.initializer) for g in (found, quantized))
    assert kinds[onnx.TensorProto.FLOAT8E4M3FN] == before[onnx.TensorProto.INT8] > 0 and onnx.TensorProto.INT8 not in kinds
    assert [node.SerializeToString() for node in found.graph.node] == [n.SerializeToString() for n in quantized.graph.node]
    onnx.checker.check_model(found, full_check=True)


def test_weights_are_rounded_from_the_exact_ones(graphs) -> None:
    """E4M3 keeps four significant bits: no weight is off by more than a sixteenth, or by the smallest step near zero."""
    model, _, found = graphs
    exact = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    stored = {t.name: t for t in found.graph.initializer}
    checked = 0
    for node in found.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            name = next(name for name in exact if node.input[0].startswith(name))
            codes = np.frombuffer(stored[node.input[0]].raw_data, float8_e4m3fn).reshape(exact[name].shape).astype(np.float32)
            scale = onnx.numpy_helper.to_array(stored[node.input[1]])
            shape = [1] * codes.ndim
            shape[next(a.i for a in node.attribute if a.name == "axis")] = scale.size
            step = scale.reshape(shape) * 2.0**-9
            assert (np.abs(codes * scale.reshape(shape) - exact[name]) <= np.abs(exact[name]) / 16 + step).all()
            assert np.abs(codes).max() == 448
            checked += 1
    assert checked == len(WEIGHTED)


def test_it_computes_nearly_the_same_where_the_optimiser_cannot_break_it(graphs) -> None:
    model, quantized, found = graphs
    given = {"images": images(seed=2)}
    exact, eight, fp8 = (open_session(g.SerializeToString()).run(None, given)[0] for g in (model, quantized, found))
    assert difference(exact, fp8)["cosine"] > 0.995
    assert difference(exact, fp8)["relative"] > difference(exact, eight)["relative"], "three bits of mantissa against seven"


def test_it_is_made_on_request_only() -> None:
    assert FP8 not in VARIANTS
