"""Stage 4 of the embedded teacher: fusion and readers, trained on procedural rooms.

VEGA-3D adds a generative branch to a vision-language model that exists already; a reader this small can start from nothing, so
each condition gets a model of its own, and nothing in it was fitted to another condition's tokens:

1. tokens that lose nothing: a projector (`semantic`) or a gated fusion of both streams (`fused`), trained so that linear maps
   get every stream back. No questions yet: answers alone let a gate drop whatever the reader has not learned to use;
2. a base reader per condition, from scratch on its frozen tokens;
3. three readers per condition, each from the base on with questions of its own.

Conditions get the same steps and questions, so they differ in the tokens alone. Blind readers go through 2 and 3 with as many
questions.

    python -m teacher.tiny train --stage fit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from teacher.reader import Reader
from teacher.scenes.questions import scanqa_prompt, vsi_prompt
from teacher.streams import FusedTokens, SemanticTokens
from teacher.tiny.bundle import WIDTH, new_mixer
from teacher.tiny.loop import Stage, muon_and_adamw, step_rng
from teacher.tiny.rooms import class_names

ASK = "Answer the question simply."  # ScanQA's ending, see scanqa_prompt
ALWAYS = "room_size_estimation"
COVERED = 0.15  # share of a patch a class must cover to count, as in the semantic stage


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Steps of the three parts, and what is in a step. `teacher`: whose generative stream is fused."""

    teacher: str = "tiny-geometry"
    recover_steps: int = 800
    base_steps: int = 1500
    reader_steps: int = 300
    lessons: int = 250  # rooms with questions; with 4,000 the semantic condition catches up on room size (docs/log.md, 17)
    alignment: float = 0.2  # share of the steps from scratch that only ask which classes are in the room and in a view
    fusion: str = "token_gated"
    rooms: int = 4
    ladder_questions: int = 16
    vsi_questions: int = 5
    words: float = 0.5  # weight of the loss that makes visual embeddings decodable as class words, from scratch
    words_later: float = 0.1  # its weight afterwards
    seed: int = 0
    muon_lr: float = 0.01
    adamw_lr: float = 1e-3

    @property
    def blind_base_steps(self) -> int:
        """As many steps with questions as the base reader that sees has had."""
        return self.base_steps - round(self.alignment * self.base_steps)


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


class Recover(nn.Module):
    """Linear maps from tokens back to the raw streams, and how far they are off."""

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.back, self.spread = nn.ModuleList(), []
        for raw in (streams.semantic, streams.generative):
            if raw is not None:
                sample = torch.from_numpy(np.asarray(raw[:64], dtype=np.float32)).movedim(2, -1).flatten(0, -2)
                self.back.append(nn.Linear(WIDTH, sample.shape[1]))
                self.spread.append((sample.mean(0), sample.std(0)))

    def forward(self, tokens: Tensor, raw: Sequence[Tensor]) -> Tensor:
        """Mean squared error of the standardised streams; 1 where the tokens know nothing, 0 where nothing is lost.

        Args:
            tokens: (T, width, gh, gw). raw: per stream (T, C, gh, gw).
        """
        found = nn.functional.layer_norm(tokens.float().movedim(1, -1), (WIDTH,))
        errors = [
            nn.functional.mse_loss(back(found), (stream.movedim(1, -1) - mean) / std)
            for back, stream, (mean, std) in zip(self.back, raw, self.spread, strict=True)
        ]
        return torch.stack(errors).mean()


def train_recover(tokens: nn.Module, recover: Recover, streams: Streams, work: Path, name: str, config: FitConfig) -> None:
    """Train tokens and the maps back on the streams alone, without any question."""
    trained = nn.ModuleDict({"tokens": tokens, "recover": recover})

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(config.seed + 77, step)
        rows = [streams.rows(room) for room in rng.integers(0, len(streams.semantic), 4 * config.rooms)]
        raw = [torch.cat(parts) for parts in zip(*rows, strict=True)]
        return {"loss": recover(tokens(*raw), raw)}

    optimizer = torch.optim.AdamW(trained.parameters(), lr=2 * config.adamw_lr, weight_decay=0.0)
    Stage(name, work, {"trained": trained}, [optimizer]).run(loss, config.recover_steps)


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


class Item(NamedTuple):
    """A question as a reader meets it; `view` is the only view it may look at, None for all."""

    prompt: str
    answer: str
    view: int | None = None


def item(record: dict[str, Any], task: str) -> Item:
    """The exact prompt of the benchmark and the first reference answer."""
    if task == "scanqa":
        return Item(scanqa_prompt(record).removeprefix("<image>").strip(), str(record["answers"][0]), record.get("view"))
    return Item(vsi_prompt(record), str(record["ground_truth"]))


def pick(rng: np.random.Generator, room: dict[str, Any], config: FitConfig) -> list[Item]:
    """The questions of one room in one step: per task a random choice in which the types take turns.

    Types, because scores are means over types: there are five distances to ask for in a room, and one room size. That one is
    always asked: it takes the whole room to answer.
    """
    chosen = []
    for task, kind, count in (("scanqa", "type", config.ladder_questions), ("vsibench", "question_type", config.vsi_questions)):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in rng.permutation(len(room[task])):
            groups.setdefault(room[task][row][kind], []).append(room[task][row])
        order = [list(groups)[k] for k in rng.permutation(len(groups))]
        order.sort(key=lambda name: name != ALWAYS)
        turns = [record for turn in zip_longest(*(groups[name] for name in order)) for record in turn if record is not None]
        chosen += [item(record, task) for record in turns[:count]]
    return chosen


def alignment_questions(rng: np.random.Generator, seen: np.ndarray, names: Sequence[str]) -> list[Item]:
    """Balanced yes/no questions about classes in the room and in single views: the dense first lesson (LLaVA's captions)."""
    chosen = []
    for answer, wanted in (("yes", True), ("no", False)):
        rows = np.flatnonzero(seen.any(0) == wanted)
        chosen += [Item(f"Is there a {names[k]} in the room? {ASK}", answer) for k in rng.permutation(rows)[:6]]
        pairs = np.argwhere(seen == wanted)
        chosen += [Item(f"In this view, is there a {names[k]}? {ASK}", answer, int(t)) for t, k in rng.permutation(pairs)[:6]]
    return chosen


@dataclass(frozen=True)
class Lesson:
    """One training of a reader: its name (of the checkpoint), length, and whether it begins from scratch."""

    name: str
    steps: int
    seed: int
    scratch: bool


def train_reader(
    lesson: Lesson,
    reader: Reader,
    tokens: nn.Module | None,
    streams: Streams | None,
    questions: list[dict[str, Any]],
    work: Path,
    config: FitConfig,
) -> None:
    """Train a reader in place on frozen `tokens` (a mixer or projector; None for a blind one)."""
    trained = nn.ModuleDict({"reader": reader})
    names, words = class_names(), class_words(reader.tokenizer)
    aligning = config.alignment * lesson.steps if lesson.scratch and streams is not None else 0
    word_weight = config.words if lesson.scratch else config.words_later

    def loss(step: int) -> dict[str, Tensor]:
        rng = step_rng(config.seed + 1000 * lesson.seed, step)
        losses: list[Tensor] = []
        aligned: list[Tensor] = []
        for room in rng.integers(0, len(questions), config.rooms):
            lesson_one = streams is not None and step < aligning
            items = alignment_questions(rng, streams.seen(room), names) if lesson_one else pick(rng, questions[room], config)
            with torch.autocast("cpu", torch.bfloat16):
                raw = [] if streams is None else streams.rows(room)
                visual = None if tokens is None else tokens(*raw)
                losses.append(reader.loss(visual, *zip(*items, strict=True)))
                if streams is not None and visual is not None and reader.connector is not None:
                    aligned.append(word_loss(reader, reader.connector(visual), streams.present(room), words))
        parts = {"answer": (1.0, losses), "word": (word_weight, aligned)}
        means = {name: (weight, torch.stack(values).mean()) for name, (weight, values) in parts.items() if values}
        total = torch.stack([weight * value for weight, value in means.values()]).sum()
        return {"loss": total} | {name: value.detach() for name, (_, value) in means.items()}

    trained.train()
    optimizers = muon_and_adamw(trained, config.muon_lr, config.adamw_lr)
    Stage(lesson.name, work, {"trained": trained}, optimizers).run(loss, lesson.steps)
    trained.eval()


def new_tokens(streams: Streams, config: FitConfig) -> FusedTokens | SemanticTokens:
    """Untrained tokens of a condition."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        if streams.generative is None:
            tokens: FusedTokens | SemanticTokens = SemanticTokens(WIDTH, WIDTH)
        else:
            sample = np.asarray(streams.generative[:64], dtype=np.float32)
            tokens = new_mixer(config.fusion, scale=float(sample.std()))
    return tokens


@torch.no_grad()
def answers(
    reader: Reader, tokens: nn.Module | None, streams: Streams | None, questions: list[dict[str, Any]], task: str
) -> dict[str, str]:
    """Greedy answers to all questions of a task, keyed by the record's id."""
    found: dict[str, str] = {}
    for index, room in enumerate(questions):
        visual = None if streams is None or tokens is None else tokens(*streams.rows(index))
        records = room[task]
        items = [item(record, task) for record in records]
        texts = reader.answer(visual, [i.prompt for i in items], views=[i.view for i in items])
        key = "question_id" if task == "scanqa" else "id"
        found |= {record[key]: text for record, text in zip(records, texts, strict=True)}
    return found
