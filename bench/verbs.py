"""The verbs of this room on the command line: `vega-edge demo`, `doctor`, `bench` and `report`. Help imports nothing heavy.

vega-edge bench latency EXPORT --run RUN --out latency.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from vega_artifact import write_json


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The whole chain on the embedded teacher and procedural rooms; ends with report.html. Run again, it resumes."""

    out: Path = Path("runs/demo")
    """Folder for every artifact of the chain; what is complete there is reused."""
    recipe: str = "demo"
    """A name from `vega-edge list recipes`."""

    def run(self) -> None:
        from bench import demo

        demo.run(self.out, self.recipe)


@dataclass(frozen=True)
class Doctor:
    """What this machine has, and what will therefore run."""

    def run(self) -> None:
        from bench import doctor

        print(doctor.text())


@dataclass(frozen=True)
class Latency:
    """Time the exported file, and with --run the torch student beside it, in turns."""

    export: Positional[Path]
    """A folder made by `vega-edge export`."""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """The run it was exported from: adds the torch rows."""
    batches: tuple[int, ...] = (1, 4)
    """Frames per call."""
    repeats: int = 50
    """Timed calls per row."""
    threads: int = 1
    """CPU threads of each backend."""
    out: Path | None = None
    """JSON file for the rows, the machine and the raw samples."""

    def run(self) -> None:
        from bench import latency

        result = latency.measure(self.export, self.run_folder, self.batches, self.repeats, self.threads)
        if self.out:
            write_json(self.out, result)
        print(latency.table(result))


@dataclass(frozen=True)
class Bench:
    """Measure one thing about an artifact."""

    what: Annotated[Latency, subcommand("latency")]

    def run(self) -> None:
        self.what.run()


@dataclass(frozen=True)
class Report:
    """Measurements -> one self-contained report.html, with report.md and report.json beside it."""

    folder: Positional[Path]
    """A folder that `vega-edge demo` or the bench verbs filled."""

    def run(self) -> None:
        from bench import report

        print(report.write(self.folder))
