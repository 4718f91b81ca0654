"""`vega-edge select`: finds the better setting for a fraction of the grid, on validation rooms alone; a kill costs little."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

import vega_edge
from bench import candidates, select, selection
from bench.draws import noise_share
from bench.heatmap import heatmap
from bench.search import Pass, Setting, best, halve
from bench.select import Select
from bench.validation import Rooms, open_sources
from teacher.scenes import open_scenes
from vega_artifact import UserError, fingerprint, read_json, read_manifest

GRID, DEPTH, SHIPPED = 8, 6, Setting(4, Pass(0.3, "frame"))
JUDGE = "procedural:val?count=6&frames=6&size=32&seed=7&span=0.3"
FIT = "procedural:train?count=16&frames=6&size=32&seed=7&span=0.3"


class Knowing:
    """A teacher whose block 2 knows where every cell lies, the others the less the further away; noise covers it. Clip mode
    gives a map for every second frame, and knows less."""

    watched: ClassVar[list[tuple[float, str, str, int | None]]] = []  # what all instances were asked
    killed_after: ClassVar[int | None] = None  # so many
    channels, device = 8, "cpu"

    def __init__(self, blocks, sigma, mode, draws, seed, noiseless=False, **_) -> None:
        self.wanted = sorted({block % DEPTH for block in (blocks or (SHIPPED.block,))})
        if any(not -DEPTH <= block < DEPTH for block in blocks or ()):
            raise UserError(f"blocks {blocks}: indices in 0..{DEPTH - 1} expected")
        sigma, draws = SHIPPED.at.sigma if sigma is None else sigma, draws or 1
        if not 0 <= sigma <= 1:
            raise UserError(f"sigma {sigma}: a noise level in [0, 1] expected")
        fields = {"name": "knowing", "weights": "w", "blocks": tuple(self.wanted), "sigma": 0.0 if noiseless else sigma}
        self.config = SimpleNamespace(**fields, mode="frame" if noiseless else mode or "frame", draws=draws, seed=seed)
        self.sigma = 0.0 if noiseless else round(sigma, 1)  # a schedule of ten steps
        self.fingerprint = fingerprint(vars(self.config))

    def frame_index(self, frames: int) -> np.ndarray:
        return np.arange(frames)[:: 1 if self.config.mode == "frame" else 2]

    def features(self, frames, noise=None, scene_id="", frame_ids=None, seed=None):
        if len(self.watched) == self.killed_after:
            raise KeyboardInterrupt
        self.watched.append((self.config.sigma, self.config.mode, scene_id, seed))
        clip = CLIPS[scene_id]
        index = self.frame_index(len(frames))
        rows = [clip.frame_ids.tolist().index(frame_ids[i]) for i in index]
        assert np.array_equal(frames[index], clip.rgb[rows])
        step = clip.depth.shape[1] // GRID
        middle = slice(step // 2, None, step)
        depth = np.log(np.maximum(clip.depth[rows, middle, middle], 0.1))[..., None]
        known = np.nan_to_num(np.concatenate([clip.world_points()[rows, middle, middle], depth], axis=-1))
        blocks = {}
        for block in self.wanted:
            shape = (self.config.draws, *known.shape[:3], self.channels)
            rng = np.random.default_rng([block, seed or self.config.seed, int(fingerprint(scene_id)[:8], 16)])
            drawn = rng.standard_normal(shape).mean(0) * (self.sigma + 0.1 + 0.5 * (self.config.mode == "clip"))
            drawn[..., :4] += known * 0.5 ** abs(block - 2)
            blocks[block] = torch.from_numpy(drawn.transpose(0, 3, 1, 2).astype(np.float32))
        return SimpleNamespace(blocks=blocks, frame_index=index, sigma=self.sigma)


CLIPS = {clip.scene_id: clip for uri in (JUDGE, FIT) for clip in open_scenes(uri)}


@pytest.fixture(autouse=True)
def knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_teacher` also gives the stand-ins, and counts start anew."""
    from teacher import load_teacher

    def load(name, **settings):
        stands_in = name in ("knowing", "noiseless")
        return Knowing(**settings, noiseless=name == "noiseless") if stands_in else load_teacher(name, **settings)

    monkeypatch.setattr("teacher.load_teacher", load, raising=False)
    monkeypatch.setattr(Knowing, "watched", [])
    monkeypatch.setattr(Knowing, "killed_after", None)


def options(**changes) -> Select:
    flags = {"teacher": "knowing", "scenes": JUDGE, "fit_scenes": FIT, "sigmas": (0.1, 0.5, 0.9), "modes": ("frame", "clip")}
    return Select(**flags | changes)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One whole search into a folder."""
    out = tmp_path_factory.mktemp("select") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teacher.load_teacher", lambda name, **settings: Knowing(**settings), raising=False)
        patch.setattr(Knowing, "watched", [])
        result = selection.select(options(out=out))
        return SimpleNamespace(out=out, result=result, watched=list(Knowing.watched))


class TestSearch:
    def test_finds_the_block_that_knows_and_the_least_noise(self, found: SimpleNamespace) -> None:
        winner, shipped = found.result["best"], found.result["default"]
        assert Setting.of(winner) == Setting(2, Pass(0.1, "frame")) and Setting.of(shipped) == SHIPPED
        assert winner["score"] > shipped["score"] + 0.1 and winner["gain"] == pytest.approx(winner["score"] - shipped["score"])
        assert all(row["low"] > 0 for row in found.result["paired"]) and len(found.result["paired"]) == 2

    def test_every_setting_has_a_row_with_vegas_score_and_its_control(self, found: SimpleNamespace) -> None:
        rows = found.result["rows"]
        assert {Setting.of(row) for row in rows} == {
            Setting(block, Pass(sigma, mode)) for block in range(6) for mode in ("frame", "clip") for sigma in (0.1, 0.5, 0.9)
        } | {Setting(block, SHIPPED.at) for block in range(6)}
        assert all(-1 <= row["voxel_random"] <= row["voxel_consistency"] + 0.2 <= 1.3 for row in rows)
        assert {row["draws"] for row in rows} == {1}

    def test_costs_a_fraction_and_says_which(self, found: SimpleNamespace) -> None:
        passes = found.result["passes"]
        searched = [entry for entry in found.watched if entry[3] is None]
        assert len(searched) == len(set(searched)) == passes["made"], "no clip is watched twice in one pass"
        assert passes["full"] == 7 * len(CLIPS) and passes["fraction"] == passes["made"] / passes["full"] < 0.6

    def test_all_modes_are_scored_on_the_same_frames(self, found: SimpleNamespace) -> None:
        plan = candidates.Plan.of(options())
        assert plan.scored(6).tolist() == [0, 2, 4]
        assert candidates.Plan.of(options(modes=("frame",))).scored(6).tolist() == [0, 1, 2, 3, 4, 5]

    def test_noise_floor_shrinks_and_averaging_gains(self, found: SimpleNamespace) -> None:
        noise = {row["draws"]: row for row in found.result["noise"]}
        assert list(noise) == [1, 2, 4, 8] and [row["groups"] for row in noise.values()] == [8, 4, 2, 1]
        assert noise[1]["score"] < noise[8]["score"]
        assert noise[1]["noise_share"] > noise[2]["noise_share"] > noise[4]["noise_share"] > 0
        assert noise[1]["floor"]["score"] > 0 and noise[8]["floor"] is None and noise[8]["noise_share"] is None

    def test_artifact_is_complete_verifies_and_leaves_no_features(self, found: SimpleNamespace) -> None:
        assert sorted(path.name for path in found.out.iterdir()) == ["heatmap.png", "manifest.json", "selection.json"]
        manifest = vega_edge.check_artifact(found.out)
        assert manifest == read_manifest(found.out, "selection") and manifest["best"] == found.result["best"]
        winner = Setting.of(found.result["best"])
        assert manifest["parents"]["teacher"] == candidates.load(options(), winner.at, (winner.block,), 1).fingerprint
        assert (found.out / "heatmap.png").read_bytes().startswith(b"\x89PNG")

    def test_finished_is_not_done_again_and_other_settings_are_refused(self, found: SimpleNamespace) -> None:
        assert selection.select(options(out=found.out)) == read_json(found.out / "selection.json")
        assert Knowing.watched == []
        with pytest.raises(UserError, match=r"out: a selection with another draws is there; give another --out or delete it"):
            selection.select(options(out=found.out, draws=3))

    def test_text_names_winner_default_cost_and_the_command(self, found: SimpleNamespace) -> None:
        shown = selection.text(found.result)
        assert "best           2    0.1  frame" in shown and "default        4    0.3  frame" in shown
        assert f"{100 * found.result['passes']['fraction']:.0f} % of the full grid" in shown
        assert "--blocks 2 --sigma 0.1 --mode frame --draws 1" in shown


class TestResume:
    @pytest.mark.parametrize("after", [20, 100])  # in the first rung, and in the last or the study of the draws
    def test_killed_search_goes_on_and_ends_the_same(self, after: int, tmp_path: Path, found: SimpleNamespace) -> None:
        out = tmp_path / "out.json"
        Knowing.killed_after = after
        with pytest.raises(KeyboardInterrupt):
            selection.select(options(out=out))
        assert not out.exists() and (tmp_path / "out.json.work").is_dir()
        Knowing.killed_after = None
        result = selection.select(options(out=out))
        assert len(Knowing.watched) == len(found.watched), "nothing that was finished is watched again"
        assert {**read_json(out), "seconds": 0} == {**result, "seconds": 0} == {**found.result, "seconds": 0}
        assert [path.name for path in tmp_path.iterdir()] == ["out.json"]

    def test_a_run_killed_in_its_last_moment_only_tidies_up(self, tmp_path: Path, found: SimpleNamespace) -> None:
        shutil.copytree(found.out, tmp_path / "out")
        (tmp_path / "out" / "work").mkdir()
        assert selection.select(options(out=tmp_path / "out")) == read_json(found.out / "selection.json")
        assert not (tmp_path / "out" / "work").exists() and Knowing.watched == []

    def test_remains_of_other_settings_are_not_mixed_in(self, tmp_path: Path) -> None:
        Knowing.killed_after = 3
        with pytest.raises(KeyboardInterrupt):
            selection.select(options(out=tmp_path / "out.json"))
        with pytest.raises(UserError, match=r"out\.json\.work: a selection with another grid is there"):
            selection.select(options(out=tmp_path / "out.json", blocks=(1, 2)))

    def test_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with pytest.raises(UserError, match="holds something that is no selection"):
            selection.select(options(out=tmp_path))
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


class TestTeachers:
    def test_one_without_noise_has_one_sigma_one_mode_and_no_floor(self) -> None:
        result = selection.select(options(teacher="noiseless", sigmas=None, modes=None))
        assert {(row["sigma"], row["mode"]) for row in result["rows"]} == {(0.0, "frame")}
        assert result["best"]["block"] == 2 and result["noise"] == [] and "takes no noise" in selection.text(result)

    def test_sigmas_that_snap_to_one_step_are_one_pass(self) -> None:
        grid = candidates.Plan.of(options(sigmas=(0.31, 0.5, 0.52), modes=("frame",))).grid
        assert list(grid) == [SHIPPED.at, Pass(0.5, "frame")]

    def test_winner_may_be_the_shipped_setting(self) -> None:
        result = selection.select(options(blocks=(0, 4), sigmas=(0.9,), modes=("frame",)))
        assert Setting.of(result["best"]) == SHIPPED and result["paired"] == []
        assert "the best setting is the shipped one" in selection.text(result)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"blocks": (9,)}, r"blocks \(9,\): indices in 0\.\.5"),
            ({"sigmas": (1.5,)}, r"sigma 1\.5: a noise level"),
            ({"draws": 0}, "--draws 0: at least one noise draw"),
            ({"teacher": "noiseless", "modes": ("clip",)}, "--modes clip: noiseless works in frame mode only"),
            ({"teacher": "tinny"}, r"unknown teacher .*'tinny'"),
            ({"scenes": JUDGE.replace("frames=6", "frames=2")}, "of its 2 frames only 1 can be scored in all modes"),
        ],
    )
    def test_bad_settings_are_refused_before_anything_is_watched(self, change: dict, message: str) -> None:
        with pytest.raises(UserError, match=message):
            selection.select(options(**change))
        assert Knowing.watched == []


class TestRooms:
    @pytest.mark.parametrize(
        ("scenes", "fit", "message"),
        [
            ("procedural:test?count=4", FIT, r"--scenes procedural:test\?count=4: these are test rooms"),
            ("scannet:/data/scans_test?frames=8", FIT, "these are test rooms"),
            ("video:/data/Test-Rooms/*.mp4", FIT, "these are test rooms"),
            (JUDGE, "procedural:test?count=4", "--fit-scenes .*these are test rooms"),
            ("procedural:train?count=4", FIT, r"rooms of the split val expected here; write procedural:val\?"),
            (JUDGE, "procedural:val?count=9", "rooms of the split train expected here"),
            ("procedural:val?count=1", FIT, "at least 2 scenes are needed, it has 1"),
            (JUDGE, "procedural:train?count=2", "at least 3 scenes are needed, it has 2"),
            ("folder:/data/contest", FIT, "contest"),
        ],
    )
    def test_no_choice_is_made_on_them(self, scenes: str, fit: str, message: str) -> None:
        with pytest.raises(UserError, match=message) as refused:
            open_sources(scenes, fit)
        assert ("test rooms" in str(refused.value)) == ("test rooms" in message)

    def test_one_scene_may_not_fit_and_judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = open_scenes(FIT)
        monkeypatch.setattr("teacher.scenes.open_scenes", lambda uri: source)
        with pytest.raises(UserError, match=f"--scenes and --fit-scenes share {source.scene_ids[0]}"):
            open_sources(JUDGE, FIT)

    def test_parts_grow_and_hold_one_another(self) -> None:
        judge, fit = ([CLIPS[name] for name in open_scenes(uri).scene_ids] for uri in (JUDGE, FIT))
        rooms = Rooms.cut(judge, fit, np.arange)
        assert (len(rooms.fit), len(rooms.tune), len(rooms.judge)) == (12, 4, 6)
        small, half = rooms.part(1 / 8), rooms.part(1 / 2)
        assert [len(part) for part in small.views] == [2, 1, 2] and [len(part) for part in half.views] == [6, 2, 3]
        assert {room.scene_id for room in small.all} < {room.scene_id for room in half.all}

    def test_scenes_without_geometry(self) -> None:
        clip = next(iter(CLIPS.values()))
        bare = type(clip)(clip.scene_id, clip.rgb, None, None, None, clip.frame_ids)
        with pytest.raises(UserError, match="choosing a setting needs depth and poses"):
            Rooms.cut([bare], [clip, clip], np.arange)


def row(block: int, sigma: float, score: float, rung: int = 0) -> dict:
    return {"block": block, "sigma": sigma, "mode": "frame", "score": score, "rung": rung}


def test_halving_keeps_the_better_passes_and_blocks_and_what_it_must() -> None:
    rows = [row(0, 0.1, 0.5), row(1, 0.1, 0.1), row(0, 0.2, 0.4), row(1, 0.2, 0.45), row(0, 0.3, 0.3), row(1, 0.3, 0.3)]
    near, far = Setting(0, Pass(0.1, "frame")), Setting(1, Pass(0.3, "frame"))
    assert halve(rows, near) == {Pass(0.1, "frame"): (0,), Pass(0.2, "frame"): (1,)}
    assert halve(rows, far) == {Pass(0.1, "frame"): (0,), Pass(0.2, "frame"): (1,), Pass(0.3, "frame"): (1,)}


def test_best_is_of_the_last_rung() -> None:
    rows = [row(0, 0.1, 0.9), row(1, 0.1, 0.6, rung=1), row(2, 0.1, 0.5, rung=1)]
    assert best(rows) == rows[1]
    with pytest.raises(UserError, match="no setting was scored; give at least one block, one sigma and one mode"):
        best([])


def test_noise_share_by_hand() -> None:
    rng = np.random.default_rng(0)
    signal, noises = rng.normal(size=(4, 8, 10, 10)), rng.normal(size=(2, 4, 8, 10, 10))
    first, second = ({"a": signal[:2] + n[:2] / 2 + 30, "b": signal[2:] + n[2:] / 2 + 30} for n in noises)
    assert noise_share(first, second, ["a", "b"]) == pytest.approx(0.25 / 1.25, abs=0.02)
    assert noise_share(first, first, ["a", "b"]) == 0
    assert noise_share({"a": noises[0]}, {"a": noises[1]}, ["a"]) == pytest.approx(1, abs=0.05)


def test_heat_map_is_the_same_every_time(found: SimpleNamespace) -> None:
    rows = [row for row in found.result["rows"] if row["block"] < 2]
    pictures = {heatmap(rows, rows[0], rows[1]) for _ in range(2)}
    assert len(pictures) == 1 and pictures != {(found.out / "heatmap.png").read_bytes()}


def test_heat_map_of_nothing() -> None:
    with pytest.raises(UserError, match="no setting was scored"):
        heatmap([], {}, {})


class TestCommand:
    def test_embedded_teacher_is_at_least_as_good_as_shipped(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = ["--quick", "--modes", "frame", "--blocks", "2", "5", "--out", str(tmp_path / "settings-tiny.json")]
        assert vega_edge.main(["select", "--teacher", "tiny", *flags]) == 0
        written = read_json(tmp_path / "settings-tiny.json")  # `teacher.tiny` reads best.block, best.sigma, best.draws and rows
        assert written["best"] in written["rows"] and {"block", "sigma", "draws"} <= set(written["best"])
        assert written["best"]["score"] >= written["default"]["score"]
        assert Setting.of(written["default"]) == Setting(5, Pass(0.2, "frame"))
        assert [path.name for path in tmp_path.iterdir()] == ["settings-tiny.json"]
        assert "default" in capsys.readouterr().out

    def test_module_refuses_in_one_sentence(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr("sys.argv", ["select", "--scenes", "procedural:test?count=9"])
        assert select.main() == 2
        assert capsys.readouterr().err.startswith("bench.select: --scenes procedural:test?count=9: these are test rooms")
