"""The engine builder: against the real TensorRT-RTX where it is installed (no GPU needed), and a computing stand-in elsewhere.

python -m pytest tests/export/test_tensorrt.py
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import vega_edge
from export import build_engine, tensorrt
from export.build_options import BuildOptions, apply, check_options
from export.gate import LIBRARIES
from export.runtime import Encoder, RuntimeInputError
from vega_artifact import UserError, read_manifest, verify_files

from .export_cases import edit
from .fake_tensorrt import FakeDriver, install


def outside(model: onnx.ModelProto) -> None:
    """A weight said to lie in a file of another folder."""
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")


FOREIGN = {
    "opset": (lambda model: setattr(model.opset_import[0], "version", 23), "opset 23, but 17 to 20 are what devices read"),
    "operator": (lambda model: setattr(model.graph.node[0], "op_type", "Unheard"), "No Op registered for Unheard"),
    "path": (outside, "points outside its folder"),
}


@pytest.mark.parametrize(("flag", "mask"), [(1, 2), (None, 0)], ids=["tensorrt-10", "flag-removed"])
def test_builds_strongly_typed_with_a_profile_over_the_batch(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: int | None, mask: int
) -> None:
    machine = install(monkeypatch, flag=flag)
    out = build_engine(exported, tmp_path / "engine", best_batch=4)
    assert ("create_network", mask) in machine.calls
    assert ("parse", (exported / "student.onnx").stat().st_size) in machine.calls
    assert ("set_shape", "images", (1, 3, 64, 64), (4, 3, 64, 64), (64, 3, 64, 64)) in machine.calls
    assert [call[0] for call in machine.calls].count("add_optimization_profile") == 1
    assert ("clear_flag", "TF32") in machine.calls
    verify_files(out, read_manifest(out, "engine"))


def test_the_sidecar_says_what_the_engine_is_bound_to(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    manifest = read_manifest(build_engine(exported, tmp_path / "engine", largest_batch=8), "engine")
    assert manifest["parents"] == {"export": read_manifest(exported, "export")["fingerprint"]}
    assert manifest["config"] == {
        "library": "tensorrt",
        "version": "10.3.0",
        "batches": [1, 1, 8],
        "precision": "fp32",
        "gpu": "Orin",
        "sm": "8.7",
        "processors": 16,
        "onnx": hashlib.sha256((exported / "student.onnx").read_bytes()).hexdigest(),
        "workspace_mib": None,
        "any_gpu": False,
        "any_version": False,
        "strip": False,
        "dla": None,
    }


class TestSelfTest:
    def test_its_differences_are_recorded(self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = install(monkeypatch)
        result = read_manifest(build_engine(exported, tmp_path / "engine"), "engine")["self_test"]
        assert set(result["differences"]) == {"fused", "generative"}
        assert all(0 <= value["relative"] < 1e-5 for value in result["differences"].values())
        assert any(call[0] == "execute_async_v3" for call in machine.cudart.calls)

    def test_an_engine_that_computes_something_else_is_not_kept(
        self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from .fake_tensorrt import FakeEngine

        install(monkeypatch)
        right = FakeEngine._values
        monkeypatch.setattr(FakeEngine, "_values", lambda self, name: right(self, name)[::-1])
        with pytest.raises(UserError, match=r"engine: the engine was built but is not kept: self test failed \(fused"):
            build_engine(exported, tmp_path / "engine")
        assert list(tmp_path.iterdir()) == []

    def test_is_skipped_with_a_reason_where_there_is_no_gpu(
        self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = install(monkeypatch)
        machine.driver = None
        manifest = read_manifest(build_engine(exported, tmp_path / "engine"), "engine")
        assert "no GPU where it was built" in manifest["self_test"]["skipped"]
        assert [manifest["config"][name] for name in ("gpu", "sm", "processors")] == [None] * 3


class TestOptions:
    def test_workspace_and_timing_cache(self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = install(monkeypatch)
        options = BuildOptions(workspace_mib=512, timing_cache=tmp_path / "timings")
        build_engine(exported, tmp_path / "first", options=options)
        assert ("set_memory_pool_limit", "WORKSPACE", 512 << 20) in machine.calls
        assert ("create_timing_cache", b"") in machine.calls and (tmp_path / "timings").read_bytes() == b"timings"
        build_engine(exported, tmp_path / "second", options=options)
        assert ("create_timing_cache", b"timings") in machine.calls

    def test_an_engine_for_other_machines(self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = install(monkeypatch)
        out = build_engine(exported, tmp_path / "engine", options=BuildOptions(any_gpu=True, any_version=True))
        assert machine.builder.hardware_compatibility_level == "AMPERE_PLUS"
        assert ("set_flag", "VERSION_COMPATIBLE") in machine.calls and machine.runtime.engine_host_code_allowed
        machine.driver = FakeDriver("Thor", (11, 0), processors=20)
        machine.tensorrt.__version__ = "10.13.0"
        assert Encoder(out).check()
        machine.driver = FakeDriver("Xavier", (7, 2))
        with pytest.raises(RuntimeInputError, match=r"built for Orin \(SM 8.7, 16 multiprocessors\), this machine has Xavier"):
            Encoder(out)
        machine.driver, machine.tensorrt.__version__ = FakeDriver("Orin", (8, 7)), "10.2.0"
        with pytest.raises(RuntimeInputError, match=r"built with TensorRT 10.3.0, this machine has 10.2.0"):
            Encoder(out)

    def test_an_engine_without_its_weights_gets_them_back(
        self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = install(monkeypatch)
        out = build_engine(exported, tmp_path / "engine", options=BuildOptions(strip=True))
        size = (exported / "student.onnx").stat().st_size
        assert ("set_flag", "STRIP_PLAN") in machine.calls and ("set_flag", "REFIT_IDENTICAL") in machine.calls
        assert ("refit_from_bytes", size) in machine.calls and ("refit_cuda_engine",) in machine.calls
        assert (out / "student.onnx").read_bytes() == (exported / "student.onnx").read_bytes()
        machine.refits = False
        with pytest.raises(RuntimeInputError, match="cannot put the weights back; build it again"):
            Encoder(out)
        (out / "student.onnx").write_bytes(b"other weights")
        with pytest.raises(RuntimeInputError, match=r"student.onnx: not the file that was exported"):
            Encoder(out)

    def test_an_accelerator_takes_convolutions_in_half_precision(
        self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = install(monkeypatch)
        with pytest.raises(UserError, match=r"--dla 0: this export has \d+ attention layers, which an accelerator"):
            build_engine(exported, tmp_path / "engine", options=BuildOptions(dla=0))
        conv = {"structure": {}, "config": {"precision": "fp16"}}
        check_options(BuildOptions(dla=0), conv)
        with pytest.raises(UserError, match="this export has float32"):
            check_options(BuildOptions(dla=0), conv | {"config": {"precision": "fp32"}})
        apply(machine.tensorrt, machine.builder, machine.builder, BuildOptions(dla=1))
        assert (machine.builder.default_device_type, machine.builder.DLA_core) == ("DLA", 1)
        assert ("set_flag", "GPU_FALLBACK") in machine.calls
        with pytest.raises(UserError, match="--dla 2: this device has 2 accelerators"):
            apply(machine.tensorrt, machine.builder, machine.builder, BuildOptions(dla=2))

    @pytest.fixture
    def convolutions(self, exported: Path, tmp_path: Path) -> Path:
        """An export that says it is what an accelerator takes."""
        folder = Path(shutil.copytree(exported, tmp_path / "convolutions"))
        edit(folder, lambda manifest: manifest["structure"].update(attention={}))
        edit(folder, lambda manifest: manifest["config"].update(precision="fp16"))
        return folder

    def test_an_accelerator_gets_one_frame_a_call_on_its_own_number(
        self, convolutions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: np.ndarray
    ) -> None:
        machine = install(monkeypatch)
        out = build_engine(convolutions, tmp_path / "engine", options=BuildOptions(dla=1))
        assert ("set_shape", "images", *[(1, 3, 64, 64)] * 3) in machine.calls, "no dynamic dimension is left"
        manifest = read_manifest(out, "engine")
        assert manifest["config"]["batches"] == [1, 1, 1] and manifest["layers"] == {"all": 3, "dla": 2}
        machine.runtime.DLA_core = -1
        encoder = Encoder(out)
        assert machine.calls[-1] == ("deserialize", 1), "told before the engine is loaded"
        assert len(frames) == 3 and encoder(frames)["fused"].shape == (3, 16, 24)
        machine.runtime.num_DLA_cores = 1
        with pytest.raises(RuntimeInputError, match="built for accelerator 1, this machine has 1 of them; build it again"):
            Encoder(out)

    def test_an_accelerator_with_nothing_to_do_or_with_batches(
        self, convolutions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = install(monkeypatch)
        machine.builder.on_dla = ()
        with pytest.raises(UserError, match="--dla 0: none of the 3 layers can run on an accelerator; build without --dla"):
            build_engine(convolutions, tmp_path / "engine", options=BuildOptions(dla=0))
        for batches in ({"largest_batch": 2}, {"best_batch": 2}, {"best_batch": 4, "largest_batch": 4}):
            with pytest.raises(UserError, match="--dla 0: an accelerator takes batches of one size only, here 1"):
                build_engine(convolutions, tmp_path / "engine", options=BuildOptions(dla=0), **batches)
        assert not (tmp_path / "engine").exists()

    def test_what_this_tensorrt_lacks_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        machine = install(monkeypatch)
        del machine.tensorrt.HardwareCompatibilityLevel
        with pytest.raises(UserError, match=r"--any-gpu: tensorrt 10.3.0 has no HardwareCompatibilityLevel.AMPERE_PLUS"):
            apply(machine.tensorrt, machine.builder, machine.builder, BuildOptions(any_gpu=True))

    def test_too_little_memory_is_said_before_the_build(
        self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        machine = install(monkeypatch)
        (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable:  900000 kB\n")
        monkeypatch.setattr(tensorrt, "MEMORY", tmp_path / "meminfo")
        with pytest.raises(UserError, match=r"needs about \d+ MiB of memory, 878 MiB are free; close other programs"):
            build_engine(exported, tmp_path / "engine")
        assert machine.calls == []


@pytest.mark.parametrize(
    ("stand_in", "message"),
    [
        ({"accepts": False}, r"graph \(error 0: unsupported\); an unknown operator needs a newer TensorRT"),
        ({"builds": False}, "could not build an engine"),
    ],
)
def test_what_tensorrt_refuses_is_said(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: dict, message: str
) -> None:
    install(monkeypatch, **stand_in)
    with pytest.raises(UserError, match=message):
        build_engine(exported, tmp_path / "engine")
    assert list(tmp_path.iterdir()) == []


def test_without_any_tensorrt(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"no TensorRT found \(tried tensorrt, tensorrt_rtx\)"):
        build_engine(exported, tmp_path / "engine")


def test_bare_bindings_serve_and_engines_know_them_by_the_usual_name(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip installs TensorRT-RTX from its two wheels, without the package that only renames them."""
    machine = install(monkeypatch)
    machine.tensorrt.__name__ = "tensorrt_rtx_bindings"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", machine.tensorrt)
    for name in ("tensorrt", "tensorrt_bindings", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    out = build_engine(exported, tmp_path / "engine")
    assert read_manifest(out, "engine")["config"]["library"] == Encoder(out).backend == "tensorrt_rtx"


def test_bad_input(exported: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a number from 1 to 64"):
        build_engine(exported, tmp_path / "engine", best_batch=65)
    with pytest.raises(UserError, match="largest_batch 0: a number from 1 to 64"):
        build_engine(exported, tmp_path / "engine", largest_batch=0)
    with pytest.raises(UserError, match="best_batch 4: a number from 1 to 2"):
        build_engine(exported, tmp_path / "engine", best_batch=4, largest_batch=2)
    with pytest.raises(UserError, match="a export expected"):
        build_engine(run, tmp_path / "engine")
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"peak": 0.0001', '"peak": 1000.0'))
    with pytest.raises(UserError, match=r"copy/manifest.json: .* so it was edited; make the export again"):
        build_engine(copy, tmp_path / "engine")


@pytest.mark.parametrize(("verb", "out"), [("build", "engine"), ("bundle", "student.tar.gz")])
@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_graph_that_devices_do_not_read_is_told_on_the_host(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[onnx.ModelProto], None],
    message: str,
    verb: str,
    out: str,
) -> None:
    install(monkeypatch)
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    change(model := onnx.load(copy / "student.onnx"))
    (copy / "student.onnx").write_bytes(data := model.SerializeToString())
    record = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(copy, lambda manifest: manifest["files"].update({"student.onnx": record}))
    assert vega_edge.main([verb, str(copy), "--out", str(tmp_path / out)]) == 2
    printed = capsys.readouterr().err
    assert "copy/student.onnx: " in printed and message in printed and printed.count("\n") == 1
    assert not (tmp_path / out).exists()


def test_golden_files_are_copied_and_nothing_else(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    out = build_engine(exported, tmp_path / "engine")
    names = {path.name for path in out.iterdir()}
    assert names == {"engine.plan", "manifest.json", "golden_frames.npy", "golden_fused.npy", "golden_generative.npy"}
    assert np.load(out / "golden_frames.npy", allow_pickle=False).dtype == np.uint8
    assert json.loads((out / "manifest.json").read_text())["grid"] == [4, 4]


def test_real_tensorrt_rtx_builds_ahead_of_time(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(map(importlib.util.find_spec, LIBRARIES)):
        pytest.skip("TensorRT-RTX is not installed; it builds engines without a GPU")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    out = build_engine(exported, tmp_path / "engine")
    assert (out / "engine.plan").stat().st_size > 1_000_000
    assert read_manifest(out, "engine")["config"]["library"] == "tensorrt_rtx"
