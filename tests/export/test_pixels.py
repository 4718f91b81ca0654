"""Models that take uint8 frames and normalise them inside the graph: the same features, wherever they run.

python -m pytest tests/export/test_pixels.py
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import build_engine
from export.device.triton import write_repository
from export.runtime import Encoder, RuntimeInputError
from export.runtime.backends import tensorrt_options
from export.runtime.manifest import read_description

from .export_cases import edit
from .fake_tensorrt import install


@pytest.fixture(scope="module")
def pixels(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export with its normalisation moved into the graph, golden arrays made of rounded frames."""
    folder = Path(shutil.copytree(exported, tmp_path_factory.mktemp("pixels") / "export"))
    manifest = json.loads((folder / "manifest.json").read_text())
    graph = (model := onnx.load(folder / "student.onnx")).graph
    for name in ("mean", "std"):
        values = np.array(manifest["preprocess"][name], np.float32).reshape(1, 1, 1, 3) * 255
        graph.initializer.append(numpy_helper.from_array(values, name))
    first = [
        helper.make_node("Cast", ["frames"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["as_float", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["images"], perm=[0, 3, 1, 2]),
    ]
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*first, *rest])
    graph.input.append(helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", 64, 64, 3]))
    onnx.save(model, folder / "student.onnx")
    rng = np.random.default_rng(0)
    np.save(folder / "golden_frames.npy", frames := rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    for name, value in Encoder(exported)(frames).items():
        np.save(folder / f"golden_{name}.npy", value)
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    files = {name: {"sha256": digest, "bytes": (folder / name).stat().st_size} for name, digest in sums.items()}
    edit(folder, lambda changed: changed.update(files=files, input={"name": "frames"}))
    return folder


def test_features_are_those_of_the_other_export(pixels: Path, exported: Path) -> None:
    rng = np.random.default_rng(1)
    encoder, other = Encoder(pixels), Encoder(exported)
    fitting = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for name, value in encoder(fitting).items():
        np.testing.assert_allclose(value, other(fitting)[name], atol=5e-5)
    larger = rng.integers(0, 256, (2, 90, 70, 3), dtype=np.uint8)
    given = encoder.prepare(larger)
    assert given.dtype == np.uint8 and given.shape == (2, 64, 64, 3)
    for name, value in encoder(larger).items():
        np.testing.assert_allclose(value, other(given)[name], atol=5e-5)
    assert np.array_equal(encoder.prepare(given / 255), given), "float frames are the same frames"
    assert all(value["relative"] < 1e-4 for value in encoder.check().values())
    with pytest.raises(RuntimeInputError, match="numpy array expected"):
        encoder([[1]])  # type: ignore[arg-type]


def test_engine_profile_and_triton_know_the_pixels(pixels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = install(monkeypatch)
    engine = build_engine(pixels, tmp_path / "engine", largest_batch=2)
    assert ("set_shape", "frames", (1, 64, 64, 3), (1, 64, 64, 3), (2, 64, 64, 3)) in machine.calls
    assert 2 * 64 * 64 * 3 in machine.cudart.sizes(), "one byte per value on the device"
    frames = np.random.default_rng(2).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_allclose(Encoder(engine)(frames)["fused"], Encoder(pixels, "onnxruntime")(frames)["fused"], atol=2e-5)
    assert tensorrt_options(read_description(pixels))["trt_profile_min_shapes"] == "frames:1x64x64x3"
    text = (write_repository(engine, tmp_path / "models") / "config.pbtxt").read_text()
    assert '{ name: "frames" data_type: TYPE_UINT8 dims: [64, 64, 3] }' in text
