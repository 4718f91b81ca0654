"""Which cases are timed and what their steps do: backends by name, several artifacts, bundles, GPUs that are faked.

python -m pytest tests/bench/test_latency_cases.py
"""

from __future__ import annotations

import ast
import contextlib
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import cases, cuda_steps, torch_steps
from bench.cases import BACKENDS, Request, collect
from bench.latency import measure
from bench.roofline import of_artifacts, rows
from export import export_run, write_bundle
from export.bundle import carried_code
from export.runtime import Encoder, RuntimeInputError, backends
from student import StreamingStudent, load_model, load_student
from tests.bench.small_runs import SIZE, make_run
from vega_artifact import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", 0, {"fused": 8, "semantic": 4})


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(run, tmp_path_factory.mktemp("export") / "export")


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return cases.frames_of(2, SIZE)


@pytest.fixture(scope="module")
def encoder(exported: Path) -> Encoder:
    return Encoder(exported, "onnxruntime", 1)


def walk(steps: tuple[Any, ...], frames: np.ndarray) -> dict[str, np.ndarray]:
    value: Any = frames
    for step in steps:
        value = step(value)
    return value


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=2e-4 * np.abs(value).max())


class TestChoice:
    def test_only_what_was_named(self, exported: Path, run: Path) -> None:
        found = collect([exported], run, Request((2, 1), backends=("torch",)))
        assert [case.name for case in found] == ["student/torch/fp32/b1", "student/torch/fp32/b2"]

    def test_by_default_nothing_that_starts_slowly_or_needs_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cases, "has_cuda_driver", lambda: False)
        assert Request((1,)).wanted(BACKENDS) == ["torch", "onnxruntime", "engine", "engine+graph"]
        monkeypatch.setattr(cases, "has_cuda_driver", lambda: True)
        assert {"onnxruntime-cuda+graph", "torch-cuda"} <= set(Request((1,)).wanted(BACKENDS))
        assert not {"torch.compile", "onnxruntime-tensorrt"} & set(Request((1,)).wanted(BACKENDS))

    def test_a_named_backend_that_cannot_run_is_an_error(self, exported: Path, run: Path) -> None:
        with pytest.raises(RuntimeInputError, match="onnxruntime-cuda"):
            collect([exported], None, Request((1,), backends=("onnxruntime-cuda",)))
        with pytest.raises(UserError, match="torch-cuda: torch finds no CUDA device"):
            collect([exported], run, Request((1,), backends=("torch-cuda",)))

    def test_a_backend_found_by_itself_is_left_out_with_a_word(
        self, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(cases, "has_cuda_driver", lambda: True)
        found = collect([exported], None, Request((1,)))
        assert [case.backend for case in found] == ["onnxruntime"]
        assert "no onnxruntime-cuda row of b1: " in capsys.readouterr().err

    def test_unknown_and_unfitting_backends(self, exported: Path) -> None:
        with pytest.raises(UserError, match="unknown backend 'onxruntime'.*onnxruntime"):
            Request((1,), backends=("onxruntime",))
        with pytest.raises(UserError, match="engine cannot run what was given"):
            collect([exported], None, Request((1,), backends=("engine",)))

    def test_the_same_rows_twice(self, exported: Path) -> None:
        with pytest.raises(UserError, match="two artifacts give the row student_exported/onnxruntime/fp32/b1"):
            collect([exported, exported], None, Request((1,)))

    def test_a_bundle_packed_and_unpacked(self, exported: Path, tmp_path: Path) -> None:
        bundle = write_bundle(exported, tmp_path / "student.tar.gz")
        found = measure(bundle, batches=(1,), repeats=1)
        assert [row["backend"] for row in found["latency"]] == ["onnxruntime"]
        shutil.copytree(exported, tmp_path / "unpacked" / "model")
        assert measure(tmp_path / "unpacked", batches=(1,), repeats=1)["machine"]["artifacts"] == found["machine"]["artifacts"]
        assert of_artifacts([bundle, tmp_path / "unpacked"], (1,), None) == 2 * rows(exported, (1,), None)
        data = bytearray(bundle.read_bytes())
        data[len(data) // 2] ^= 1
        bundle.write_bytes(data)
        with pytest.raises(UserError, match="student.tar.gz"):
            measure(bundle, batches=(1,), repeats=1)

    def test_a_run_needs_an_export_beside_it(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "engine.plan").write_bytes(b"")
        with pytest.raises(UserError, match="torch rows need an export of this run"):
            collect([tmp_path], run, Request((1,)))


class TestSteps:
    """The same features by every way; on a machine without a GPU the very same calls on the CPU device."""

    def test_bound_session(self, encoder: Encoder, frames: np.ndarray) -> None:
        steps = cuda_steps.session_steps(encoder, graph=False, device="cpu")
        assert_same(walk(steps, frames), encoder(frames))
        assert_same(walk(steps, frames[::-1].copy()), encoder(frames[::-1]))  # the buffers are filled anew

    def test_libraries_of_pip_are_loaded_before_the_session(self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
        loaded: list[str] = []
        monkeypatch.setattr(backends, "preload_libraries", lambda: loaded.append("cuda"))
        cuda_steps.session_steps(encoder, graph=False, device="cpu")
        assert loaded == []
        with contextlib.suppress(RuntimeInputError):  # where there is no GPU
            cuda_steps.session_steps(encoder, graph=False)
        assert loaded == ["cuda"]

    def test_a_session_that_stops_says_so_in_one_sentence(self, encoder: Encoder) -> None:
        _, upload, compute, *_ = cuda_steps.session_steps(encoder, graph=False, device="cpu")
        upload(np.zeros((1, 3, 8, 8), np.float32))
        with pytest.raises(RuntimeInputError, match=r"^onnxruntime on cpu stopped \(.*; leave this backend out$"):
            compute(None)

    def test_torch_eager_and_with_the_copies_apart(self, encoder: Encoder, run: Path, frames: np.ndarray) -> None:
        student = load_model(run)
        assert_same(walk(torch_steps.steps(student, encoder, "torch"), frames), encoder(frames))
        forward = torch_steps.forward_of(student, list(encoder.description.streams))
        steps = torch_steps.device_steps(forward, encoder, torch.device("cpu"))
        assert len(steps) == 5
        assert_same(walk(steps, frames), encoder(frames))

    def test_a_capture_that_torch_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(graph: object) -> contextlib.AbstractContextManager[None]:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        fakes = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: contextlib.nullcontext()}
        for name, fake in {**fakes, "CUDAGraph": object, "graph": refuse}.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        forward = torch_steps.GraphedForward(lambda images: [images * 2])
        with pytest.raises(RuntimeInputError, match=r"\(operation not permitted when stream is capturing\); leave torch-cuda"):
            forward(torch.ones(1, 3, 4, 4))

    def test_a_student_with_memory_keeps_it_from_call_to_call(self, run: Path) -> None:
        student = StreamingStudent.from_student(load_student(run), memory=4, layers=1).eval()
        forward = torch_steps.forward_of(student, ["semantic", "fused"])
        frames = torch.randn(3, 2, 3, *SIZE, generator=torch.Generator().manual_seed(0))  # three frames of two cameras
        with torch.inference_mode():
            found = [forward(images) for images in frames]
            state = student.initial_state(2)
            for images, (semantic, fused) in zip(frames, found):
                expected, state = student.step(images, state)
                assert torch.equal(semantic, expected["semantic"]) and torch.equal(fused, expected["fused"])

    def test_compiled_once_for_its_shape(
        self, encoder: Encoder, run: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[dict[str, Any]] = []

        def compiled(function: Any, **options: Any) -> Any:
            asked.append(options)
            return function

        monkeypatch.setattr(torch, "compile", compiled)
        steps = torch_steps.steps(load_model(run), encoder, "torch.compile")
        assert_same(walk(steps, frames), encoder(frames))
        assert asked == [{"dynamic": False}]


class FakeCuda:
    """CUDA's runtime as a log; a captured graph remembers what was enqueued and replays it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.stream = type("Stream", (), {"value": 7})()
        self.waited = 0

    def call(self, name: str, *arguments: Any) -> None:
        self.log.append(name)

    def synchronize(self) -> None:
        self.waited += 1


class FakeEngine:
    """The three steps of `export.runtime.engine.EngineBackend`, and its context."""

    def __init__(self, captures: bool = True) -> None:
        self._cuda, self._context, self.captures = FakeCuda(), self, captures
        self.computed = 0

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        return self.captures

    def upload(self, images: np.ndarray) -> None:
        self.images = images

    def compute(self) -> None:
        self.computed += 1

    def download(self) -> list[np.ndarray]:
        return [self.images.sum(axis=(1, 2, 3))]


class FakeEncoder:
    """An engine's encoder for one frame a call."""

    streaming, backend = False, "tensorrt"

    def __init__(self, backend: FakeEngine) -> None:
        self._backend = backend
        about = {"size": SIZE, "precision": "fp16", "fingerprint": "0" * 16, "max_batch": 1, "engine": {"library": "tensorrt"}}
        self.description = types.SimpleNamespace(**about)

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        return frames.astype(np.float32)

    def infer(self, images: np.ndarray) -> list[np.ndarray]:
        return [images.sum(axis=(1, 2, 3))]

    def finish(self, outputs: list[np.ndarray]) -> dict[str, np.ndarray]:
        return {"fused": outputs[0]}


def put_engine(folder: Path, monkeypatch: pytest.MonkeyPatch, captures: bool = True) -> Path:
    """A folder that opens as an engine of the stand-ins."""
    (folder / "engine.plan").write_bytes(b"")
    monkeypatch.setattr(cases, "open_encoder", lambda *_: FakeEncoder(FakeEngine(captures)))
    return folder


class TestEngine:
    def test_without_a_graph_every_call_computes(self, frames: np.ndarray) -> None:
        engine = FakeEngine()
        steps = cuda_steps.engine_steps(FakeEncoder(engine), graph=False)  # type: ignore[arg-type]
        for _ in range(3):
            assert_same(walk(steps, frames), {"fused": frames.sum(axis=(1, 2, 3)).astype(np.float32)})
        assert len(steps) == 5 and engine.computed == 3 and engine._cuda.log == []

    def test_with_a_graph_the_first_call_computes_and_later_ones_replay(self, frames: np.ndarray) -> None:
        engine = FakeEngine()
        steps = cuda_steps.engine_steps(FakeEncoder(engine), graph=True)  # type: ignore[arg-type]
        for _ in range(3):
            walk(steps, frames)
        capture = ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate", "cudaGraphDestroy"]
        assert engine.computed == 1 and engine._cuda.log == [*capture, "cudaGraphLaunch", "cudaGraphLaunch"]
        assert engine._cuda.waited == 2

    def test_a_refused_capture(self, frames: np.ndarray) -> None:
        steps = cuda_steps.engine_steps(FakeEncoder(FakeEngine(captures=False)), graph=True)  # type: ignore[arg-type]
        with pytest.raises(RuntimeInputError, match="leave engine\\+graph out"):
            walk(steps, frames)

    def test_a_batch_too_large_for_a_graph_costs_its_own_row_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = put_engine(tmp_path, monkeypatch)
        for asked in (None, ("engine", "engine+graph")):
            found = [case.name.split("/", 1)[1] for case in collect([folder], None, Request((1, 4), backends=asked))]
            assert found == ["tensorrt/fp16/b1", "tensorrt+graph/fp16/b1", "tensorrt/fp16/b4"]
            assert "no engine+graph row of b4: engine+graph: CUDA graphs need" in capsys.readouterr().err
        with pytest.raises(RuntimeInputError, match="at most 1 frames per call"):
            collect([folder], None, Request((4,), backends=("engine", "engine+graph")))

    def test_a_refused_capture_costs_its_own_row_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = put_engine(tmp_path, monkeypatch, captures=False)
        found = measure(folder, batches=(1,), repeats=2, sensors=lambda: None)
        assert list(found["samples"]) == ["student_exported/tensorrt/fp16/b1"]
        assert "no student_exported/tensorrt+graph/fp16/b1 row: engine: it cannot be captured" in capsys.readouterr().err
        with pytest.raises(UserError, match="it cannot be captured as a CUDA graph"):
            measure(folder, batches=(1,), repeats=2, backends=("engine+graph",), sensors=lambda: None)


def test_what_travels_keeps_to_python_3_10_and_starts_without_our_libraries() -> None:
    carried = {name for name in carried_code() if name.startswith("bench/")}
    assert {"bench/latency.py", "bench/cases.py", "bench/power.py", "bench/nvml.py", "bench/scenarios.py"} <= carried
    assert not {"bench/torch_steps.py", "bench/latency_chart.py", "bench/roofline.py"} & carried
    for name in carried:
        body = ast.parse((ROOT / name).read_text(), feature_version=(3, 10)).body
        tops = {alias.name.split(".")[0] for node in body if isinstance(node, ast.Import) for alias in node.names}
        tops |= {str(node.module).split(".")[0] for node in body if isinstance(node, ast.ImportFrom)}
        assert tops - set(sys.stdlib_module_names) <= {"numpy", "bench", "export", "vega_artifact"}, name
