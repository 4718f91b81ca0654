"""The verbs `vega-edge bench latency` and `vega-edge bench compare`. Flags alone live here, so that help imports nothing heavy.

vega-edge bench latency EXPORT --run RUN --out latency.json
vega-edge bench compare before.json after.json
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from vega_artifact import UserError, write_json


@dataclass(frozen=True)
class Latency:
    """Time exported files, engines or bundles, and with --run the torch student beside them, in turns."""

    artifacts: Positional[tuple[Path, ...]]
    """Folders made by `vega-edge export` or `vega-edge build`, or bundles; several take turns in one run."""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """The run they were exported from: adds the torch rows."""
    backends: tuple[str, ...] | None = None
    """torch torch.compile torch-cuda torch-cuda+graph torch.compile-cuda onnxruntime onnxruntime-cuda onnxruntime-cuda+graph
    onnxruntime-tensorrt engine engine+graph; none: all that run here at once."""
    batches: tuple[int, ...] = (1, 4)
    """Frames per call."""
    repeats: int = 50
    """Timed calls per row."""
    threads: int = 1
    """CPU threads of each backend."""
    scenarios: tuple[str, ...] = ()
    """MLPerf-style: single_stream (90th percentile at one frame), offline (frames per second at the largest batch)."""
    min_seconds: float = 10.0
    """Of each scenario."""
    min_count: int = 64
    """Calls of each scenario."""
    roofline: str | None = None
    """A device whose bound to add, such as "Orin Nano Super"; none: this one, if its name settles it. No measurement."""
    out: Path | None = None
    """JSON file for the rows, the machine and the raw samples."""
    plot: Path | None = None
    """PNG file: batch curves and every sample in order."""

    def run(self) -> None:
        from bench import latency, roofline
        from bench.scenarios import Rules

        roofline.check(self.artifacts, self.roofline)  # before minutes of measuring
        rules = Rules(self.scenarios, self.min_seconds, self.min_count)
        counts = (self.batches, self.repeats, self.threads)
        result = latency.measure(self.artifacts, self.run_folder, *counts, backends=self.backends, rules=rules)
        if self.out:
            write_json(self.out, result)  # at once: nothing that follows may cost the measurement
        result["roofline"] = self._bounds(result["machine"])
        if self.out:
            write_json(self.out, result)
        if self.plot:
            from bench import latency_chart

            latency_chart.save(self.plot, result)
        print("\n".join(filter(None, [latency.table(result), roofline.text(result["roofline"])])))

    def _bounds(self, machine: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Bounds on the device asked for, or on this one; none, with a word, for a graph that cannot be counted."""
        from bench import roofline

        try:
            return roofline.of_artifacts(self.artifacts, self.batches, self.roofline or roofline.recognise(machine))
        except UserError as error:
            print(f"no bounds: {error}", file=sys.stderr)
            return []


@dataclass(frozen=True)
class Compare:
    """Two latency measurements against each other, or the rows of one: ratios of medians with 95 % intervals."""

    a: Positional[Path]
    """JSON file of `vega-edge bench latency --out`."""
    b: Positional[Path | None] = None
    """Another one; none: within the first, every row against the first of its batch."""
    out: Path | None = None
    """JSON file for the rows."""

    def run(self) -> None:
        from bench import compare

        result = compare.compare(self.a, self.b)
        if self.out:
            write_json(self.out, result)
        print(compare.text(result))
