"""Every precision of a student judged by what it is for: 3D probes and answers about test rooms, beside its float32 file.

After `vega-edge export RUN --out EXPORTS --precision all --cache CACHE`, which knows cosines and CPU times alone; the same rule
then recommends a precision again, with all that is known.

    python -m bench.precisions --exports EXPORTS --train TRAIN --val VAL --test TEST --task ladder --report results/precisions
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import maps, parity, probes
from bench.conditions import STREAM, Condition, ask, askable, made_up
from distill import command
from export.precision import Variant, recommend
from export.variants import TABLE
from teacher.cache import FeatureCache
from teacher.scenes.scene_names import SceneNames
from teacher.tiny.bundle import READER_SEEDS, load_reader
from vega_artifact import UserError, canonical, read_json, write_json, write_text

REFERENCE = "fp32"
METRICS = {"depth_r2": "depth R²", "correspondence_recall_centred": "centred recall"}
GAP = ("difference", "low", "high")
TARGETS = {"cpu": "int8_fp16", "tensorrt": "int8"}  # and the variant that is not meant for it
READING = """\
How to read it:

- Differences are from the float32 file on the same test rooms, with 95 % bootstrap intervals; probes read the fused tokens of
  the exported file. *Answers*: three embedded readers see the file's tokens; the verdict asks whether the score stays within
  the margin of the float32 file's.
- A precision is out where the cosine is below 0.995, a probe drops by more than 0.01, or the answers are not shown to be as
  good. Of those that are left the fastest is taken; for TensorRT nothing was timed, so fp16 is taken before INT8.
"""


@dataclass(frozen=True, kw_only=True)
class Precisions:
    """3D probes and downstream answers of every precision of one student, and what is recommended."""

    exports: Path
    """Folder made by `vega-edge export --precision all`."""
    train: Path
    """Cache of rooms that fit the probes."""
    val: Path
    """Cache of rooms that choose their penalty."""
    test: Path
    """Cache of test rooms, which are scored and asked about."""
    task: str = "ladder"
    """ladder, vsibench or scanqa."""
    margin: float = 1.0
    """How many percent points the answers may lose."""
    report: Path | None = None
    """Folder for precisions.md and verdicts.json; none: --exports."""

    def run(self) -> Path:
        """Judge all; returns the path of precisions.md."""
        if not (self.exports / TABLE).is_file():
            raise UserError(f"{self.exports}: no {TABLE} in it; make it with `vega-edge export --precision all --cache CACHE`")
        table = {row["precision"]: row for row in read_json(self.exports / TABLE)["rows"] if row["folder"] == row["precision"]}
        if REFERENCE not in table or len(table) < 2:
            raise UserError(f"{self.exports}: {REFERENCE} and another precision are needed, found {', '.join(table) or 'none'}")
        probed, answered = self._probe(list(table)), self._ask(list(table))
        rows = [self._row(name, table[name], probed, answered.get(name)) for name in table]
        found = {
            "parents": {name: FeatureCache(getattr(self, name)).fingerprint for name in ("train", "val", "test")},
            "task": self.task,
            "margin": self.margin,
            "rows": rows,
            "recommended": {target: verdict(rows, unfit, target) for target, unfit in TARGETS.items()},
        }
        folder = self.report or self.exports
        write_json(folder / "verdicts.json", canonical(found))
        write_text(folder / "precisions.md", markdown(found))
        return folder / "precisions.md"

    def _probe(self, names: Sequence[str]) -> dict[str, Any]:
        caches = [FeatureCache(path) for path in (self.train, self.val, self.test)]
        models = {name: maps.exported_maps(caches, self.exports / name, STREAM) for name in names}
        pairs = [(name, REFERENCE) for name in names if name != REFERENCE]
        return probes.evaluate(models, *map(maps.clips, caches), pairs=pairs)

    def _ask(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Precision -> {difference, low, high} of its answers' score from the float32 file's, in points, and the verdict."""
        cache = FeatureCache(self.test)
        readers = [load_reader(STREAM, seed) for seed in READER_SEEDS]
        rows = {name: Condition(maps.exported_maps([cache], self.exports / name, STREAM), readers) for name in names}
        asked, _ = askable(self.task, made_up(self.task, cache), cache)
        answers = ask(self.task, rows, asked, SceneNames(cache))
        found = {}
        for name in names:
            if name != REFERENCE:
                both = {parity.TEACHER: answers[REFERENCE], parity.STUDENT: answers[name]}
                compared = parity.compare(self.task, both, asked, self.margin)
                overall = next(row for row in compared["paired"] if row["type"] == "overall")
                found[name] = {key: overall[key] for key in GAP} | {"verdict": compared["parity"][0]["verdict"]}
        return found

    def _row(
        self, name: str, table: Mapping[str, Any], probed: Mapping[str, Any], answered: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        values = {row["metric"]: row["value"] for row in probed["probes"] if row["model"] == name}
        paired = {row["metric"]: row for row in probed["paired"] if row["a"] == name}
        return {
            "precision": name,
            "bytes": table["bytes"],
            "cpu_ms": table["cpu_ms"],
            "cosine": min(table["cosine"].values()),
            "probes": {metric: values[metric] for metric in METRICS if metric in values},
            "against": {metric: {key: paired[metric][key] for key in GAP} for metric in METRICS if metric in paired},
            "answers": answered,
        }


def verdict(rows: Sequence[Mapping[str, Any]], unfit: str, target: str) -> dict[str, str]:
    """What `export.precision.recommend` says of these rows for a target."""
    variants = []
    for row in rows:
        if row["precision"] != unfit:
            drops = {METRICS[metric]: -found["difference"] for metric, found in row["against"].items()}
            unequal = ["the answers"] if row["answers"] and row["answers"]["verdict"] != "pass" else []
            time = row["cpu_ms"] if target == "cpu" else None
            variants.append(Variant(row["precision"], row["cosine"], drops, time, unequal))
    try:
        return recommend(variants)
    except UserError as error:
        return {"precision": "none", "why": str(error)}


def markdown(found: Mapping[str, Any]) -> str:
    """The whole report."""
    lines = ["# Precisions of one student, judged by probes and answers", "", "Generated by `python -m bench.precisions`.", ""]
    heads = [f"{title}, less fp32" for title in METRICS.values()]
    lines += [f"| precision | MB | CPU ms | cosine | {' | '.join(heads)} | {found['task']}, points less fp32 |"]
    lines += ["| --- |" + " --- |" * (4 + len(heads))]
    for row in found["rows"]:
        cells = [row["precision"], f"{row['bytes'] / 1e6:.2f}", f"{row['cpu_ms']:.2f}", f"{row['cosine']:.5f}"]
        cells += [_cell(row["against"].get(metric), row["probes"].get(metric), 3) for metric in METRICS]
        answers = row["answers"]
        cells.append("–" if answers is None else f"{_cell(answers, None, 2)}: {answers['verdict']}")
        lines.append(f"| {' | '.join(cells)} |")
    advice = [f"- For {target}: **{best['precision']}**, {best['why']}." for target, best in found["recommended"].items()]
    return "\n".join([*lines, "", *advice, "", READING])


def _cell(gap: Mapping[str, float] | None, value: float | None, digits: int) -> str:
    """A difference with its interval; of the reference the value itself."""
    if gap is None:
        return "–" if value is None else f"{value:.{digits}f}"
    numbers = [f"{gap[key]:+.{digits}f}" for key in GAP]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]".replace("-", "−")


def main(arguments: Sequence[str] | None = None) -> int:
    return command.run(Precisions, "bench.precisions", arguments)


if __name__ == "__main__":
    sys.exit(main())
