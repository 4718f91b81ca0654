"""Two exports compared tensor by tensor: where a fault begins, and what is no fault.

python -m pytest tests/export/test_bisect.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import bisect as module
from export import export_run
from export.bisect import bisect, text
from vega_artifact import UserError, read_manifest, write_manifest

KEPT = ("preprocess", "outputs", "grid", "tolerances", "input")


def altered(export: Path, out: Path, change) -> Path:
    """A copy with another graph, under a manifest that knows of it."""
    shutil.copytree(export, out)
    model = onnx.load(out / "student.onnx")
    change(model)
    onnx.save(model, out / "student.onnx")
    manifest = read_manifest(export, "export")
    kept = {key: manifest[key] for key in KEPT if key in manifest}
    write_manifest(out, "export", manifest["config"], manifest["parents"], list(manifest["files"]), **kept)
    return out


def spoil(model: onnx.ModelProto) -> None:
    """One weight of the last matrix product is far off."""
    product = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")][-1]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name in product.input)
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 1000
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def test_a_graph_agrees_with_itself(exported: Path) -> None:
    steps = bisect(exported, exported)
    assert len(steps) > 50 and all(step.error == step.growth == 0 for step in steps)
    assert text(steps, 0.01).startswith(f"all {len(steps)} shared tensors are within 0.01")


def test_the_step_that_goes_wrong_is_named(exported: Path, tmp_path: Path) -> None:
    steps = bisect(exported, altered(exported, tmp_path / "bad", spoil))
    first = next(step for step in steps if step.error > 0.05)
    assert first.operator in ("MatMul", "Gemm") and first.growth == first.error
    assert max(steps, key=lambda step: step.growth).name == first.name
    assert text(steps, 0.05).startswith(f"first beyond 0.05: {first.name} ({first.operator}, tensor ")


def test_half_precision_is_off_everywhere_by_a_little(run: Path, exported: Path, tmp_path: Path) -> None:
    steps = bisect(exported, export_run(run, tmp_path / "half", precision="fp16"))
    assert 0 < max(step.error for step in steps) < 0.05


def test_overflow_is_beyond_every_threshold(exported: Path, tmp_path: Path) -> None:
    def overflow(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        values = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array(np.full_like(values, np.inf), weight.name))

    steps = bisect(exported, altered(exported, tmp_path / "bad", overflow))
    assert "first beyond 1e+30" in text(steps, 1e30)


def test_exports_of_other_students_are_refused(exported: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    other = altered(exported, tmp_path / "other", lambda model: None)
    manifest = read_manifest(other, "export")
    kept = {key: manifest[key] for key in KEPT if key in manifest}
    write_manifest(other, "export", manifest["config"], {"run": "another"}, list(manifest["files"]), **kept)
    with pytest.raises(UserError, match="its parents differ from those of"):
        bisect(exported, other)
    wrong = {(str(other),): "its parents differ", (str(exported), "--run", "r"): "give --run and --cache together"}
    for arguments, message in wrong.items():
        monkeypatch.setattr(sys, "argv", ["bisect", str(exported), *arguments])
        assert module.main() == 2 and message in capsys.readouterr().err
