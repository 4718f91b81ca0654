"""The three parts of the `fit` stage, in order, and what each of them needs; how a reader learns is in `teacher.tiny.fit`.

python -m teacher.tiny train --stage fit
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import nn

from teacher.reader import Reader
from teacher.streams import load_pipeline
from teacher.tiny import fit, rooms
from teacher.tiny.bundle import (
    CONDITIONS,
    READER_SEEDS,
    load_semantic_tower,
    load_tokenizer,
    new_reader,
    read_reader,
    save_half,
)

TEACHERS = ("tiny", "tiny-geometry")  # both get a fusion, the readers of one of them are trained
SCRATCH, READER = 0, 300  # keep the random numbers of the parts apart


@dataclass
class School:
    """What every training of a reader needs: the questions, and the raw streams of a condition ("blind" has none)."""

    work: Path
    config: fit.FitConfig
    condition: str

    def __post_init__(self) -> None:
        self.tokenizer = load_tokenizer()
        self.questions = rooms.load_questions(self.work, "train")[: self.config.lessons]
        self.streams = streams_of(self.work, self.condition, "train", self.config.teacher)

    def tokens(self) -> nn.Module | None:
        """The frozen tokens of part 1."""
        if self.streams is None:
            return None
        tokens = fit.new_tokens(self.streams, self.config)
        tokens.load_state_dict({key: value.float() for key, value in load_file(self._tokens_path()).items()})
        return tokens.eval().requires_grad_(False)

    def _tokens_path(self) -> Path:
        return self.work / "fusion" / f"{self.config.teacher if self.condition == 'fused' else self.condition}.safetensors"

    def learn_tokens(self) -> None:
        assert self.streams is not None
        tokens = fit.new_tokens(self.streams, self.config)
        path = self._tokens_path()
        fit.train_recover(tokens, fit.Recover(self.streams), self.streams, self.work, f"tokens_{path.stem}", self.config)
        save_half(tokens, path)

    def _base_path(self) -> Path:
        return self.work / f"base_{self.condition}.safetensors"

    def teach_base(self) -> None:
        steps = self.config.base_steps if self.streams is not None else self.config.blind_base_steps
        reader = new_reader(self.tokenizer, self.condition, seed=0)
        self._teach(fit.Lesson(f"base_{self.condition}", steps, SCRATCH, scratch=True), reader)
        save_half(reader, self._base_path())

    def teach_reader(self, seed: int) -> None:
        reader = read_reader(self._base_path(), self.tokenizer, self.condition).requires_grad_(True)
        name = f"{self.condition}-{seed}"
        self._teach(fit.Lesson(f"reader_{name}", self.config.reader_steps, READER + seed, scratch=False), reader)
        save_half(reader, self.work / "readers" / f"{name}.safetensors")

    def _teach(self, lesson: fit.Lesson, reader: Reader) -> None:
        fit.train_reader(lesson, reader, self.tokens(), self.streams, self.questions, self.work, self.config)


def tokens(work: Path, config: fit.FitConfig) -> None:
    School(work, config, "semantic").learn_tokens()
    for teacher in TEACHERS:
        School(work, replace(config, teacher=teacher), "fused").learn_tokens()


def bases(work: Path, config: fit.FitConfig) -> None:
    for condition in CONDITIONS:
        School(work, config, condition).teach_base()


def readers(work: Path, config: fit.FitConfig) -> None:
    for condition in CONDITIONS:
        school = School(work, config, condition)
        for seed in READER_SEEDS:
            school.teach_reader(seed)


PARTS: dict[str, Callable[[Path, fit.FitConfig], None]] = {"tokens": tokens, "bases": bases, "readers": readers}


def streams_of(work: Path, condition: str, split: str, teacher: str) -> fit.Streams | None:
    """Raw streams and coverage of all tours of a split, as a condition sees them."""
    if condition == "blind":
        return None
    generative = raw_stream(work, teacher, split) if condition == "fused" else None
    return fit.Streams(raw_stream(work, "semantic", split), generative, rooms.load(work, f"{split}_coverage"))


@torch.no_grad()
def raw_stream(work: Path, name: str, split: str) -> np.ndarray:
    """Raw stream of all tours of a split: "semantic", or the generative stream of a teacher; (rooms, T, C, gh, gw) float16."""
    pipeline = None if name == "semantic" else load_pipeline(name)
    path = work / f"stream_{name}_{split}_{pipeline.teacher.fingerprint if pipeline else 'tower'}.npy"
    if not path.exists():
        frames = rooms.load(work, f"{split}_rgb")
        source = rooms.open_scenes(rooms.tour_uri(split, len(frames), rooms.RoomsConfig()))
        if pipeline is None:
            tower = load_semantic_tower()
            found = [tower.features(np.asarray(clip)).half().numpy() for clip in track(frames, description="semantic stream")]
        else:
            found = [
                pipeline.teacher.features(np.asarray(clip), scene_id=scene).blocks[pipeline.block].half().numpy()
                for clip, scene in zip(track(frames, description=f"{name} stream"), source.scene_ids, strict=True)
            ]
        np.save(path, np.stack(found))
    return np.load(path, mmap_mode="r")
