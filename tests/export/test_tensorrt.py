"""The engine builder: against the real TensorRT-RTX where it is installed (no GPU needed), and a recording stand-in elsewhere.

python -m pytest tests/export/test_tensorrt.py
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from export import build_engine
from vega_artifact import UserError, read_manifest, verify_files


class Recorder:
    """Answers like TensorRT's objects and keeps every call."""

    def __init__(self, calls: list[tuple], plan: bytes | None, accepts: bool) -> None:
        self.calls, self.plan, self.accepts = calls, plan, accepts
        self.num_errors = 1

    def create_network(self, flags: int) -> Recorder:
        self.calls.append(("create_network", flags))
        return self

    def parse(self, model: bytes) -> bool:
        self.calls.append(("parse", len(model)))
        return self.accepts

    def get_error(self, index: int) -> str:
        return f"error {index}: unsupported"

    def create_builder_config(self) -> Recorder:
        return self

    def create_optimization_profile(self) -> Recorder:
        return self

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.calls.append(("set_shape", name, *shapes))

    def add_optimization_profile(self, _profile: object) -> None:
        self.calls.append(("add_optimization_profile",))

    def build_serialized_network(self, _network: object, _config: object) -> bytes | None:
        return self.plan


def install(
    monkeypatch: pytest.MonkeyPatch, flag: int | None, plan: bytes | None = b"plan", accepts: bool = True
) -> list[tuple]:
    """Put a stand-in TensorRT in place of any real one; returns the list its calls will appear in."""
    calls: list[tuple] = []
    module = types.ModuleType("tensorrt")
    recorder = Recorder(calls, plan, accepts)
    module.Logger = lambda _level: object()  # type: ignore[attr-defined]
    module.Logger.ERROR = 2  # type: ignore[attr-defined]
    module.Builder = lambda _logger: recorder  # type: ignore[attr-defined]
    module.OnnxParser = lambda _network, _logger: recorder  # type: ignore[attr-defined]
    flags = types.SimpleNamespace() if flag is None else types.SimpleNamespace(STRONGLY_TYPED=flag)
    module.NetworkDefinitionCreationFlag = flags  # type: ignore[attr-defined]
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return calls


@pytest.mark.parametrize(("flag", "mask"), [(1, 2), (None, 0)], ids=["tensorrt-10", "flag-removed"])
def test_builds_strongly_typed_with_a_profile_over_the_batch(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int | None, mask: int
) -> None:
    calls = install(monkeypatch, flag)
    out = build_engine(exported, tmp_path / "engine", best_batch=4)
    assert ("create_network", mask) in calls
    assert ("parse", (exported / "student.onnx").stat().st_size) in calls
    assert ("set_shape", "images", (1, 3, 64, 64), (4, 3, 64, 64), (64, 3, 64, 64)) in calls
    assert ("add_optimization_profile",) in calls
    manifest = read_manifest(out, "engine")
    verify_files(out, manifest)
    assert manifest["parents"] == {"export": read_manifest(exported, "export")["fingerprint"]}
    assert manifest["config"] == {"library": "tensorrt", "version": "10.3.0", "batches": [1, 4, 64], "precision": "fp32"}


@pytest.mark.parametrize(
    ("stand_in", "message"),
    [({"accepts": False}, r"refuses the graph \(error 0: unsupported\)"), ({"plan": None}, "could not build an engine")],
)
def test_what_tensorrt_refuses_is_said(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: dict, message: str
) -> None:
    install(monkeypatch, 1, **stand_in)
    with pytest.raises(UserError, match=message):
        build_engine(exported, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_without_any_tensorrt(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match=r"no TensorRT found \(tried tensorrt, tensorrt_rtx\)"):
        build_engine(exported, tmp_path / "engine")


def test_bad_input(exported: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a number from 1 to 64"):
        build_engine(exported, tmp_path / "engine", best_batch=65)
    with pytest.raises(UserError, match="a export expected"):
        build_engine(run, tmp_path / "engine")


def test_real_tensorrt_rtx_builds_ahead_of_time(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx; it builds engines without a GPU")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = build_engine(exported, tmp_path / "engine")
    assert (out / "engine.plan").stat().st_size > 1_000_000
    assert read_manifest(out, "engine")["config"]["library"] == "tensorrt_rtx"
