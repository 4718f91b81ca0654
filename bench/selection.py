"""What `vega-edge select` does: search the grid, compare the winner with the shipped setting, measure its noise, keep it all.

Place in the chain: before `vega-edge extract`, whose --blocks, --sigma, --mode and --draws it chooses. Rooms come from
bench/validation.py, the grid from bench/candidates.py; bench/search.py searches, bench/draws.py finds the noise floor,
bench/heatmap.py draws.

    vega-edge select --quick
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.candidates import Plan, load
from bench.draws import compare_draws
from bench.heatmap import heatmap
from bench.probes import evaluate
from bench.search import METRICS, Search, Setting, StoredMaps, best
from bench.select import Select
from bench.validation import Rooms
from vega_artifact import MANIFEST, UserError, atomic_write, read_json, read_manifest, write_json, write_manifest

RESULT, PICTURE, WORK, PLAN = "selection.json", "heatmap.png", "work", "plan.json"
STUDY_SHARE = 0.5  # of the rooms: enough to see the floor, and half the cost


def select(options: Select) -> dict[str, Any]:
    """Do (or finish) a selection; what it found is also written where `options.out` says.

    Returns:
        rows, best, default: rows of `Search.run`, each with "draws"; best is at least as good as default.
        paired: {metric, difference, low, high, n} of best less default, rooms resampled; empty where they are one.
        noise: rows of `compare_draws` at the best setting.  passes: what the search cost, in clips watched.

    Raises:
        UserError: see `Plan.of`; a folder that holds something else; scenes that cannot be scored.
    """
    plan = Plan.of(options)
    if found := _finished(options.out, plan.identity):
        return found
    began = time.monotonic()
    with _workplace(options.out, plan.identity) as work:
        judge, fit = (list(source) for source in plan.sources)
        rooms = Rooms.cut(judge, fit, plan.scored)
        search = Search(lambda at, blocks: load(options, at, blocks, plan.draws), rooms, work, plan.default, print)
        rows = [{**row, "draws": plan.draws} for row in search.run(plan.grid)]
        winner = Setting.of(best(rows))
        part, noise = rooms.part(STUDY_SHARE), work / "noise"
        single = load(options, winner.at, (winner.block,), 1)
        result = {
            "teacher": options.teacher,
            "rows": rows,
            "best": best(rows),
            "default": next(row for row in rows if Setting.of(row) == plan.default),
            "paired": _paired(work, search.names, rooms, winner, plan.default),
            "noise": compare_draws(single, winner.block, part, noise, plan.size.study),
            "passes": {"made": search.clips, "full": search.full, "fraction": search.clips / search.full},
            "rooms": {"fit": len(rooms.fit), "tune": len(rooms.tune), "judge": len(rooms.judge)},
            "seconds": round(time.monotonic() - began, 1),
        }
        _keep(options, plan, result)
    return result


def _paired(work: Path, names: Sequence[str], rooms: Rooms, winner: Setting, default: Setting) -> list[dict[str, Any]]:
    if winner == default:
        return []
    maps = {name: StoredMaps([work / at.at.folder], at.block, names) for name, at in (("best", winner), ("default", default))}
    found = evaluate(maps, *rooms.views, pairs=(("best", "default"),))["paired"]
    kept = ("metric", "difference", "low", "high", "n")
    return [{key: row[key] for key in kept} for row in found if row["metric"] in METRICS]


def _is_file(out: Path | None) -> bool:
    return out is not None and out.suffix == ".json"


def _finished(out: Path | None, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished artifact with the same settings."""
    if out is None or _is_file(out) or not (out / MANIFEST).exists():
        return None
    _same(read_manifest(out, "selection")["config"], identity, out)
    shutil.rmtree(out / WORK, ignore_errors=True)  # left where a run was killed in its last moment
    return read_json(out / RESULT)


@contextmanager
def _workplace(out: Path | None, identity: Mapping[str, Any]) -> Iterator[Path]:
    """A folder for what a search leaves behind until it is finished; one that was left is gone on with."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="vega-select-") as folder:
            yield Path(folder)
        return
    if not _is_file(out) and out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / WORK).is_dir())):
        raise UserError(f"{out}: holds something that is no selection; give an empty folder, a new one or a FILE.json")
    work = out.with_name(f"{out.name}.{WORK}") if _is_file(out) else out / WORK
    if (work / PLAN).exists():
        _same(read_json(work / PLAN), identity, work)
    else:
        write_json(work / PLAN, identity)
    yield work
    shutil.rmtree(work)


def _same(found: Mapping[str, Any], expected: Mapping[str, Any], where: Path) -> None:
    differing = [key for key in expected if found.get(key) != expected[key]]
    if differing:
        raise UserError(f"{where}: a selection with another {', '.join(differing)} is there; give another --out or delete it")


def _keep(options: Select, plan: Plan, result: Mapping[str, Any]) -> None:
    out, winner = options.out, Setting.of(result["best"])
    if out is None:
        return
    if _is_file(out):
        write_json(out, result)
        return
    write_json(out / RESULT, result)
    picture = heatmap(result["rows"], result["best"], result["default"])
    atomic_write(out / PICTURE, lambda path: path.write_bytes(picture))
    teacher = load(options, winner.at, (winner.block,), plan.draws)  # its fingerprint is that of a cache extracted so
    uris = {"judge": plan.sources[0].uri, "fit": plan.sources[1].uri}
    summary = {key: result[key] for key in ("best", "default", "passes")}
    write_manifest(out, "selection", plan.identity, {"teacher": teacher.fingerprint}, (RESULT, PICTURE), scenes=uris, **summary)


def text(result: Mapping[str, Any]) -> str:
    """What was found, to read."""
    lines = [
        "",
        f"{'':<10}{'block':>6}{'sigma':>7}{'mode':>7}{'depth R2':>10}{'recall, centred':>17}{'score':>8}"
        f"{'VEGA score':>12}{'random':>8}",
    ]
    for name in ("best", "default"):
        row = result[name]
        lines.append(
            f"{name:<10}{row['block']:>6}{row['sigma']:>7g}{row['mode']:>7}{row['depth_r2']:>10.3f}"
            f"{row['correspondence_recall_centred']:>17.3f}{row['score']:>8.3f}"
            f"{_number(row['voxel_consistency']):>12}{_number(row['voxel_random']):>8}"
        )
    if not result["paired"]:
        lines.append("the best setting is the shipped one")
    for row in result["paired"]:
        lines.append(
            f"best less default, {row['metric']}: {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}], "
            f"{row['n']} rooms"
        )
    lines += _noise_lines(result["noise"])
    passes, row = result["passes"], result["best"]
    lines.append(
        f"search: {passes['made']} of {passes['full']} clips watched, {100 * passes['fraction']:.0f} % of the full grid"
    )
    lines.append(
        f"use it: vega-edge extract --teacher {result['teacher']} --blocks {row['block']} --sigma {row['sigma']:g} "
        f"--mode {row['mode']} --draws {row['draws']} --scenes SCENES --out CACHE"
    )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _noise_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return ["this teacher takes no noise, so it has no noise floor"]
    lines = ["", "noise draws averaged, at the best setting on half of the rooms; floor: difference between equal settings"]
    lines += [f"{'draws':>6}{'depth R2':>10}{'recall, centred':>17}{'score':>8}{'score floor':>16}{'noise share':>13}"]
    for row in rows:
        floor = None if row["floor"] is None else row["floor"]["score"]
        lines.append(
            f"{row['draws']:>6}{row['depth_r2']:>10.3f}{row['correspondence_recall_centred']:>17.3f}{row['score']:>8.3f}"
            f"{'-' if floor is None else f'{floor:.4f}':>16}{_number(row['noise_share']):>13}"
        )
    return [*lines, ""]
