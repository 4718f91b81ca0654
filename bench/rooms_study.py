"""Does a reader learn more about space from more rooms, and what would true coordinates give it? A curve per condition.

Readers of the embedded size learn from scratch, with the same steps, on the first 250, 1,000 or 4,000 training rooms: blind, on
semantic tokens, on fused tokens, and on semantic tokens fused with true coordinates (`teacher.tiny.oracle`), which is the
ceiling of this reader. Scored on the validation rooms. Beside `teacher.tiny`, whose work folder it needs (see README).

    python -m bench.rooms_study --work runs/tiny --out results/rooms-study
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.progress import track
from torch import nn

from bench import rooms_chart
from bench.downstream import PROTOCOLS, TASKS
from bench.latency import machine
from bench.tasks import get_task
from bench.tasks.rows import task_rows
from teacher.launch import end_with_parent
from teacher.tiny import fit, rooms
from teacher.tiny.bundle import load_tokenizer, new_reader, read_reader, save_half
from teacher.tiny.oracle import oracle_stream
from teacher.tiny.school import raw_stream, streams_of
from vega_artifact import UserError, atomic_write, read_json, write_json, write_text

CONDITIONS = ("blind", "semantic", "fused", "oracle")
PAIRS = (("fused", "semantic"), ("oracle", "semantic"), ("semantic", "blind"), ("fused", "blind"))


@dataclass(frozen=True, kw_only=True)
class RoomsStudy:
    """Score against the number of training rooms, for four kinds of tokens."""

    work: Path = Path("runs/tiny")
    """Work folder of `python -m teacher.tiny train`, with rooms and streams."""
    out: Path = Path("results/rooms-study")
    """Gets study.json, study.md and study.png."""
    rooms: tuple[int, ...] = (250, 1000, 4000)
    steps: int = 1500
    """Of every reader, whatever it sees and from however many rooms."""
    jobs: int = 2
    """Trainings at a time, one thread each; 0: one after the other in this process."""

    def run(self) -> None:
        cells = [(condition, count) for count in sorted(self.rooms, reverse=True) for condition in reversed(CONDITIONS)]
        with _pool(self.jobs) as pool:
            list(pool.map(partial(learn_tokens, self), [name for name in CONDITIONS if name != "blind"]))
            running = [pool.submit(learn, self, condition, count) for condition, count in cells]
            for job in track(running, description=f"{len(cells)} readers of {self.steps} steps"):
                job.result()
        rows = self.score()
        settings = {name: value for name, value in asdict(self).items() if name in ("rooms", "steps")}
        write_json(self.out / "study.json", {"machine": machine(), "settings": settings, **rows})
        table = rooms_chart.markdown(rows, self.steps)
        write_text(self.out / "study.md", table)
        atomic_write(self.out / "study.png", lambda path: path.write_bytes(rooms_chart.picture(rows)))
        print(table)

    def score(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of bench/schema.py, each with the number of training rooms as "rooms"."""
        asked = rooms.load_questions(self.work, "val")
        found: dict[str, list[dict[str, Any]]] = {"tasks": [], "paired": []}
        for name, schema in TASKS.items():
            task, records = get_task(name), [record for room in asked for record in room[schema]]
            for count in self.rooms:
                answers = {condition: read_json(self.answers(condition, count))[name] for condition in CONDITIONS}
                scored = {model: [task.score(given, records, protocol=PROTOCOLS[name])] for model, given in answers.items()}
                rows = task_rows(task, scored, records, pairs=PAIRS)
                for kind, kept in found.items():
                    kept += [{"rooms": count, **row} for row in rows[kind]]
        return found

    def answers(self, condition: str, count: int) -> Path:
        return self.work / "study" / f"{condition}-{count}-{self.steps}.json"


def _pool(jobs: int) -> Executor:
    if jobs:
        return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=end_with_parent)
    return ThreadPoolExecutor(1)


def learn_tokens(study: RoomsStudy, condition: str) -> None:
    """Train the tokens of a condition, before two readers ask for them at once."""
    torch.set_num_threads(1)
    config = fit.FitConfig(base_steps=study.steps)
    _tokens(study.work / "study", condition, _streams(study.work, condition, "train", config), config)


def learn(study: RoomsStudy, condition: str, count: int) -> None:
    """Train one reader on the first `count` rooms and keep its answers about the validation rooms; resumes."""
    path = study.answers(condition, count)
    if path.exists():
        return
    torch.set_num_threads(1)
    config = fit.FitConfig(base_steps=study.steps)
    questions = rooms.load_questions(study.work, "train")[:count]
    if len(questions) < count:
        raise UserError(f"{study.work}: {len(questions)} training rooms, {count} asked for; give fewer --rooms or render more")
    train, val = (_streams(study.work, condition, split, config) for split in ("train", "val"))
    tokens = _tokens(study.work / "study", condition, train, config)
    tokenizer = load_tokenizer()
    reader = new_reader(tokenizer, condition, seed=0)
    steps = study.steps if train is not None else config.blind_base_steps
    lesson = fit.Lesson(path.stem, steps, seed=0, scratch=True)
    fit.train_reader(lesson, reader, tokens, train, questions, path.parent, config)
    save_half(reader, path.with_suffix(".safetensors"))
    kept = read_reader(path.with_suffix(".safetensors"), tokenizer, condition)
    asked = rooms.load_questions(study.work, "val")
    write_json(path, {name: fit.answers(kept, tokens, val, asked, schema) for name, schema in TASKS.items()})


def _streams(work: Path, condition: str, split: str, config: fit.FitConfig) -> fit.Streams | None:
    if condition != "oracle":
        return streams_of(work, condition, split, config.teacher)
    return fit.Streams(raw_stream(work, "semantic", split), oracle_stream(work, split), rooms.load(work, f"{split}_coverage"))


def _tokens(work: Path, condition: str, streams: fit.Streams | None, config: fit.FitConfig) -> nn.Module | None:
    """Frozen tokens that lose nothing, trained once per condition on all rooms, without any question."""
    if streams is None:
        return None
    tokens = fit.new_tokens(streams, config)
    fit.train_recover(tokens, fit.Recover(streams), streams, work, f"tokens_{condition}", config)
    return tokens.eval().requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 for bad input with one sentence on stderr."""
    try:
        tyro.cli(RoomsStudy, prog="bench.rooms_study", args=arguments).run()
    except UserError as error:
        print(f"bench.rooms_study: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
