"""Engines in the runtime, on a TensorRT and a CUDA that record calls and truly compute: same features, and every refusal.

python -m pytest tests/export/test_engine.py
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export import build_engine
from export.runtime import Encoder, RuntimeInputError
from export.runtime.__main__ import main
from export.runtime.cuda import find_gpu
from export.runtime.engine import check_machine
from export.runtime.manifest import read_description

from .fake_tensorrt import FakeDriver, FakeEngine, Machine, install

IMAGE = 3 * 64 * 64 * 4  # bytes


@pytest.fixture(scope="module")
def built(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        return build_engine(exported, tmp_path_factory.mktemp("engine") / "engine", largest_batch=2)


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "engine"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return install(monkeypatch)


class TestFeatures:
    def test_equal_those_of_the_export_also_above_the_largest_batch(
        self, machine: Machine, exported: Path, engine: Path, frames: np.ndarray
    ) -> None:
        expected = Encoder(exported, "onnxruntime")(frames)
        encoder = Encoder(engine)
        assert encoder.backend == "tensorrt" and encoder.providers == ["tensorrt 10.3.0"]
        assert len(frames) == 3 and encoder.description.max_batch == 2
        for name, value in encoder(frames).items():
            np.testing.assert_allclose(value, expected[name], atol=2e-5)

    def test_memory_is_for_the_largest_batch_and_given_back(self, machine: Machine, engine: Path) -> None:
        encoder = Encoder(engine)
        assert sorted(machine.cudart.sizes()) == sorted([2 * IMAGE, 2 * 16 * 24 * 4, 2 * 16 * 16 * 4])
        del encoder
        assert machine.cudart.blocks == {} and machine.cudart.calls[-1][0] == "cudaStreamDestroy"

    def test_a_call_is_copy_in_compute_copy_out_each_awaited(self, machine: Machine, engine: Path) -> None:
        encoder = Encoder(engine)
        images = encoder.prepare(np.zeros((1, 64, 64, 3), np.uint8))
        machine.cudart.calls.clear()
        encoder.infer(images)
        names = [call[0] for call in machine.cudart.calls]
        wait = "cudaStreamSynchronize"
        copy = "cudaMemcpyAsync"
        assert names == [copy, wait, "execute_async_v3", wait, copy, copy, wait]
        assert machine.cudart.calls[0][3].value == IMAGE, "one frame travels, not the whole buffer"

    def test_self_test_from_the_command_line(self, machine: Machine, engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(engine), "--check"]) == 0
        assert "fused: relative difference" in capsys.readouterr().out
        np.save(engine / "golden_fused.npy", np.zeros((3, 16, 24), np.float32))
        assert main([str(engine), "--check"]) == 2
        assert "build it again: `vega-edge build" in capsys.readouterr().err


class TestForeignMachine:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda machine: setattr(machine, "driver", FakeDriver("Thor", (11, 0))), r"Orin \(SM 8\.7.*Thor \(SM 11\.0"),
            (lambda machine: setattr(machine, "driver", FakeDriver("Orin", (8, 6))), r"this machine has Orin \(SM 8\.6"),
            (
                lambda machine: setattr(machine, "driver", FakeDriver("Orin", (8, 7), processors=8)),  # an Orin NX
                r"Orin \(SM 8\.7, 16 multiprocessors\), this machine has Orin \(SM 8\.7, 8 multiprocessors\)",
            ),
            (lambda machine: setattr(machine.tensorrt, "__version__", "10.7.0"), r"TensorRT 10\.3\.0, this machine has 10\.7"),
        ],
    )
    def test_is_refused_with_the_command_that_builds_it_again(
        self, machine: Machine, engine: Path, change: Callable[[Machine], object], message: str
    ) -> None:
        change(machine)
        with pytest.raises(RuntimeInputError, match=f"{message}.*vega-edge build EXPORT --out ENGINE"):
            Encoder(engine)
        assert machine.cudart.calls == []

    def test_an_engine_that_was_built_before_multiprocessors_were_counted(self, machine: Machine, engine: Path) -> None:
        description = read_description(engine)
        description.engine["processors"] = None
        with pytest.raises(RuntimeInputError, match=r"Orin \(SM 8\.7, unknown number of multiprocessors\).*build it again"):
            check_machine(description, "10.3.0", find_gpu())

    def test_without_driver(self, machine: Machine, engine: Path) -> None:
        machine.driver = None
        with pytest.raises(RuntimeInputError, match="needs an NVIDIA GPU and its driver; here use the export"):
            Encoder(engine)

    def test_without_tensorrt(self, machine: Machine, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(RuntimeInputError, match=r"no TensorRT found \(tried tensorrt\)"):
            Encoder(engine)

    def test_another_backend(self, machine: Machine, engine: Path) -> None:
        with pytest.raises(RuntimeInputError, match="an engine of tensorrt; open it with backend auto, not 'onnxruntime'"):
            Encoder(engine, "onnxruntime")


class TestAltered:
    def test_plan(self, machine: Machine, engine: Path) -> None:
        data = bytearray((engine / "engine.plan").read_bytes())
        data[len(data) // 3] ^= 1
        (engine / "engine.plan").write_bytes(data)
        with pytest.raises(RuntimeInputError, match=r"engine\.plan: not the file .* build it again"):
            Encoder(engine)

    @pytest.mark.parametrize(
        "change",
        [
            lambda manifest: manifest["config"].update(sm="9.0"),
            lambda manifest: manifest["tolerances"].update(relative=1e9, peak=1e9),
            lambda manifest: manifest["preprocess"].update(mean=[0.4, 0.5, 0.5]),
        ],
    )
    def test_sidecar(self, machine: Machine, engine: Path, change: Callable[[dict], object]) -> None:
        manifest = json.loads((engine / "manifest.json").read_text())
        change(manifest)
        (engine / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RuntimeInputError, match=r"manifest\.json: altered since it was written; build it again"):
            Encoder(engine)

    def test_plan_that_tensorrt_cannot_load(self, machine: Machine, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine.tensorrt.Runtime = lambda _logger: FakeRuntime()  # type: ignore[attr-defined]
        with pytest.raises(RuntimeInputError, match="cannot load the engine; build it again"):
            Encoder(engine)


class FakeRuntime:
    def deserialize_cuda_engine(self, _plan: bytes) -> None:
        return None


class TestCuda:
    @pytest.mark.parametrize(
        ("name", "code", "message"),
        [
            ("cudaMalloc", 2, "cudaMalloc failed with error 2; too little GPU memory: .* smaller --largest-batch"),
            ("cudaStreamCreate", 35, "error 35; the driver is older"),
            ("cudaStreamCreate", 100, "error 100; no CUDA device: use --backend onnxruntime"),
            ("cudaStreamCreate", 999, "error 999; see dmesg"),
        ],
    )
    def test_its_errors_become_sentences(self, machine: Machine, engine: Path, name: str, code: int, message: str) -> None:
        machine.cudart.codes[name] = code
        with pytest.raises(RuntimeInputError, match=message):
            Encoder(engine)

    def test_without_its_library(self, machine: Machine, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        machine.cudart = None  # type: ignore[assignment]
        machine.tensorrt.Runtime = lambda _logger: FakeLoader()  # type: ignore[attr-defined]
        with pytest.raises(RuntimeInputError, match=r"no CUDA runtime found \(tried libcudart\.so"):
            Encoder(engine)

    def test_the_gpu_is_what_the_driver_says(self, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
        gpu = find_gpu()
        assert gpu is not None and (gpu.name, gpu.sm, gpu.processors) == ("Orin", "8.7", 16)
        monkeypatch.setattr(FakeDriver, "cuInit", lambda *_: 100)
        assert find_gpu() is None


class FakeLoader:
    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine:
        return FakeEngine(plan, None)  # type: ignore[arg-type]


class TestInput:
    def test_wrong_dtype_shape_or_batch(self, machine: Machine, engine: Path) -> None:
        backend = Encoder(engine)._backend
        with pytest.raises(RuntimeInputError, match="images: float32 expected, found uint8"):
            backend(np.zeros((1, 3, 64, 64), np.uint8))
        for shape in [(1, 3, 32, 64), (3, 3, 64, 64)]:
            with pytest.raises(RuntimeInputError, match=r"images: shape \(1 to 2, \*\(3, 64, 64\)\) expected"):
                backend(np.zeros(shape, np.float32))

    def test_an_engine_that_does_not_start(self, machine: Machine, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        encoder = Encoder(engine)
        monkeypatch.setattr(FakeEngine, "execute_async_v3", lambda *_: False)
        with pytest.raises(RuntimeInputError, match="the engine did not run; build it again"):
            encoder(np.zeros((1, 64, 64, 3), np.uint8))
