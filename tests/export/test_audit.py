"""Opening files of others safely, the facts about a graph, and frames to calibrate with.

python -m pytest tests/export/test_audit.py
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from export.audit import audit, count_attention, load_model, measure_ranges, weights_hash
from export.frames import calibration_frames
from vega_artifact import UserError, read_manifest, write_manifest

from .graphs import images, small_graph


def external(location: str) -> onnx.ModelProto:
    """The small graph with one weight said to lie in another file."""
    model = small_graph()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return model


class TestLoading:
    def test_weights_inside_or_beside_are_read(self, tmp_path: Path) -> None:
        onnx.save(small_graph(), tmp_path / "inside.onnx")
        beside = tmp_path / "beside.onnx"
        onnx.save(small_graph(), beside, save_as_external_data=True, location="weights.bin", size_threshold=0)
        assert weights_hash(load_model(tmp_path / "inside.onnx")) == weights_hash(load_model(beside))

    @pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
    def test_external_data_that_leaves_the_folder(self, tmp_path: Path, location: str) -> None:
        (tmp_path / "secret").write_bytes(bytes(192))
        folder = tmp_path / "export"
        folder.mkdir()
        (folder / "link").symlink_to(tmp_path / "secret")
        (folder / "student.onnx").write_bytes(external(location).SerializeToString())
        with pytest.raises(UserError, match="weight head.weight points outside its folder"):
            load_model(folder / "student.onnx")

    def test_external_data_inside_an_operator_counts_too(self, tmp_path: Path) -> None:
        model = small_graph()
        hidden = onnx.TensorProto(name="hidden", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
        hidden.external_data.add(key="location", value="../secret")
        model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], "constant", value=hidden))
        (tmp_path / "student.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match="hidden points outside"):
            load_model(tmp_path / "student.onnx")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda model: external("lost.bin").SerializeToString(), r"its weights lost.bin are missing"),
            (lambda model: model.SerializeToString()[:-100], "truncated"),
            (lambda model: b"\xff\xff not a graph", "truncated, or no ONNX file"),
            (lambda model: b"", "opset None|truncated"),
            (lambda model: _opset(model, "", 23), r"opset 23, but 17 to 20 are what devices read"),
            (lambda model: _opset(model, "com.microsoft", 1), r"operators outside the ONNX standard \(com.microsoft\)"),
        ],
    )
    def test_damaged_and_foreign_files(self, tmp_path: Path, damage: Callable[[onnx.ModelProto], bytes], message: str) -> None:
        (tmp_path / "student.onnx").write_bytes(damage(small_graph()))
        with pytest.raises(UserError, match=message):
            load_model(tmp_path / "student.onnx")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="make it with `vega-edge export"):
            load_model(tmp_path / "student.onnx")


def _opset(model: onnx.ModelProto, domain: str, version: int) -> bytes:
    kept = [entry for entry in model.opset_import if entry.domain != domain]
    del model.opset_import[:]
    model.opset_import.extend([*kept, onnx.helper.make_opsetid(domain, version)])
    return model.SerializeToString()


class TestFacts:
    def test_attention_is_a_softmax_between_two_products(self) -> None:
        model = small_graph()
        assert count_attention(model.graph) == 1
        next(node for node in model.graph.node if node.name == "gather").op_type = "Mul"
        assert count_attention(model.graph) == 0

    def test_hash_knows_values_and_no_names(self) -> None:
        model, renamed, changed = small_graph(), small_graph(), small_graph()
        renamed.graph.initializer[0].name = "other"
        changed.graph.initializer[0].raw_data = bytes(len(changed.graph.initializer[0].raw_data))
        assert weights_hash(model) == weights_hash(renamed) != weights_hash(changed)

    def test_ranges_are_those_of_all_images(self) -> None:
        model, given = small_graph(), images(7)
        ranges = measure_ranges(model, given)
        assert ranges["images"] == (given.min(), given.max())
        assert ranges["shares"][0] >= 0 and ranges["shares"][1] <= 1 and ranges["fused"][0] < 0 < ranges["fused"][1]
        parts = [measure_ranges(model, given[start : start + 1]) for start in range(7)]
        assert ranges["large"][1] == pytest.approx(max(part["large"][1] for part in parts), rel=1e-5)
        facts = audit(model, {"network": 1}, ranges)
        assert facts["attention"] == {"graph": 1, "network": 1} and len(facts["ranges"]["fused"]) == 2
        assert "ranges" not in audit(model, {"network": 1}, None)

    def test_a_student_that_is_not_finite_is_refused(self) -> None:
        with pytest.raises(UserError, match="not finite on the calibration frames"):
            measure_ranges(small_graph(scale=float("inf")), images())


class TestFrames:
    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        """Three scenes of four frames, every frame of its own grey."""
        folder = tmp_path / "cache"
        folder.mkdir()
        scenes = ["a", "b", "c"]
        grey = {
            f"{scene}/rgb": np.full((4, 6, 8, 3), 40 * index, np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None]
            for index, scene in enumerate(scenes)
        }
        save_file(grey, folder / "shard-00000.safetensors")
        about = {"scenes": scenes, "frames": [4, 4, 4], "index": dict.fromkeys(scenes, "shard-00000.safetensors")}
        streams = {"rgb": {"dtype": "uint8", "shape": [6, 8, 3]}}
        write_manifest(folder, "cache", {}, {}, ["shard-00000.safetensors"], streams=streams, **about)
        return folder

    def run(self, cache: Path, **changes: object) -> dict:
        scenes = {"train": ["a", "b"], "validation": ["c"]}
        return {"parents": {"cache": read_manifest(cache, "cache")["fingerprint"]}, "scenes": scenes, **changes}

    def test_seen_and_unseen_are_spread_over_their_scenes(self, cache: Path) -> None:
        found = calibration_frames(cache, self.run(cache), count=3)
        assert found.seen[:, 0, 0, 0].tolist() == [0, 3, 43] and found.unseen[:, 0, 0, 0].tolist() == [80, 81, 83]
        assert found.seen.shape == (3, 6, 8, 3) and found.source.startswith("cache ")

    def test_what_cannot_calibrate(self, cache: Path) -> None:
        with pytest.raises(UserError, match=r"parents.cache is other"):
            calibration_frames(cache, self.run(cache, parents={"cache": "other"}))
        with pytest.raises(UserError, match="no scenes for validation"):
            calibration_frames(cache, self.run(cache, scenes={"train": ["a"], "validation": []}))
        with pytest.raises(UserError, match="lacks scene 'z'"):
            calibration_frames(cache, self.run(cache, scenes={"train": ["z"], "validation": ["c"]}))
        data = (cache / "shard-00000.safetensors").read_bytes()
        (cache / "shard-00000.safetensors").write_bytes(data[:-1] + b"\x01")
        with pytest.raises(UserError, match="shard-00000.safetensors: missing, cut or altered"):
            calibration_frames(cache, self.run(cache))
