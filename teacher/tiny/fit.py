"""Stage 4 of the embedded teacher: fusion and readers, trained on the questions of procedural rooms.

Both conditions that see get the same two steps and the same budget: first projectors (and for `fused` the gate) are trained
through a reader that is thrown away, then three fresh readers of different seeds are trained on the frozen tokens. A blind
reader gets the questions alone. So fused against semantic differs in the tokens, not in the training.

    python -m teacher.tiny train --stage fit
"""

from __future__ import annotations

from collections.abc import Sequence
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
from teacher.tiny.rooms import class_names

ASK = "Answer the question simply."  # ScanQA's ending, see scanqa_prompt
COVERED = 0.15  # share of a patch a class must cover to count, as in the semantic stage


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Rooms and questions per step; `fit_steps` train the projectors, `reader_steps` each final reader."""

    fit_steps: int = 500
    reader_steps: int = 900
    alignment: float = 0.3  # share of the steps, at the start, that only ask which classes are in the room and in a view
    rooms: int = 4
    ladder_questions: int = 9
    vsi_questions: int = 7
    words: float = 0.5  # weight of the loss that makes visual embeddings decodable as class words
    seed: int = 0
    muon_lr: float = 0.01
    adamw_lr: float = 1e-3


@dataclass(frozen=True)
class Streams:
    """Raw streams of the tours: (rooms, T, C, gh, gw) float16; `generative` is None for the semantic condition.

    `coverage` is (rooms, T, gh, gw, K) uint8, see `teacher.tiny.rooms.coverage`; training alone needs it.
    """

    semantic: np.ndarray
    generative: np.ndarray | None
    coverage: np.ndarray | None = None

    def seen(self, room: int) -> np.ndarray:
        """Which classes each view shows, (T, K) bool."""
        assert self.coverage is not None
        return (np.asarray(self.coverage[room]) > COVERED * 255).any((1, 2))

    def present(self, room: int) -> Tensor:
        """Classes in each merged cell, (T * gh/2 * gw/2, K) float 0 or 1."""
        assert self.coverage is not None
        cells = torch.from_numpy(np.asarray(self.coverage[room], dtype=np.float32)).movedim(-1, 1)
        return (nn.functional.max_pool2d(cells, 2) > COVERED * 255).float().flatten(2).transpose(1, 2).flatten(0, 1)

    def rows(self, room: int) -> list[Tensor]:
        parts = [self.semantic] if self.generative is None else [self.semantic, self.generative]
        return [torch.from_numpy(np.asarray(part[room], dtype=np.float32)) for part in parts]


def class_words(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token id of the last word of every class name."""
    return [tokenizer(name, add_special_tokens=False).input_ids[-1] for name in class_names()]


def word_loss(reader: Reader, visual: Tensor, present: Tensor, words: list[int]) -> Tensor:
    """Sigmoid loss between visual embeddings (P, D) and the embeddings of class words, as SigLIP's between images and texts.

    Without it a reader this small spends its whole budget at the blind optimum: "is there a bed?" needs attention from the word
    to patches that look like one, and the answers alone are too sparse a signal to find that.
    """
    table = nn.functional.normalize(reader.model.get_input_embeddings().weight[words].float(), dim=-1)
    logits = 10 * nn.functional.normalize(visual.float(), dim=-1) @ table.T - 4
    weight = torch.where(present > 0, 3.0, 1.0)
    return -(weight * nn.functional.logsigmoid((2 * present - 1) * logits)).mean()


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


def alignment_questions(rng: np.random.Generator, seen: np.ndarray, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Balanced yes/no questions about classes in the room and in single views: the dense first lesson (LLaVA's captions)."""
    chosen: list[tuple[str, str]] = []
    for answer, wanted in (("yes", True), ("no", False)):
        rows = np.flatnonzero(seen.any(0) == wanted)
        chosen += [(f"Is there a {names[k]} in the room? {ASK}", answer) for k in rng.permutation(rows)[:6]]
        pairs = np.argwhere(seen == wanted)
        chosen += [(f"In view {t + 1}, is there a {names[k]}? {ASK}", answer) for t, k in rng.permutation(pairs)[:6]]
    return [prompt for prompt, _ in chosen], [answer for _, answer in chosen]


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
        losses: list[Tensor] = []
        aligned: list[Tensor] = []
        for room in rng.integers(0, len(questions), config.rooms):
            if streams is not None and step < config.alignment * steps:
                prompts, answers = alignment_questions(rng, streams.seen(room), names)
            else:
                prompts, answers = pick(rng, questions[room], config)
            with torch.autocast("cpu", torch.bfloat16):
                visual = None if streams is None or tokens is None else tokens(*streams.rows(room))
                losses.append(reader.loss(visual, prompts, answers))
                if streams is not None and visual is not None and reader.connector is not None:
                    aligned.append(word_loss(reader, reader.connector(visual), streams.present(room), words))
        answer = torch.stack(losses).mean()
        if not aligned:
            return {"loss": answer}
        word = torch.stack(aligned).mean()
        return {"loss": answer + config.words * word, "answer": answer.detach(), "word": word.detach()}

    names, words = class_names(), class_words(reader.tokenizer)
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
