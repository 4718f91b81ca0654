"""The trainer: teaches a student from a feature cache, on one process or on many, and survives being killed.

Reads a cache folder, writes a run folder (manifest.json, student.safetensors, student_init.safetensors, config.json,
log.jsonl). Killed at any time, the same command goes on from the last checkpoint and ends in the same weights.

    vega-edge train --cache CACHE --recipe demo --out RUN
    accelerate launch --num_processes 8 -m vega_edge train --cache CACHE --recipe vit_small_gpu --out RUN
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.augment import draw_factors, prepare
from distill.config import RunConfig, resolve_precision
from distill.dataset import Frames, batch_indices, check_streams, gather, load_frames, split_scenes
from distill.evaluate import validation_cosines
from distill.log import RunLog
from distill.losses import Objective
from distill.normalize import estimate
from distill.optimize import WeightAverage, create_optimizers, rate_factor, set_rates
from distill.state import LOG, Checkpoint, RunFolder, restore_optimizers
from student import StudentModel, create_student
from student.checkpoint import INITIAL_WEIGHTS, WEIGHTS, config_to_json, fill, save_weights
from teacher.cache import FeatureCache
from vega_artifact import UserError, canonical, write_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator

QUICK_VALIDATION = 96  # frames of the validations on the way
RESIDENT_PART = 0.4  # of an accelerator's free memory that the whole data may take


def train(cache: Path | str, out: Path | str, config: RunConfig) -> Path:
    """Distil the teacher streams of `cache` into a student at `out`; a finished run is returned at once.

    Args:
        cache: folder of kind "cache".
        out: run folder; new, unfinished (resumes) or finished, but always of this config and cache.

    Returns:
        `out`, with a manifest of kind "run".

    Raises:
        UserError: no finished cache, streams it does not have, a folder of another run, a loss that is no longer finite
            (names the step and the stream), a full disk, an unreadable checkpoint.
    """
    source = FeatureCache(cache)
    folder = RunFolder(Path(out), config, source.fingerprint)
    if folder.is_complete():
        return folder.path
    from accelerate import Accelerator  # takes a second; a finished run does not wait for it

    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        Trainer(source, folder, config, Accelerator(mixed_precision="no")).run()
    finally:
        torch.set_num_threads(threads)
    return folder.path


class Distiller(nn.Module):
    """Student and objective as one module, so that wrapping it for several processes covers both.

    forward(images (B, 3, H, W), targets {stream: (B, N, C)} normalised) -> total loss, and float32 (2 * streams + 1,):
    total, the loss of each stream, the cosine of each stream.
    """

    def __init__(self, student: StudentModel, objective: Objective, precision: str) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.autocast = precision == "bf16"

    def forward(self, images: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            outputs = self.student.normalised(images)
        total, parts = self.objective(outputs, targets)
        scalars = [total, *(part.loss for part in parts.values()), *(part.cosine for part in parts.values())]
        return total, torch.stack([scalar.detach().float() for scalar in scalars])


class Trainer:
    """One run from start (or checkpoint) to manifest. Steps count what is done: `step` 1 is logged after the first update."""

    def __init__(self, cache: FeatureCache, folder: RunFolder, config: RunConfig, accelerator: Accelerator) -> None:
        self.cache, self.folder, self.config, self.accelerator = cache, folder, config, accelerator
        self.streams = config.streams
        if config.batch % accelerator.num_processes:
            raise UserError(f"run config: batch {config.batch} cannot be dealt to {accelerator.num_processes} processes evenly")
        grid = check_streams(cache, self.streams)
        train_ids, validation_ids = split_scenes(cache.scene_ids, config.validation_part)
        frames = load_frames(cache, train_ids, self.streams, config.image_size)
        self.validation = load_frames(cache, validation_ids, self.streams, config.image_size)
        self.normalizers = {name: estimate(config.normalizer, frames.chunks(name)) for name in self.streams}
        self.means = {name: _mean(frames, name).to(accelerator.device) for name in self.streams}
        self.student = self._create_student(frames, grid)
        self.frames = _placed(frames, accelerator.device)
        for normalizer in self.normalizers.values():
            normalizer.to(accelerator.device)
        self.precision = resolve_precision(config.precision, accelerator.device)
        weights = {name: config.weights[name] for name in self.streams}
        objective = Objective(weights=weights, cosine=config.cosine, smooth_l1=config.smooth_l1, gram=config.gram)
        self.initial = {name: value.clone() for name, value in self.student.state_dict().items()}
        self.model = accelerator.prepare(Distiller(self.student, objective, self.precision))
        self.optimizers = create_optimizers(self.student, config)
        self.average = WeightAverage(dict(self.student.named_parameters()), config.ema) if config.ema > 0 else None
        look = self.student.preprocess
        self.mean, self.std = (torch.tensor(values, device=accelerator.device) for values in (look.mean, look.std))
        self.step, self.seconds = 0, 0.0

    def _create_student(self, frames: Frames, grid: tuple[int, int]) -> StudentModel:
        config = self.config
        size = (frames.images.shape[1], frames.images.shape[2])
        heads = {name: self.cache.streams[name][0] for name in self.streams}
        kind = self.normalizers[self.streams[0]].kind
        student = create_student(
            config.student, heads, size, grid, config.pretrained, head=config.head, denormalize=kind, seed=config.seed
        )
        for name, normalizer in self.normalizers.items():
            student.denormalizers[name].set(normalizer.inverse, normalizer.mean)
        return student.train()

    def run(self) -> None:
        self.accelerator.wait_for_everyone()  # everyone has looked at the folder before one begins to write to it
        if self.accelerator.is_main_process:
            self.folder.claim(self._resolved())
            save_weights(self.folder.path / INITIAL_WEIGHTS, self.initial)
        self._resume()
        if self.accelerator.is_main_process:
            progress = self.config.progress
            with RunLog(self.folder.path / LOG, self.config.steps, self.step, progress=progress) as log:
                self._loop(log)
                self._finish(log)
        else:
            self._loop(None)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        checkpoint = self.folder.load()
        self.accelerator.wait_for_everyone()  # the main process may replace the checkpoint soon
        if checkpoint is None:
            return
        fill(self.student, checkpoint.student, self.folder.path)
        restore_optimizers(self.optimizers, checkpoint.optimizers, self.folder.path)
        if self.average is not None:
            for name, value in self.average.values.items():
                value.copy_(checkpoint.average[name])
        self.step, self.seconds = checkpoint.step, checkpoint.seconds

    def _loop(self, log: RunLog | None) -> None:
        config = self.config
        window: list[Tensor] = []
        started = saved = time.perf_counter()
        while self.step < config.steps:
            window.append(self._update())
            self.step += 1
            pinned = config.checkpoint_steps > 0 and self.step % config.checkpoint_steps == 0
            if not (pinned or self.step % config.log_every == 0 or self.step == config.steps):
                continue
            means = self._checked_mean(window)
            elapsed = time.perf_counter() - started
            self.seconds += elapsed
            if log is not None:
                self._report(log, means, len(window) * config.batch / elapsed)
                due = pinned or time.perf_counter() - saved >= config.checkpoint_seconds
                if due and self.step < config.steps:  # the end needs none, its result is written at once
                    self._save()
                    saved = time.perf_counter()
            window, started = [], time.perf_counter()

    def _update(self) -> Tensor:
        """One optimiser step; returns the scalars of `Distiller` and the gradient norm without waiting for the device."""
        config, device = self.config, self.accelerator.device
        share = config.batch // self.accelerator.num_processes
        mine = slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)
        images, targets = gather(self.frames, batch_indices(config.seed, self.step, config.batch, len(self.frames))[mine])
        samples = np.arange(self.step * config.batch, (self.step + 1) * config.batch)[mine]
        factors = draw_factors(config.seed, samples, config.jitter) if config.jitter > 0 else None
        pixels = prepare(images.to(device), factors, self.mean, self.std)
        wanted = {name: self.normalizers[name].normalize(value.to(device)) for name, value in targets.items()}

        set_rates(self.optimizers, rate_factor(self.step, config.steps, config.warmup))
        total, scalars = self.model(pixels, wanted)
        self.accelerator.backward(total)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), config.clip if config.clip > 0 else float("inf"))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(dict(self.student.named_parameters()), self.step)
        return torch.cat([scalars, norm.detach().float().view(1)])

    def _checked_mean(self, window: list[Tensor]) -> np.ndarray:
        """Mean scalars over the window and all processes. Raises UserError at the first that is not finite."""
        values = self.accelerator.reduce(torch.stack(window), reduction="mean").cpu().numpy()
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            names = ["loss", *self.streams, *self.streams, "gradient"]
            culprits = [name for name, value in zip(self.streams, values[row, 1:]) if not np.isfinite(value)]
            what = f"the loss of stream {culprits[0]!r}" if culprits else f"the {names[column]}"
            at = self.step - len(window) + int(row) + 1
            hint = "lower the learning rate or use precision fp32; the last checkpoint is intact"
            raise UserError(f"{self.folder.path}: {what} is not finite at step {at}; {hint}")
        return values.mean(0)

    def _report(self, log: RunLog, means: np.ndarray, rate: float) -> None:
        count = len(self.streams)
        record: dict[str, Any] = {"step": self.step, "loss": float(means[0]), "gradient": float(means[-1])}
        record["losses"] = dict(zip(self.streams, map(float, means[1 : 1 + count])))
        record["cosine"] = dict(zip(self.streams, map(float, means[1 + count : -1])))
        record |= {"lr": self.optimizers[0].param_groups[0]["lr"], "images_per_s": rate}
        log.write(record)
        first = self.streams[0]
        log.show(self.step, f"loss {means[0]:.3f}  cosine of {first} {record['cosine'][first]:.3f}  {rate:.0f} images/s")
        if self.step % self.config.evaluate_every == 0 and self.step < self.config.steps and len(self.validation):
            cosines_now = validation_cosines(self.student, self.validation, self.means, QUICK_VALIDATION)
            log.write({"step": self.step, "validation": cosines_now})

    def _save(self) -> None:
        average = self.average.values if self.average is not None else {}
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        self.folder.save(Checkpoint(self.step, self.seconds, self.student.state_dict(), average, states))

    def _finish(self, log: RunLog) -> None:
        path = self.folder.path
        if self.average is not None:
            self.student.load_state_dict(self.average.values, strict=False)  # buffers stay
        validation = {}
        if len(self.validation):
            validation = validation_cosines(self.student, self.validation, self.means)
            log.write({"step": self.step, "validation": validation})
        save_weights(path / WEIGHTS, self.student.state_dict())
        write_manifest(
            path,
            "run",
            self.folder.identity["config"],
            {"cache": self.cache.fingerprint},
            [WEIGHTS, INITIAL_WEIGHTS],
            student=config_to_json(self.student.config),
            preprocess=canonical(asdict(self.student.preprocess)),
            validation=validation,
            scenes={"train": list(self.frames.scenes), "validation": list(self.validation.scenes)},
            parameters=self.student.parameter_count(),
            steps=self.step,
            minutes=self.seconds / 60,
            resolved=self._resolved(),
            teacher=self.cache.manifest["parents"].get("teacher"),
        )
        self.folder.drop_checkpoints()

    def _resolved(self) -> dict[str, Any]:
        """What "auto" became and what the numbers' last bits depend on."""
        device, size = self.accelerator.device, self.student.config.image_size
        return {
            "precision": self.precision,
            "image_size": list(size),
            "optimizers": [type(optimizer).__name__ for optimizer in self.optimizers],
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
        }


def _mean(frames: Frames, stream: str) -> Tensor:
    """(C,) float32 mean of a stream's tokens, summed in float64."""
    total = torch.stack([chunk.double().sum(0) for chunk in frames.chunks(stream)]).sum(0)
    frame_count, token_count, _ = frames.targets[stream].shape
    return (total / (frame_count * token_count)).float()


def _placed(frames: Frames, device: torch.device) -> Frames:
    """On the accelerator as a whole where there is ample room, so that no step waits for a transfer; else in main memory."""
    if device.type == "cuda" and frames.nbytes() < RESIDENT_PART * torch.cuda.mem_get_info(device)[0]:
        return frames.to(device)
    return frames
