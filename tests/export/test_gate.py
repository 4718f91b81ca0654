"""The CPU gate: the calls it makes to NVIDIA's compiler, what it reads from the log, and what it refuses.

The compiler is a stand-in that answers as documented; where the real one is installed the last test builds with it.

    python -m pytest tests/export/test_gate.py
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

from export.gate import check_export
from vega_artifact import UserError, write_manifest

from .graphs import small_graph

FUSED = "Name: _gemm_mha_v2_myl0_7, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [1,3,4,4], Format/Datatype: Half } ]"
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


def install(monkeypatch: pytest.MonkeyPatch, lines: list[str], size: int = 2000, **options: Any) -> FakeCompiler:
    fake = FakeCompiler(lines, bytes(size) if size else None, **options)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


def test_parses_and_builds_strongly_typed_for_the_nearest_gpu(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [FUSED, PLAIN.replace("{kind}", "Half")])
    found = check_export(export)
    assert (found["layers"], found["mha"], found["types"], found["bytes"]) == (2, 1, {"Half": 2}, 2000)
    assert ("network", 2) in fake.calls and ("target", "sm86", 0) in fake.calls
    assert ("shape", "images", (1, 3, 8, 8), (1, 3, 8, 8), (8, 3, 8, 8)) in fake.calls
    assert ("parse", (export / "student.onnx").read_bytes()) in fake.calls and ("built", "detailed", 1) in fake.calls


def test_pixels_come_with_the_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [FUSED])
    check_export(write_export(tmp_path / "export", "fp16", input={"name": "frames"}))
    assert ("shape", "frames", (1, 8, 8, 3), (1, 8, 8, 3), (8, 8, 8, 3)) in fake.calls


@pytest.mark.parametrize(
    ("lines", "size", "message"),
    [
        ([PLAIN.replace("{kind}", "Half")], 2000, "0 of 1 attention layers became one kernel"),
        ([FUSED.replace("Half", "Float")], 2000, "none is Half though fp16 was asked"),
        ([FUSED], 4_000_000, "the compiler stored them in another type"),
        (["some other log"], 2000, "lists no layers"),
        (["Error: no tactic"], 0, r"could not build the graph \(Error: no tactic\)"),
    ],
)
def test_refuses_what_is_not_as_promised(
    export: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], size: int, message: str
) -> None:
    install(monkeypatch, lines, size)
    with pytest.raises(UserError, match=message):
        check_export(export)


def test_passes_on_the_parsers_words(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [], errors=("In node 3 (patch): unsupported", "and more"))
    with pytest.raises(UserError, match=r"refuses the graph \(In node 3 \(patch\): unsupported; and more\)"):
        check_export(export)


def test_float32_attention_is_not_expected_to_fuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [PLAIN.replace("{kind}", "Float")])
    assert check_export(write_export(tmp_path / "export", "fp32"))["mha"] == 0


def test_is_skipped_with_a_reason_where_the_compiler_is_absent(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "tensorrt_rtx cannot be imported here" in check_export(export)["skipped"]


def test_a_truncated_file_is_refused_before_the_compiler_sees_it(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = install(monkeypatch, [FUSED])
    (export / "student.onnx").write_bytes((export / "student.onnx").read_bytes()[:-9])
    with pytest.raises(UserError, match="content differs from the manifest"):
        check_export(export)
    assert fake.calls == []


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_the_real_compiler_builds_the_fp32_export(exported: Path) -> None:
    found = check_export(exported)
    assert found["layers"] > 0 and "Float" in found["types"]
