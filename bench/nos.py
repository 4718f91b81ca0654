"""Normalised overall score (NOS): one number per teacher out of a table of task results, as VEGA-3D reports it.

Place in the chain: reads a table of results, ours or the paper's; bench/consistency.py has the correspondence score it is set
against. NOS is the mean over the metrics of (value - lowest) / (highest - lowest). The paper takes lowest and highest within
{group, baseline}, separately for discriminative and generative teachers (its printed numbers come out only so), hence NOS
of two groups must not be compared; with one minimum and maximum for all teachers it may. Source: arXiv 2603.19235 v2, Table 4.

    vega-edge bench nos
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from vega_artifact import UserError, read_json

PAPER = Path(__file__).parent / "data" / "vega3d_table4.json"
FIELDS = ("source", "metrics", "baseline", "groups", "results", "correspondence")


@dataclass(frozen=True)
class Table:
    """Task results of teachers that were used in the same way.

    Attributes:
        source: where the numbers come from.  metrics: names of the columns, higher is better in all.
        baseline: the row without any teacher; it takes part in every minimum and maximum.
        groups: group -> its teachers; every teacher but the baseline is in exactly one.
        results: teacher or baseline -> one number per metric, in any unit.
        correspondence: teacher -> multi-view correspondence score in percent; may lack teachers, or be empty.
    """

    source: str
    metrics: tuple[str, ...]
    baseline: str
    groups: dict[str, tuple[str, ...]]
    results: dict[str, tuple[float, ...]]
    correspondence: dict[str, float]

    @classmethod
    def read(cls, path: Path | str = PAPER) -> Table:
        """Parse a JSON file with the fields of this class.

        Raises:
            UserError: a missing or unknown field, a teacher in no group or in two, a row of another length, no number.
        """
        data = read_json(path)
        if not isinstance(data, dict) or set(data) != set(FIELDS):
            found = ", ".join(sorted(data)) if isinstance(data, dict) else type(data).__name__
            raise UserError(f"{path}: an object with exactly {', '.join(FIELDS)} expected (see {PAPER}), found {found}")
        try:
            table = cls(
                str(data["source"]),
                tuple(map(str, data["metrics"])),
                str(data["baseline"]),
                {name: tuple(map(str, models)) for name, models in data["groups"].items()},
                {name: tuple(map(float, values)) for name, values in data["results"].items()},
                {name: float(value) for name, value in data["correspondence"].items()},
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: a list, object or number is missing where one belongs ({error}); see {PAPER}") from None
        table._check(path)
        return table

    def _check(self, path: Path | str) -> None:
        for name, values in self.results.items():
            if len(values) != len(self.metrics) or not np.isfinite(values).all():
                raise UserError(f"{path}: results of {name!r}: {len(self.metrics)} finite numbers expected, found {values}")
        grouped = [model for models in self.groups.values() for model in models]
        if self.baseline not in self.results or sorted(grouped) != sorted(set(self.results) - {self.baseline}):
            raise UserError(
                f"{path}: every row of results but the baseline {self.baseline!r} must be in exactly one group; "
                f"results has {sorted(self.results)}, groups have {sorted(grouped)}"
            )
        if foreign := sorted(set(self.correspondence) - set(grouped)):
            raise UserError(f"{path}: correspondence names {', '.join(foreign)}, which no group holds")


def nos(rows: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Normalised overall score in percent of every row; a metric on which all rows agree is left out.

    Args:
        rows: model -> one number per metric; minimum and maximum are taken over these rows.

    Raises:
        UserError: no metric tells the rows apart.
    """
    values = np.array(list(rows.values()), dtype=np.float64)
    low, high = values.min(0), values.max(0)
    told = high > low
    if not told.any():
        raise UserError(f"NOS: {', '.join(rows)} are equal in every metric; at least two different rows are needed")
    scaled = (values[:, told] - low[told]) / (high[told] - low[told])
    return dict(zip(rows, (100 * scaled.mean(1)).tolist(), strict=True))


@dataclass(frozen=True)
class Correlation:
    """Agreement of the correspondence score with another number over `n` teachers: Pearson's r, Spearman's rho, p values."""

    against: str
    n: int
    pearson: float
    pearson_p: float
    spearman: float
    spearman_p: float


def summarise(table: Table) -> dict[str, Any]:
    """Everything VEGA-3D claims with its Table 4, recomputed from a table.

    Returns:
        rows: {model, group, correspondence, nos_group, nos_global} per teacher; the baseline has a row per group, whose
            nos_group differ.
        correlations: `Correlation` fields of the correspondence score against nos_group, nos_global and each metric; empty with
            fewer than three scored teachers.
    """
    overall = nos(table.results)
    rows = []
    for group, models in table.groups.items():
        scores = nos({name: table.results[name] for name in (table.baseline, *models)})
        rows += [
            {
                "model": name,
                "group": group,
                "correspondence": table.correspondence.get(name),
                "nos_group": scores[name],
                "nos_global": overall[name],
            }
            for name in scores
        ]
    return {"source": table.source, "rows": rows, "correlations": [asdict(found) for found in _correlations(table, rows)]}


def _correlations(table: Table, rows: Sequence[Mapping[str, Any]]) -> list[Correlation]:
    scored = [row for row in rows if row["correspondence"] is not None]
    if len(scored) < 3:
        return []
    score = [row["correspondence"] for row in scored]
    columns = {name: [row[name] for row in scored] for name in ("nos_group", "nos_global")}
    columns |= {name: [table.results[row["model"]][i] for row in scored] for i, name in enumerate(table.metrics)}
    found = []
    for name, values in columns.items():
        if len(set(values)) > 1 and len(set(score)) > 1:
            pearson, spearman = stats.pearsonr(score, values), stats.spearmanr(score, values)
            numbers = (pearson.statistic, pearson.pvalue, spearman.statistic, spearman.pvalue)
            found.append(Correlation(name, len(values), *map(float, numbers)))
    return found


def text(summary: Mapping[str, Any]) -> str:
    """The summary as a table to read."""
    lines = [summary["source"], "", f"{'teacher':<16}{'group':<16}{'corr. %':>9}{'NOS, group':>12}{'NOS, global':>13}"]
    for row in summary["rows"]:
        score = "-" if row["correspondence"] is None else f"{row['correspondence']:.2f}"
        lines.append(f"{row['model']:<16}{row['group']:<16}{score:>9}{row['nos_group']:>12.2f}{row['nos_global']:>13.2f}")
    if summary["correlations"]:
        lines += ["", f"{'correspondence against':<24}{'Pearson':>9}{'p':>8}{'Spearman':>10}{'p':>8}"]
    for row in summary["correlations"]:
        lines.append(
            f"{row['against']:<24}{row['pearson']:>9.2f}{row['pearson_p']:>8.3f}{row['spearman']:>10.2f}{row['spearman_p']:>8.3f}"
        )
    return "\n".join([*lines, "", "NOS per group is normalised within {group, baseline}: do not compare it between groups."])
