"""The way of every preset to the device: what is asked of whom, what the rows say, and how refusals read."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import presets
from bench.presets import GATED, Presets
from vega_artifact import UserError, read_json, write_json


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Training, export and compiler replaced: `vit_micro` passes, INT8 of `repvit_m1` is refused, `fastvit_t8` cannot learn."""
    asked: list[tuple] = []

    def train(cache, out: Path, config) -> Path:
        asked.append(("train", config.student, config.steps, config.batch))
        if config.student == "fastvit_t8":
            raise UserError("student 'fastvit_t8' does not take these images")
        write_json(out / "manifest.json", {})
        return out

    def export_variants(run: Path, out: Path, *, precisions, sizes, cache) -> dict:
        asked.append(("export", run.name, tuple(precisions), tuple(sizes)))
        kinds = precisions or ("fp32", "fp16", "int8")
        shapes = sizes or ((128, 128),)
        made = [(kind, size) for size in shapes for kind in kinds if not (run.name == "repvit_m1" and kind == "int8")]
        rows = [
            {
                "folder": f"{kind}-{size[0]}",
                "precision": kind,
                "size": list(size),
                "bytes": 3_000_000,
                "cosine": {"fused": 0.9996},
            }
            for kind, size in made
        ]
        refused = [{"folder": "int8", "why": "too far off"}] if run.name == "repvit_m1" else []
        return {"rows": rows, "refused": refused}

    def check_export(export: Path) -> dict:
        asked.append(("gate", export.parent.name, export.name))
        if export.name == "fp16-384":
            raise UserError("5 of 6 attention layers became one kernel")
        mha = 6 if export.name.startswith("fp16") and export.parent.name == "vit_micro" else 0
        return {"version": "1.7", "mha": mha, "engine_weights": 3_000_000, "bytes": 5_500_000}

    def read_manifest(path: Path, kind: str) -> dict:
        if kind == "run":
            return {"parameters": 2_830_000}
        fusable = 6 if path.parent.name == "vit_micro" else 0
        return {"parity": {"rows": [{"max_abs": 2e-6}, {"max_abs": 5e-7}]}, "structure": {"attention": {"fusable": fusable}}}

    monkeypatch.setattr(presets, "train", train)
    monkeypatch.setattr(presets, "export_variants", export_variants)
    monkeypatch.setattr(presets, "check_export", check_export)
    monkeypatch.setattr(presets, "read_manifest", read_manifest)
    monkeypatch.setattr(presets, "FeatureCache", lambda path: SimpleNamespace(fingerprint="abc"))
    return asked


def test_every_file_is_a_row_or_a_reason(stages: list[tuple], tmp_path: Path) -> None:
    students = ("vit_micro", "repvit_m1", "fastvit_t8")
    text = Presets(cache=tmp_path, students=students, steps=7, out=tmp_path / "out").run().read_text()
    assert "| vit_micro | fp16 | 128x128 | 3.00 | 0.99960 | 2.0e-06 | 6 of 6 | 3.0 + 2.5 |" in text
    assert "| vit_micro | fp16 | 384x384 | 3.00 | 0.99960 | 2.0e-06 | 5 of 6 attention layers became one kernel | – |" in text
    assert "| repvit_m1 | int8 | refused: too far off |" in text
    assert "| fastvit_t8 | – | refused: student 'fastvit_t8' does not take these images |" in text
    assert "learned 7 steps of 16 frames of cache abc; TensorRT-RTX 1.7." in text
    rows = read_json(tmp_path / "out" / "presets.json")["rows"]
    assert len(rows) == 5 + 3 + 1 and rows[0]["parameters"] == 2_830_000


def test_attention_is_looked_at_in_large_images_and_only_where_there_is_some(stages: list[tuple], tmp_path: Path) -> None:
    Presets(cache=tmp_path, students=("vit_micro", "repvit_m1"), out=tmp_path / "out").run()
    assert [call for call in stages if call[0] == "export"] == [
        ("export", "vit_micro", (), ()),
        ("export", "vit_micro", ("fp16",), GATED),
        ("export", "repvit_m1", (), ()),
    ]


def test_all_presets_are_meant_unless_some_are_named(stages: list[tuple], tmp_path: Path) -> None:
    Presets(cache=tmp_path, out=tmp_path / "out", report=tmp_path / "report").run()
    assert {call[1] for call in stages if call[0] == "train"} == set(presets.list_students())
    assert (tmp_path / "report" / "presets.md").exists() and not (tmp_path / "out" / "presets.md").exists()
    with pytest.raises(UserError, match="vit_tinny unknown; known: deit_small"):
        Presets(cache=tmp_path, students=("vit_tinny",)).run()
