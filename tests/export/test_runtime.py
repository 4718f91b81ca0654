"""The torch-free runtime: same features as the student, alone in its process, one sentence for every bad input.

python -m pytest tests/export/test_runtime.py
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.runtime import Encoder, RuntimeInputError
from export.runtime.__main__ import main
from export.runtime.preprocess import preprocess, resize, resize_weights
from student import Preprocess, load_student

from .export_cases import HEADS, ROOT, edit

BLOCKED = (
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "scipy",
    "safetensors",
    "teacher",
    "student",
    "distill",
    "bench",
    "vega_artifact",
)


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "export"))


class TestResize:
    @pytest.mark.parametrize(
        ("source", "target"),
        [
            ((100, 60), (64, 64)),
            ((480, 853), (128, 128)),
            ((20, 33), (64, 48)),
            ((64, 200), (64, 64)),
            ((1, 1), (4, 5)),
            ((7, 64), (9, 64)),
        ],
    )
    def test_equals_torch_antialiased_bilinear(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        frames = np.random.default_rng(0).random((2, *source, 3), dtype=np.float32)
        tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
        options = {"mode": "bilinear", "antialias": True, "align_corners": False}
        expected = torch.nn.functional.interpolate(tensor, size=target, **options).permute(0, 2, 3, 1)
        np.testing.assert_allclose(resize(frames, target), expected.numpy(), atol=2e-6)

    def test_same_size_changes_no_bit(self) -> None:
        frames = np.random.default_rng(0).random((2, 16, 12, 3), dtype=np.float32)
        assert resize(frames, (16, 12)) is frames

    def test_keeps_a_ramp_and_its_mean(self) -> None:
        assert np.allclose(resize_weights(100, 7).sum(axis=1), 1)
        ramp = np.linspace(0, 1, 80, dtype=np.float32).reshape(1, 80, 1, 1).repeat(2, axis=2)
        small = resize(ramp, (8, 2))[0, :, 0, 0]
        assert np.all(np.diff(small) > 0) and abs(small.mean() - 0.5) < 1e-6

    @pytest.mark.parametrize("shape", [(2, 64, 64, 3), (1, 90, 130, 3), (3, 31, 47, 3)])
    def test_preprocess_equals_the_students_own(self, shape: tuple[int, ...]) -> None:
        frames = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        wish = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=(64, 64))
        found = preprocess(frames, wish.size, wish.mean, wish.std)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, wish(frames).numpy(), atol=2e-5)

    def test_float_frames_are_the_same_frames(self) -> None:
        frames = np.random.default_rng(1).integers(0, 256, (1, 40, 40, 3), dtype=np.uint8)
        arguments = ((32, 32), (0.5,) * 3, (0.5,) * 3)
        np.testing.assert_allclose(preprocess(frames / 255, *arguments), preprocess(frames, *arguments), atol=1e-6)


class TestEncoder:
    def test_gives_the_students_features(self, run: Path, exported: Path, frames: np.ndarray) -> None:
        student = load_student(run)
        with torch.inference_mode():
            expected = student(student.preprocess(frames))
        found = Encoder(exported, threads=1)(frames)
        assert list(found) == list(HEADS)
        for name, value in found.items():
            assert value.dtype == np.float32 and value.shape == (3, 16, HEADS[name])
            np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-4)

    def test_batch_does_not_matter_not_even_above_the_largest(self, copy: Path) -> None:
        edit(copy, lambda manifest: manifest["config"].update(max_batch=2))
        frames = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
        encoder = Encoder(copy, "onnxruntime", threads=1)
        together = encoder(frames)
        for index in range(5):
            for name, value in encoder(frames[index : index + 1]).items():
                np.testing.assert_allclose(value[0], together[name][index], atol=2e-5)

    def test_says_where_it_runs(self, exported: Path) -> None:
        encoder = Encoder(exported, "onnxruntime")
        assert encoder.backend == "onnxruntime" and encoder.providers == ["CPUExecutionProvider"]

    def test_self_test_passes_and_can_fail(self, copy: Path) -> None:
        differences = Encoder(copy).check()
        assert set(differences) == set(HEADS)
        assert all(0 <= value["relative"] < 1e-5 for value in differences.values())
        golden = np.load(copy / "golden_fused.npy", allow_pickle=False)
        np.save(copy / "golden_fused.npy", golden * np.float32(1.01))
        digest = hashlib.sha256((copy / "golden_fused.npy").read_bytes()).hexdigest()
        edit(copy, lambda manifest: manifest["files"]["golden_fused.npy"].update(sha256=digest))
        with pytest.raises(RuntimeInputError, match=r"self test failed \(fused: relative difference 9\.9"):
            Encoder(copy).check()

    def test_overflow_is_never_silent(self, exported: Path) -> None:
        encoder = Encoder(exported)
        with pytest.raises(RuntimeInputError, match="output fused is not finite"):
            encoder.finish([np.full((1, 16, 24), np.inf, np.float32), np.zeros((1, 16, 16), np.float32)])


class TestBadInput:
    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            (np.zeros((64, 64, 3), np.uint8), r"shape \(batch, height, width, 3\)"),
            (np.zeros((1, 3, 64, 64), np.uint8), "shape"),
            (np.zeros((0, 64, 64, 3), np.uint8), "shape"),
            (np.zeros((1, 64, 64, 3), np.int32), "uint8, or float32 .* found int32"),
            (np.full((1, 64, 64, 3), np.nan, np.float32), "NaN"),
            (np.full((1, 64, 64, 3), 255.0, np.float32), "divide by 255"),
            ([[1]], "numpy array expected, found list"),
        ],
    )
    def test_frames(self, exported: Path, frames: np.ndarray, message: str) -> None:
        with pytest.raises(RuntimeInputError, match=message):
            Encoder(exported)(frames)

    @pytest.mark.parametrize(
        ("images", "found"),
        [
            (np.zeros((1, 64, 64, 3), np.uint8), r"found uint8 of shape \(1, 64, 64, 3\)"),  # frames nobody prepared
            (np.zeros((2, 3, 64, 64), np.float64), r"found float64 of shape \(2, 3, 64, 64\)"),
            (np.zeros((1, 3, 32, 64), np.float32), r"found float32 of shape \(1, 3, 32, 64\)"),
            (np.zeros((3, 64, 64), np.float32), r"found float32 of shape \(3, 64, 64\)"),
        ],
    )
    def test_images_that_were_not_prepared(self, exported: Path, images: np.ndarray, found: str) -> None:
        with pytest.raises(RuntimeInputError, match=rf"^images: float32 of shape \(batch, 3, 64, 64\) expected, {found}$"):
            Encoder(exported, "onnxruntime").infer(images)

    def test_missing_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeInputError, match=r"manifest\.json: missing"):
            Encoder(tmp_path)

    def test_broken_manifest(self, copy: Path) -> None:
        (copy / "manifest.json").write_text("{")
        with pytest.raises(RuntimeInputError, match="not valid JSON"):
            Encoder(copy)

    def test_artifact_of_another_kind(self, run: Path) -> None:
        with pytest.raises(RuntimeInputError, match="an export of schema 1 expected, found 'run'"):
            Encoder(run)

    @pytest.mark.parametrize(
        "change",
        [
            lambda manifest: manifest.pop("preprocess"),
            lambda manifest: manifest["preprocess"].update(std=[0, 1, 1]),
            lambda manifest: manifest["outputs"][0].update(name="../../secret"),
            lambda manifest: manifest.update(files=[]),
        ],
    )
    def test_odd_manifest(self, copy: Path, change: Callable[[dict], object]) -> None:
        edit(copy, change)
        with pytest.raises(RuntimeInputError, match="field missing or odd"):
            Encoder(copy)

    @pytest.mark.parametrize(
        "change",
        [
            lambda manifest: manifest["tolerances"].update(relative=1e9, peak=1e9),
            lambda manifest: manifest["preprocess"].update(mean=[0.4, 0.5, 0.5]),
            lambda manifest: manifest["outputs"].reverse(),
            lambda manifest: manifest.update(grid=[2, 8]),
            lambda manifest: manifest.update(input={"name": "frames"}),
            lambda manifest: manifest.update(states=[{"name": "state_0", "tokens": 1, "channels": 1}]),
            lambda manifest: manifest["config"].update(max_batch=2),
            lambda manifest: manifest.pop("contract"),
        ],
    )
    def test_edited_manifest(self, copy: Path, change: Callable[[dict], object]) -> None:
        manifest = json.loads((copy / "manifest.json").read_text())
        change(manifest)
        (copy / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RuntimeInputError, match=r"manifest\.json: altered since it was written; copy the export again"):
            Encoder(copy)

    def test_manifest_of_before_there_was_a_contract(self, copy: Path) -> None:
        edit(copy, lambda manifest: manifest.pop("contract"))
        assert Encoder(copy).check()

    def test_manifest_of_another_model(self, copy: Path) -> None:
        edit(copy, lambda manifest: manifest["outputs"].reverse())
        with pytest.raises(RuntimeInputError, match="not what its manifest says"):
            Encoder(copy)

    def test_altered_or_missing_model(self, copy: Path) -> None:
        data = bytearray((copy / "student.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (copy / "student.onnx").write_bytes(data)
        with pytest.raises(RuntimeInputError, match=r"student\.onnx: not the file that was exported"):
            Encoder(copy)
        (copy / "student.onnx").unlink()
        with pytest.raises(RuntimeInputError, match=r"student\.onnx: cannot be read"):
            Encoder(copy)

    def test_model_onnxruntime_refuses(self, copy: Path) -> None:
        (copy / "student.onnx").write_bytes(b"not onnx")
        digest = hashlib.sha256(b"not onnx").hexdigest()
        edit(copy, lambda manifest: manifest["files"]["student.onnx"].update(sha256=digest))
        with pytest.raises(RuntimeInputError, match="refuses the model"):
            Encoder(copy)


class TestCommand:
    @pytest.fixture
    def images(self, tmp_path: Path) -> list[str]:
        rng = np.random.default_rng(0)
        first, second = (rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((50, 70, 3), (64, 64, 3)))
        Image.fromarray(first).save(tmp_path / "a.png")
        np.save(tmp_path / "b.npy", second)
        return [str(tmp_path / "a.png"), str(tmp_path / "b.npy")]

    def test_images_of_any_size_become_features(self, exported: Path, images: list[str], tmp_path: Path) -> None:
        assert main([str(exported), *images, "--out", str(tmp_path / "deep" / "f.npz")]) == 0
        with np.load(tmp_path / "deep" / "f.npz", allow_pickle=False) as features:
            assert list(features["names"]) == images
            assert features["fused"].shape == (2, 16, 24) and features["generative"].shape == (2, 16, 16)
            alone = Encoder(exported)(np.asarray(Image.open(images[0]))[None])["fused"][0]
            np.testing.assert_allclose(features["fused"][0], alone, atol=2e-5)

    def test_the_file_holds_the_features_alone_with_any_numpy(
        self, exported: Path, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """numpy 1.21, that of JetPack 6, stores every keyword of savez as an array."""
        written: dict[str, object] = {}
        monkeypatch.setattr(np, "savez", lambda _stream, **arrays: written.update(arrays))
        assert main([str(exported), *images, "--out", str(tmp_path / "f.npz")]) == 0
        assert set(written) == {"fused", "generative", "names"}

    def test_bad_input_exits_with_2_and_writes_nothing(
        self, exported: Path, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "broken.png").write_bytes(b"no image")
        np.save(tmp_path / "grey.npy", np.zeros((8, 8), np.uint8))
        np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
        out = tmp_path / "f.npz"
        for name, message in [
            ("none.png", "no such image"),
            ("broken.png", "cannot be decoded"),
            ("grey.npy", "shape (batch, height, width, 3)"),
            ("objects.npy", "cannot be decoded"),
        ]:
            assert main([str(exported), images[0], str(tmp_path / name), "--out", str(out)]) == 2
            printed = capsys.readouterr().err
            assert printed.startswith(f"error: {tmp_path / name}") and message in printed and printed.count("\n") == 1
        assert main([str(tmp_path), "--check"]) == 2
        assert not out.exists()

    @pytest.mark.parametrize("arguments", [[], ["a.png"], ["--out", "f.npz"]])
    def test_half_a_command_is_refused(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["EXPORT", *arguments])
        assert stop.value.code == 2


class TestAlone:
    def test_works_with_everything_heavy_and_everything_of_ours_blocked(
        self, exported: Path, tmp_path: Path, isolated: Callable[..., subprocess.CompletedProcess[str]]
    ) -> None:
        np.save(tmp_path / "a.npy", np.zeros((30, 40, 3), np.uint8))
        code = (
            "import runpy\n"
            f"sys.argv[1:] = {[str(exported), '--check', str(tmp_path / 'a.npy'), '--out', str(tmp_path / 'f.npz')]}\n"
            "runpy.run_module('export.runtime', run_name='__main__')"
        )
        done = isolated(code, blocked=BLOCKED)
        assert done.returncode == 0, done.stderr
        assert "fused: relative difference" in done.stdout and (tmp_path / "f.npz").exists()

    def test_imports_nothing_but_numpy(self, isolated: Callable[..., subprocess.CompletedProcess[str]]) -> None:
        code = (
            "import numpy, export.runtime\n"
            "ours = {name for name in sys.modules if name.split('.')[0] == 'export'}\n"
            "print(sorted(ours), 'onnxruntime' in sys.modules)"
        )
        done = isolated(code, blocked=BLOCKED)
        assert done.returncode == 0, done.stderr
        modules = ["backends", "cuda", "encoder", "manifest", "preprocess"]
        assert done.stdout.strip() == f"{['export', 'export.runtime', *('export.runtime.' + name for name in modules)]} False"

    def test_lazy_package_still_offers_its_names(self) -> None:
        import export

        assert export.export_run.__module__ == "export.onnx"
        with pytest.raises(AttributeError, match="build_engine, export_run, write_bundle"):
            _ = export.exprot_run

    def test_python_3_10_grammar(self) -> None:
        import ast

        for path in (ROOT / "export" / "runtime").glob("*.py"):
            ast.parse(path.read_text(), feature_version=(3, 10))
