"""log.jsonl: whole lines, nothing twice after a resume."""

import dataclasses

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from distill import train
from distill.log import RunLog, check_trackers, flat, read_log
from vega_artifact import UserError


def test_a_resumed_run_drops_the_lines_after_its_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    with RunLog(path, 10, progress=False) as log:
        for step in (2, 4, 6):
            log.write({"step": step, "loss": 1.0})
    with RunLog(path, 10, resumed=4, progress=False) as log:
        log.write({"step": 6, "loss": 0.5})
    assert [(record["step"], record["loss"]) for record in read_log(path)] == [(2, 1.0), (4, 1.0), (6, 0.5)]


def test_a_torn_last_line_is_skipped_and_a_torn_middle_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_log(path) == [{"step": 1}]
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_log(path)


def test_no_log_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no such log"):
        read_log(tmp_path / "log.jsonl")


def test_every_number_also_goes_to_the_tracker_under_a_plain_name(tmp_path):
    told = []
    with RunLog(tmp_path / "log.jsonl", 10, progress=False, track=lambda values, step: told.append((values, step))) as log:
        log.write({"step": 2, "loss": 1.0, "losses": {"fused": 0.5}, "validation": {"fused": {"raw": 1}}})
    assert told == [({"loss": 1.0, "losses/fused": 0.5, "validation/fused/raw": 1.0}, 2)]
    assert flat({}) == {}


def test_trackers_that_would_stay_silent_are_refused(monkeypatch):
    check_trackers(())
    with pytest.raises(UserError, match="unknown tracker 'tensorbord'. Did you mean 'tensorboard'"):
        check_trackers(("tensorbord",))
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["wandb"])
    check_trackers(("wandb",))
    with pytest.raises(UserError, match="tracker 'tensorboard': its package is not installed; pip install tensorboard"):
        check_trackers(("wandb", "tensorboard"))


def test_a_run_tells_a_tracker_everything_that_it_logs(quick, cache_path, tmp_path, monkeypatch):
    told: dict[str, list] = {"config": [], "steps": [], "finished": []}

    class Diary(GeneralTracker):
        name, requires_logging_directory = "diary", False

        def __init__(self, run_name, **options):
            super().__init__()

        @property
        def tracker(self):
            return told

        def store_init_configuration(self, values):
            told["config"].append(values["learning_rate"])

        def log(self, values, step, **options):
            told["steps"].append((step, "loss" in values))

        def finish(self):
            told["finished"].append(True)

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "diary", Diary)
    config = dataclasses.replace(quick, steps=4, optimizer="adamw", trackers=("diary",))
    run = train(cache_path, tmp_path / "run", config)
    assert told["config"] == ["0.001"] and told["finished"] == [True]
    assert told["steps"] == [(2, True), (4, True), (4, False)] and len(read_log(run / "log.jsonl")) == 3
