"""The CPU gate: the calls it makes to NVIDIA's compiler, what it reads from the log, and what it refuses.

The compiler is a stand-in that answers as documented; where the real one is installed the last test builds with it.

    python -m pytest tests/export/test_gate.py
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from export import export_run
from export.gate import DEPTHWISE, LIBRARIES, MEMORY, build, check_export, compiler, expected_weights
from export.onnx import ExportConfig
from export.streaming import write_step
from student import StreamingStudent, create_student
from vega_artifact import UserError, read_manifest, write_manifest

from .graphs import quantized_convolution, small_graph

# lines as TensorRT-RTX 1.7 (the first) and 1.4 (the second) write them
FUSED = "Name: _gemm_mha_v2_myl0_7, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [4,4], Datatype: Half, Format: (Row) } ]"
PLAIN = "Name: __myl_Mul_myl0_3, LayerType: kgen, Outputs: [ { Name: y, Dimensions: [1,4,6], Format/Datatype: {kind} } ]"


class FakeCompiler(ModuleType):
    """The part of `tensorrt_rtx` the gate touches; keeps what it was asked."""

    __version__ = "1.7.1"

    def __init__(self, lines: list[str], plan: bytes | None, errors: tuple[str, ...] = ()) -> None:
        super().__init__("tensorrt_rtx")
        self.calls: list[tuple[Any, ...]] = []
        self.lines, self.plan, self.errors = lines, plan, errors
        self.ILogger = type("ILogger", (), {"__init__": lambda _: None})
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.ComputeCapability = SimpleNamespace(SM86="sm86")

    def note(self, name: str, answer: Any = None) -> Any:
        return lambda *arguments: (self.calls.append((name, *arguments)), answer)[1]

    def Builder(self, logger: Any) -> Any:
        def build(network: Any, config: Any) -> bytes | None:
            self.calls.append(("built", config.profiling_verbosity, config.num_compute_capabilities))
            for line in self.lines:
                logger.log("verbose", line)
            return self.plan

        config = SimpleNamespace(set_compute_capability=self.note("target"), add_optimization_profile=self.note("profile"))
        return SimpleNamespace(
            create_network=self.note("network", "network"),
            create_builder_config=lambda: config,
            create_optimization_profile=lambda: SimpleNamespace(set_shape=self.note("shape")),
            build_serialized_network=build,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(
            parse=self.note("parse", not self.errors),
            num_errors=len(self.errors),
            get_error=lambda index: self.errors[index],
        )


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An export of a student with one attention, in half precision by its manifest."""
    return write_export(tmp_path / "export", "fp16")


def write_export(folder: Path, precision: str, **extra: Any) -> Path:
    folder.mkdir()
    onnx.save(small_graph(), folder / "student.onnx")
    config = {"precision": precision, "max_batch": 8}
    about = {"structure": {"attention": {"graph": 1, "network": 1, "fusable": 1}}, "preprocess": {"size": [8, 8]}}
    write_manifest(folder, "export", config, {}, ["student.onnx"], **about, **extra)
    return folder


def install(monkeypatch: pytest.MonkeyPatch, lines: list[str], weights: int | None = 2000, **options: Any) -> FakeCompiler:
    """A compiler that says these lines and how much its engine's weights take; None: it builds no engine."""
    said = [*lines, f"Total Weights Memory: {weights} bytes", "Total Activation Memory: 512 bytes"]
    fake = FakeCompiler(lines if weights is None else said, None if weights is None else bytes(3000), **options)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


def test_parses_and_builds_strongly_typed_for_the_nearest_gpu(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [FUSED, PLAIN.replace("{kind}", "Half")])
    found = check_export(export)
    assert (found["layers"], found["mha"], found["types"], found["bytes"]) == (2, 1, {"Half": 2}, 3000)
    assert (found["engine_weights"], found["activations"]) == (2000, 512) and 0 < found["weights"] < 4000
    assert ("network", 2) in fake.calls and ("target", "sm86", 0) in fake.calls
    assert ("shape", "images", (1, 3, 8, 8), (1, 3, 8, 8), (8, 3, 8, 8)) in fake.calls
    assert ("parse", (export / "student.onnx").read_bytes()) in fake.calls and ("built", "detailed", 1) in fake.calls


def test_pixels_come_with_the_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [FUSED])
    check_export(write_export(tmp_path / "export", "fp16", input={"name": "frames"}))
    assert ("shape", "frames", (1, 8, 8, 3), (1, 8, 8, 3), (8, 8, 8, 3)) in fake.calls


@pytest.mark.parametrize(
    ("lines", "weights", "message"),
    [
        ([PLAIN.replace("{kind}", "Half")], 2000, "0 of 1 attention layers became one kernel"),
        ([FUSED.replace("Half", "Float")], 2000, "none is Half though fp16 was asked"),
        ([FUSED], 4_000_000, "the compiler stores them otherwise than asked"),
        (["some other log"], 2000, "lists no layers"),
        (["Error: no tactic"], None, r"could not build the graph \(Error: no tactic\)"),
    ],
)
def test_refuses_what_is_not_as_promised(
    export: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], weights: int | None, message: str
) -> None:
    install(monkeypatch, lines, weights)
    with pytest.raises(UserError, match=message):
        check_export(export)


def test_passes_on_the_parsers_words(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [], errors=("In node 3 (patch): unsupported", "and more"))
    with pytest.raises(UserError, match=r"refuses the graph \(In node 3 \(patch\): unsupported; and more\)"):
        check_export(export)


def test_float32_attention_is_not_expected_to_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [PLAIN.replace("{kind}", "Float")])
    assert check_export(write_export(tmp_path / "export", "fp32"))["mha"] == 0


def test_an_int8_weight_of_a_depthwise_convolution_counts_fourfold() -> None:
    scales = 16 * 4 + 16 + 4 + 1  # of the weights and of the input, with their zero points
    assert expected_weights(quantized_convolution(channels=16, kernel=3, groups=1).graph) == 16 * 16 * 9 + scales
    assert expected_weights(quantized_convolution(channels=16, kernel=3, groups=16).graph) == 4 * 16 * 9 + scales


def test_is_skipped_with_a_reason_where_the_compiler_is_absent(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LIBRARIES:
        monkeypatch.setitem(sys.modules, name, None)
    assert "tensorrt_rtx cannot be imported here" in check_export(export)["skipped"]


def test_a_truncated_file_is_refused_before_the_compiler_sees_it(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [FUSED])
    (export / "student.onnx").write_bytes((export / "student.onnx").read_bytes()[:-9])
    with pytest.raises(UserError, match="content differs from the manifest"):
        check_export(export)
    assert fake.calls == []


@pytest.mark.skipif(not any(map(importlib.util.find_spec, LIBRARIES)), reason="TensorRT-RTX is not installed")
class TestRealCompiler:
    """NVIDIA's own, on a student of two attention layers."""

    def test_builds_the_float32_export_and_fuses_no_attention(self, exported: Path) -> None:
        found = check_export(exported)
        assert found["mha"] == 0 and set(found["types"]) == {"Float"}
        assert found["bytes"] > found["engine_weights"] == pytest.approx(found["weights"], rel=0.1)

    def test_half_precision_becomes_one_kernel_per_attention(self, run: Path, tmp_path: Path) -> None:
        out = export_run(run, tmp_path / "fp16", precision="fp16")
        attention = read_manifest(out, "export")["structure"]["attention"]["fusable"]
        found = check_export(out)
        assert found["mha"] == attention > 0 and found["types"]["Half"] > found["types"].get("Float", 0)

    def test_the_step_of_a_student_with_memory_becomes_one_kernel_per_attention(self, tmp_path: Path) -> None:
        frame = create_student("vit_micro", {"fused": 12}, (64, 48), (4, 3))
        config = ExportConfig(precision="fp16")
        write_step(StreamingStudent.from_student(frame, memory=16).eval(), tmp_path, config, "0" * 16)
        found = check_export(tmp_path)
        assert found["mha"] == len(frame.backbone.model.blocks) and found["types"]["Half"] > found["types"].get("Float", 0)

    def test_a_promise_that_the_engine_does_not_keep_is_seen(self, exported: Path, tmp_path: Path) -> None:
        """The float32 file under a manifest that says fp16: nothing fuses."""
        liar = tmp_path / "liar"
        shutil.copytree(exported, liar)
        manifest = json.loads((liar / "manifest.json").read_text())
        manifest["config"]["precision"] = "fp16"
        (liar / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="0 of [0-9]+ attention layers became one kernel"):
            check_export(liar)

    @pytest.mark.parametrize(("groups", "expected"), [(1, 1), (64, DEPTHWISE)])
    def test_bytes_that_it_takes_for_an_int8_weight(self, groups: int, expected: int) -> None:
        """Of two kernel sizes, so that scales and biases cancel."""
        found = []
        for kernel in (3, 7):
            model = quantized_convolution(channels=64, kernel=kernel, groups=groups)
            _, log = build(compiler(), model.SerializeToString(), {"images": (64, 16, 16)}, 2)
            found.append(int(dict(MEMORY.findall(log))["Weights"]))
        assert found[1] - found[0] == expected * 64 * (64 // groups) * (49 - 9)

    def test_an_operator_it_does_not_know_is_refused_in_its_own_words(self, exported: Path, tmp_path: Path) -> None:
        model = onnx.load(exported / "student.onnx")
        model.graph.node[0].op_type = "NobodysOperator"
        with pytest.raises(UserError, match="refuses the graph .*NobodysOperator"):
            build(compiler(), model.SerializeToString(), {"images": (3, 64, 48)}, 2)
