"""Export: the file, its checks, its manifest, reuse, and what happens when something is wrong.

python -m pytest tests/export/test_onnx.py
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import export.onnx as exporter
from export import export_run
from export.parity import TOLERANCES, check_parity, difference, probe_images
from export.precision import to_half
from export.structure import check_structure, count_layer_norms
from student import load_student
from vega_artifact import UserError, read_manifest, verify_files

from .export_cases import HEADS, ROOT, make_run


def session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "student.onnx", providers=["CPUExecutionProvider"])


class TestFile:
    @pytest.mark.parametrize("batch", [1, 3, 5])
    def test_onnxruntime_computes_what_torch_computes_at_any_batch(self, run: Path, exported: Path, batch: int) -> None:
        images = np.random.default_rng(batch).standard_normal((batch, 3, 64, 64), dtype=np.float32)
        with torch.inference_mode():
            expected = load_student(run)(torch.from_numpy(images))
        found = session(exported).run(list(HEADS), {"images": images})
        for (name, channels), value in zip(HEADS.items(), found):
            assert value.shape == (batch, 16, channels) and value.dtype == np.float32
            np.testing.assert_allclose(value, expected[name].numpy(), atol=2e-5, rtol=1e-4)

    def test_is_opset_20_standard_onnx_with_a_symbolic_batch_and_whole_layer_norms(self, run: Path, exported: Path) -> None:
        model = onnx.load(exported / "student.onnx")
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
        dimensions = model.graph.input[0].type.tensor_type.shape.dim
        assert dimensions[0].dim_param and [dimension.dim_value for dimension in dimensions[1:]] == [3, 64, 64]
        norms = sum(node.op_type == "LayerNormalization" for node in model.graph.node)
        modules = [name for name, module in load_student(run).named_modules() if isinstance(module, nn.LayerNorm)]
        assert 13 <= norms <= len(modules)  # 6 blocks x 2 + final + heads; equal untrained head norms may be merged
        assert not {"Pow", "ReduceMean", "Attention"} & {node.op_type for node in model.graph.node}

    def test_tells_nothing_about_the_machine(self, exported: Path) -> None:
        data = (exported / "student.onnx").read_bytes()
        assert str(ROOT).encode() not in data
        assert b"site-packages" not in data and b"stack_trace" not in data

    def test_is_the_same_bytes_again(self, run: Path, exported: Path, tmp_path: Path) -> None:
        again = export_run(run, tmp_path / "again")
        first, second = read_manifest(exported, "export"), read_manifest(again, "export")
        assert first["files"] == second["files"] and first["fingerprint"] == second["fingerprint"]

    def test_manifest_says_what_a_device_needs(self, run: Path, exported: Path) -> None:
        manifest = read_manifest(exported, "export")
        verify_files(exported, manifest)
        assert manifest["parents"] == {"run": read_manifest(run, "run")["fingerprint"]}
        assert manifest["outputs"] == [{"name": name, "tokens": 16, "channels": size} for name, size in HEADS.items()]
        assert manifest["grid"] == [4, 4] and manifest["preprocess"]["size"] == [64, 64]
        rows = manifest["parity"]["rows"]
        assert {(row["stream"], row["batch"]) for row in rows} == {(name, batch) for name in HEADS for batch in (1, 3)}
        assert all(0 <= row["relative"] < 1e-5 and row["max_abs"] < 1e-4 and row["min_cosine"] > 0.9999 for row in rows)

    def test_convolutional_student_with_branches_is_fused(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run", "repvit_m1")
        manifest = read_manifest(export_run(run, tmp_path / "out", heads=["fused"]), "export")
        parameters = sum(parameter.numel() for parameter in load_student(run).backbone.parameters())
        assert manifest["structure"]["weights"]["float"] < parameters  # branches and batch norms became single convolutions
        assert "BatchNormalization" not in manifest["structure"]["operators"]


class TestChoices:
    def test_heads_keeps_the_wanted_streams_in_the_students_order(self, run: Path, exported: Path, tmp_path: Path) -> None:
        out = export_run(run, tmp_path / "out", heads=["generative"])
        assert [node.name for node in session(out).get_outputs()] == ["generative"]
        assert sorted(path.name for path in out.glob("golden_*")) == ["golden_frames.npy", "golden_generative.npy"]
        images = probe_images(2, (64, 64))
        whole = session(exported).run(["generative"], {"images": images})[0]
        np.testing.assert_allclose(session(out).run(None, {"images": images})[0], whole, atol=2e-5)

    def test_fp16_is_typed_inside_and_float32_outside(self, run: Path, exported: Path, tmp_path: Path) -> None:
        out = export_run(run, tmp_path / "half", precision="fp16")
        manifest = read_manifest(out, "export")
        assert set(manifest["structure"]["weights"]) == {"float16", "int64"}
        assert (out / "student.onnx").stat().st_size < 0.6 * (exported / "student.onnx").stat().st_size
        images = probe_images(3, (64, 64))
        for half, full in zip(session(out).run(None, {"images": images}), session(exported).run(None, {"images": images})):
            assert half.dtype == np.float32
            assert 1e-6 < difference(full, half)["relative"] < TOLERANCES["fp16"]["relative"]

    def test_fp16_refuses_weights_beyond_its_range(self, exported: Path) -> None:
        model = onnx.load(exported / "student.onnx")
        weight = next(tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)
        big = np.full(tuple(weight.dims), 1e5, np.float32)
        weight.CopyFrom(onnx.numpy_helper.from_array(big, weight.name))
        with pytest.raises(UserError, match=r"65504; export with --precision fp32"):
            to_half(model)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"precision": "int4"}, "unknown precision 'int4'.*fp16, fp32, fp8_fp16, int8"),
            ({"precision": "int8"}, r"measured on real frames; give the cache of the run \(--cache CACHE\)"),
            ({"heads": ["fusd"]}, "unknown head 'fusd'. Did you mean 'fused'"),
            ({"heads": []}, "at least one"),
        ],
    )
    def test_unknown_choices_list_the_known(self, run: Path, tmp_path: Path, options: dict, message: str) -> None:
        with pytest.raises(UserError, match=message):
            export_run(run, tmp_path / "out", **options)
        assert list(tmp_path.iterdir()) == []


class TestReuse:
    @pytest.fixture
    def copy(self, exported: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(exported, tmp_path / "export"))

    @pytest.fixture
    def no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("exported again")

        monkeypatch.setattr(exporter, "write_export", refuse)

    def test_complete_export_is_reused(self, run: Path, copy: Path, no_work: None) -> None:
        assert export_run(run, copy) == copy

    @pytest.mark.parametrize("change", ["precision", "run", "damage"])
    def test_anything_else_is_made_again(self, run: Path, copy: Path, no_work: None, tmp_path: Path, change: str) -> None:
        if change == "damage":
            (copy / "golden_fused.npy").write_bytes(b"short")
        other = make_run(tmp_path / "other", seed=1) if change == "run" else run
        before = {path.name: path.read_bytes() for path in copy.iterdir()}
        with pytest.raises(AssertionError, match="exported again"):
            export_run(other, copy, precision="fp16" if change == "precision" else "fp32")
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == before  # a failed attempt destroys nothing

    def test_damaged_export_and_what_a_killed_one_left_are_replaced(self, run: Path, copy: Path) -> None:
        (copy / "student.onnx").write_bytes(b"short")
        (copy.parent / ".export.partial").mkdir()
        (copy.parent / ".export.partial" / "junk").write_text("half")
        verify_files(export_run(run, copy), read_manifest(copy, "export"))
        assert [path.name for path in copy.parent.iterdir()] == ["export"]


class TestBadInput:
    def test_missing_run(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no finished run"):
            export_run(tmp_path / "nowhere", tmp_path / "out")

    def test_export_given_as_run(self, exported: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="a run expected, this is a export"):
            export_run(exported, tmp_path / "out")

    def test_altered_run(self, run: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(run, tmp_path / "run"))
        (copy / "student.safetensors").write_bytes(b"x")
        with pytest.raises(UserError, match="content differs"):
            export_run(copy, tmp_path / "out")

    def test_foreign_folder_is_not_replaced(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(UserError, match="holds other files"):
            export_run(run, tmp_path)
        with pytest.raises(UserError, match="is no export"):
            export_run(run, run)
        with pytest.raises(UserError, match="is a file"):
            export_run(run, tmp_path / "thesis.txt")
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    def test_full_disk(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(exporter, "write_export", full)
        with pytest.raises(UserError, match="disk is full"):
            export_run(run, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


class TestChecks:
    """The checks must be able to fail."""

    @pytest.fixture
    def model(self, exported: Path) -> onnx.ModelProto:
        return onnx.load(exported / "student.onnx")

    def check(self, model: onnx.ModelProto, norms: tuple[int, int] = (1, 99), precision: str = "fp32") -> None:
        check_structure(model, list(HEADS), 20, norms, precision)

    def test_good_graph_passes(self, model: onnx.ModelProto) -> None:
        self.check(model)

    def test_wrong_number_of_norms(self, model: onnx.ModelProto) -> None:
        with pytest.raises(UserError, match="LayerNormalization nodes for 30"):
            self.check(model, (30, 30))

    def test_frozen_batch(self, model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
        with pytest.raises(UserError, match=r"symbolic batch|not valid ONNX"):
            self.check(model)

    def test_foreign_domain(self, model: onnx.ModelProto) -> None:
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
        with pytest.raises(UserError, match="outside the ONNX standard"):
            self.check(model)

    def test_wrong_opset_names_and_types(self, model: onnx.ModelProto) -> None:
        with pytest.raises(UserError, match=r"has opset \[20\], 23 expected"):
            check_structure(model, list(HEADS), 23, (1, 99))
        with pytest.raises(UserError, match="inputs and outputs"):
            check_structure(model, ["fused"], 20, (1, 99))
        with pytest.raises(UserError, match="where fp16 was asked"):
            self.check(model, precision="fp16")

    def test_norm_count_leaves_out_heads_that_are_not_exported_and_merges_equal_ones(self, run: Path) -> None:
        student, images = load_student(run), torch.zeros(1, 3, 64, 64)
        both, one = (exporter.StreamTuple(student, names) for names in (tuple(HEADS), ("fused",)))
        assert count_layer_norms(both, images) == (14, 15)
        assert count_layer_norms(one, images) == (14, 14)
        with torch.no_grad():
            student.heads["fused"][0].weight.mul_(1.5)
        assert count_layer_norms(both, images) == (15, 15)

    @pytest.mark.parametrize("damage", [lambda x: x * 1.01, lambda x: x + np.nan, lambda x: x[:, :-1]])
    def test_parity_refuses_other_values(self, damage) -> None:
        def truth(images: np.ndarray) -> dict[str, np.ndarray]:
            return {"fused": images.reshape(len(images), 3, -1)}

        assert len(check_parity(truth, truth, (8, 8), "fp32")) == 2
        with pytest.raises(UserError, match="fused at batch 1"):
            check_parity(truth, lambda images: {"fused": damage(truth(images)["fused"])}, (8, 8), "fp32")

    def test_parity_at_one_batch_is_not_enough(self) -> None:
        def truth(images: np.ndarray) -> dict[str, np.ndarray]:
            return {"fused": images.reshape(len(images), 3, -1)}

        def frozen(images: np.ndarray) -> dict[str, np.ndarray]:
            return {"fused": np.repeat(truth(images)["fused"][:1], len(images), axis=0)}

        with pytest.raises(UserError, match="batch 3"):
            check_parity(truth, frozen, (8, 8), "fp32")

    def test_failed_parity_leaves_no_export(self, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        original = exporter.to_onnx

        def broken(student, *arguments):
            with torch.no_grad():
                other = load_student(run)
                other.heads["fused"][-1].bias.add_(0.1)
            return original(other, *arguments)

        monkeypatch.setattr(exporter, "to_onnx", broken)
        with pytest.raises(UserError, match="does not compute what the student computes"):
            export_run(run, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["out.refused.onnx"], "kept for export.bisect, and nothing else"

    def test_student_torch_cannot_trace(self, run: Path) -> None:
        class Branching(nn.Module):
            def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"fused": images.flatten(2) if images.sum() > 0 else images.flatten(2) * 2}

        with pytest.raises(UserError, match="cannot export this student to ONNX"):
            exporter.to_onnx(Branching(), ("fused",), (8, 8), dataclasses.replace(exporter.ExportConfig()))


def test_manifest_is_json_without_machine_paths(exported: Path) -> None:
    text = (exported / "manifest.json").read_text()
    assert json.loads(text)["schema"] == 1
    assert str(ROOT) not in text and str(exported.parent) not in text
