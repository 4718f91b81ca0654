"""What a run says while it works: `log.jsonl` for programs, a progress bar with the remaining time for people.

Lines of log.jsonl, one JSON object each:
    {"step", "loss", "losses": {stream: x}, "cosine": {stream: x}, "gradient", "lr", "images_per_s", "data_s", "step_s",
    "terms": {term of the objective: x}}: means since the last line; "data_s" and "step_s" are seconds per step that went into
        waiting for data, and into all the rest
    {"step", "validation": {stream: {"raw": x, "centred": x}}, "seconds"}; with a measured noise floor also "ceiling": x
    {"step", "noise_floor": {stream: {...}}}: see `distill.floor`, at every start of a run that was given a second draw
    {"step", "probes": {name: x}, "seconds"}

    python -c "from distill.log import read_log; print(read_log('RUN/log.jsonl')[-1])"
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vega_artifact import UserError, atomic_write, unknown_name, write_text

PICTURES = "pictures"


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
    """Appends to the log and moves the bar; a resumed run first drops the lines after the step it resumes from.

    Args:
        track: told the numbers of every line as {"losses/fused": x, ...} and the step, beside the file.
    """

    def __init__(
        self,
        path: Path,
        steps: int,
        resumed: int = 0,
        *,
        progress: bool = True,
        track: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        kept = [record for record in read_log(path) if record["step"] <= resumed] if path.exists() else []
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        self.path, self.track = path, track
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
        if self.track is not None:
            self.track(flat({name: value for name, value in record.items() if name != "step"}), record["step"])

    def pictures(self, step: int, pictures: Mapping[str, bytes]) -> None:
        """PNG files beside the log: pictures/NAME-STEP.png."""
        for name, content in pictures.items():
            target = self.path.parent / PICTURES / f"{name}-{step:08d}.png"
            atomic_write(target, partial(_fill, content))

    def show(self, step: int, text: str) -> None:
        self.bar.update(self.task, completed=step, description=text)


def _fill(content: bytes, temporary: Path) -> None:
    temporary.write_bytes(content)


def flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers under one name each: {"losses": {"fused": 1.0}} -> {"losses/fused": 1.0}."""
    found: dict[str, float] = {}
    for name, value in record.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": float(value)}
    return found


def check_trackers(names: tuple[str, ...]) -> None:
    """Raises UserError for a tracker that accelerate does not know, or whose package is not installed: it would be silent."""
    if not names:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = {str(name) for name in LOGGER_TYPE_TO_CLASS}
    lacking = {kind.value for kind in LoggerType} - {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise unknown_name("tracker", name, known)
        if name in lacking:
            raise UserError(f"tracker {name!r}: its package is not installed; pip install {name}, or leave it out of trackers")
