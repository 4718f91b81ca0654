"""The verbs of this room on the command line: `vega-edge export`, `build`, `bundle`. Help imports nothing heavy.

vega-edge export RUN --out EXPORT --precision fp16
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Export:
    """A run -> a checked ONNX file with its manifest and its measured parity."""

    run_folder: Annotated[Positional[Path], arg(name="run")]
    """A folder made by `vega-edge train`."""
    out: Path
    """The export folder to write."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Type of the weights and activations in the graph."""

    def run(self) -> None:
        from export import export_run

        export_run(self.run_folder, self.out, precision=self.precision)


@dataclass(frozen=True)
class Build:
    """An export -> a TensorRT engine, built on the machine it will run on."""

    export: Positional[Path]
    """A folder made by `vega-edge export`."""
    out: Path
    """The engine folder to write."""

    def run(self) -> None:
        from export import build_engine

        build_engine(self.export, self.out)


@dataclass(frozen=True)
class Bundle:
    """An export -> one tar.gz with all that a Jetson needs: model, runtime, build and bench scripts, README."""

    export: Positional[Path]
    """A folder made by `vega-edge export`."""
    out: Path
    """The .tar.gz file to write."""

    def run(self) -> None:
        from export import write_bundle

        write_bundle(self.export, self.out)
