"""Successive halving over block x sigma x mode: every setting on few rooms, the better half on twice as many, and so on.

One pass of a clip through the teacher at one sigma and mode gives all wanted blocks at once, so passes are what is halved: kept
are the passes with the better best block, and within them the better half of the blocks (so the teacher may stop earlier).
The setting the teacher is shipped with stays to the end. Features of a room are kept on disk until their setting drops out, so
a later rung computes only its new rooms, and a killed search goes on where it was. Place in the chain: run by
`vega-edge select`; bench/probes.py scores. Source: Jamieson & Talwalkar 2016 (successive halving).

    vega-edge select --quick
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bench.probes import evaluate
from bench.validation import Room, Rooms
from vega_artifact import UserError, atomic_write, read_json, write_json

if TYPE_CHECKING:
    from teacher.features import FeatureTeacher

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the rooms, per rung
METRICS = ("depth_r2", "correspondence_recall_centred")  # their mean is the score
SHOWN = ("voxel_consistency", "voxel_random")  # VEGA-3D's own score and its random-pair control: reported, never chosen by


@dataclass(frozen=True, order=True)
class Pass:
    """What one run of the teacher costs: noise level as requested, and mode."""

    sigma: float
    mode: str

    @property
    def folder(self) -> str:
        return f"{self.mode}-{self.sigma!r}"


@dataclass(frozen=True)
class Setting:
    """One cell of the grid."""

    block: int
    at: Pass

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Setting:
        return cls(row["block"], Pass(row["sigma"], row["mode"]))


Make = Callable[[Pass, Sequence[int]], "FeatureTeacher"]  # loads the teacher of a pass with these blocks
Alive = dict[Pass, tuple[int, ...]]


class StoredMaps(Mapping[str, np.ndarray]):
    """scene_id -> float32 (T', C, gh, gw): one block, averaged over the folders (one per noise draw), read when asked for."""

    def __init__(self, folders: Sequence[Path], block: int, scenes: Sequence[str]) -> None:
        self.folders, self.block, self.scenes = folders, block, {name: index for index, name in enumerate(scenes)}

    def __getitem__(self, scene_id: str) -> np.ndarray:
        index = self.scenes[scene_id]
        draws = [_read(folder / _file(index), self.block) for folder in self.folders]
        return np.stack(draws).mean(0, dtype=np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)


def _file(index: int) -> str:
    return f"{index:05d}.safetensors"


def _read(path: Path, block: int) -> np.ndarray:
    try:
        with safe_open(path, "np") as stored:
            return stored.get_tensor(str(block))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and run the same command again") from error


def watch(
    teacher: FeatureTeacher, rooms: Iterable[tuple[int, Room]], folder: Path, blocks: Sequence[int], seed: int | None = None
) -> None:
    """Features of numbered rooms into `folder`, a file each, of the scored frames only; files that are there are kept."""
    for index, room in rooms:
        path = folder / _file(index)
        if path.exists():
            continue
        # frames that do not meet one another need not be run to be left out
        chosen = room.scored if teacher.config.mode == "frame" else np.arange(len(room.rgb))
        found = teacher.features(room.rgb[chosen], scene_id=room.scene_id, frame_ids=room.frame_ids[chosen].tolist(), seed=seed)
        place = {int(frame): number for number, frame in enumerate(chosen[found.frame_index])}
        rows = [place[int(frame)] for frame in room.scored]
        maps = {str(block): np.ascontiguousarray(found.blocks[block].numpy()[rows]) for block in blocks}
        atomic_write(path, partial(save_file, maps))


def halve(rows: Sequence[Mapping[str, Any]], keep: Setting) -> Alive:
    """The better half of the passes by their best block, in these the better half of all blocks; `keep` always stays."""
    ranked = sorted(rows, key=lambda row: -row["score"])
    passes = list(dict.fromkeys(Setting.of(row).at for row in ranked))
    passes = passes[: math.ceil(len(passes) / 2)]
    settings = [setting for row in ranked if (setting := Setting.of(row)).at in passes]
    settings = settings[: math.ceil(len(settings) / 2)]
    if keep not in settings:
        settings.append(keep)
    return {at: tuple(sorted(s.block for s in settings if s.at == at)) for at in dict.fromkeys(s.at for s in settings)}


def best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The row with the highest score (the mean of depth R2 and centred recall) among those of the last rung."""
    if not rows:
        raise UserError("select: no setting was scored; give at least one block, one sigma and one mode")
    last = max(row["rung"] for row in rows)
    return dict(max((row for row in rows if row["rung"] == last), key=lambda row: row["score"]))


def score(maps: Mapping[str, Mapping[str, np.ndarray]], rooms: Rooms) -> dict[str, dict[str, Any]]:
    """Name of the maps -> {metric: value, None where no scene carries it; "score": mean of the deciding ones}.

    Raises:
        UserError: scenes without correspondences.
    """
    found = evaluate(maps, *rooms.views, pairs=(), draws=2)  # intervals are not looked at
    if absent := [name for name in METRICS if name in found["missing"]]:
        raise UserError(
            f"select: {len(rooms.judge)} scenes that judge give no {absent[0]}, for no two of their scored frames see the same "
            "place; give more scenes, or frames that lie closer together"
        )
    values = {(row["model"], row["metric"]): row["value"] for row in found["probes"]}
    result = {}
    for name in maps:
        extras = {key: extra["value"] for key, extra in found["extras"][name].items() if isinstance(extra, dict)}
        row = {metric: values.get((name, metric), extras.get(metric)) for metric in (*METRICS, *SHOWN)}
        result[name] = row | {"score": float(np.mean([row[metric] for metric in METRICS]))}
    return result


class Search:
    """One search; `run` does it, the attributes say what it cost.

    Args:
        make: loads the teacher of a pass.
        rooms: all rooms; a rung takes a part of them.
        folder: where features and finished rungs are kept; what is there is reused.
        keep: the setting that stays to the end.
        say: told what happens, a line at a time.

    Attributes:
        clips: how often a clip went through the teacher; full: how often it would have without halving.
    """

    def __init__(self, make: Make, rooms: Rooms, folder: Path, keep: Setting, say: Callable[[str], None]) -> None:
        self.make, self.rooms, self.folder, self.keep, self.say = make, rooms, folder, keep, say
        self.names = [room.scene_id for room in rooms.all]
        self.clips = self.full = 0

    def run(self, grid: Alive) -> list[dict[str, Any]]:
        """Rows of every setting as of the last rung it was in.

        Args:
            grid: pass -> its blocks; must hold the kept setting.

        Returns:
            {block, sigma, mode, rung, scenes, metrics, "score", "gain": score less that of the kept setting on the same rooms}.
        """
        parts: list[Rooms] = []
        for part in map(self.rooms.part, SHARES):
            if not parts or len(part.all) > len(parts[-1].all):
                parts.append(part)
        rows: dict[Setting, dict[str, Any]] = {}
        done = 0
        alive = grid
        for rung, part in enumerate(parts):
            found = [row for at, blocks in alive.items() for row in self._rung(at, blocks, rung, part)]
            kept = next(row["score"] for row in found if Setting.of(row) == self.keep)
            found = [{**row, "gain": row["score"] - kept} for row in found]
            self.clips += len(alive) * (len(part.all) - done)
            done = len(part.all)
            rows |= {Setting.of(row): row for row in found}
            first = best(found)
            self.say(
                f"rung {rung + 1} of {len(parts)}: {len(found)} settings on {len(part.judge)} rooms; best so far block "
                f"{first['block']}, sigma {first['sigma']}, {first['mode']} mode, score {first['score']:.3f}"
            )
            if rung + 1 < len(parts):
                alive = self._drop(alive, halve(found, self.keep))
        self.full = len(grid) * len(self.names)
        return list(rows.values())

    def _rung(self, at: Pass, blocks: tuple[int, ...], rung: int, part: Rooms) -> list[dict[str, Any]]:
        record = self.folder / f"rung{rung}-{at.folder}.json"
        if record.exists():
            return read_json(record)
        folder = self.folder / at.folder
        watch(self.make(at, blocks), self._numbered(part), folder, blocks)
        scores = score({f"block {block}": StoredMaps([folder], block, self.names) for block in blocks}, part)
        same = {"sigma": at.sigma, "mode": at.mode, "rung": rung, "scenes": len(part.judge)}
        rows = [{"block": block, **same, **scores[f"block {block}"]} for block in blocks]
        write_json(record, rows)
        return rows

    def _numbered(self, part: Rooms) -> list[tuple[int, Room]]:
        number = {name: index for index, name in enumerate(self.names)}
        return [(number[room.scene_id], room) for room in part.all]

    def _drop(self, alive: Alive, kept: Alive) -> Alive:
        """What goes on, in the order of the grid; features of the passes that do not are deleted."""
        for at in set(alive) - set(kept):
            shutil.rmtree(self.folder / at.folder, ignore_errors=True)
        return {at: kept[at] for at in alive if at in kept}
