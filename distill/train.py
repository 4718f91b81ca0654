"""The trainer: teaches a student from a feature cache, on one process or on many, and survives being killed.

Reads a cache folder, writes a run folder (manifest.json, student.safetensors, student_init.safetensors, config.json,
log.jsonl). Killed or interrupted at any time, the same command goes on from the last checkpoint and ends in the same weights.

    vega-edge train --cache CACHE --recipe demo --out RUN
    torchrun --nproc_per_node 8 -m vega_edge train --cache CACHE --recipe vit_small_gpu --out RUN
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distill.batches import Batch, Batches, places
from distill.config import RunConfig, resolve_precision
from distill.dataset import Frames, bytes_of, check_streams, load_frames, split_scenes
from distill.distiller import Distiller
from distill.engine import Engine, create_accelerator
from distill.floor import noise_floor
from distill.guard import find_fault
from distill.interrupt import Interrupt
from distill.joined import open_caches
from distill.log import RunLog, check_trackers, read_log
from distill.losses import TERMS, Objective
from distill.normalize import estimate_from
from distill.observe import Observer, Probes
from distill.online import OnlineCache, sample
from distill.preflight import check_feasible, run_folder
from distill.resident import once_per_machine
from distill.state import LOG, RunFolder
from distill.views import token_places
from distill.warm_start import take_weights
from student import StreamingStudent, StudentModel, create_student
from student.checkpoint import INITIAL_WEIGHTS, WEIGHTS, config_to_json, save_weights
from student.heads import Denormalizer
from teacher.cache import FeatureCache
from vega_artifact import UserError, canonical, fingerprint, write_manifest

if TYPE_CHECKING:
    from accelerate import Accelerator

RESIDENT_PART = 0.4  # of an accelerator's free memory that the whole data may take
UNTOUCHED = "the weights were left as they were before it"


def train(
    cache: Path | str | FeatureCache | Sequence[Path | str],
    out: Path | str,
    config: RunConfig,
    *,
    start_from: Path | str | None = None,
    probes: Probes | None = None,
) -> Path:
    """Distil the teacher streams of `cache` into a student at `out`; a finished run is returned at once.

    Args:
        cache: folder of kind "cache", several of the same scenes (several teachers) as `distill.joined` lists them, or what
            stands for one (`distill.online`: a teacher that answers on the fly).
        out: run folder; new, unfinished (resumes) or finished, but always of this config, cache and start.
        start_from: a finished run whose weights the student begins with (warm start); the run is a new one all the same.
        probes: asked about the student on the way, as often as `config.probe_share` allows, and at the end.

    Returns:
        `out`, with a manifest of kind "run".

    Raises:
        UserError: no finished cache, streams it does not have, fewer frames than a batch, a folder of another run or one that
            another process is at work in, a step that is no longer finite (names step, module and frames), a full disk, an
            unreadable checkpoint.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    source = cache if isinstance(cache, FeatureCache) else open_caches(cache)
    start = Path(start_from) if start_from is not None else None
    folder = run_folder(Path(out), config, source, start)
    if folder.is_complete():
        return folder.path
    check_trackers(config.trackers)
    threads = torch.get_num_threads()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        accelerator = create_accelerator(log_with=list(config.trackers) or None, project_dir=str(out))
        Trainer(source, folder, config, accelerator, start, probes).run()
    finally:
        torch.set_num_threads(threads)
    return folder.path


class Trainer:
    """One run from start (or checkpoint) to manifest. Steps count what is done: `step` 1 is logged after the first update."""

    def __init__(
        self,
        cache: FeatureCache,
        folder: RunFolder,
        config: RunConfig,
        accelerator: Accelerator,
        start_from: Path | None = None,
        probes: Probes | None = None,
    ) -> None:
        self.cache, self.folder, self.config, self.accelerator = cache, folder, config, accelerator
        self.streams, self.device = config.streams, accelerator.device
        grid = check_streams(cache, self.streams)
        train_ids, validation_ids = split_scenes(cache.scene_ids, config.validation_part)
        check_feasible(cache, train_ids, config, accelerator)
        begun = folder.begun()
        frames = self._read(train_ids)
        if config.cross_view > 0:
            frames = replace(frames, places=token_places(cache, train_ids, grid, config.matches))
        looked_at = validation_ids if accelerator.is_main_process else []  # by whoever writes the log
        self.validation = load_frames(cache, looked_at, self.streams, config.image_size)
        known = sample(train_ids) if isinstance(cache, OnlineCache) else train_ids
        found = {name: estimate_from(cache, name, known, config.normalizer) for name in self.streams}
        self.normalizers = {name: normalizer for name, (normalizer, _) in found.items()}
        means = {name: mean.to(self.device) for name, (_, mean) in found.items()}
        single = self._create_student(frames, grid)
        self.new_heads = take_weights(single, start_from) if start_from is not None else None
        student = (
            single if config.memory == 0 else StreamingStudent.from_student(single, memory=config.memory, seed=config.seed)
        )
        self.student_config, self.preprocess = student.config, student.preprocess
        self.initial = {name: value.clone() for name, value in student.state_dict().items()}
        self.frames = _placed(frames, self.device)
        for normalizer in self.normalizers.values():
            normalizer.to(self.device)
        self.floor = self._floor(means)
        ceilings = {name: found["ceiling"] for name, found in self.floor.items()}
        self.observer = Observer(copy.deepcopy(student).to(self.device), self.validation, means, config, probes, ceilings)
        self.precision = begun.get("precision") or resolve_precision(config.precision, self.device)  # one run, one arithmetic
        self.engine = Engine(accelerator, Distiller(student, self._objective(), self.precision, config.window), config)
        dealt = (accelerator.num_processes, accelerator.process_index)
        self.batches = Batches(self.frames, self.normalizers, self.preprocess, grid, config, self.device, *dealt)
        if begun and begun.get("matches") != self._matches():
            text = f"began with matches of views by {begun.get('matches')}, now there are but those by {self._matches()}"
            raise UserError(f"{folder.path}: {text}; bring back what the cache knew then, or choose another --out")
        self.step, self.seconds, self.interrupt = 0, 0.0, Interrupt()

    def _read(self, scenes: list[str]) -> Frames:
        """The training frames: in memory, and where several processes share a machine, once for all of them."""
        given = (scenes, self.streams, self.config.image_size)
        if isinstance(self.cache, OnlineCache):
            return self.cache.live(*given)
        name = fingerprint([str(self.folder.path.resolve()), self.folder.identity])
        return once_per_machine(partial(load_frames, self.cache, *given), self.accelerator, name, bytes_of(self.cache, *given))

    def _objective(self) -> Objective:
        config = self.config
        weights = {name: config.weights[name] for name in self.streams}
        return Objective(weights=weights, **{term: getattr(config, term) for term in TERMS})

    def _floor(self, means: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """What no student can learn, by stream; {} where there is no second draw to compare with."""
        second = self.config.noise_cache
        return {} if second is None else noise_floor(self.cache, second, self.normalizers, means, self._objective())

    def _create_student(self, frames: Frames, grid: tuple[int, int]) -> StudentModel:
        config = self.config
        size = (frames.images.shape[1], frames.images.shape[2])
        heads = {name: self.cache.streams[name][0] for name in self.streams}
        kind = self.normalizers[self.streams[0]].kind
        student = create_student(
            config.student, heads, size, grid, config.pretrained, head=config.head, denormalize=kind, seed=config.seed
        )
        for name, normalizer in self.normalizers.items():
            denormalizer = student.denormalizers[name]
            assert isinstance(denormalizer, Denormalizer)
            denormalizer.set(normalizer.inverse, normalizer.mean)
        return student.train()

    def run(self) -> None:
        self.accelerator.wait_for_everyone()  # everyone has looked at the folder before one begins to write to it
        devices = [self.device] if self.device.type == "cuda" else []
        with ExitStack() as held, torch.random.fork_rng(devices), self.batches, self.interrupt:
            if self.accelerator.is_main_process:
                held.enter_context(self.folder.alone())
                self.folder.claim(self._resolved())
                save_weights(self.folder.path / INITIAL_WEIGHTS, self.initial)
                if self.engine.sharded:
                    print(f"note: {self.engine.kind} keeps no checkpoints; a run that is stopped begins anew", file=sys.stderr)
            self._resume()
            with self._log() if self.accelerator.is_main_process else nullcontext() as log:
                if log is not None and self.floor:
                    log.write({"step": self.step, "noise_floor": self.floor})
                self._loop(log)
                self._finish(log)
        if self.config.trackers:
            self.accelerator.end_training()
        self.accelerator.wait_for_everyone()

    def _log(self) -> RunLog:
        config, track = self.config, None
        if config.trackers:
            self.accelerator.init_trackers("vega-edge", {name: str(value) for name, value in config.identity().items()})
            track = self.accelerator.log
        return RunLog(self.folder.path / LOG, config.steps, self.step, progress=config.progress, track=track)

    def _resume(self) -> None:
        checkpoint = self.folder.load()
        self.accelerator.wait_for_everyone()  # the main process may replace the checkpoint soon
        if checkpoint is not None:
            self.engine.restore(checkpoint, self.folder.path)
            self.step, self.seconds = checkpoint.step, checkpoint.seconds
            log = self.folder.path / LOG
            self.observer.remember(record for record in (read_log(log) if log.exists() else ()) if record["step"] <= self.step)

    def _loop(self, log: RunLog | None) -> None:
        config, window = self.config, Window()
        saved = time.perf_counter()
        while self.step < config.steps:
            self.advance(window)
            last = self.step == config.steps
            boundary = last or self._due(config.log_every)
            if boundary:
                self.report(log, window)
                window = Window()
            if self._due(config.keep_every):
                self._keep(log)
            if self._due(config.evaluate_every) and not last:
                self._look(log)
            stop = self._interrupted(boundary) and not last
            timely = boundary and time.perf_counter() - saved >= config.checkpoint_seconds
            if (stop or timely or self._due(config.checkpoint_steps)) and not last:  # the end needs none
                self._save(log)
                saved = time.perf_counter()
            if stop:
                raise KeyboardInterrupt

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def advance(self, window: Window) -> None:
        """One optimiser step. Raises UserError before it touches the weights when it is not finite."""
        began = time.perf_counter()
        parts = [self.batches.take(self.step, part) for part in range(self.config.accumulate)]
        ready = time.perf_counter()
        scalars = self.engine.step(self.step, parts)
        if not self.engine.finite(scalars):
            what = f"at step {self.step + 1} {self._fault(parts)}"
            raise UserError(f"{self.folder.path}: {what}; {UNTOUCHED}, {self.folder.safe()}")
        self.engine.apply(self.step)
        self.step += 1
        done = time.perf_counter()
        self.seconds += done - began
        window.add(scalars, ready - began, done - ready)

    def _fault(self, parts: list[Batch]) -> str:
        """What went wrong in this step, in whichever process it did; all processes get the same sentence."""
        from accelerate.utils import gather_object

        told = []
        for number, batch in enumerate(parts if not self.engine.sharded else ()):
            if fault := find_fault(self.engine.bare, batch):
                names = places(self.cache, self.frames.scenes)
                told.append(fault.told([names[row] for row in self.batches.rows(self.step, number)]))
        return next(iter(gather_object(told)), "the gradient is not finite; lower the learning rates or use precision fp32")

    def _interrupted(self, boundary: bool) -> bool:
        """Whether to stop now; several processes agree on it where they meet anyway."""
        if self.accelerator.num_processes == 1:
            return self.interrupt.asked
        if not boundary:
            return False
        asked = torch.tensor(float(self.interrupt.asked), device=self.device)
        return bool(self.accelerator.reduce(asked, reduction="sum") > 0)

    def report(self, log: RunLog | None, window: Window) -> None:
        """One line of the log: means over the window and all processes."""
        values = self.accelerator.reduce(torch.stack(window.scalars), reduction="mean").cpu().numpy()
        if not np.isfinite(values[:, :-1]).all():
            hint = f"lower the learning rates; {self.folder.safe()}"
            raise UserError(f"{self.folder.path}: the loss is not finite at or before step {self.step}; {hint}")
        if log is None:
            return
        means, count = values[:, :-1].mean(0), len(self.streams)
        gradients = values[np.isfinite(values[:, -1]), -1]  # a step that overflowed in fp16 was left out
        rate = len(values) * self.config.batch / (window.waited + window.worked)
        record: dict[str, Any] = {"step": self.step, "loss": float(means[0]), "gradient": float(gradients.sum() / len(values))}
        record["losses"] = dict(zip(self.streams, map(float, means[1 : 1 + count])))
        record["cosine"] = dict(zip(self.streams, map(float, means[1 + count :])))
        record["terms"] = dict(zip(self._terms(), map(float, means[1 + 2 * count :])))
        record |= {"lr": self.engine.optimizers[0].param_groups[0]["lr"], "images_per_s": rate}
        record |= {"data_s": window.waited / len(values), "step_s": window.worked / len(values)}
        log.write(record)
        first, part = self.streams[0], window.waited / (window.waited + window.worked)
        text = f"loss {means[0]:.3f}  cosine of {first} {record['cosine'][first]:.3f}  {rate:.0f} images/s"
        log.show(self.step, f"{text}  data {part:.0%}")

    def _terms(self) -> list[str]:
        """The terms of the objective that are logged, in order; what compares tokens needs more than one channel."""
        return [term for term in TERMS if term == "cosine" or getattr(self.config, term) > 0]

    def _look(self, log: RunLog | None) -> None:
        weights = self._weights(log)
        if log is None:
            return
        value = self.observer.look(weights, self.step, self.seconds, log)
        if self.config.ship == "best" and value is not None:
            self.folder.offer(self.step, value, weights)

    def _weights(self, log: RunLog | None) -> dict[str, Tensor]:
        """What would be shipped now, in the main process; where weights are sharded, all processes take part.

        Raises:
            UserError: the last step left a weight that is not finite.
        """
        weights = self.engine.weights() if log is not None or self.engine.sharded else {}
        if broken := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
            text = f"step {self.step} left {len(broken)} weights that are not finite, {broken[0]} the first"
            raise UserError(f"{self.folder.path}: {text}; lower the learning rates; {self.folder.safe()}")
        return weights

    def _keep(self, log: RunLog | None) -> None:
        weights = self._weights(log)
        if log is not None:
            self.folder.keep(self.step, weights)

    def _save(self, log: RunLog | None) -> None:
        if self._weights(log) and not self.engine.sharded:
            self.folder.save(self.engine.checkpoint(self.step, self.seconds))

    def _finish(self, log: RunLog | None) -> None:
        path, step = self.folder.path, self.step
        if self.config.ship == "best":
            self._look(log)
        weights = self._weights(log)
        if log is None:
            return
        if self.config.ship == "best":
            step, weights = self.folder.best()
        validation = self.observer.finish(weights, self.step, log)
        save_weights(path / WEIGHTS, weights)
        write_manifest(
            path,
            "run",
            self.folder.identity["config"],
            self.folder.parents,
            [WEIGHTS, INITIAL_WEIGHTS],
            student=config_to_json(self.student_config),
            preprocess=canonical(asdict(self.preprocess)),
            validation=validation,
            scenes={"train": list(self.frames.scenes), "validation": list(self.validation.scenes)},
            parameters=self.observer.student.parameter_count(),
            steps=self.step,
            shipped_step=step,
            minutes=self.seconds / 60,
            noise_floor=self.floor or None,
            resolved=self._resolved(),
            teacher=self.cache.manifest["parents"].get("teacher"),
        )
        self.folder.drop_checkpoints()

    def _resolved(self) -> dict[str, Any]:
        """What "auto" became and what the numbers' last bits depend on."""
        return {
            "precision": self.precision,
            "image_size": list(self.preprocess.size),
            "optimizers": [type(optimizer).__name__ for optimizer in self.engine.optimizers],
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type,
            "spread": self.engine.kind,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "matches": self._matches(),
        } | ({"new_heads": self.new_heads} if self.new_heads is not None else {})

    def _matches(self) -> str | None:
        """What tells which tokens of two views belong together; None where no view is compared with another."""
        return None if self.config.cross_view <= 0 else "tokens" if self.frames.places is None else "geometry"


@dataclass
class Window:
    """What happened since the last line of the log: scalars of every step, seconds that data and all the rest took."""

    scalars: list[Tensor] = field(default_factory=list)
    waited: float = 0.0
    worked: float = 0.0

    def add(self, scalars: Tensor, waited: float, worked: float) -> None:
        self.scalars.append(scalars)
        self.waited += waited
        self.worked += worked


def _placed(frames: Frames, device: torch.device) -> Frames:
    """On the accelerator as a whole where there is ample room, so that no step waits for a transfer; else in main memory."""
    if device.type == "cuda" and frames.nbytes() < RESIDENT_PART * torch.cuda.mem_get_info(device)[0]:
        return frames.to(device)
    return frames
