"""Fit: projectors and fusion (and, if wanted, the language model) learn from questions and answers about cached scenes.

Reads a finished cache and question files, writes a folder with fit.safetensors (only what was trained), config.json, log.jsonl
and a manifest. Killed at any time, the same command goes on from its last checkpoint and ends in the same weights. What a step
sees depends on seed and step alone.

    vega-edge fit --cache CACHE --questions QUESTIONS.json --out FIT
    accelerate launch --num_processes 8 -m vega_edge fit --cache CACHE --questions QUESTIONS.json --reader MODEL --out FIT
    torchrun --nproc_per_node 2 -m vega_edge fit ...                     # several processes without a GPU

N processes with `accumulate` scenes each learn what one learns with N times as many.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from teacher.cache import FeatureCache
from teacher.fit_folder import CHECKPOINT, CONFIG, WEIGHTS, is_complete, read_checkpoint, reader_weights, write_checkpoint
from teacher.fit_streams import SceneStreams
from teacher.launch import lone_launch
from teacher.lessons import Lessons, read_lessons
from teacher.tutor import BLIND, EMBEDDED, Parts, build
from vega_artifact import UserError, atomic_write, canonical, file_sha256, write_json, write_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG = "log.jsonl"
SETTLED = ("reader_weights", "questions")  # what the manifest's config says beside FitConfig
UNUSED = (BLIND, "only")  # fusions that leave a trainable part out of the loss: the newline, the semantic projector


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything a fit depends on beside its cache and questions.

    Attributes:
        parts: the module that is trained; its scale is measured on the cache.
        semantic: folder of a SigLIP tower that reads the cached frames; None: the cache's own semantic stream.
        steps: optimiser steps. accumulate: scenes per step and process. questions: at most so many of a scene at once.
        rate, language_rate: peak learning rates of projectors and fusion, and of the language model; cosine after a warm-up.
        precision: "bf16" runs under autocast; "auto" is bf16 on a GPU, else fp32.
        checkpointing: recompute activations of the language model instead of keeping them.
        save_every: steps between checkpoints.
    """

    parts: Parts = field(default_factory=Parts)
    semantic: str | None = None
    steps: int = 200
    accumulate: int = 4
    questions: int = 16
    rate: float = 1e-3
    language_rate: float = 1e-5
    warmup: float = 0.03
    clip: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    checkpointing: bool = False
    save_every: int = 50
    seed: int = 0


def fit(cache: Path | str, questions: Sequence[Path | str], out: Path | str, config: FitConfig) -> Path:
    """Train and write `out`; a finished fit of the same config, cache and questions is returned at once.

    Raises:
        UserError: no finished cache, no usable question, a folder of another fit, a missing package, a launcher that started
            one process where several were asked for, a loss that is no longer finite (names the step), a full disk.
    """
    if lone_launch(os.environ):
        raise UserError(
            "accelerate launch starts one process on CPUs whatever --num_processes says, which would learn from smaller "
            "batches; use torchrun --nproc_per_node N -m vega_edge fit, or --num_processes 1"
        )
    out, source = Path(out), FeatureCache(cache)
    identity = {
        "config": canonical(config),
        "cache": source.fingerprint,
        "questions": [file_sha256(Path(path)) if Path(path).is_file() else str(path) for path in questions],
        "reader_weights": reader_weights(config.parts.reader),
    }
    if is_complete(out, identity):
        return out
    lessons = read_lessons(questions, source)
    from accelerate import Accelerator, DistributedDataParallelKwargs  # takes a second; a finished fit does not wait for it

    # without a GPU accelerate must be told so, or every process would train alone
    on_cpu = config.parts.reader == EMBEDDED or not torch.accelerator.is_available()
    unused = DistributedDataParallelKwargs(find_unused_parameters=config.parts.fusion in UNUSED)
    accelerator = Accelerator(mixed_precision="no", cpu=on_cpu, kwargs_handlers=[unused])
    accelerator.wait_for_everyone()  # everyone has looked at the folder before one begins to write to it
    if accelerator.is_main_process:
        write_json(out / CONFIG, identity)
        accelerator.print(f"{out}: {lessons.told()}")
    Fitting(source, lessons, out, identity, config, accelerator).run()
    return out


class Fitting:
    """One fit from start (or checkpoint) to manifest."""

    def __init__(
        self,
        cache: FeatureCache,
        lessons: Lessons,
        out: Path,
        identity: dict[str, Any],
        config: FitConfig,
        accelerator: Accelerator,
    ) -> None:
        self.out, self.identity, self.accelerator = out, identity, accelerator
        self.lessons, self.scenes = lessons, sorted(lessons.scenes)
        self.streams = SceneStreams(cache, config.parts, config.semantic)
        self.config = replace(config, parts=replace(config.parts, scale=self.streams.scale(self.scenes)))
        on_gpu = accelerator.device.type == "cuda"
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and on_gpu)
        dtype = torch.bfloat16 if self.bf16 and on_gpu else torch.float32
        self.tutor = build(self.config.parts, self.streams.semantic, self.streams.generative, dtype).train()
        if config.checkpointing:
            self.tutor.reader.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.wrapped: nn.Module = accelerator.prepare(self.tutor)
        self.learned = self.tutor.learned()
        language = [name for name in self.learned if name.startswith("reader.model.")]
        groups = [(config.rate, [name for name in self.learned if name not in language]), (config.language_rate, language)]
        self.groups = [
            {"params": [self.learned[name] for name in names if self.learned[name].requires_grad], "lr": rate, "peak": rate}
            for rate, names in groups
            if any(self.learned[name].requires_grad for name in names)
        ]
        if not self.groups:
            raise UserError("this fit would train nothing: a blind reader has only its language model; use --language full")
        self.optimizer = torch.optim.AdamW(self.groups, weight_decay=0.0)
        self.step = 0

    def run(self) -> None:
        self._resume()
        while self.step < self.config.steps:
            loss = self._update()
            self.step += 1
            if not math.isfinite(loss):
                hint = "lower --rate or use --precision fp32; the last checkpoint is intact"
                raise UserError(f"{self.out}: the loss is not finite at step {self.step}; {hint}")
            if self.accelerator.is_main_process:
                self._note(loss)
        if self.accelerator.is_main_process:
            self._finish()
        self.accelerator.wait_for_everyone()

    def _update(self) -> float:
        """One optimiser step; the mean loss over its scenes and all processes."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(self.step, config.steps, config.warmup)
        total = torch.zeros((), device=accelerator.device)
        for turn in range(config.accumulate):
            number = (self.step * config.accumulate + turn) * accelerator.num_processes + accelerator.process_index
            last = turn == config.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss = self._loss(number) / config.accumulate
                accelerator.backward(loss)
            total += loss.detach()
        nn.utils.clip_grad_norm_([value for value in self.learned.values() if value.requires_grad], config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(accelerator.reduce(total, reduction="mean"))

    def _loss(self, number: int) -> Tensor:
        """The loss of the `number`-th scene of the whole training; scenes come in a new order every round."""
        epoch, place = divmod(number, len(self.scenes))
        scene = self.scenes[np.random.default_rng([self.config.seed, epoch]).permutation(len(self.scenes))[place]]
        lessons = self.lessons.scenes[scene]
        rows = np.random.default_rng([self.config.seed, 1, number]).permutation(len(lessons))[: self.config.questions]
        prompts, answers, views = zip(*(lessons[row] for row in rows), strict=True)
        device = self.accelerator.device
        streams = {name: value.to(device) for name, value in self.streams.read(scene).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            return self.wrapped(streams, prompts, answers, views)

    def _note(self, loss: float) -> None:
        with open(self.out / LOG, "a", encoding="utf-8") as log:
            rate = self.optimizer.param_groups[0]["lr"]
            log.write(json.dumps({"step": self.step, "loss": round(loss, 6), "lr": rate}) + "\n")
        if self.step % self.config.save_every == 0 and self.step < self.config.steps:
            write_checkpoint(self.out / CHECKPOINT, self.learned, self.optimizer, self.step)

    def _resume(self) -> None:
        path = self.out / CHECKPOINT
        if path.exists():
            self.step = read_checkpoint(path, self.learned, self.optimizer)
        if self.accelerator.is_main_process and (self.out / LOG).exists():
            kept = (self.out / LOG).read_text(encoding="utf-8").splitlines(keepends=True)[: self.step]
            (self.out / LOG).write_text("".join(kept), encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def _finish(self) -> None:
        weights = save({name: value.detach().cpu().contiguous() for name, value in self.learned.items()})
        atomic_write(self.out / WEIGHTS, lambda temporary: temporary.write_bytes(weights))
        write_manifest(
            self.out,
            "fit",
            {**canonical(self.config), **{name: self.identity[name] for name in SETTLED}},
            {"cache": self.identity["cache"]},
            [WEIGHTS],
            semantic=self.streams.semantic,
            generative=self.streams.generative,
            lessons=self.lessons.told(),
            precision="bf16" if self.bf16 else "fp32",
            trained=sum(value.numel() for value in self.learned.values() if value.requires_grad),
        )
        (self.out / CHECKPOINT).unlink(missing_ok=True)


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share of the steps, then a cosine to zero (spec/vega3d.md 5.3)."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
