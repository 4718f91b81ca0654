"""What a run says while it works: `log.jsonl` for programs, a progress bar with the remaining time for people.

Lines of log.jsonl, one JSON object each:
    {"step", "loss", "losses": {stream: x}, "cosine": {stream: x}, "gradient", "lr", "images_per_s"}: means since the last line
    {"step", "validation": {stream: {"raw": x, "centred": x}}}

    python -c "from distill.log import read_log; print(read_log('RUN/log.jsonl')[-1])"
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vega_artifact import UserError, write_text


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """All complete lines of a log; a last line that a killed run left unfinished is skipped."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such log; make the run with `vega-edge train`")
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not JSON ({error}); the file was edited") from error
    return records


class RunLog:
    """Appends to the log and moves the bar; a resumed run first drops the lines after the step it resumes from."""

    def __init__(self, path: Path, steps: int, resumed: int = 0, *, progress: bool = True) -> None:
        kept = [record for record in read_log(path) if record["step"] <= resumed] if path.exists() else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.path = path
        columns = (TextColumn("distil"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.description}"), disable=not progress)
        self.task = self.bar.add_task("", total=steps, completed=resumed)

    def __enter__(self) -> RunLog:
        self.stream = open(self.path, "a", encoding="utf-8")
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        self.stream.close()

    def write(self, record: dict[str, Any]) -> None:
        self.stream.write(json.dumps(record) + "\n")
        self.stream.flush()

    def show(self, step: int, text: str) -> None:
        self.bar.update(self.task, completed=step, description=text)
