"""A streaming student's step as ONNX: its memory goes in and out by name, its steps equal the whole sequence.

python -m pytest tests/export/test_streaming.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import export.streaming as streaming
from export import export_run
from export.onnx import ExportConfig
from export.runtime import Encoder, RuntimeInputError, StreamingEncoder
from export.runtime.__main__ import main
from export.streaming import export_streaming
from student import StreamingStudent, create_student, load_streaming
from student.checkpoint import WEIGHTS, config_to_json, save_weights
from vega_artifact import UserError, read_manifest, write_manifest

HEADS = {"fused": 12, "generative": 8}
NAMES = ["images", "state_0", "state_1"], ["fused", "generative", "next_state_0", "next_state_1"]


@pytest.fixture(scope="module")
def stream_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose streaming student has a memory that matters."""
    folder = tmp_path_factory.mktemp("stream") / "run"
    student = StreamingStudent.from_student(create_student("vit_micro", HEADS, (64, 48), (4, 3)), memory=16)
    torch.manual_seed(2)
    for mixer in student.mixers:
        torch.nn.init.normal_(mixer.read.weight, std=0.3)
    save_weights(folder / WEIGHTS, student.state_dict())
    write_manifest(folder, "run", {}, {"cache": "0" * 16}, [WEIGHTS], student=config_to_json(student.config))
    return folder


@pytest.fixture(scope="module")
def stream_export(stream_run: Path) -> Path:
    return export_streaming(stream_run, stream_run.parent / "export")


@pytest.fixture
def film() -> np.ndarray:
    """Six frames of two cameras, (T, B, H, W, 3)."""
    return np.random.default_rng(5).integers(0, 256, (6, 2, 64, 48, 3), dtype=np.uint8)


def whole(run: Path, film: np.ndarray) -> dict[str, np.ndarray]:
    """What torch makes of all frames at once: {stream: (B, T, N, C)}."""
    student = load_streaming(run)
    images = torch.stack([student.preprocess(frames) for frames in film], 1)
    with torch.inference_mode():
        return {name: value.numpy() for name, value in student(images).items()}


class TestFile:
    def test_memory_goes_in_and_out_by_name_with_one_symbolic_batch(self, stream_export: Path) -> None:
        model = onnx.load(stream_export / "student.onnx")
        borders = ([value.name for value in model.graph.input], [value.name for value in model.graph.output])
        assert borders == NAMES
        shapes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
        assert shapes == {"images": ["batch", 3, 64, 48], "state_0": ["batch", 12, 16], "state_1": ["batch", 12, 16]}

    def test_steps_in_onnxruntime_equal_the_whole_sequence_in_torch(
        self, stream_run: Path, stream_export: Path, film: np.ndarray
    ) -> None:
        session = onnxruntime.InferenceSession(
            (stream_export / "student.onnx").read_bytes(), providers=["CPUExecutionProvider"]
        )
        expected, prepare = whole(stream_run, film), load_streaming(stream_run).preprocess
        state = {name: np.zeros((2, 12, 16), np.float32) for name in NAMES[0][1:]}
        for time, frames in enumerate(film):
            found = dict(zip(NAMES[1], session.run(None, {"images": prepare(frames).numpy(), **state})))
            for name in HEADS:
                np.testing.assert_allclose(found[name], expected[name][:, time], atol=2e-5, rtol=1e-4)
            state = {name: found[f"next_{name}"] for name in state}

    def test_manifest_names_the_memory_and_the_measured_parity(self, stream_run: Path, stream_export: Path) -> None:
        manifest = read_manifest(stream_export, "export")
        assert manifest["states"] == [{"name": f"state_{layer}", "tokens": 12, "channels": 16} for layer in range(2)]
        assert manifest["parents"] == {"run": read_manifest(stream_run, "run")["fingerprint"]}
        rows = manifest["parity"]["rows"]
        assert {(row["stream"], row["batch"]) for row in rows} == {(name, batch) for name in HEADS for batch in (1, 3)}
        assert all(row["relative"] < 1e-5 for row in rows)

    def test_manifest_has_the_audits_of_a_graph_without_memory(self, stream_run: Path, stream_export: Path) -> None:
        structure = read_manifest(stream_export, "export")["structure"]
        blocks = len(load_streaming(stream_run).frame.backbone.model.blocks)
        assert structure["attention"] == {"graph": blocks, "network": blocks, "fusable": blocks}
        assert len(structure["weights_sha256"]) == 64
        low, high = structure["ranges"]["state_1"]
        assert low < 0 < high, "memories of later steps were seen, not the zeros of the first alone"
        assert structure["ranges"]["images"][1] > 1

    def test_a_complete_export_is_reused(self, stream_run: Path, stream_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streaming, "write_step", None)
        assert export_streaming(stream_run, stream_export) == stream_export

    def test_fp16_is_half_inside_float32_outside_and_keeps_its_memory(
        self, stream_run: Path, stream_export: Path, tmp_path: Path, film: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        traced = onnx.load(stream_export / "student.onnx")  # tracing again would take longer than all else here
        monkeypatch.setattr(streaming, "step_to_onnx", lambda *_: traced)
        encoder = StreamingEncoder(export_streaming(stream_run, tmp_path / "half", precision="fp16"))
        last = whole(stream_run, film)["fused"][:, -1]
        for frames in film:
            found = encoder(frames)["fused"]
        assert read_manifest(tmp_path / "half", "export")["structure"]["float32_islands"] == []
        error = np.linalg.norm(found - last) / np.linalg.norm(last)
        assert found.dtype == np.float32 and 1e-6 < error < 1e-2
        encoder.check()


class TestEncoder:
    def test_keeps_the_memory_between_calls_until_reset(self, stream_run: Path, stream_export: Path, film: np.ndarray) -> None:
        encoder, expected = StreamingEncoder(stream_export), whole(stream_run, film)
        for _ in range(2):
            for time, frames in enumerate(film):
                np.testing.assert_allclose(encoder(frames)["fused"], expected["fused"][:, time], atol=2e-5, rtol=1e-4)
            encoder.reset()
        first = encoder(film[0])["fused"]
        assert np.abs(encoder(film[0])["fused"] - first).max() > 1e-3  # the same frame again is not the first frame

    def test_another_number_of_cameras_needs_a_reset(self, stream_export: Path, film: np.ndarray) -> None:
        encoder = StreamingEncoder(stream_export)
        encoder(film[0])
        with pytest.raises(RuntimeInputError, match=r"1 cameras, but 2 are remembered .* reset\(\)"):
            encoder(film[0, :1])
        encoder.reset()
        assert encoder(film[0, :1])["fused"].shape == (1, 12, 12)
        encoder.reset()
        with pytest.raises(RuntimeInputError, match="65 cameras"):
            encoder(np.zeros((65, 64, 48, 3), np.uint8))

    def test_self_test_checks_the_memory_and_leaves_it_alone(self, stream_export: Path, film: np.ndarray) -> None:
        encoder, other = StreamingEncoder(stream_export), StreamingEncoder(stream_export)
        encoder(film[0]), other(film[0])
        assert max(row["relative"] for row in encoder.check().values()) < 1e-4
        np.testing.assert_array_equal(encoder(film[1])["fused"], other(film[1])["fused"])
        forgetful = encoder._backend
        encoder._backend = lambda images, state: forgetful(images, {name: value * 0 for name, value in state.items()})
        with pytest.raises(RuntimeInputError, match="self test failed"):
            encoder.check()

    def test_frames_in_a_batch_are_never_mistaken_for_cameras(self, stream_export: Path, exported: Path) -> None:
        with pytest.raises(RuntimeInputError, match="holds a student with memory; open it with StreamingEncoder"):
            Encoder(stream_export)
        with pytest.raises(RuntimeInputError, match="holds a student without memory; open it with Encoder"):
            StreamingEncoder(exported)

    def test_the_command_takes_images_for_frames_of_one_camera(
        self, stream_run: Path, stream_export: Path, film: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        paths = [tmp_path / f"{time}.npy" for time in range(len(film))]
        for path, frames in zip(paths, film):
            np.save(path, frames[0])
        assert main([str(stream_export), "--check", *map(str, paths), "--out", str(tmp_path / "found.npz")]) == 0
        assert "ok (onnxruntime" in capsys.readouterr().out
        found = np.load(tmp_path / "found.npz", allow_pickle=False)["fused"]
        np.testing.assert_allclose(found, whole(stream_run, film)["fused"][0], atol=2e-5, rtol=1e-4)


class TestRefusals:
    def test_the_two_kinds_of_run_are_not_mistaken(self, run: Path, stream_run: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="holds a student with memory, whose step is written in fp32 or fp16"):
            export_run(stream_run, tmp_path / "out", pixels=True)
        with pytest.raises(UserError, match="holds a student of single frames"):
            export_streaming(run, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_unknown_choices_list_the_known(self, stream_run: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="unknown precision 'int8'"):
            export_streaming(stream_run, tmp_path / "out", precision="int8")
        with pytest.raises(UserError, match="unknown head 'fusd'. Did you mean 'fused'"):
            export_streaming(stream_run, tmp_path / "out", heads=["fusd"])

    def test_a_file_with_another_memory_fails_its_parity(self, stream_run: Path, stream_export: Path) -> None:
        student, names = load_streaming(stream_run), tuple(HEADS)
        backend = streaming.OnnxRuntimeBackend((stream_export / "student.onnx").read_bytes(), "onnxruntime", 1)
        with torch.no_grad():
            student.mixers[1].write.bias[:16].add_(0.5)  # forgets faster: the first frame alone would hardly tell
        answers = streaming.by_sequence(student, names), streaming.by_steps(backend, student, names)
        with pytest.raises(UserError, match="does not compute what the student computes"):
            streaming.check_parity(*answers, (64, 48), "fp32")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda graph: graph.input.pop(), "inputs and outputs|not valid ONNX"),
            (lambda graph: setattr(graph.output[2], "name", "memory"), "inputs and outputs|not valid ONNX"),
            (lambda graph: graph.input[1].type.tensor_type.shape.dim[0].Clear(), "symbolic batch"),
            (lambda graph: setattr(graph.input[1].type.tensor_type.shape.dim[2], "dim_value", 1), "another shape|not valid"),
            (
                lambda graph: graph.node.remove(next(n for n in graph.node if n.op_type == "LayerNormalization")),
                "not valid|Norm",
            ),
        ],
    )
    def test_graphs_that_break_the_rules(
        self, stream_run: Path, stream_export: Path, damage: Callable[[onnx.GraphProto], object], message: str
    ) -> None:
        student, names = load_streaming(stream_run), tuple(HEADS)
        model = onnx.load(stream_export / "student.onnx")
        assert streaming.check_step(copy.deepcopy(model), student, names, ExportConfig().opset)["opset"] == 20
        damage(model.graph)
        with pytest.raises(UserError, match=message):
            streaming.check_step(model, student, names, ExportConfig().opset)

    def test_the_command_says_one_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.argv", ["streaming", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")])
        assert streaming.main() == 2
        assert "no finished run" in capsys.readouterr().err
