"""The four parts of the `fit` stage, in order, and what each of them needs; how a reader learns is in `teacher.tiny.fit`.

python -m teacher.tiny train --stage fit
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import nn

from teacher.reader import Reader
from teacher.streams import SemanticTokens, load_pipeline
from teacher.tiny import fit, rooms
from teacher.tiny.bundle import (
    READER_SEEDS,
    load_semantic_tower,
    load_tokenizer,
    new_reader,
    read_reader,
    read_semantic_tokens,
    save_half,
)

SCRATCH, TOKENS, READER = 0, 200, 300  # keep the random numbers of the parts apart


@dataclass
class School:
    """What every training of a reader needs: the questions, and the raw streams of a condition ("blind" has none)."""

    work: Path
    config: fit.FitConfig
    condition: str

    def __post_init__(self) -> None:
        self.tokenizer, self.questions = load_tokenizer(), rooms.load_questions(self.work, "train")
        self.streams = streams_of(self.work, self.condition, "train", self.config.teacher)

    def teach(self, lesson: fit.Lesson, reader: Reader, tokens: nn.Module | None, recover: fit.Recover | None = None) -> None:
        fit.train_reader(lesson, reader, tokens, self.streams, self.questions, self.work, self.config, recover)

    def base_tokens(self) -> SemanticTokens:
        return read_semantic_tokens(self.work / "projector.safetensors")

    def base_reader(self) -> Reader:
        name = "base_blind" if self.streams is None else "base"
        condition = "blind" if self.streams is None else "semantic"
        return read_reader(self.work / f"{name}.safetensors", self.tokenizer, condition).requires_grad_(True)


def projector(work: Path, config: fit.FitConfig) -> None:
    """1: the semantic projector everything starts from."""
    streams = streams_of(work, "semantic", "train", config.teacher)
    assert streams is not None
    tokens = fit.new_tokens(streams, config)
    fit.train_recover(tokens, fit.Recover(streams), streams, work, "projector", config)
    save_half(tokens, work / "projector.safetensors")


def base(work: Path, config: fit.FitConfig) -> None:
    """2: the base reader, from scratch on the frozen projector."""
    school = School(work, config, "semantic")
    reader = new_reader(school.tokenizer, "semantic", seed=0)
    school.teach(fit.Lesson("base", config.base_steps, SCRATCH, scratch=True), reader, school.base_tokens())
    save_half(reader, work / "base.safetensors")


def seeing(work: Path, config: fit.FitConfig) -> None:
    """3 and 4: tokens and readers of the seeing conditions, from the base reader on."""
    for condition in ("semantic", "fused"):
        school = School(work, config, condition)
        assert school.streams is not None
        tokens, recover = fit.new_tokens(school.streams, config, school.base_tokens()), fit.Recover(school.streams)
        fit.train_recover(tokens, recover, school.streams, work, f"recover_{condition}", config)
        school.teach(
            fit.Lesson(f"tokens_{condition}", config.tokens_steps, TOKENS, scratch=False),
            school.base_reader(),
            tokens,
            recover,
        )
        tokens.eval().requires_grad_(False)
        save_half(tokens, work / "fusion" / f"{config.teacher if condition == 'fused' else condition}.safetensors")
        for seed in READER_SEEDS:
            reader = school.base_reader()
            school.teach(
                fit.Lesson(f"reader_{condition}-{seed}", config.reader_steps, READER + seed, scratch=False), reader, tokens
            )
            save_half(reader, work / "readers" / f"{condition}-{seed}.safetensors")


def blind(work: Path, config: fit.FitConfig) -> None:
    """2 and 4 for readers that get the questions alone."""
    school = School(work, config, "blind")
    reader = new_reader(school.tokenizer, "blind", seed=0)
    school.teach(fit.Lesson("base_blind", config.blind_base_steps, SCRATCH, scratch=True), reader, None)
    save_half(reader, work / "base_blind.safetensors")
    for seed in READER_SEEDS:
        reader = school.base_reader()
        school.teach(fit.Lesson(f"reader_blind-{seed}", config.reader_steps, READER + seed, scratch=False), reader, None)
        save_half(reader, work / "readers" / f"blind-{seed}.safetensors")


PARTS: dict[str, Callable[[Path, fit.FitConfig], None]] = {
    "projector": projector,
    "base": base,
    "seeing": seeing,
    "blind": blind,
}


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
