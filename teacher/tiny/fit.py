"""Stage 4 of the embedded teacher: fusion and readers, trained on the questions of procedural rooms.

Both conditions that see get the same two steps and the same budget: first projectors (and for `fused` the gate) are trained
through a reader that is thrown away, then three fresh readers of different seeds are trained on the frozen tokens. A blind
reader gets the questions alone. So fused against semantic differs in the tokens, not in the training.

    python -m teacher.tiny train --stage fit
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from teacher.reader import Reader
from teacher.scenes.questions import scanqa_prompt, vsi_prompt
from teacher.streams import FusedTokens, SemanticTokens
from teacher.tiny.bundle import WIDTH, new_mixer, new_reader
from teacher.tiny.loop import Stage, muon_and_adamw, step_rng


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Rooms and questions per step; `fit_steps` train the projectors, `reader_steps` each final reader."""

    fit_steps: int = 800
    reader_steps: int = 1000
    rooms: int = 4
    ladder_questions: int = 9
    vsi_questions: int = 7
    seed: int = 0
    muon_lr: float = 0.01
    adamw_lr: float = 1e-3


@dataclass(frozen=True)
class Streams:
    """Raw streams of the tours: (rooms, T, C, gh, gw) float16; `generative` is None for the semantic condition."""

    semantic: np.ndarray
    generative: np.ndarray | None

    def rows(self, room: int) -> list[Tensor]:
        parts = [self.semantic] if self.generative is None else [self.semantic, self.generative]
        return [torch.from_numpy(np.asarray(part[room], dtype=np.float32)) for part in parts]


def prompts_and_answers(record: dict[str, Any], task: str) -> tuple[str, str]:
    """The exact prompt of the benchmark and the first reference answer."""
    if task == "scanqa":
        return scanqa_prompt(record).removeprefix("<image>").strip(), str(record["answers"][0])
    return vsi_prompt(record), str(record["ground_truth"])


def pick(rng: np.random.Generator, room: dict[str, Any], config: FitConfig) -> tuple[list[str], list[str]]:
    """The questions of one room in one step: a random share of each task."""
    chosen = []
    for task, count in (("scanqa", config.ladder_questions), ("vsibench", config.vsi_questions)):
        rows = rng.permutation(len(room[task]))[:count]
        chosen += [prompts_and_answers(room[task][row], task) for row in rows]
    prompts, answers = zip(*chosen, strict=True)
    return list(prompts), list(answers)


def train_reader(
    name: str,
    reader: Reader,
    tokens: nn.Module | None,
    streams: Streams | None,
    questions: list[dict[str, Any]],
    work: Path,
    steps: int,
    config: FitConfig,
    seed: int,
) -> list[dict[str, float]]:
    """Train a reader, and with it `tokens` (a mixer or projector) unless that is frozen; returns the curve."""
    trained = nn.ModuleDict({"reader": reader})
    if tokens is not None and any(p.requires_grad for p in tokens.parameters()):
        trained["tokens"] = tokens

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(config.seed + 1000 * seed, step)
        losses = []
        for room in rng.integers(0, len(questions), config.rooms):
            prompts, answers = pick(rng, questions[room], config)
            with torch.autocast("cpu", torch.bfloat16):
                visual = None if streams is None or tokens is None else tokens(*streams.rows(room))
                losses.append(reader.loss(visual, prompts, answers))
        return {"loss": torch.stack(losses).mean()}

    trained.train()
    curve = Stage(name, work, {"trained": trained}, muon_and_adamw(trained, config.muon_lr, config.adamw_lr)).run(loss, steps)
    trained.eval()
    return curve


def train_tokens(
    condition: str,
    streams: Streams,
    questions: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    work: Path,
    config: FitConfig,
) -> FusedTokens | SemanticTokens:
    """Train the projectors (and gate) of a condition through a reader that is then thrown away."""
    torch.manual_seed(config.seed)
    if streams.generative is None:
        tokens: FusedTokens | SemanticTokens = SemanticTokens(WIDTH, WIDTH)
    else:
        sample = np.asarray(streams.generative[:64], dtype=np.float32)
        tokens = new_mixer(scale=float(sample.std()))
    reader = new_reader(tokenizer, condition, seed=100)
    train_reader(f"fit_{condition}", reader, tokens, streams, questions, work, config.fit_steps, config, seed=100)
    return tokens.eval().requires_grad_(False)


@torch.no_grad()
def answers(
    reader: Reader, tokens: nn.Module | None, streams: Streams | None, questions: list[dict[str, Any]], task: str
) -> dict[str, str]:
    """Greedy answers to all questions of a task, keyed by the record's id."""
    found: dict[str, str] = {}
    for index, room in enumerate(questions):
        visual = None if streams is None or tokens is None else tokens(*streams.rows(index))
        records = room[task]
        texts = reader.answer(visual, [prompts_and_answers(record, task)[0] for record in records])
        key = "question_id" if task == "scanqa" else "id"
        found |= {record[key]: text for record, text in zip(records, texts, strict=True)}
    return found
