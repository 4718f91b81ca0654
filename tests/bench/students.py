"""Exports as far as their manifests go: what `bench.lineage` reads of them."""

from __future__ import annotations

from pathlib import Path

from vega_artifact import write_manifest


def student_of(root: Path, teacher: str) -> Path:
    """ROOT/export, made from ROOT/run, whose student this teacher taught."""
    run = write_manifest(root / "run", "run", {}, {"cache": "c0"}, teacher=teacher)
    write_manifest(root / "export", "export", {}, {"run": run["fingerprint"]})
    return root / "export"
