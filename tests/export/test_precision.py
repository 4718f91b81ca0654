"""Half precision with islands, scores, and the rule that recommends.

python -m pytest tests/export/test_precision.py
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from export.audit import measure_ranges, open_session
from export.fp16 import islands, to_half
from export.parity import difference
from export.precision import Variant, as_variant, recommend, score, typed
from vega_artifact import UserError

from .graphs import WEIGHTED, images, small_graph


def run(model: onnx.ModelProto) -> np.ndarray:
    return open_session(model.SerializeToString()).run(None, {"images": images(seed=2)})[0]


class TestIslands:
    def test_none_where_everything_fits(self) -> None:
        model = small_graph()
        assert islands(model, measure_ranges(model, images())) == []

    def test_nodes_beside_a_tensor_that_overflows(self) -> None:
        model = small_graph(scale=1e6)
        assert islands(model, measure_ranges(model, images())) == ["enlarge", "reduce"]

    def test_norms_whose_squares_overflow_and_values_that_vanish(self) -> None:
        model = small_graph()
        ranges = measure_ranges(model, images())
        assert islands(model, ranges | {"tokens": (-200.0, 1.0)}) == ["norm"]
        assert islands(model, ranges | {"shares": (0.0, 1e-6)}) == ["softmax", "gather"]
        assert islands(model, ranges | {"shares": (0.0, 0.0)}) == []

    def test_keep_what_half_would_lose_and_never_pass_through_it(self) -> None:
        model = small_graph(scale=1e6)
        keep = islands(model, measure_ranges(model, images()))
        half = to_half(model, keep)
        onnx.checker.check_model(half, full_check=True)
        assert difference(run(model), run(half))["relative"] < 5e-3
        kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
        assert kinds["scale"] == onnx.TensorProto.FLOAT and kinds["head.weight"] == onnx.TensorProto.FLOAT16
        # onnxruntime's CPU computes half in float32 and would hide an overflow: the two must be joined without casts.
        nodes = {node.name: node for node in half.graph.node}
        assert nodes["reduce"].input[0] == nodes["enlarge"].output[0]
        assert sum(node.op_type == "Cast" for node in half.graph.node) == 4  # around the graph and around the island

    def test_share_a_weight_with_each_other_and_with_the_rest(self) -> None:
        model = small_graph(scale=1.0)
        nodes = {node.name: node for node in model.graph.node}
        for name in ("reduce", "bias"):
            nodes[name].input[1] = "scale"
        half = to_half(model, ["enlarge", "reduce"])
        onnx.checker.check_model(half, full_check=True)
        assert difference(run(model), run(half))["relative"] < 5e-3

    def test_weights_beyond_half_are_refused_outside_islands(self) -> None:
        with pytest.raises(UserError, match=r"scale reaches 1e\+06, half .* 65504; export with --precision fp32"):
            to_half(small_graph(scale=1e6))


class TestTyped:
    @pytest.mark.parametrize(("precision", "most"), [("fp32", "float"), ("fp16", "float16"), ("int8_fp16", "int8")])
    def test_every_precision_is_in_the_graph(self, precision: str, most: str) -> None:
        model = small_graph()
        found, facts = typed(model, precision, measure_ranges(model, images()), WEIGHTED)
        sizes: dict[str, int] = {}
        for tensor in found.graph.initializer:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            sizes[kind] = sizes.get(kind, 0) + int(np.prod(tensor.dims))
        assert max(sizes, key=lambda kind: sizes[kind]) == most
        assert ("float" in sizes) == (precision == "fp32")
        assert ("quantized" in facts) == (precision == "int8_fp16")
        assert difference(run(model), run(found))["cosine"] > 0.998


class TestScore:
    def test_every_output_and_every_probe_of_both(self) -> None:
        reference = {"fused": images().reshape(8, 12, 16), "other": images(seed=3).reshape(8, 12, 16)}
        found = {"fused": reference["fused"], "other": reference["other"] + 0.3}
        scored = score(reference, found, {"mean": lambda streams: float(streams["other"].mean())})
        assert scored["streams"]["fused"]["cosine"] == pytest.approx(1) and 0.8 < scored["streams"]["other"]["cosine"] < 0.99
        assert scored["probes"]["mean"]["found"] - scored["probes"]["mean"]["fp32"] == pytest.approx(0.3, abs=1e-5)
        variant = as_variant("fp16", scored)
        assert variant.cosine == scored["streams"]["other"]["cosine"] and variant.drops["mean"] == pytest.approx(-0.3, abs=1e-5)

    def test_values_that_are_not_finite_are_the_worst(self) -> None:
        reference = {"fused": images().reshape(8, 12, 16)}
        assert as_variant("fp16", score(reference, {"fused": reference["fused"] * np.nan})).cosine == -1


class TestRule:
    """Quality within the margin first, then speed."""

    @pytest.mark.parametrize(
        ("times", "chosen", "why"),
        [
            ((10.0, 6.0, 3.0), "int8", "the fastest within the margin"),
            ((10.0, 6.0, 5.9), "fp16", "int8 is only 1.02x as fast, 1.1x asked for"),
            ((4.0, 9.0, 5.0), "fp32", "the fastest"),
            ((None, None, None), "fp16", "not timed on the target"),
        ],
    )
    def test_speed_decides_among_the_good(self, times: tuple, chosen: str, why: str) -> None:
        names = ("fp32", "fp16", "int8")
        verdict = recommend([Variant(name, 0.999, milliseconds=time) for name, time in zip(names, times)])
        assert verdict["precision"] == chosen and why in verdict["why"]

    def test_a_fast_variant_outside_the_margin_loses_with_its_reason(self) -> None:
        good = Variant("fp16", 0.9999, milliseconds=9.0)
        verdict = recommend([good, Variant("int8", 0.98, milliseconds=1.0)])
        assert verdict["precision"] == "fp16" and "int8: cosine 0.9800 is below 0.995" in verdict["why"]
        verdict = recommend([good, Variant("int8", 0.999, {"depth_r2": 0.05}, milliseconds=1.0)])
        assert verdict["precision"] == "fp16" and "depth_r2 drops by 0.050" in verdict["why"]

    def test_nothing_good_enough_is_said(self) -> None:
        with pytest.raises(UserError, match=r"no precision keeps the quality \(fp16: cosine -1.0000"):
            recommend([Variant("fp16", -1.0), Variant("int8", float("nan"))])
