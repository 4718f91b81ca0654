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
    precision: Literal["fp32", "fp16", "int8", "int8_fp16", "fp8_fp16", "all"] = "fp32"
    """Types in the graph. int8: layers with weights in INT8, all else in float32 (for CPUs); int8_fp16: all else in half (for
    TensorRT); fp8_fp16: E4M3 in place of INT8 (for Thor). all: every one but the last in a folder of its own below --out,
    scored, timed, and one recommended."""
    cache: Path | None = None
    """The cache the run was trained on: its frames calibrate and score. Needed by int8, int8_fp16, fp8_fp16 and all."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Heights and widths in pixels, such as 128 128 192 256, each a file in a folder of its own. None given: the student's."""
    heads: tuple[str, ...] = ()
    """The streams to keep; none given keeps all."""
    pixels: bool = False
    """Take uint8 frames (B, H, W, 3) of the student's size and normalise them inside the graph. For pipelines of your own."""
    check: bool = False
    """Also let TensorRT-RTX build every file, without a GPU, and check what it fused; skipped, with a reason, without it."""

    def run(self) -> None:
        heads = self.heads or None
        if self.precision == "all" or self.sizes:
            from export.variants import export_variants, table

            found = export_variants(
                self.run_folder,
                self.out,
                precisions=() if self.precision == "all" else (self.precision,),
                sizes=self.sizes,
                heads=heads,
                pixels=self.pixels,
                cache=self.cache,
            )
            print(table(found))
            folders = [self.out / row["folder"] for row in found["rows"]]
        else:
            from export import export_run

            out = export_run(
                self.run_folder, self.out, precision=self.precision, heads=heads, pixels=self.pixels, cache=self.cache
            )
            folders = [out]
        for folder in folders if self.check else ():
            from export.gate import check_export

            print(f"{folder}: gate {check_export(folder)}")


@dataclass(frozen=True)
class Build:
    """An export -> a TensorRT engine, built on the machine it will run on."""

    export: Positional[Path]
    """A folder made by `vega-edge export`."""
    out: Path
    """The engine folder to write."""
    best_batch: int = 1
    """The batch the engine is tuned for."""
    largest_batch: int | None = None
    """The most frames in one call; less needs less memory. None: the export's own limit."""
    workspace_mib: int | None = None
    """Limit of the builder's scratch memory in MiB; None: TensorRT's own."""
    timing_cache: Path | None = None
    """File where timings are kept, so that later builds are faster."""
    any_gpu: bool = False
    """Let it run on every GPU from Ampere on, some per cent slower."""
    any_version: bool = False
    """Let it run on later versions of TensorRT too."""
    strip: bool = False
    """Leave the weights out; they are put back from the ONNX file when the engine is opened."""
    dla: int | None = None
    """Run convolutions on this deep learning accelerator (AGX Orin, Orin NX), one frame a call, and the rest on the GPU."""

    def run(self) -> None:
        from export import build_engine
        from export.audit import load_model
        from export.build_options import BuildOptions
        from export.runtime.manifest import MODEL
        from vega_artifact import read_manifest

        read_manifest(self.export, "export")
        load_model(self.export / MODEL)  # says more than TensorRT does; a device, which has no onnx, builds without
        names = ("workspace_mib", "timing_cache", "any_gpu", "any_version", "strip", "dla")
        how = BuildOptions(**{name: getattr(self, name) for name in names})
        build_engine(self.export, self.out, best_batch=self.best_batch, largest_batch=self.largest_batch, options=how)


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
