"""log.jsonl: whole lines, nothing twice after a resume."""

import pytest

from distill.log import RunLog, read_log
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
