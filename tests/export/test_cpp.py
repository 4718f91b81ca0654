"""The C++ sample: compiles against stand-ins of TensorRT and CUDA, and prepares pictures as the Python runtime does.

python -m pytest tests/export/test_cpp.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.bundle import student_header
from export.runtime.preprocess import preprocess

ROOT = Path(__file__).resolve().parents[2]


COMPILER = next((path for name in ("g++", "clang++", "c++") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler found (g++, clang++ or c++)")

SAMPLE = ROOT / "export" / "device" / "cpp"
STUB = Path(__file__).parent / "stub"


def compile_sample(folder: Path, manifest: dict) -> Path:
    """The sample for this export, as a program in `folder`."""
    folder.mkdir(parents=True)
    (folder / "student.hpp").write_text(student_header(manifest))
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{folder}", f"-I{STUB}"]
    command = [str(COMPILER), *flags, str(SAMPLE / "encode.cpp"), "-o", str(folder / "encode")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "encode"


@pytest.fixture(scope="module")
def program(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One program for all tests: with the memory of a streaming student, which the sample must carry from frame to frame."""
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["states"] = [{"name": "state_0", "tokens": 16, "channels": 8}]
    return compile_sample(tmp_path_factory.mktemp("cpp") / "program", manifest)


def test_a_model_that_normalises_by_itself_gets_pixels(exported: Path, tmp_path: Path) -> None:
    manifest = json.loads((exported / "manifest.json").read_text())
    program = compile_sample(tmp_path / "program", manifest | {"input": {"name": "frames"}})
    picture = np.random.default_rng(0).integers(0, 256, (90, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.ppm")
    (tmp_path / "engine.plan").write_bytes(b"plan")
    done = subprocess.run([str(program), "engine.plan", ".", "a.ppm"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    resized = preprocess(picture[None], (64, 64), (0.0,) * 3, (1.0,) * 3)[0].transpose(1, 2, 0).ravel() * 255
    found = np.load(tmp_path / "fused-000000.npy", allow_pickle=False).ravel()
    assert np.abs(found - resized[: found.size]).max() <= 0.501


@pytest.fixture
def call(program: Path, tmp_path: Path):
    (tmp_path / "engine.plan").write_bytes(b"plan")

    def run(*pictures: str, engine: str = "engine.plan") -> subprocess.CompletedProcess[str]:
        command = [str(program), engine, ".", *pictures]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    return run


def test_pictures_of_any_size_arrive_as_in_python(exported: Path, call, tmp_path: Path) -> None:
    wish = json.loads((exported / "manifest.json").read_text())["preprocess"]
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for name, size in [("a", (90, 50)), ("b", (20, 130))]}
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / f"{name}.ppm")
    done = call("a.ppm", "b.ppm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for index, picture in enumerate(pictures.values()):
        expected = preprocess(picture[None], tuple(wish["size"]), tuple(wish["mean"]), tuple(wish["std"])).ravel()
        for stream, channels in (("fused", 24), ("generative", 16)):
            found = np.load(tmp_path / f"{stream}-{index:06d}.npy", allow_pickle=False)
            assert found.dtype == np.float32 and found.shape == (16, channels)
            np.testing.assert_allclose(found.ravel()[1:], expected[1 : found.size], atol=2e-5)
        counted = np.load(tmp_path / f"fused-{index:06d}.npy", allow_pickle=False)[0, 0]
        assert counted == index + 1, "the memory of each frame is given to the next"


def test_bad_input_is_one_sentence(call, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "good.ppm")
    whole = (tmp_path / "good.ppm").read_bytes()
    (tmp_path / "cut.ppm").write_bytes(whole[:-1])
    (tmp_path / "grey.ppm").write_bytes(b"P5\n4 4\n255\n" + bytes(16))
    (tmp_path / "broken.plan").write_bytes(b"pl")
    (tmp_path / "stripped.plan").write_bytes(b"strp")
    for pictures, engine, message in [
        (["none.ppm"], "engine.plan", "none.ppm: cannot be read"),
        (["cut.ppm"], "engine.plan", "cut.ppm: shorter than its header says"),
        (["grey.ppm"], "engine.plan", "grey.ppm: a binary PPM"),
        (["good.ppm"], "broken.plan", "broken.plan: TensorRT cannot load it; build it again"),
        (["good.ppm"], "none.plan", "none.plan: cannot be read"),
        (["good.ppm"], "stripped.plan", "stripped.plan: holds no weights, and this program puts none back; build it again"),
    ]:
        done = call(*pictures, engine=engine)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1
    assert call().returncode == 2


def test_an_engine_for_any_version_may_bring_its_own_code(call, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.ppm")
    (tmp_path / "any.plan").write_bytes(b"host")
    done = call("a.ppm", engine="any.plan")
    assert (done.returncode, done.stderr) == (0, "")


def test_cmake_names_what_the_sample_needs() -> None:
    text = (SAMPLE / "CMakeLists.txt").read_text()
    assert "add_executable(encode encode.cpp)" in text and "find_package(CUDAToolkit REQUIRED)" in text
    assert "NvInfer.h" in text and "aarch64-linux-gnu" in text and "CMAKE_CXX_STANDARD 17" in text
