"""The bundle's engine, built on the machine that will run it; `vega-edge build` without the rest of the package.

python3 -m export.device build --largest-batch 4 --workspace-mib 1024
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from export.build_options import BuildOptions
from export.tensorrt import build_engine

MODEL, ENGINE = Path("model"), Path("engine")  # in an unpacked bundle


def main(arguments: list[str] | None = None) -> int:
    """The command; raises what `build_engine` raises."""
    parser = argparse.ArgumentParser(prog="python3 -m export.device build", description="Build and test the engine.")
    parser.add_argument("--model", type=Path, default=MODEL, help="the export")
    parser.add_argument("--out", type=Path, default=ENGINE, help="the folder to write")
    parser.add_argument("--best-batch", type=int, default=1, help="the batch to tune for")
    parser.add_argument("--largest-batch", type=int, help="the most frames in one call; less needs less memory")
    parser.add_argument("--workspace-mib", type=int, help="limit of the builder's scratch memory")
    parser.add_argument("--timing-cache", type=Path, help="file that makes later builds faster")
    parser.add_argument("--any-gpu", action="store_true", help="run on every GPU from Ampere on")
    parser.add_argument("--any-version", action="store_true", help="run on later versions of TensorRT too")
    parser.add_argument("--strip", action="store_true", help="leave the weights to the ONNX file")
    parser.add_argument("--dla", type=int, help="accelerator for the convolutions, one frame a call; AGX Orin, Orin NX")
    options = parser.parse_args(arguments)
    placed = (options.any_gpu, options.any_version, options.strip, options.dla)
    how = BuildOptions(options.workspace_mib, options.timing_cache, *placed)
    out = build_engine(
        options.model, options.out, best_batch=options.best_batch, largest_batch=options.largest_batch, options=how
    )
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    print(f"{out}: {json.dumps(manifest['config'])}")
    if manifest["layers"]:
        print(f"layers that can run on the accelerator: {manifest['layers']['dla']} of {manifest['layers']['all']}")
    print(f"self test: {json.dumps(manifest['self_test'])}")
    return 0
