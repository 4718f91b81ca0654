"""The front door: the public Python names, and the command `vega-edge` with one verb per stage of the chain.

A verb is a frozen dataclass whose fields are its flags; it imports the code of its room only when it runs, so that asking for
help costs a fraction of a second. Verbs stand beside their component where that room is cheap to import, otherwise here.

    vega-edge --help          (or python -m vega_edge --help)
    vega-edge demo --out runs/demo
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitSubcommandPrefixes, Positional, subcommand

import vega_artifact
from bench.select import Select
from bench.verbs import Bench, Demo, Doctor, Report
from export.verbs import Build, Bundle, Export
from teacher.verbs import Extract, Fit
from vega_artifact import UserError

if TYPE_CHECKING:
    from distill import recipes, train
    from export import export_run
    from export.runtime import Encoder
    from student import create_student, load_student
    from teacher import load_teacher, open_scenes

PUBLIC = {  # name -> the room it is imported from on first use
    "load_teacher": "teacher",
    "open_scenes": "teacher",
    "create_student": "student",
    "load_student": "student",
    "train": "distill",
    "recipes": "distill",
    "export_run": "export",
    "Encoder": "export.runtime",
}
__all__ = ["Encoder", "create_student", "export_run", "load_student", "load_teacher", "main", "open_scenes", "recipes", "train"]


def __getattr__(name: str) -> Any:
    """Import a public name from its room on first use (PEP 562)."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


@dataclass(frozen=True)
class List:
    """The names that other verbs accept."""

    what: Positional[Literal["teachers", "students", "recipes", "scenes", "tasks"]]
    """Which registry."""
    size: tuple[int, int] | None = None
    """Of students only: height and width in pixels their cost is counted at; 224 224 if not given."""

    def run(self) -> None:
        if self.what == "students":
            from student.costs import table

            return print(table(self.size or (224, 224)))
        if self.size:
            raise UserError(f"--size is for `list students`; {self.what} have none")
        room, name = LISTS[self.what]
        names = getattr(importlib.import_module(room), name)
        print("\n".join(sorted(names() if callable(names) else names)))


LISTS = {  # what -> where its registry, or the function that lists it, lives
    "teachers": ("teacher.backbones", "teacher_names"),
    "recipes": ("distill.recipes", "names"),
    "scenes": ("teacher.scenes.source", "SCHEMES"),
    "tasks": ("bench.tasks", "TASKS"),
}


@dataclass(frozen=True)
class Verify:
    """Re-check the hashes of an artifact; of a cache, also run the teacher again on a few random clips. Of a data set: counts,
    missing scans, schema errors."""

    artifact: Positional[Path]
    """A folder with a manifest.json, or a benchmark's question file or folder."""
    rerun: int = 2
    """How many clips of a cache to extract again and compare."""

    def run(self) -> None:
        if self.artifact.exists() and not (self.artifact / vega_artifact.MANIFEST).exists():
            from teacher.scenes.dataset_check import find, verify_dataset

            if found := find(self.artifact):
                return verify_dataset(self.artifact, found)
        manifest = check_artifact(self.artifact)
        if manifest["kind"] == "cache":
            from teacher.rerun import rerun

            print(f"{self.artifact}: extracted again and equal: {', '.join(rerun(self.artifact, self.rerun)) or 'nothing'}")
        print(f"{self.artifact}: {manifest['kind']} {manifest['fingerprint']}, {len(manifest['files'])} files as written")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Cache -> a run: the student distilled from the cached features. Resumes."""

    cache: tuple[str, ...] = ()
    """A folder made by `vega-edge extract`; more teachers of the same scenes as NAME=FOLDER (streams NAME_stream). None:
    --teacher answers about --scenes while the student learns."""
    out: Path
    """The run folder to write."""
    teacher: str | None = None
    """In place of a cache, where the disk is short: a teacher as for `vega-edge extract`, asked anew in every epoch."""
    scenes: str | None = None
    """With --teacher: the URI of the scenes to watch."""
    start_from: Path | None = None
    """A finished run whose weights the student begins with: a warm start, which makes a new run."""
    probes: bool = False
    """Ask 3D probes and draw pictures on the way (posed clips with depth only), within probe_share of the time."""
    recipe: str = "demo"
    """A name from `vega-edge list recipes`."""

    change: tuple[str, ...] = ()
    """Fields of the recipe to change, such as steps=600 image_size=224,224; `--change help` lists them all."""

    def run(self) -> None:
        from distill import train
        from teacher.extract import rank

        config, source, probes = self.config(), self.source(), None
        if self.probes and rank() == 0:  # the others wait at the next step
            from bench.watch import Watch

            probes = Watch(source, config)
        train(source, self.out, config, start_from=self.start_from, probes=probes)

    def config(self) -> Any:
        """The recipe as changed."""
        from distill import RunConfig, recipes

        flags = [
            part
            for name, _, value in (item.partition("=") for item in self.change)
            for part in (f"--{name}", *value.split(","))
        ]
        recipe = recipes.create(self.recipe)
        named = [flag.removeprefix("--weights.") for flag in flags if flag.startswith("--weights.")]
        new = {name: 0.0 for name in named if name not in recipe.weights}  # a flag can only set what the recipe names
        recipe = replace(recipe, weights={**recipe.weights, **new})
        return tyro.cli(RunConfig, prog="--change", default=recipe, args=flags, config=(tyro.conf.FlagConversionOff,))

    def source(self) -> Any:
        """The cache (several are joined), or what stands for one."""
        if self.cache and not (self.teacher or self.scenes):
            from distill.joined import open_caches

            return open_caches(self.cache)
        if self.cache or not (self.teacher and self.scenes):
            raise UserError("train: give --cache, or in its place --teacher together with --scenes")
        from distill.online import OnlineCache
        from teacher import load_pipeline

        pipeline = load_pipeline(self.teacher)
        return OnlineCache(self.scenes, pipeline.streams, pipeline.fingerprint)


VERBS: dict[str, Any] = {
    "demo": Demo,
    "doctor": Doctor,
    "list": List,
    "select": Select,
    "extract": Extract,
    "verify": Verify,
    "fit": Fit,
    "train": Train,
    "export": Export,
    "build": Build,
    "bundle": Bundle,
    "bench": Bench,
    "report": Report,
}
COMMAND: Any = reduce(or_, (Annotated[kind, subcommand(name)] for name, kind in VERBS.items()))
ABOUT = (
    "Moves what a frozen video generator knows about 3D space into a small ViT for edge devices, and measures what survived."
)


def check_artifact(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact of any kind, after checking every file and the fingerprint it claims."""
    path = folder / vega_artifact.MANIFEST
    claimed = vega_artifact.read_json(path)
    manifest = vega_artifact.read_manifest(folder, str(claimed.get("kind")) if isinstance(claimed, dict) else "artifact")
    if lacking := [name for name in (*vega_artifact.IDENTITY, "fingerprint") if name not in manifest]:
        raise UserError(f"{path}: no {', '.join(lacking)} in it, so it was not written by vega-edge")
    vega_artifact.verify_files(folder, manifest)
    vega_artifact.check_fingerprint(folder, manifest)
    return manifest


def sentence(error: BaseException) -> str | None:
    """The one sentence a user needs for an error that is theirs or the machine's; None where a traceback says more."""
    runtime = sys.modules.get("export.runtime")  # it stands alone on the device, so its errors are its own class
    if isinstance(error, UserError) or (runtime and isinstance(error, runtime.RuntimeInputError)):
        return str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"the disk is full ({error}); free some space and run the same command again, it resumes"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 2 for bad input (one sentence on stderr), 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
            raise vega_artifact.unknown_name("verb", arguments[0], VERBS)
        verb = tyro.cli(COMMAND, prog="vega-edge", description=ABOUT, args=arguments, config=(OmitSubcommandPrefixes,))
        verb.run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is written to it at exit
        return 0
    except KeyboardInterrupt:
        print("vega-edge: interrupted; the same command resumes", file=sys.stderr)
        return 130
    except Exception as error:
        if (text := sentence(error)) is None:
            raise
        print(f"vega-edge: {text}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
