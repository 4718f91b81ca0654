"""One student of every family on its way to the device: fused where it can be, checked against torch in onnxruntime.

Families differ in how they are traced, not in their depth, so the long ones are cut to one block per stage. Plain ViTs and
RepViT are exported in tests/export.

    python -m pytest tests/student/test_families.py
"""

import dataclasses

import pytest
import torch

from export.onnx import ExportConfig, write_export
from student import create_student, registry

ONE_EACH = {"depths": (1, 1, 1, 1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shorter", "operators"),
    [
        ("vit_tiny_dinov3", {"depth": 1}, {"LayerNormalization", "Softmax", "Gelu"}),
        ("tiny_vit_5m", ONE_EACH, {"LayerNormalization", "Softmax", "Conv"}),
        ("efficientvit_b1", ONE_EACH, {"Conv", "MatMul"}),
        ("fastvit_t8", {}, {"Conv"}),
    ],
)
def test_a_student_of_the_family_exports_and_agrees(name, shorter, operators, monkeypatch, tmp_path):
    monkeypatch.setitem(registry.PRESETS, name, dataclasses.replace(registry.PRESETS[name], options=shorter))
    student = create_student(name, {"fused": 8}, (64, 96), (4, 5)).eval()
    manifest = write_export(student, tmp_path, ExportConfig(), "0" * 16)  # refuses a file that computes something else
    assert max(row["relative"] for row in manifest["parity"]["rows"]) < 1e-5
    found = manifest["structure"]["operators"]
    assert operators <= set(found) and "BatchNormalization" not in found
    if name == "fastvit_t8":
        trained = sum(isinstance(module, torch.nn.Conv2d) for module in student.modules())
        assert found["Conv"] < 0.8 * trained, "parallel branches became single convolutions"
