"""Comparing measurements, bounds that are counted by hand, and the picture.

python -m pytest tests/bench/test_latency_compare.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench import latency, latency_chart, roofline
from bench.compare import blocks, compare, row, text, within
from bench.roofline import DEVICES, Work, check, main, of_artifacts, operations, recognise, rows, work_of
from bench.timing_verbs import Compare, Latency
from vega_artifact import UserError, write_manifest


def measured(path: Path, calls: dict[str, np.ndarray], **machine: Any) -> Path:
    """A file as `vega-edge bench latency --out` writes it, with all of a call in `infer`."""
    samples = {}
    for name, values in calls.items():
        zeros = [0.0] * len(values)
        samples[name] = {"settled": True, "pre_ms": zeros, "infer_ms": list(values), "post_ms": zeros}
    path.write_text(json.dumps({"samples": samples, "machine": {"device": "board", **machine}}))
    return path


def noisy(middle: float, seed: int = 0, count: int = 60) -> np.ndarray:
    return middle * np.exp(0.05 * np.random.default_rng(seed).standard_normal(count))


OTHER = '{"samples": {"a": {"settled": true, "pre_ms": [1], "infer_ms": [1], "post_ms": [1]}}, "machine": {"versions": 3}}'


class TestCompare:
    def test_two_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        name = "student_exported/onnxruntime/fp32/b1"
        a = measured(tmp_path / "a.json", {name: noisy(10), "only/a/fp32/b1": noisy(1)}, power_mode="15W (0)")
        b = measured(tmp_path / "b.json", {name: noisy(5, 1)}, power_mode="MAXN (2)")
        Compare(a, b, tmp_path / "c.json").run()
        found = json.loads((tmp_path / "c.json").read_text())
        (only,) = found["compare"]
        assert only["verdict"] == "b faster" and only["low"] < 2 < only["high"] and only["ratio"] == pytest.approx(2, rel=0.05)
        assert found["differs"] == {"power_mode": ["15W (0)", "MAXN (2)"]}
        printed = capsys.readouterr().out
        assert "b faster" in printed and "differs: power_mode: 15W (0) in a, MAXN (2) in b" in printed

    def test_an_upgrade_is_told(self, tmp_path: Path) -> None:
        calls = {"m/x/fp32/b1": noisy(1)}
        old, new = {"onnxruntime": "1.22.0", "numpy": "2.0.0"}, {"onnxruntime": "1.23.0", "numpy": "2.0.0", "cuda": "12.6"}
        a, b = (measured(tmp_path / name, calls, versions=tools) for name, tools in (("a.json", old), ("b.json", new)))
        found = compare(a, b)
        assert found["differs"] == {"onnxruntime": ["1.22.0", "1.23.0"], "cuda": [None, "12.6"]}
        assert "differs: onnxruntime: 1.22.0 in a, 1.23.0 in b" in text(found)
        assert compare(a, a)["differs"] == {}

    def test_a_busier_machine_is_told(self, tmp_path: Path) -> None:
        calls = {"m/x/fp32/b1": noisy(1)}
        quiet, near, busy = (measured(tmp_path / f"{load}.json", calls, load_1min=load) for load in (0.1, 0.4, 6.0))
        assert compare(quiet, near)["differs"] == {}
        assert compare(quiet, busy)["differs"] == {"load_1min": [0.1, 6.0]}

    def test_one_file_compares_its_rows_per_batch(self, tmp_path: Path) -> None:
        weather = np.repeat([1.0, 3.0, 1.0], 20)  # a neighbour who slows whole rounds threefold
        calls = {
            "student/torch/fp32/b1": 1.3 * noisy(10) * weather,
            "student_exported/onnxruntime/fp32/b1": noisy(10, 2) * weather,
            "student/torch/fp32/b4": noisy(40, 3),
        }
        found = compare(measured(tmp_path / "a.json", calls))
        (only,) = found["compare"]
        assert (only["a"], only["b"]) == ("student/torch/fp32/b1", "student_exported/onnxruntime/fp32/b1")
        assert only["paired"] and only["verdict"] == "b faster" and only["low"] > 1.15
        assert "against student_exported/onnxruntime/fp32/b1" in text(found) and found["differs"] == {}

    def test_equal_and_slower(self) -> None:
        assert row("a", "b", noisy(10), noisy(10, 1), paired=False)["verdict"] == "no difference shown"
        assert row("a", "b", noisy(10), noisy(12, 1), paired=False)["verdict"] == "a faster"

    def test_a_row_against_itself_is_exactly_one(self) -> None:
        found = row("a", "a", noisy(10), noisy(10), paired=True)
        assert (found["ratio"], found["low"], found["high"]) == (1, 1, 1)

    def test_the_interval_holds_its_level(self) -> None:
        holds = [row("a", "b", noisy(10, 2 * i), noisy(10, 2 * i + 1), False, draws=300) for i in range(100)]
        share = np.mean([found["low"] <= 1 <= found["high"] for found in holds])
        assert 0.85 <= share <= 1.0

    def test_blocks_are_runs_of_neighbours(self) -> None:
        picked = blocks(9, 50, np.random.default_rng(0))
        assert picked.shape == (50, 9) and set(np.unique(picked)) == set(range(9))
        assert ((picked[:, 1] - picked[:, 0]) % 9 == 1).all() and ((picked[:, 2] - picked[:, 1]) % 9 == 1).all()

    def test_pairs_need_the_same_batch_and_size(self) -> None:
        names = ["m/x/fp32/b1@32x32", "m/x/fp32/b1@64x64", "m/y/fp32/b1@32x32"]
        assert within(names) == [("m/x/fp32/b1@32x32", "m/y/fp32/b1@32x32")]

    @pytest.mark.parametrize(
        "content", ["[]", "{}", '{"samples": {"a": {}}, "machine": {}}', '{"samples": {}, "machine": {}}', OTHER]
    )
    def test_other_files_are_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match=r"x.json: holds no raw samples of latency; write it with"):
            compare(tmp_path / "x.json")

    def test_nothing_in_common(self, tmp_path: Path) -> None:
        a = measured(tmp_path / "a.json", {"m/x/fp32/b1": noisy(1)})
        b = measured(tmp_path / "b.json", {"m/x/fp32/b4": noisy(1)})
        with pytest.raises(UserError, match="no cases to compare; batch, backend and precision must be the same"):
            compare(a, b)
        with pytest.raises(UserError, match="two cases of one batch"):
            compare(a)


def graph_of(nodes: list[Any], inputs: dict[str, list[Any]], weights: dict[str, tuple[int, ...]]) -> bytes:
    """A model with float inputs, random float weights, and one output `y` of unknown shape with a symbolic batch."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    held = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None, None])
    graph = helper.make_graph(nodes, "g", values, [out], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def write_export(folder: Path, model: bytes, precision: str = "fp16", kind: str = "export") -> Path:
    """As much of an export, or of an engine stripped of its weights, as bounds are counted from."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "student.onnx").write_bytes(model)
    write_manifest(folder, kind, {"precision": precision}, files=["student.onnx"], preprocess={"size": [8, 8]})
    return folder


@pytest.fixture
def convolved() -> bytes:
    """A patch embedding of 8x8 pixels (16 channels, patches of 4) and one linear layer to 10 channels."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], strides=[4, 4], kernel_shape=[4, 4]),
        helper.make_node("Reshape", ["c", "s"], ["r"]),
        helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "m"], ["y"]),
    ]
    model = onnx.load_from_string(graph_of(nodes, {"x": ["batch", 3, 8, 8]}, {"w": (16, 3, 4, 4), "m": (16, 10)}))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 16, 4], np.int64), "s"))
    return model.SerializeToString()


class TestRoofline:
    @pytest.mark.parametrize("batch", [1, 5])
    def test_work_counted_by_hand(self, convolved: bytes, batch: int) -> None:
        work = work_of(convolved, batch)
        assert work.operations == 2 * batch * (4 * 16 * 3 * 16 + 4 * 16 * 10)
        assert work.weight_bytes == 4 * (16 * 3 * 16 + 16 * 10) + 3 * 8
        assert work.data_bytes == 4 * batch * (3 * 64 + 4 * 10)

    def test_gemm_and_attention(self) -> None:
        transposed = helper.make_node("Gemm", ["a", "b"], ["y"], transA=1)
        assert operations(transposed, {"a": (7, 5), "b": (7, 3), "y": (5, 3)}) == 2 * 5 * 3 * 7
        attention = helper.make_node("Attention", ["q", "k", "v"], ["y"])
        shape = (1, 2, 6, 4)  # one image, two heads, six tokens of four channels: twice 2 * 6 * 6 * 4 multiply-adds
        assert operations(attention, {"q": shape, "k": shape, "y": shape}) == 2 * 2 * (2 * 6 * 6 * 4)
        assert operations(helper.make_node("Softmax", ["a"], ["y"]), {}) == 0

    def test_published_bounds(self) -> None:
        """ViT-S/16, 22 M weights: the bounds of the device table, to its two decimals."""
        small = Work(2 * 4_600_000_000, 44_000_000, 0)
        assert small.bound_ms(DEVICES["Orin Nano"], "fp16") == (pytest.approx(0.90, abs=0.005), "compute")
        assert small.bound_ms(DEVICES["Orin Nano Super"], "fp16") == (pytest.approx(0.55, abs=0.005), "compute")
        assert small.bound_ms(DEVICES["Thor T5000"], "fp16") == (pytest.approx(0.16, abs=0.005), "memory")
        eight = Work(small.operations, 22_000_000, 0)
        assert eight.bound_ms(DEVICES["AGX Orin 64GB"], "int8") == (pytest.approx(0.11, abs=0.005), "compute")

    def test_rows_of_an_export_are_marked_as_bounds(self, convolved: bytes, tmp_path: Path) -> None:
        (bound,) = rows(write_export(tmp_path, convolved), (1,), "Orin Nano")
        assert bound["kind"] == "bound" and bound["limited_by"] == "memory" and bound["device"] == "Orin Nano"
        (work,) = rows(tmp_path, (1,), None)
        assert "bound_ms" not in work and work["gflop"] == bound["gflop"]
        (tmp_path / "student.onnx").write_bytes(convolved[:-1])
        with pytest.raises(UserError, match="content differs"):
            rows(tmp_path, (1,), None)

    def test_only_exports_have_bounds_wherever_they_lie(self, convolved: bytes, tmp_path: Path) -> None:
        export, unpacked, stripped = (tmp_path / name for name in ("export", "vega-edge", "engine"))
        write_export(export, convolved)
        write_export(unpacked / "model", convolved)
        write_export(stripped, convolved, kind="engine")
        found = of_artifacts([stripped, export, tmp_path / "nothing", unpacked], (1, 4), None)
        assert [row["batch"] for row in found] == [1, 4, 1, 4] and found[:2] == found[2:] == rows(export, (1, 4), None)

    @pytest.mark.parametrize(("precision", "peak"), [("int8_fp16", 33.4), ("fp8_fp16", 33.4), ("bf16", 16.7), ("fp32", 2.09)])
    def test_every_precision_of_an_export_has_a_peak(
        self, convolved: bytes, tmp_path: Path, precision: str, peak: float, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert DEVICES["Orin Nano Super"].peak(precision) == pytest.approx(peak * 1e12)
        assert main([str(write_export(tmp_path, convolved, precision))]) == 0
        assert f"roofline {precision} b1" in capsys.readouterr().out

    def test_devices_are_recognised_only_where_the_name_settles_it(self) -> None:
        assert recognise({"device": "Some CPU", "gpu": "NVIDIA H200"}) == "H200"
        assert recognise({"device": "NVIDIA Jetson AGX Thor Developer Kit"}) == "Thor T5000"
        assert recognise({"device": "NVIDIA Jetson Orin Nano Developer Kit"}) is None  # its clocks depend on the power mode
        assert recognise({"gpu": "NVIDIA H100 PCIe"}) is None

    def test_bad_input(self) -> None:
        with pytest.raises(UserError, match="unknown device 'Orin Nan'.*Orin Nano"):
            check([], "Orin Nan")
        with pytest.raises(UserError, match="unknown precision 'int4'"):
            DEVICES["H200"].peak("int4")
        with pytest.raises(UserError, match="no readable ONNX"):
            work_of(b"not a model", 1)
        node = helper.make_node("MatMul", ["a", "b"], ["y"], name="lost")
        with pytest.raises(UserError, match="shapes of MatMul 'lost' cannot be inferred"):
            operations(node, {"a": (2, 3)})


class TestCommand:
    """Nothing of the bounds may cost a measurement."""

    @pytest.fixture
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Artifacts that were measured, by a stand-in that takes no time."""
        found: list[Path] = []

        def measure(artifacts: tuple[Path, ...], *_: Any, **__: Any) -> dict[str, Any]:
            found.extend(artifacts)
            machine = {"device": "board", "cores": 2, "threads": 1, "gpu": "NVIDIA H200"}
            return {"latency": [], "stages": {}, "samples": {}, "machine": machine}

        monkeypatch.setattr(latency, "measure", measure)
        return found

    @pytest.mark.parametrize("precision", ["int8_fp16", "fp8_fp16"])
    @pytest.mark.parametrize("device", [None, "Orin Nano Super"])
    def test_a_mixed_precision_is_measured_bounded_and_written(
        self, convolved: bytes, tmp_path: Path, measured: list[Path], precision: str, device: str | None
    ) -> None:
        export = write_export(tmp_path / "export", convolved, precision)
        Latency((export,), roofline=device, batches=(1,), out=tmp_path / "lat.json").run()
        (bound,) = json.loads((tmp_path / "lat.json").read_text())["roofline"]
        assert measured == [export] and bound["device"] == (device or "H200") and bound["bound_ms"] > 0

    def test_names_are_checked_before_the_measurement(self, convolved: bytes, tmp_path: Path, measured: list[Path]) -> None:
        export = write_export(tmp_path / "export", convolved, "int4")
        with pytest.raises(UserError, match="unknown precision 'int4'"):
            Latency((export,), roofline="H200").run()
        with pytest.raises(UserError, match="unknown device 'H300'"):
            Latency((export,), roofline="H300").run()
        assert measured == []

    @pytest.mark.parametrize("device", [None, "H200"])
    def test_a_graph_that_cannot_be_counted_costs_no_measurement(
        self, tmp_path: Path, measured: list[Path], device: str | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        export = write_export(tmp_path / "export", b"not a model")
        Latency((export,), roofline=device, out=tmp_path / "lat.json").run()
        assert measured == [export] and json.loads((tmp_path / "lat.json").read_text())["roofline"] == []
        assert "no bounds: " in capsys.readouterr().err

    def test_the_measurement_is_written_before_anything_is_counted(
        self, convolved: bytes, tmp_path: Path, measured: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(roofline, "work_of", fail)
        with pytest.raises(MemoryError):
            Latency((write_export(tmp_path / "export", convolved),), roofline="H200", out=tmp_path / "lat.json").run()
        assert json.loads((tmp_path / "lat.json").read_text())["machine"]["gpu"] == "NVIDIA H200"


def test_picture_has_every_line_and_names_bounds_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = {"model": "student", "backend": "torch", "precision": "fp32", "size": [8, 8], "p90_ms": 3.0, "p99_ms": 4.0}
    record = {"pre_ms": [0.1, 0.1], "infer_ms": [2.0, 2.1], "post_ms": [0.1, 0.2]}
    result = {
        "machine": {"device": "board"},
        "latency": [{**timed, "batch": batch, "p50_ms": 2.0 * batch, "p99_ms": 3.0 * batch} for batch in (4, 1)],
        "samples": {"student/torch/fp32/b1": record},
        "roofline": [{"batch": batch, "precision": "fp32", "bound_ms": 0.1 * batch, "device": "H200"} for batch in (1, 4)],
    }
    labels: list[str] = []
    drawn = latency_chart.finish

    def keep(figure: Any) -> bytes:
        labels.extend(label for axes in figure.axes for label in axes.get_legend_handles_labels()[1])
        return drawn(figure)

    monkeypatch.setattr(latency_chart, "finish", keep)
    latency_chart.save(tmp_path / "plot.png", result)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    expected = {"student, torch fp32, 8x8", "bound, not measured: H200 fp32", "student/torch/fp32/b1"}
    assert set(labels) == expected
    assert [row["batch"] for row in latency_chart.curves(result)["student, torch fp32, 8x8"]] == [1, 4]


def test_the_bound_is_a_column_of_its_own_and_in_brackets() -> None:
    row = {"model": "s", "backend": "onnxruntime", "precision": "fp32", "batch": 1, "size": [8, 8]}
    row |= {"p50_ms": 2.0, "p90_ms": 2.1, "p99_ms": 2.2}
    machine = {"device": "board", "cores": 2, "threads": 1}
    result = {"machine": machine, "latency": [row], "stages": {"s/onnxruntime/fp32/b1": {}}, "samples": {}}
    assert "bound" not in latency.table(result)
    bound = {"precision": "fp32", "batch": 1, "size": [8, 8], "device": "H200", "bound_ms": 0.0123}
    for other in ({"batch": 4}, {"size": [9, 9]}):  # of something else
        assert "0.012" not in latency.table(result | {"roofline": [bound | other]})
    lines = latency.table(result | {"roofline": [bound]}).splitlines()
    assert lines[1].endswith("(bound)") and lines[2].endswith("  (0.012)")
