"""The ablations: trains the base recipe and every variant of the grid on the embedded teacher, scores them, writes the report.

One factor at a time (`distill.study_grid`), every cell on the same training rooms and scored on the same validation rooms by
`vega-edge bench probe`; no test room is opened. Caches, runs and scores are artifacts below --out: killed at any time, the same
command goes on, and what is there is not made again. Ends with study.md, study.json and pictures.

    python -m distill.study --out runs/study --report docs
    python -m distill.study --only normalizer loss --seeds 0 --steps 100 --rooms 60
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill import RunConfig, command, recipes, study_report
from distill.study_grid import BASE, Variant, chosen, clips
from distill.study_scores import scores
from distill.study_worker import Worker, Workers
from vega_artifact import MANIFEST, UserError, canonical, fingerprint, read_manifest, write_json

TEACHER = "tiny-geometry"
STREAMS = ("fused", "generative")  # that are scored
SPLITS = {"train": ("train", 21), "fit": ("train", 22), "tune": ("val", 23), "judge": ("val", 24)}  # split and seed of each use


@dataclass(frozen=True)
class Cell:
    """One run of the grid: a variant and a seed."""

    factor: str
    variant: Variant
    seed: int


@dataclass(frozen=True, kw_only=True)
class Study:
    """Which recipe is best: one factor at a time around a base, several seeds, validation rooms."""

    out: Path = Path("runs/study")
    """Folder for caches, runs and scores; what is complete there is reused."""
    report: Path | None = None
    """Folder for study.md, study.json and pictures; none: --out."""
    only: tuple[str, ...] = ()
    """Factors to study; none: all of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and batches; every variant is trained once per seed."""
    recipe: str = "demo"
    """The base, a name from `vega-edge list recipes`."""
    steps: int = 300
    """Training steps of every run."""
    rooms: int = 240
    """Training rooms."""
    frames: int = 8
    """Frames per room."""
    fitted: int = 60
    """Further training rooms, which fit the probes."""
    tuned: int = 20
    """Validation rooms that choose the probes' penalty."""
    judged: int = 60
    """Other validation rooms, which the scores are of."""
    jobs: int = 1
    """Processes; the cores are shared among them."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "rooms": 2, "frames": 2, "fitted": 1, "tuned": 1, "judged": 2, "jobs": 1}
        if wrong := [f"{name} at least {value}" for name, value in least.items() if getattr(self, name) < value]:
            raise UserError(f"study: it needs {', '.join(wrong)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"study: seeds {self.seeds} must be different numbers, 0 or above, and at least one")

    def run(self) -> Path:
        """Do what is left to do; returns the path of study.md."""
        cells = self.cells()
        for cell in cells:
            self.config(cell)  # a variant that does not fit the recipe is refused before anything is made
        with Workers(self.out, self.jobs) as workers:
            workers.each(self._extract, self.caches(cells), "caches")
            workers.each(self._score, cells, "runs")
        folder = self.report or self.out
        found = self.collected(cells)
        write_json(folder / "study.json", found)
        return study_report.write(folder, found)

    def cells(self) -> list[Cell]:
        """Every run, the base first."""
        variants = [("base", BASE)]
        variants += [(name, variant) for name, factor in chosen(self.only).items() for variant in factor.variants]
        return [Cell(name, variant, seed) for name, variant in variants for seed in self.seeds]

    def change(self, cell: Cell) -> dict[str, Any]:
        """Fields of the recipe that this cell has otherwise."""
        return {"steps": self.steps, "seed": cell.seed, "progress": False, **cell.variant.change}

    def config(self, cell: Cell) -> RunConfig:
        return replace(recipes.create(self.recipe), **self.change(cell))

    def uri(self, use: str, variant: Variant = BASE) -> str:
        """The rooms of a use (see SPLITS); only training rooms differ between variants."""
        split, seed = SPLITS[use]
        counts = {"train": clips(variant, self.rooms), "fit": self.fitted, "tune": self.tuned, "judge": self.judged}
        frames = variant.frames(self.frames) if use == "train" else self.frames
        return f"procedural:{split}?count={counts[use]}&seed={seed}&frames={frames}"

    def cache(self, use: str, variant: Variant = BASE) -> Path:
        """Where the teacher's answers for a use lie."""
        flags = variant.teacher if use == "train" else ()
        return self.out / "caches" / f"{use}-{fingerprint([TEACHER, self.uri(use, variant), flags])[:8]}"

    def caches(self, cells: Sequence[Cell]) -> list[tuple[str, Variant]]:
        """The different caches that the cells need, those of the probes first."""
        wanted = [(use, BASE) for use in ("fit", "tune", "judge")]
        wanted += [("train", cell.variant) for cell in cells if not cell.variant.online]
        return list({self.cache(*item): item for item in wanted}.values())

    def run_folder(self, cell: Cell) -> Path:
        variant = cell.variant
        source = [TEACHER, self.uri("train", variant), variant.teacher, variant.online]
        key = fingerprint([self.config(cell).identity(), source])[:8]
        return self.out / "runs" / f"{cell.factor}-seed{cell.seed}-{key}"

    def streams(self, cell: Cell) -> list[str]:
        """The streams of a cell that can be scored."""
        return [name for name in STREAMS if name in self.config(cell).streams]

    def score_file(self, cell: Cell, stream: str) -> Path:
        """Where the probes of a finished run lie; named after the run and the rooms."""
        run = self.run_folder(cell)
        parents = [read_manifest(self.cache(use), "cache")["fingerprint"] for use in ("fit", "tune", "judge")]
        key = fingerprint([read_manifest(run, "run")["fingerprint"], parents])[:8]
        return self.out / "scores" / f"{run.name}-{stream}-{key}.json"

    def train_command(self, cell: Cell) -> list[str]:
        changes = [item for name, value in self.change(cell).items() for item in _written(name, value)]
        source = ["--cache", str(self.cache("train", cell.variant))]
        if cell.variant.online:
            source = ["--teacher", TEACHER, "--scenes", self.uri("train", cell.variant)]
        return ["train", *source, "--recipe", self.recipe, "--out", str(self.run_folder(cell)), "--change", *changes]

    def _extract(self, worker: Worker, wanted: tuple[str, Variant]) -> None:
        use, variant = wanted
        path = self.cache(use, variant)
        if (path / MANIFEST).exists():
            return
        flags = variant.teacher if use == "train" else ()
        worker.ask("extract", "--teacher", TEACHER, "--scenes", self.uri(use, variant), "--out", str(path), *flags)

    def _score(self, worker: Worker, cell: Cell) -> None:
        """Train a cell and ask the probes about it, unless that is done."""
        run = self.run_folder(cell)
        if not (run / MANIFEST).exists():
            worker.ask(*self.train_command(cell))
        for stream in self.streams(cell):
            out = self.score_file(cell, stream)
            if out.exists():
                continue
            rooms = [str(self.cache(use)) for use in ("fit", "tune", "judge")]
            paths = ["--train", rooms[0], "--val", rooms[1], "--test", rooms[2], "--run", str(run), "--out", str(out)]
            worker.ask("bench", "probe", *paths, "--stream", stream, "--models", "student", "--sums")

    def collected(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Settings and one row per variant, the base first: what `distill.study_report` draws."""
        grouped: dict[tuple[str, str], list[Cell]] = {}
        for cell in cells:
            grouped.setdefault((cell.factor, cell.variant.name), []).append(cell)
        first, *others = grouped.values()
        base = self._files(first)
        rows = [{**self._row(first), "scores": scores(base, None)}]
        rows += [{**self._row(group), "scores": scores(self._files(group), base)} for group in others]
        left_out = ("out", "report", "only", "jobs")
        settings = {name: value for name, value in asdict(self).items() if name not in left_out}
        teacher = read_manifest(self.cache("judge"), "cache")["parents"]["teacher"]
        return canonical({"settings": settings | {"teacher": TEACHER}, "parents": {"teacher": teacher}, "rows": rows})

    def _row(self, group: Sequence[Cell]) -> dict[str, Any]:
        """What the runs of a variant themselves say; lists have one entry per seed."""
        manifests = [read_manifest(self.run_folder(cell), "run") for cell in group]
        cosine, raw = (
            {
                stream: [found["validation"][stream][kind] for found in manifests if stream in found["validation"]]
                for stream in self.streams(group[0])
            }
            for kind in ("centred", "raw")
        )
        runs = {name: [found[name] for found in manifests] for name in ("minutes", "fingerprint")}
        named = {"factor": group[0].factor, "variant": group[0].variant.name}
        return {**named, "cosine": cosine, "raw": raw, "parameters": manifests[0]["parameters"], **runs}

    def _files(self, group: Sequence[Cell]) -> dict[str, list[Path]]:
        return {stream: [self.score_file(cell, stream) for cell in group] for stream in self.streams(group[0])}


def _written(name: str, value: Any) -> list[str]:
    """A field of a config as `vega-edge train --change` takes it; a mapping is one item per key."""
    if isinstance(value, Mapping):
        return [item for key, part in value.items() for item in _written(f"{name}.{key}", part)]
    return [f"{name}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"]


def main(arguments: Sequence[str] | None = None) -> int:
    return command.run(Study, "distill.study", arguments)


if __name__ == "__main__":
    sys.exit(main())
