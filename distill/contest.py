"""Recipes against each other on test rooms: several seeds each, one cache, and how much of the teacher a student keeps.

For the last word, once a recipe is chosen (`distill.study` chooses, on validation rooms). Runs and scores are artifacts below
--out: killed at any time, the same command goes on. Ends with contest.md and contest.json.

    python -m distill.contest --train runs/demo/cache-train --val runs/demo/cache-val --test runs/demo/cache-test
    python -m distill.contest ... --recipes demo vit_tiny --seeds 0 1 2 3 4 --out runs/contest --report results/contest
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from distill import command, contest_report, recipes
from distill.study_scores import METRICS, difference, estimate, kept, read_sums
from distill.study_worker import Worker, Workers
from vega_artifact import MANIFEST, UserError, canonical, fingerprint, read_manifest, write_json

STREAM = "fused"  # the primary output
REFERENCES = ("teacher", "raw_patches")


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Which recipe gives the best student on test rooms, and what part of the teacher's sense does it keep?"""

    train: Path
    """Cache that the students learn from; also fits the probes."""
    val: Path
    """Cache that chooses the probes' penalty."""
    test: Path
    """Cache of test rooms, which the scores are of."""
    recipes: tuple[str, ...] = ("first_demo", "demo", "vit_tiny")
    """Names from `vega-edge list recipes`; the first is the one to beat."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and batches; every recipe is trained once per seed."""
    steps: int | None = None
    """Instead of the recipes' own, to try the command."""
    out: Path = Path("runs/contest")
    """Folder for runs and scores; what is complete there is reused."""
    report: Path | None = None
    """Folder for contest.md and contest.json; none: --out."""
    jobs: int = 1
    """Processes; the cores are shared among them."""

    def __post_init__(self) -> None:
        for given, what in ((self.recipes, "recipes"), (self.seeds, "seeds")):
            if not given or len(set(given)) < len(given):
                raise UserError(f"contest: {what} {given} must be different ones, and at least one")
        if self.jobs < 1 or (self.steps is not None and self.steps < 1):
            raise UserError("contest: jobs and steps must be at least 1")
        for recipe in self.recipes:
            if STREAM not in recipes.create(recipe).streams:
                raise UserError(f"contest: recipe {recipe!r} does not learn the {STREAM} stream, which is what is scored")

    def run(self) -> Path:
        """Do what is left to do; returns the path of contest.md."""
        entries = [(recipe, seed) for recipe in self.recipes for seed in self.seeds]
        with Workers(self.out, self.jobs) as workers:
            workers.each(self._probe, [None, *entries], "contest")
        folder = self.report or self.out
        found = self.collected()
        write_json(folder / "contest.json", found)
        return contest_report.write(folder, found)

    def change(self, seed: int) -> dict[str, Any]:
        """Fields of a recipe that are otherwise here."""
        return {"seed": seed, "progress": False} | ({} if self.steps is None else {"steps": self.steps})

    def run_folder(self, recipe: str, seed: int) -> Path:
        config = replace(recipes.create(recipe), **self.change(seed))
        cache = read_manifest(self.train, "cache")["fingerprint"]
        return self.out / "runs" / f"{recipe}-seed{seed}-{fingerprint([config.identity(), cache])[:8]}"

    def score_file(self, entry: tuple[str, int] | None) -> Path:
        """Scores of a recipe and seed, or of what they are compared with."""
        rooms = [read_manifest(path, "cache")["fingerprint"] for path in (self.train, self.val, self.test)]
        name = self.run_folder(*entry).name if entry else "references"
        return self.out / "scores" / f"{name}-{fingerprint(rooms)[:8]}.json"

    def _probe(self, worker: Worker, entry: tuple[str, int] | None) -> None:
        """Train one student, unless it is there, and ask the probes about it; None: ask about the references."""
        out = self.score_file(entry)
        models: tuple[str, ...] = REFERENCES
        asked: list[str] = []
        if entry is not None:
            recipe, seed = entry
            run, models = self.run_folder(recipe, seed), ("student",)
            if not (run / MANIFEST).exists():
                changes = [f"{name}={value}" for name, value in self.change(seed).items()]
                source = ["--cache", str(self.train), "--recipe", recipe]
                worker.ask("train", *source, "--out", str(run), "--change", *changes)
            asked = ["--run", str(run)]
        if not out.exists():
            caches = ["--train", str(self.train), "--val", str(self.val), "--test", str(self.test)]
            worker.ask("bench", "probe", *caches, *asked, "--stream", STREAM, "--models", *models, "--sums", "--out", str(out))

    def collected(self) -> dict[str, Any]:
        """Settings, the references and one row per recipe: what `distill.contest_report` writes down."""
        references = {
            model: {metric: asdict(estimate(self._reference(model, metric), metric)) for metric in METRICS}
            for model in REFERENCES
        }
        parents = {name: read_manifest(getattr(self, name), "cache")["fingerprint"] for name in ("train", "val", "test")}
        settings = {"recipes": self.recipes, "seeds": self.seeds, "steps": self.steps, "stream": STREAM}
        rows = [self._row(recipe) for recipe in self.recipes]
        return canonical({"settings": settings, "parents": parents, "references": references, "rows": rows})

    def _row(self, recipe: str) -> dict[str, Any]:
        manifests = [read_manifest(self.run_folder(recipe, seed), "run") for seed in self.seeds]
        scores: dict[str, Any] = {}
        for metric in METRICS:
            ours, first = self._students(recipe, metric), self._students(self.recipes[0], metric)
            teacher, raw = (self._reference(model, metric) for model in REFERENCES)
            scores[metric] = asdict(estimate(ours, metric)) | {
                "above_raw": asdict(difference(ours, raw, metric)),
                "kept": asdict(kept(ours, teacher, raw, metric)),
            }
            if recipe != self.recipes[0]:
                scores[metric]["above_first"] = asdict(difference(ours, first, metric))
        cosine = [found["validation"][STREAM]["centred"] for found in manifests]
        told = {name: [found[name] for found in manifests] for name in ("minutes", "fingerprint")}
        config = manifests[0]["config"]
        size = {"parameters": manifests[0]["parameters"], "student": config["student"], "steps": config["steps"]}
        return {"recipe": recipe, "cosine": cosine, "scores": scores, "batch": config["batch"], **size, **told}

    def _students(self, recipe: str, metric: str) -> Any:
        return self._sums([self.score_file((recipe, seed)) for seed in self.seeds], metric, "student")

    def _reference(self, model: str, metric: str) -> Any:
        return self._sums([self.score_file(None)], metric, model)

    def _sums(self, paths: list[Path], metric: str, model: str) -> Any:
        table = read_sums(paths, metric, model)
        if table is None:
            raise UserError(f"{self.test}: no {metric} can be measured on its rooms; take rooms with depth and poses")
        return table


def main(arguments: Sequence[str] | None = None) -> int:
    return command.run(Contest, "distill.contest", arguments)


if __name__ == "__main__":
    sys.exit(main())
