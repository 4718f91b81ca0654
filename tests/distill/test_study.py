"""The study: its grid, its statistics, its report, and one tiny run of it from rooms to report."""

import re
from dataclasses import replace

import numpy as np
import pytest
import tyro

from distill import RunConfig, recipes, study
from distill.study import Study
from distill.study_grid import BASE, GRID, Variant, chosen, clips
from distill.study_report import winner, write
from distill.study_scores import difference, estimate, read_sums
from distill.study_worker import Worker, Workers
from vega_artifact import UserError, read_json, write_json

CELLS = {(cell.factor, cell.variant.name): cell for cell in Study(seeds=(0,)).cells()}
TINY = Study(recipe="smoke", only=("mode",), seeds=(0,), steps=2, rooms=4, frames=4, fitted=2, tuned=1, judged=2)


class TestGrid:
    def test_every_variant_is_a_config_that_differs_from_the_base_in_one_thing(self):
        base = recipes.create("demo")
        for factor in GRID.values():
            for variant in factor.variants:
                ways = [variant.change, variant.teacher, variant.share < 1, variant.online]
                assert sum(map(bool, ways)) == 1, variant
                assert not variant.change or replace(base, **variant.change).identity() != base.identity()

    def test_an_unknown_factor_lists_the_known_ones(self):
        with pytest.raises(UserError, match="unknown factor 'normaliser'. Did you mean 'normalizer'.*budget, crops"):
            chosen(["normaliser"])

    def test_a_budget_of_one_clip_says_how_many_rooms_it_takes(self):
        assert clips(Variant("eighth", share=1 / 8), 240) == 30
        with pytest.raises(UserError, match="give --rooms 16 or more"):
            clips(Variant("eighth", share=1 / 8), 8)

    def test_clip_mode_gets_frames_for_as_many_maps(self):
        assert [Variant("v", clip=True).frames(n) for n in (4, 8)] == [13, 29] and BASE.frames(8) == 8


class TestPlan:
    def test_no_test_room_is_opened_and_no_room_serves_two_uses(self):
        sources = [Study().uri(use) for use in study.SPLITS]
        assert not any("test" in uri for uri in sources)
        rooms = [re.sub(r"count=\d+", "", uri) for uri in sources]
        assert len(set(rooms)) == 4

    def test_runs_of_all_cells_have_folders_of_their_own_and_caches_are_shared(self):
        whole = Study()
        cells = whole.cells()
        assert (
            len({whole.run_folder(cell) for cell in cells})
            == len(cells)
            == 3 * (1 + sum(len(f.variants) for f in GRID.values()))
        )
        assert len(whole.caches(cells)) == 3 + 1 + 1 + 3 + 3  # probes, base, clip mode, draws, budget
        assert whole.run_folder(cells[0]) != replace(whole, steps=301).run_folder(cells[0])

    @pytest.mark.parametrize("name", CELLS, ids=" ".join)
    def test_the_command_line_means_the_config_that_names_the_folder(self, name, monkeypatch):
        import distill
        import vega_edge

        seen = []
        monkeypatch.setattr(distill, "train", lambda cache, out, config, **_: seen.append((cache, out, config)))
        monkeypatch.setattr(vega_edge.Train, "source", lambda self: self.cache or self.scenes)
        whole, cell = Study(), CELLS[name]
        assert vega_edge.main(whole.train_command(cell)) == 0
        source = whole.uri("train") if cell.variant.online else (str(whole.cache("train", cell.variant)),)
        assert seen == [(source, whole.run_folder(cell), whole.config(cell))]
        assert isinstance(seen[0][2], RunConfig) and seen[0][2].steps == 300

    @pytest.mark.parametrize("given", [[], ["--teacher", "tiny"], ["--cache", "c", "--scenes", "procedural:val"]])
    def test_training_wants_a_cache_or_a_teacher_with_scenes(self, given, capsys, tmp_path):
        import vega_edge

        assert vega_edge.main(["train", *given, "--out", str(tmp_path / "run")]) == 2
        assert "--cache, or in its place --teacher together with --scenes" in capsys.readouterr().err

    def test_bad_flags(self):
        with pytest.raises(UserError, match="seeds .* different numbers"):
            Study(seeds=(1, 1))
        with pytest.raises(UserError, match="judged at least 2, jobs at least 1"):
            Study(judged=1, jobs=0)
        assert tyro.cli(Study, args=["--only", "loss", "crops", "--seeds", "0", "4"]).only == ("loss", "crops")

    def test_an_unknown_factor_is_one_sentence_and_code_2(self, capsys, tmp_path):
        assert study.main(["--only", "nothing", "--out", str(tmp_path / "study")]) == 2
        assert "Known: budget" in capsys.readouterr().err and not (tmp_path / "study").exists()


def depth_sums(seeds: int, rooms: int, noise: float, seed: int) -> np.ndarray:
    """Rooms with 100 tokens of variance 1 + room, and residuals of `noise` times that, a little different in every seed."""
    rng = np.random.default_rng(seed)
    variance = 100.0 * (1 + np.arange(rooms))
    residuals = noise * variance * rng.uniform(0.95, 1.05, (seeds, rooms))
    parts = [np.full((seeds, rooms), 100.0), np.zeros((seeds, rooms)), np.broadcast_to(variance, (seeds, rooms)), residuals]
    return np.stack([*parts, np.zeros((seeds, rooms))], axis=-1)


class TestScores:
    def test_r2_pools_rooms_and_means_seeds(self):
        found = estimate(depth_sums(3, 20, 0.3, 0), "depth_r2")
        assert found.low < found.value < found.high and found.value == pytest.approx(np.mean(found.seeds))
        assert found.value == pytest.approx(0.7, abs=0.02)

    def test_pairing_makes_a_small_difference_visible_and_equal_ones_hold_zero(self):
        base, better, equal = (depth_sums(3, 20, noise, k) for k, noise in enumerate((0.30, 0.27, 0.30)))
        gain = difference(better, base, "depth_r2")
        assert gain.low > 0 and gain.value == pytest.approx(0.03, abs=0.005)
        held = difference(equal, base, "depth_r2")
        assert held.low < 0 < held.high

    def test_seeds_that_disagree_widen_the_interval(self):
        base = depth_sums(3, 20, 0.3, 0)
        wild = np.concatenate([depth_sums(1, 20, noise, 1) for noise in (0.2, 0.27, 0.34)])
        assert difference(wild, base, "depth_r2").low < 0 < difference(wild, base, "depth_r2").value

    def test_recall_is_hits_over_queries(self):
        table = np.stack([np.arange(10.0), np.full(10, 10.0)], axis=-1)[None]
        assert estimate(table, "correspondence_recall_centred").value == pytest.approx(0.45)

    def test_files_that_do_not_fit_are_refused(self, tmp_path):
        rooms = {"a": [1.0, 2.0], "b": [1.0, 2.0]}
        write_json(tmp_path / "0.json", {"sums": {"recall": {"student": rooms}}})
        write_json(tmp_path / "1.json", {"sums": {"recall": {"student": {"a": [1.0, 2.0], "c": [1.0, 2.0]}}}})
        write_json(tmp_path / "2.json", {"probes": []})
        assert read_sums([tmp_path / "0.json"] * 2, "recall").shape == (2, 2, 2)
        assert read_sums([tmp_path / "0.json"], "depth_r2") is None
        with pytest.raises(UserError, match="other rooms"):
            read_sums([tmp_path / "0.json", tmp_path / "1.json"], "recall")
        with pytest.raises(UserError, match="no sums"):
            read_sums([tmp_path / "2.json"], "recall")
        with pytest.raises(UserError, match="at least 2 rooms"):
            estimate(np.ones((1, 1, 2)), "correspondence_recall_centred")


def row(factor: str, variant: str, gain: tuple[float, float, float] | None) -> dict:
    found = {"value": 0.7, "low": 0.6, "high": 0.8, "seeds": [0.69, 0.71]}
    if gain is not None:
        found["difference"] = dict(zip(("value", "low", "high"), gain)) | {"seeds": [gain[0]]}
    scores = {"fused": {"depth_r2": found}}
    cosines = {"cosine": {"fused": [0.8]}, "raw": {"fused": [0.9]}}
    return {"factor": factor, "variant": variant, "scores": scores, **cosines, "minutes": [1.0]}


ROWS = [
    row("base", "base", None),
    row("normalizer", "phi_s", (0.02, -0.01, 0.05)),
    row("normalizer", "none", (-0.04, -0.05, -0.03)),
    row("loss", "cosine alone", (0.02, 0.01, 0.03)),
    row("loss", "smooth-L1 alone", (0.03, 0.02, 0.04)),
]
SETTINGS = {"teacher": "t", "recipe": "demo", "steps": 3, "rooms": 4, "frames": 8, "seeds": [0, 1], "judged": 5}


class TestReport:
    def test_the_winner_is_the_best_of_those_with_the_interval_apart_else_the_base(self):
        assert winner(ROWS[1:3], ROWS[0]) is None
        assert winner(ROWS[3:], ROWS[0])["variant"] == "smooth-L1 alone"

    def test_a_variant_that_loses_on_the_other_probe_does_not_win(self):
        rows = [row("loss", "blurred", (0.05, 0.04, 0.06)), row("loss", "sharp", (0.02, 0.01, 0.03))]
        worse = {"value": -0.04, "low": -0.05, "high": -0.03, "seeds": [-0.04]}
        rows[0]["scores"]["fused"]["correspondence_recall_centred"] = {"difference": worse}
        assert winner(rows, ROWS[0])["variant"] == "sharp"

    def test_a_variant_that_loses_the_scale_does_not_win(self):
        rows = [row("loss", "free", (0.05, 0.04, 0.06)) | {"raw": {"fused": [0.75]}}, row("loss", "sharp", (0.02, 0.01, 0.03))]
        assert winner(rows, ROWS[0])["variant"] == "sharp"
        assert winner(rows[:1], ROWS[0]) is None

    def test_tables_and_pictures(self, tmp_path):
        path = write(tmp_path, {"settings": SETTINGS, "parents": {"teacher": "abc"}, "rows": ROWS})
        text = path.read_text()
        assert "seeds 0, 1; scored on 5 validation rooms" in text
        assert "| [normalizer](#normalizer) | standardize | base | – |" in text
        assert "| smooth-L1 alone | **+0.030 [+0.020, +0.040]** |" in text and "**−0.040 [−0.050, −0.030]**" in text
        assert "| phi_s | +0.020 [−0.010, +0.050] | – |" in text
        assert (tmp_path / "study-depth.png").read_bytes().startswith(b"\x89PNG") and "(study-depth.png)" in text
        assert not (tmp_path / "study-recall.png").exists() and "study-recall" not in text


class TestWorkers:
    def test_a_failing_command_is_told_in_its_own_words_and_ends_the_rest(self, tmp_path):
        with pytest.raises(UserError, match=r"unknown verb 'trian'.*'train'.*worker-0\.log"), Workers(tmp_path, 1) as workers:
            workers.each(lambda worker, name: worker.ask("list", name), ["scenes"], "good")
            workers.each(lambda worker, name: worker.ask(name), ["trian", "doctor"], "bad")
        said = (tmp_path / "worker-0.log").read_text()
        assert "procedural" in said and "torch" not in said
        assert all(worker.process is None for worker in workers.all)

    def test_a_process_that_dies_is_told(self, tmp_path):
        with pytest.raises(UserError, match=r"vega-edge list nothing failed: its process is gone \(2\)"):
            with Workers(tmp_path, 1) as workers:
                workers.each(lambda worker, name: worker.ask("list", name), ["nothing"], "bad")

    def test_several_share_the_work(self, tmp_path):
        done = []

        def work(worker: Worker, item: int) -> None:
            done.append((worker.log.name, item))

        with Workers(tmp_path, 2) as workers:
            workers.each(work, range(20), "items")
        assert sorted(item for _, item in done) == list(range(20))


def test_from_rooms_to_report_and_again_from_what_is_there(tmp_path, monkeypatch):
    tiny = replace(TINY, out=tmp_path / "study", report=tmp_path / "docs")
    text = tiny.run().read_text()
    found = read_json(tmp_path / "docs" / "study.json")
    assert [(row["factor"], row["variant"]) for row in found["rows"]] == [("base", "base"), ("mode", "clip mode")]
    for scored in found["rows"]:
        assert np.isfinite(scored["scores"]["fused"]["depth_r2"]["value"]) and 0 < scored["cosine"]["fused"][0] <= 1
    assert set(found["rows"][1]["scores"]) == {"fused", "generative"}
    assert found["rows"][1]["scores"]["fused"]["depth_r2"]["difference"]["seeds"]
    assert "## mode" in text and (tmp_path / "docs" / "study-depth.png").exists()
    caches = sorted(path.name.split("-")[0] for path in (tiny.out / "caches").iterdir())
    assert caches == ["fit", "judge", "train", "train", "tune"]

    monkeypatch.setattr(Worker, "ask", lambda self, *command: pytest.fail(f"made again: {command}"))
    assert tiny.run().read_text() == text
    next((tiny.out / "scores").glob("mode-*-fused-*.json")).unlink()
    asked = []
    monkeypatch.setattr(Worker, "ask", lambda self, *command: asked.append(command))
    with pytest.raises(UserError, match="no such file"):  # the command that would have made it was replaced
        tiny.run()
    assert [command[:2] for command in asked] == [("bench", "probe")]
