"""Choice of block and sigma: the probes decide, on validation rooms alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import select
from bench.select import METRICS, Rooms, best, grid
from vega_artifact import UserError

CELLS = 8


@pytest.fixture(scope="module")
def rooms() -> Rooms:
    return Rooms.open(fit=4, tune=2, judge=3, size=32)


def row(block: int, sigma: float, depth: float, recall: float) -> dict[str, float]:
    return {"block": block, "sigma": sigma, **dict(zip(METRICS, (depth, recall), strict=True))}


def test_rooms_are_of_train_and_val_and_never_of_test(rooms: Rooms) -> None:
    assert (len(rooms.fit), len(rooms.tune), len(rooms.judge)) == (4, 2, 3)
    splits = {name: {clip.scene_id.split("-")[1] for clip in getattr(rooms, name)} for name in ("fit", "tune", "judge")}
    assert splits == {"fit": {"train"}, "tune": {"train"}, "judge": {"val"}}
    names = [clip.scene_id for clip in (*rooms.fit, *rooms.tune, *rooms.judge)]
    assert len(set(names)) == len(names)


def test_best_counts_both_metrics_alike() -> None:
    rows = [row(0, 0.1, 0.9, 0.1), row(1, 0.1, 0.6, 0.6), row(2, 0.3, 0.2, 0.9)]
    assert best(rows) == rows[1]
    assert best(rows[::-1]) == rows[1]
    assert best(rows[:1]) == rows[0]


def test_nothing_scored() -> None:
    with pytest.raises(UserError, match="no setting was scored; give at least one block and one sigma"):
        best([])


def teacher(sigma: float, rooms: Rooms, asked: list[tuple[float, str]]) -> SimpleNamespace:
    """A stand-in whose block 5 knows where every cell lies, the less the noisier, and whose block 2 knows nothing."""
    known = {clip.scene_id: clip for clip in (*rooms.fit, *rooms.tune, *rooms.judge)}

    def features(frames: np.ndarray, scene_id: str, frame_ids: np.ndarray) -> SimpleNamespace:
        clip = known[scene_id]
        assert frames is clip.rgb and frame_ids is clip.frame_ids
        asked.append((sigma, scene_id))
        step = clip.depth.shape[1] // CELLS
        middle = slice(step // 2, None, step)
        points = clip.world_points()[:, middle, middle]
        depth = np.log(np.maximum(clip.depth[:, middle, middle], 0.1))[..., None]
        rng = np.random.default_rng(len(asked))
        knowing = np.nan_to_num(np.concatenate([points, depth], axis=-1)).transpose(0, 3, 1, 2)
        noise = rng.standard_normal(knowing.shape)
        blocks = {2: noise, 5: (1 - sigma) * knowing + sigma * noise}
        return SimpleNamespace(blocks={block: torch.from_numpy(value.astype(np.float32)) for block, value in blocks.items()})

    config, simulator = SimpleNamespace(draws=3), SimpleNamespace(wanted=[2, 5])
    return SimpleNamespace(config=config, simulator=simulator, features=features)


def test_grid_finds_the_block_that_knows_and_the_noise_that_hurts_least(rooms: Rooms) -> None:
    asked: list[tuple[float, str]] = []
    rows = grid(lambda sigma: teacher(sigma, rooms, asked), (0.8, 0.01), rooms)  # type: ignore[arg-type,return-value]
    assert [(found["block"], found["sigma"], found["draws"]) for found in rows] == [
        (2, 0.8, 3),
        (5, 0.8, 3),
        (2, 0.01, 3),
        (5, 0.01, 3),
    ]
    assert len(asked) == len(set(asked)) == 2 * 9, "one pass per room and sigma gives all blocks"
    assert (best(rows)["block"], best(rows)["sigma"]) == (5, 0.01)
    for metric in METRICS:
        values = {(found["block"], found["sigma"]): found[metric] for found in rows}
        assert values[5, 0.01] > values[5, 0.8] and values[5, 0.01] > values[2, 0.01] + 0.1


def test_no_sigma_no_rows(rooms: Rooms) -> None:
    assert grid(lambda sigma: pytest.fail("nothing was asked for"), (), rooms) == []


def test_command_writes_rows_and_winner(tmp_path, rooms: Rooms, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from vega_artifact import read_json

    monkeypatch.setattr(select.Rooms, "open", lambda: rooms)
    select.Select(teacher="tiny", blocks=(0, 3), sigmas=(0.4,), draws=1, out=tmp_path / "select.json").run()
    found = read_json(tmp_path / "select.json")
    assert [(row["block"], row["sigma"], row["draws"]) for row in found["rows"]] == [(0, 0.4, 1), (3, 0.4, 1)]
    assert found["best"] in found["rows"] and "best: " in capsys.readouterr().out


def test_unknown_teacher(rooms: Rooms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select.Rooms, "open", lambda: rooms)
    with pytest.raises(UserError, match=r"unknown teacher .*'tinny'\. Did you mean 'tiny'"):
        select.Select(teacher="tinny").run()
