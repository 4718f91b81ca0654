"""Which engine runs an export: onnxruntime with TensorRT, CUDA or the CPU, on a machine that is faked.

python -m pytest tests/export/test_backends.py
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import types
from pathlib import Path

import pytest

from export.runtime import Encoder, RuntimeInputError, backends
from export.runtime.manifest import Description, read_description

from .export_cases import edit


def test_unknown_name_lists_the_known(exported: Path) -> None:
    with pytest.raises(RuntimeInputError, match="unknown backend 'tpu'; known: auto, onnxruntime, onnxruntime-cuda, onn"):
        Encoder(exported, "tpu")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """An onnxruntime that accepts every provider and then runs on `granted`, as the real one does without CUDA."""
    module = types.ModuleType("onnxruntime")

    class Session:
        def __init__(self, _model: bytes, _options: object, providers: list) -> None:
            module.asked.append(providers[0])
            wanted = [name if isinstance(name, str) else name[0] for name in providers]
            self.providers = [name for name in wanted if name in module.granted]

        def get_providers(self) -> list[str]:
            return self.providers

        def get_inputs(self) -> list:
            return []

        get_outputs = get_inputs

    module.SessionOptions, module.InferenceSession = types.SimpleNamespace, Session
    module.granted, module.asked = ["CPUExecutionProvider"], []
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(backends, "has_cuda_driver", lambda: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # engines of TensorRT are kept there
    return module


@pytest.fixture
def half(exported: Path) -> Description:
    return dataclasses.replace(read_description(exported), precision="fp16")


@pytest.mark.parametrize(("name", "wanted"), [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")])
def test_silent_fallback_is_refused_when_a_gpu_was_asked_for(
    fake: types.ModuleType, half: Description, name: str, wanted: str
) -> None:
    with pytest.raises(RuntimeInputError, match=f"{wanted} did not start, CPUExecutionProvider did"):
        backends.open_backend(half, f"onnxruntime-{name}")


def test_auto_takes_the_best_that_truly_starts(
    fake: types.ModuleType, half: Description, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "load_library", lambda *_: object())
    assert backends.open_backend(half).name == "onnxruntime"
    assert [name if isinstance(name, str) else name[0] for name in fake.asked] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    fake.granted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert backends.open_backend(half).name == "onnxruntime-cuda"
    fake.granted = ["TensorrtExecutionProvider", *fake.granted]
    assert backends.open_backend(half).name == "onnxruntime-tensorrt"


def test_auto_that_ends_on_the_cpu_beside_a_driver_says_why(
    fake: types.ModuleType, half: Description, capsys: pytest.CaptureFixture[str]
) -> None:
    backends.open_backend(half)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("auto: the CPU is used although an NVIDIA driver is installed (onnxruntime-cuda: CUDAExecution")
    fake.granted = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    backends.open_backend(half)
    backends.open_backend(half, "onnxruntime")
    assert capsys.readouterr().err == ""


def test_libraries_of_pip_are_loaded_before_a_gpu_session_and_only_then(
    fake: types.ModuleType, half: Description, capsys: pytest.CaptureFixture[str]
) -> None:
    def preload() -> None:
        print("Failed to load libcufft.so")
        fake.asked.append("preload")
        fake.granted = ["CUDAExecutionProvider", "CPUExecutionProvider"]  # now it can start

    fake.preload_dlls = preload
    assert backends.open_backend(half, "onnxruntime").name == "onnxruntime" and fake.asked == ["CPUExecutionProvider"]
    assert backends.open_backend(half).name == "onnxruntime-cuda" and fake.asked[1] == "preload"
    assert capsys.readouterr() == ("", "")


def test_without_a_driver_nothing_is_loaded(fake: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_cuda_driver", lambda: False)
    fake.preload_dlls = lambda: fake.asked.append("preload")
    backends.preload_libraries()
    assert fake.asked == []


def test_auto_leaves_tensorrt_out_where_it_would_round_or_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "has_cuda_driver", lambda: True)
    monkeypatch.setattr(backends, "load_library", lambda *_: object())
    assert backends.candidates("fp32") == ["onnxruntime-cuda", "onnxruntime"]
    assert backends.candidates("int8") == ["onnxruntime-tensorrt", "onnxruntime-cuda", "onnxruntime"]
    monkeypatch.setattr(backends, "load_library", lambda *_: None)
    assert backends.candidates("int8") == ["onnxruntime-cuda", "onnxruntime"]
    monkeypatch.setattr(backends, "has_cuda_driver", lambda: False)
    assert backends.candidates("int8") == ["onnxruntime"]


def test_auto_leaves_tensorrt_out_where_nodes_must_stay_float32(
    fake: types.ModuleType, exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """onnxruntime's provider types weakly, so it may compute an island in half, where it overflows."""
    copy = Path(shutil.copytree(exported, tmp_path / "export"))
    monkeypatch.setattr(backends, "load_library", lambda *_: object())
    fake.granted = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    edit(copy, lambda manifest: manifest["config"].update(precision="fp16"))
    found = []
    for nodes in ([], ["blocks.0.norm1"]):
        edit(copy, lambda manifest, nodes=nodes: manifest["structure"].update(float32_islands=nodes))
        found.append(backends.open_backend(read_description(copy)).name)
    assert found == ["onnxruntime-tensorrt", "onnxruntime-cuda"]
    assert backends.open_backend(read_description(copy), "onnxruntime-tensorrt").name == "onnxruntime-tensorrt"


def test_tensorrt_gets_one_profile_over_all_batches_and_keeps_its_engine(
    fake: types.ModuleType, half: Description, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "home" / "cache"  # nobody has made it; onnxruntime makes one level only
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    fake.granted = ["TensorrtExecutionProvider"]
    backends.open_backend(half, "onnxruntime-tensorrt")
    _, options = fake.asked[0]
    assert options["trt_profile_min_shapes"] == "images:1x3x64x64"
    assert options["trt_profile_max_shapes"] == "images:64x3x64x64"
    kept = cache / "vega-edge" / half.hashes["student.onnx"][:16]
    assert options["trt_engine_cache_path"] == str(kept) and kept.is_dir()
    assert options["trt_fp16_enable"] == options["trt_layer_norm_fp32_fallback"] == "1" and "trt_int8_enable" not in options
    memory = backends.tensorrt_options(dataclasses.replace(half, states={"state_0": (16, 8)}, precision="int8"))
    assert memory["trt_profile_max_shapes"] == "images:64x3x64x64,state_0:64x16x8" and memory["trt_int8_enable"] == "1"


def test_a_cache_that_cannot_be_written(
    fake: types.ModuleType, half: Description, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(RuntimeInputError, match="engines cannot be kept there .* point XDG_CACHE_HOME"):
        backends.open_backend(half, "onnxruntime-tensorrt")


def test_without_onnxruntime(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeInputError, match="onnxruntime is not installed"):
        Encoder(exported)
