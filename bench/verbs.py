"""The verbs of this room on the command line: `vega-edge demo`, `doctor`, `bench` and `report`. Help imports nothing heavy.

vega-edge bench latency EXPORT --run RUN --out latency.json
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg, subcommand

from bench.timing_verbs import Compare, Latency
from vega_artifact import UserError, unknown_name, write_json


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


@dataclass(frozen=True, kw_only=True)
class Probe:
    """3D probes on frozen features: fitted on the train cache, tuned on val, judged on test."""

    train: Path
    """Cache of training rooms."""
    val: Path
    """Cache of validation rooms, of the same teacher."""
    test: Path
    """Cache of test rooms, of the same teacher; no room in two caches."""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """A run: adds the student and its untrained twin."""
    export: Path | None = None
    """An export: adds the exported file."""
    stream: str = "fused"
    """Which of the teacher's streams to judge."""
    models: tuple[str, ...] = ()
    """Judge only these, such as student; none: all that the artifacts hold."""
    sums: bool = False
    """Also write the sums per room that each metric is made of, so that others can resample rooms."""
    out: Path | None = None
    """JSON file for the rows, in the report's schema."""

    def run(self) -> None:
        from bench import maps, probes
        from teacher.cache import FeatureCache

        caches = [FeatureCache(path) for path in (self.train, self.val, self.test)]
        models = maps.collect(caches, self.run_folder, self.export, self.stream)
        if foreign := [name for name in self.models if name not in models]:
            raise unknown_name("model", foreign[0], models)
        models = {name: found for name, found in models.items() if not self.models or name in self.models}
        train, val, test = (maps.clips(cache) for cache in caches)
        result = probes.evaluate(models, train, val, test, sums=self.sums)
        if self.out:
            write_json(self.out, result)
        for row in result["probes"]:
            print(f"{row['metric']:<32}{row['model']:<22}{row['value']:>7.3f} [{row['low']:.3f}, {row['high']:.3f}]")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Is the student as good as the teacher downstream? Same questions, five rows of tokens: pass, fail or inconclusive."""

    task: str
    """scanqa, vsibench or ladder; for files of saved answers any name from `vega-edge list tasks`."""
    teacher: str
    """A cache with frames; live: the teacher named by --backbone runs now; or a file of saved answers (.json {id: answer}, or
    .jsonl as this verb writes)."""
    student: Path
    """An export of a student of that teacher; or a file of saved answers."""
    backbone: str | None = None
    """With --teacher live: a name from `vega-edge list teachers`, a folder with a model, NAME=FOLDER, or a hub id."""
    scenes: str | None = None
    """With --teacher live: the URI of the scenes to watch, as for `vega-edge extract`; the cache lies in --out, and resumes."""
    run_folder: Annotated[Path | None, arg(name="run")] = None
    """The run the export was made from; none: looked for beside the export."""
    questions: Path | None = None
    """The benchmark's own records (json, jsonl or parquet); none: made from the ground truth of procedural rooms."""
    reader: tuple[str, ...] = ("embedded",)
    """The embedded readers, or folders of `vega-edge fit`: one with fused tokens, and its semantic and blind twins."""
    reseeded: Path | None = None
    """A cache of the same scenes under another noise seed; none: extracted into --out."""
    margin: float = 1.0
    """How many percent points the student may lose."""
    protocol: str | None = None
    """Scoring rules; none: the task's first."""
    out: Path = Path("runs/parity")
    """Folder for parity.json (the report's rows), the questions, every answer as JSON lines (predictions/), and in the layouts
    of the benchmarks' own scorers (submissions/)."""

    def run(self) -> None:
        from bench import live, parity

        out = self.out / self.task
        teacher = live.chosen(self.teacher, self.backbone, self.scenes, self.out / "teacher")
        saved = isinstance(teacher, Path) and teacher.is_file()
        if saved != self.student.is_file():
            raise UserError(
                f"{self.student if saved else self.teacher}: no file, but the other side is one of saved answers; give two "
                "such files, or an export with a cache or a live teacher"
            )
        if isinstance(teacher, Path) and saved:
            result = parity.saved(self.task, teacher, self.student, self.questions, self.margin, self.protocol, out)
        else:
            options = (self.questions, self.reader, self.reseeded, self.margin, self.protocol, self.run_folder)
            result = parity.measure(self.task, teacher, self.student, out, *options)
        write_json(out / "parity.json", result)
        print(parity.table(result))


@dataclass(frozen=True, kw_only=True)
class Nos:
    """VEGA-3D's normalised overall score of a table of results, and its correlation with the correspondence score."""

    table: Positional[Path | None] = None
    """JSON file like bench/data/vega3d_table4.json; none: that one, the paper's Table 4."""
    out: Path | None = None
    """JSON file for the rows and the correlations."""

    def run(self) -> None:
        from bench import nos

        result = nos.summarise(nos.Table.read(self.table or nos.PAPER))
        if self.out:
            write_json(self.out, result)
        print(nos.text(result))


@dataclass(frozen=True, kw_only=True)
class TeacherSpeed:
    """The teacher against the reference recipe: ratio and peak memory per part, and how far the features differ.

    Wan2.1-1.3B's true widths with random weights; needs no download. At full depth about 7 GiB of memory.
    """

    quick: bool = False
    """A third of the depth at the true width, two frames, two rounds."""
    size: tuple[int, int] = (240, 416)
    """Height and width of the frames, multiples of 16."""
    frames: int = 2
    """Frames per call."""
    repeats: int = 3
    """Timed rounds; the median counts."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: our bfloat16 weights against float32 weights under autocast."""
    device: str = "cpu"
    """cpu or cuda."""
    compile: bool = False
    """Let torch.compile fuse ours; the compilation is not counted."""
    out: Path | None = None
    """JSON file for the rows, the machine and the raw samples."""

    def run(self) -> None:
        from bench import teacher

        names = ("size", "frames", "repeats", "dtype", "device", "compile")
        settings = teacher.Settings(**{name: getattr(self, name) for name in names})
        result = teacher.measure(teacher.quick(settings) if self.quick else settings)
        if self.out:
            write_json(self.out, result)
        print(teacher.table(result))


@dataclass(frozen=True, kw_only=True)
class TrainSpeed:
    """Images/s of the trainer's full loop against forward and backward alone on data that lies ready, in turns."""

    cache: Path | None = None
    """A folder made by `vega-edge extract`; none: random records of the embedded teacher's shapes."""
    recipe: str = "demo"
    """A name from `vega-edge list recipes`."""
    optimizer: Literal["muon", "adamw"] | None = None
    """Instead of the recipe's."""
    batch: int | None = None
    """Instead of the recipe's."""
    threads: tuple[int, ...] = (1, 2)
    """CPU threads to try; the fastest is marked."""
    steps: int = 3
    """Steps per turn."""
    rounds: int = 5
    """Timed turns; the median counts."""
    cpu: bool = False
    """Measure on the CPU although there is an accelerator."""
    out: Path | None = None
    """JSON file for the rows, the machine and the raw samples."""

    def run(self) -> None:
        from bench import train_speed

        names = ("recipe", "optimizer", "batch", "threads", "steps", "rounds", "cpu")
        settings = train_speed.Settings(**{name: getattr(self, name) for name in names})
        result = train_speed.measure(settings, self.cache)
        if self.out:
            write_json(self.out, result)
        print(train_speed.table(result))


@dataclass(frozen=True)
class Cache:
    """Random reads of single frames from a cache, and what reduced storage of it would save and cost."""

    cache: Positional[Path | None] = None
    """A folder made by `vega-edge extract`; none: random records of Wan's size in a temporary folder (308 MB)."""
    stream: str = "generative"
    """Which stream to read."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads to read with."""
    seconds: float = 2.0
    """How long to measure each row, about."""
    storages: tuple[str, ...] = ("float16", "int8", "pca:64", "pca:32")
    """Forms of storage to judge; only for a cache that is stored in float16."""
    out: Path | None = None
    """JSON file for the rows."""

    def run(self) -> None:
        from bench import cache

        result = cache.measure(self.cache, self.stream, self.threads, self.seconds, self.storages)
        if self.out:
            write_json(self.out, result)
        print(cache.table(result))


MEASURES: dict[str, type] = {
    "latency": Latency,
    "compare": Compare,
    "probe": Probe,
    "parity": Parity,
    "teacher": TeacherSpeed,
    "train": TrainSpeed,
    "nos": Nos,
    "cache": Cache,
}
Measure: Any = reduce(or_, (Annotated[kind, subcommand(name)] for name, kind in MEASURES.items()))


@dataclass(frozen=True)
class Bench:
    """Measure one thing about an artifact."""

    what: Measure

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
