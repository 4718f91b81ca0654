"""Every student preset on its way to the device: trained a little, exported in every precision, compiled by NVIDIA's compiler.

Says which of them may be shipped how: parity and cosine of each file against its student, attention layers that TensorRT-RTX
made one kernel of, or the reason why a file is refused. Runs and exports are artifacts below --out: the same command goes on.

    python -m bench.presets --cache runs/demo/cache-train --out runs/presets --report results/presets
    python -m bench.presets --cache runs/demo/cache-train --students vit_tiny repvit_m1 --steps 20
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import RunConfig, command, train
from export.gate import check_export
from export.variants import export_variants
from student import list_students
from teacher.cache import FeatureCache
from vega_artifact import UserError, canonical, read_manifest, write_json, write_text

GATED = ((224, 224), (384, 384))  # pixels at which the attention of transformers must become one kernel
READING = """\
How to read it:

- *Cosine*: the worst output against the student's own on frames it has not seen; fp16 is asked for 0.9999, INT8 for 0.995. The
  students learned for a short time only: INT8 of a student trained to the end is measured where that student is exported.
- *Parity*: largest absolute difference between torch and onnxruntime on random images, in the units of the features.
- *One kernel*: attention layers that TensorRT-RTX built into one kernel, of those that can be; its engine for compute
  capability 8.6 is built ahead of time on this CPU, and nothing is run. In float32 none is expected. *Engine*: weights and
  kernels.
"""


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Export every student preset in every precision, and let TensorRT-RTX build it."""

    cache: Path
    """Cache that they learn from, and whose frames calibrate and score."""
    students: tuple[str, ...] = ()
    """Names from `vega-edge list students`; none: all of them."""
    steps: int = 40
    """Training steps of each."""
    batch: int = 16
    """Frames per step."""
    out: Path = Path("runs/presets")
    """Folder for runs and exports; what is complete there is reused."""
    report: Path | None = None
    """Folder for presets.md and presets.json; none: --out."""

    def run(self) -> Path:
        """Do what is left to do; returns the path of presets.md."""
        known = list_students()
        names = self.students or tuple(known)
        if unknown := set(names) - set(known):
            raise UserError(f"presets: {', '.join(sorted(unknown))} unknown; known: {', '.join(known)}")
        rows: list[dict[str, Any]] = []
        for name in names:
            found = self.of(name)
            print("\n".join(map(_line, found)), file=sys.stderr, flush=True)
            rows += found
        folder = self.report or self.out
        gate = next((row["gate"]["version"] for row in rows if "version" in row.get("gate", {})), None)
        settings = {"steps": self.steps, "batch": self.batch, "cache": FeatureCache(self.cache).fingerprint, "gate": gate}
        write_json(folder / "presets.json", canonical({"settings": settings, "rows": rows}))
        write_text(folder / "presets.md", markdown(settings, rows))
        return folder / "presets.md"

    def of(self, name: str) -> list[dict[str, Any]]:
        """The rows of one preset; what cannot be made is a row with the reason."""
        config = RunConfig(
            student=name,
            steps=self.steps,
            batch=self.batch,
            weights={"fused": 1.0},
            optimizer="adamw",
            evaluate_every=self.steps,
            progress=False,
        )
        try:
            run = train(FeatureCache(self.cache), self.out / "runs" / name, config)
        except UserError as error:
            return [{"student": name, "why": str(error)}]
        parameters = read_manifest(run, "run")["parameters"]
        rows = self._exports(name, run, (), ())
        fusable = max((row.get("fusable", 0) for row in rows), default=0)
        if fusable:
            rows += self._exports(name, run, ("fp16",), GATED)
        return [{**row, "parameters": parameters} for row in rows]

    def _exports(
        self, name: str, run: Path, precisions: Sequence[str], sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Any]]:
        out = self.out / "exports" / name
        try:
            found = export_variants(run, out, precisions=precisions, sizes=sizes, cache=self.cache)
        except UserError as error:
            return [{"student": name, "why": str(error)}]
        rows = [self._row(name, out / row["folder"], row) for row in found["rows"]]
        return rows + [{"student": name, "folder": row["folder"], "why": row["why"]} for row in found["refused"]]

    def _row(self, name: str, export: Path, found: Mapping[str, Any]) -> dict[str, Any]:
        manifest = read_manifest(export, "export")
        try:
            gate: dict[str, Any] = check_export(export)
        except UserError as error:
            gate = {"refused": str(error)}
        return {
            "student": name,
            "folder": found["folder"],
            "precision": found["precision"],
            "size": found["size"],
            "bytes": found["bytes"],
            "cosine": min(found["cosine"].values()) if found["cosine"] else None,
            "parity": max((row["max_abs"] for row in manifest["parity"]["rows"]), default=None),
            "fusable": manifest["structure"].get("attention", {}).get("fusable", 0),
            "gate": gate,
        }


def markdown(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The whole report."""
    gate = f"TensorRT-RTX {settings['gate']}" if settings["gate"] else "no TensorRT-RTX here: nothing was compiled"
    lines = ["# Every student preset, exported and compiled", "", "Generated by `python -m bench.presets`; do not edit.", ""]
    lines += [
        f"Each learned {settings['steps']} steps of {settings['batch']} frames of cache {settings['cache']}; {gate}.",
        "",
        "| student | file | pixels | MB | cosine | parity | one kernel | engine, MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *map(_line, rows), "", READING])


def _line(row: Mapping[str, Any]) -> str:
    if "why" in row:
        return f"| {row['student']} | {row.get('folder', '–')} | refused: {row['why']} | – | – | – | – | – |"
    gate, (height, width) = row["gate"], row["size"]
    cosine = "–" if row["cosine"] is None else f"{row['cosine']:.5f}"
    parity = "–" if row["parity"] is None else f"{row['parity']:.1e}"
    fused = gate.get("refused") or gate.get("skipped") or f"{gate['mha']} of {row['fusable']}"
    engine = "–"
    if "engine_weights" in gate:
        engine = f"{gate['engine_weights'] / 1e6:.1f} + {(gate['bytes'] - gate['engine_weights']) / 1e6:.1f}"
    cells = [row["student"], row["precision"], f"{height}x{width}", f"{row['bytes'] / 1e6:.2f}", cosine, parity, fused, engine]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    return command.run(Presets, "bench.presets", arguments)


if __name__ == "__main__":
    sys.exit(main())
