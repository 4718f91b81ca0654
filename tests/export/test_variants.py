"""Every precision and size of one run side by side: what is written, scored, recommended, reused and refused.

The graph is that of the shared export: tracing it again for every case would take longer than all else here.

    python -m pytest tests/export/test_variants.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import export.onnx as exporter
import export.variants as variants
from export import export_run
from export.audit import open_session
from export.bisect import bisect
from export.onnx import ExportConfig, FromPixels, StreamTuple
from export.parity import difference
from export.runtime import Encoder
from export.sizes import at_size
from export.structure import PIXELS, check_borders, check_structure, count_layers
from export.variants import export_variants, folder_name, table
from student import Preprocess, load_student
from vega_artifact import UserError, read_manifest, write_manifest

from .export_cases import HEADS


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of six smooth frames."""
    folder = tmp_path_factory.mktemp("cache")
    rows, columns = np.meshgrid(np.linspace(0, 6, 64), np.linspace(0, 6, 64), indexing="ij")
    waves = [np.sin(rows * (1 + t / 7) + t) * np.cos(columns + c) for t in range(12) for c in range(3)]
    frames = (127 + 120 * np.stack(waves).reshape(12, 3, 64, 64).transpose(0, 2, 3, 1)).astype(np.uint8)
    save_file({"a/rgb": frames[:6].copy(), "b/rgb": frames[6:].copy()}, folder / "shard-00000.safetensors")
    about = {"scenes": ["a", "b"], "frames": [6, 6], "index": dict.fromkeys("ab", "shard-00000.safetensors")}
    streams = {"rgb": {"dtype": "uint8", "shape": [64, 64, 3]}}
    write_manifest(folder, "cache", {}, {}, ["shard-00000.safetensors"], streams=streams, **about)
    return folder


@pytest.fixture(scope="module")
def cached_run(run: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared run, trained on that cache by its manifest."""
    folder = tmp_path_factory.mktemp("cached")
    manifest = read_manifest(run, "run")
    for name in manifest["files"]:
        (folder / name).write_bytes((run / name).read_bytes())
    parents = {"cache": read_manifest(cache, "cache")["fingerprint"]}
    scenes = {"train": ["a"], "validation": ["b"]}
    write_manifest(folder, "run", {}, parents, manifest["files"], student=manifest["student"], scenes=scenes)
    return folder


@pytest.fixture
def traced(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "to_onnx", lambda *_: onnx.load(exported / "student.onnx"))


def test_all_precisions_are_written_scored_and_one_recommended(
    traced: None, cached_run: Path, cache: Path, tmp_path: Path
) -> None:
    probes = {"spread": lambda streams: float(streams["fused"].std() / 1e3)}
    found = export_variants(cached_run, tmp_path / "out", cache=cache, probes=probes)
    rows = {row["folder"]: row for row in found["rows"]}
    assert list(rows) == ["fp32", "fp16", "int8", "int8_fp16"] and not found["refused"]
    assert rows["fp32"]["bytes"] > 1.8 * rows["fp16"]["bytes"] > 3.2 * rows["int8"]["bytes"]
    assert min(rows["fp32"]["cosine"].values()) > 0.999999 and min(rows["fp16"]["cosine"].values()) > 0.9999
    assert 0.99 < min(rows["int8"]["cosine"].values()) < 1
    assert set(rows["int8"]["probes"]["spread"]) == {"fp32", "found"}
    assert [(row["target"], row["size"]) for row in found["recommended"]] == [("cpu", None), ("tensorrt", None)]
    assert found["recommended"][1]["precision"] == "fp16" and "not timed" in found["recommended"][1]["why"]
    assert json.loads((tmp_path / "out" / "precisions.json").read_text()) == json.loads(json.dumps(found))
    assert "for tensorrt: fp16" in table(found)
    manifest = read_manifest(tmp_path / "out" / "int8", "export")
    # One activation less than layers: both heads read the same one, because their untrained norms are equal and were merged.
    assert manifest["structure"]["quantized"] == {"weights": 29, "activations": 28, "layers": 29}
    assert manifest["structure"]["attention"] == {"graph": 6, "network": 6, "fusable": 6}
    assert manifest["structure"]["calibration"] == {"source": found_source(cache), "frames": 6}
    for name in ("fp16", "int8"):
        Encoder(tmp_path / "out" / name).check()  # the runtime takes them as they are


def found_source(cache: Path) -> str:
    return f"cache {read_manifest(cache, 'cache')['fingerprint']}"


def test_complete_variants_are_reused(
    traced: None, cached_run: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = export_variants(cached_run, tmp_path, precisions=("fp16",), cache=cache)
    monkeypatch.setattr(variants, "write_export", None)
    again = export_variants(cached_run, tmp_path, precisions=("fp16",), cache=cache)
    assert [row["cosine"] for row in again["rows"]] == [row["cosine"] for row in first["rows"]]


def test_a_refused_variant_is_listed_with_its_reason(
    traced: None, cached_run: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"relative": 1e-9, "peak": 1e-9}
    monkeypatch.setitem(exporter.TOLERANCES, "int8", limits)
    found = export_variants(cached_run, tmp_path, precisions=("fp32", "int8"), cache=cache)
    assert [row["folder"] for row in found["rows"]] == ["fp32"]
    assert "does not compute what the student computes" in found["refused"][0]["why"] and not (tmp_path / "int8").exists()
    kept = tmp_path / "int8.refused.onnx"
    assert f"python -m export.bisect FP32_EXPORT {kept}" in found["refused"][0]["why"]
    steps = bisect(tmp_path / "fp32", kept)
    assert len(steps) > 50 and 0 < max(step.error for step in steps) < np.inf, "the refused graph can be looked into"
    with pytest.raises(UserError, match="does not compute"):
        export_variants(cached_run, tmp_path / "none", precisions=("int8",), cache=cache)


def test_a_layer_without_its_operator_is_noticed(
    traced: None, cached_run: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "weighted_nodes", lambda *_: ["node_conv2d"])
    with pytest.raises(UserError, match=r"1 of the graph's operators hold weights, but 29 layers"):
        export_run(cached_run, tmp_path / "out", precision="int8", cache=cache)


def test_folders_say_precision_and_size() -> None:
    assert folder_name(ExportConfig("fp16")) == "fp16"
    assert folder_name(ExportConfig("int8", size=(192, 256))) == "int8-192x256"


def test_bad_input(cached_run: Path, run: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give the cache of the run \(--cache CACHE\)"):
        export_variants(cached_run, tmp_path / "out")
    with pytest.raises(UserError, match=r"unknown precision 'fp61'. Did you mean 'fp16'"):
        export_variants(cached_run, tmp_path / "out", precisions=("fp61",))
    with pytest.raises(UserError, match=r"the run: its parents.cache is 0000000000000000"):
        export_run(run, tmp_path / "out", precision="int8", cache=cache)


class TestSizes:
    def test_another_size_keeps_the_weights_and_the_grid(self, run: Path) -> None:
        student = load_student(run)
        other = at_size(student, (96, 64))
        assert at_size(student, (64, 64)) is student and other.preprocess.size == (96, 64)
        with torch.inference_mode():
            streams = other(torch.zeros(1, 3, 96, 64))
        assert {name: tuple(value.shape) for name, value in streams.items()} == {n: (1, 16, c) for n, c in HEADS.items()}
        same = [n for n, v in other.state_dict().items() if torch.equal(v, student.state_dict().get(n, torch.empty(0)))]
        assert set(student.state_dict()) - set(same) == {"backbone.model.pos_embed"}

    def test_a_size_the_patch_does_not_divide(self, run: Path) -> None:
        with pytest.raises(UserError, match="70"):
            at_size(load_student(run), (70, 64))


class TestPixels:
    def test_normalises_inside_as_the_runtime_does_outside(self, run: Path) -> None:
        student = load_student(run)
        frames = np.random.default_rng(4).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        module = FromPixels(StreamTuple(student, tuple(HEADS)), student.preprocess.mean, student.preprocess.std)
        with torch.inference_mode():
            found = module(torch.from_numpy(frames))
            expected = student(student.preprocess(frames))
        for name, value in zip(HEADS, found):
            assert difference(expected[name].numpy(), value.numpy())["relative"] < 1e-5

    def test_as_a_graph(self) -> None:
        class Tiny(nn.Module):
            preprocess = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), size=(8, 8))

            def __init__(self) -> None:
                super().__init__()
                self.patch = nn.Conv2d(3, 6, 4, 4)

            def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"fused": self.patch(images).flatten(2).transpose(1, 2)}

        student = Tiny().eval()
        model = exporter.to_onnx(student, ("fused",), (8, 8), ExportConfig(pixels=True))
        check_structure(model, ["fused"], 20, (0, 0), border=PIXELS)
        frames = np.random.default_rng(4).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
        found = open_session(model.SerializeToString()).run(None, {PIXELS: frames})[0]
        with torch.inference_mode():
            expected = student(student.preprocess(frames))["fused"].numpy()
        assert difference(expected, found)["relative"] < 1e-5

    def test_borders_know_both_inputs(self, exported: Path) -> None:
        graph = onnx.load(exported / "student.onnx").graph
        check_borders(graph, list(HEADS))
        with pytest.raises(UserError, match="inputs and outputs"):
            check_borders(graph, list(HEADS), PIXELS)


def test_layers_are_counted_at_the_function(run: Path) -> None:
    student, images = load_student(run), torch.zeros(1, 3, 64, 64)
    counts = [count_layers(StreamTuple(student, names), images)[0] for names in (tuple(HEADS), ("fused",))]
    assert counts == [29, 27]  # patch embedding, 4 in each of 6 blocks, 2 in each exported head
