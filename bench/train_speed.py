"""How much of the machine the trainer uses: images/s of its full loop against forward and backward alone, taking turns.

A leaf of the chain: CACHE (or random records of the same shape) -> rows. The loop is the trainer's own: fetch, augment,
normalise, forward, backward, clip, check, optimiser, log. The other side runs forward and backward of the same module on one
prepared batch that already lies on the device. Both work in short turns in one process, so that a busy machine slows both.

    vega-edge bench train --recipe demo --threads 1 2
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.latency import machine
from bench.teacher import accelerator, synchronise
from distill import recipes
from distill.config import RunConfig
from distill.engine import create_accelerator
from distill.log import RunLog
from distill.state import LOG, RunFolder
from distill.train import Trainer, Window
from teacher.cache import CacheWriter, FeatureCache
from vega_artifact import UserError, tool_versions

SCENES, CHANNELS, GRID, SIDE = 20, 128, 8, 128  # random records: the embedded teacher's shapes
SIDES = ("loop", "pure")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured.

    Attributes:
        recipe: of `distill.recipes`; its student, batch, losses and precision are measured.
        optimizer, batch: instead of the recipe's.
        threads: CPU threads of torch to try, one row each; on a GPU the first alone.
        steps: per turn. rounds: timed turns of either side.
        cpu: measure on the CPU although there is an accelerator.
    """

    recipe: str = "demo"
    optimizer: str | None = None
    batch: int | None = None
    threads: tuple[int, ...] = (1, 2)
    steps: int = 3
    rounds: int = 5
    cpu: bool = False

    def __post_init__(self) -> None:
        if min(self.steps, self.rounds, *self.threads, 1 if self.batch is None else self.batch) < 1 or not self.threads:
            raise UserError("bench train: threads, steps, rounds and batch must be at least 1")

    def config(self) -> RunConfig:
        """The recipe's config, long enough, and silent."""
        asked = {"optimizer": self.optimizer, "batch": self.batch}
        changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        turns = (self.rounds + 1) * self.steps * len(self.threads) + 1
        return replace(recipes.create(self.recipe), **changes, steps=turns, accumulate=1, progress=False, trackers=())


def measure(settings: Settings, cache: Path | None = None) -> dict[str, Any]:
    """Time both sides in turns.

    Args:
        cache: what to train on; None: random records in a temporary folder.

    Returns:
        {"rows": [{threads, optimizer, precision, batch, loop_images_s, pure_images_s, ratio, ratio_range, data_part,
        update_part}], "settings", "machine", "versions", "samples": seconds per turn}. Rates are medians, ratio is theirs,
        ratio_range that of single rounds; data_part and update_part are the shares of the loop that went into waiting for data
        and into the optimiser.

    Raises:
        UserError: numbers out of range, an unknown recipe, a cache that does not fit the recipe.
    """
    config, before = settings.config(), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place:
        source = FeatureCache(cache or random_cache(Path(place) / "cache", config))
        folder = RunFolder(Path(place) / "run", config, source.fingerprint)
        trainer = Trainer(source, folder, config, create_accelerator(cpu=settings.cpu))
        threads = settings.threads if trainer.device.type == "cpu" else settings.threads[:1]
        folder.claim({})
        try:
            with trainer.batches, RunLog(folder.path / LOG, config.steps, progress=False) as log:
                turns = Turns(trainer, log, settings.steps)
                samples = {count: take_turns(turns, settings.rounds, count) for count in threads}
        finally:
            torch.set_num_threads(before)
    return {
        "rows": [row(trainer, settings, count, found) for count, found in samples.items()],
        "settings": asdict(settings),
        "machine": {**machine(), "accelerator": accelerator(trainer.device)},
        "versions": tool_versions(),
        "samples": {str(count): found for count, found in samples.items()},
    }


def random_cache(path: Path, config: RunConfig) -> Path:
    """A cache of random frames and streams, with twice as many frames as a batch takes."""
    writer = CacheWriter(path, {"random": config.batch}, {"teacher": "random"}, [f"random-{k}" for k in range(SCENES)])
    height, width = config.image_size or (SIDE, SIDE)
    frames = max(2, 2 * config.batch // SCENES + 1)
    for index, scene in enumerate(writer.scene_ids):
        rng = np.random.default_rng(index)
        arrays: dict[str, np.ndarray] = {
            name: rng.standard_normal((frames, CHANNELS, GRID, GRID), np.float32).astype(np.float16) for name in config.streams
        }
        arrays["rgb"] = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        writer.add(scene, arrays | {"frame_ids": np.arange(frames)})
    writer.finish()
    return path


class Turns:
    """Both sides on one trainer; each turn takes `steps` steps and returns the seconds it took."""

    def __init__(self, trainer: Trainer, log: RunLog, steps: int) -> None:
        self.trainer, self.log, self.steps = trainer, log, steps
        self.resident = trainer.batches.take(0, 0)
        self.waited = self.updating = 0.0
        self.apply, trainer.engine.apply = trainer.engine.apply, self._timed_apply  # type: ignore[method-assign]

    def _timed_apply(self, step: int) -> None:
        synchronise(self.trainer.device)
        began = time.perf_counter()
        self.apply(step)
        synchronise(self.trainer.device)
        self.updating += time.perf_counter() - began

    def loop(self) -> None:
        """The trainer's steps and its line of the log."""
        window = Window()
        for _ in range(self.steps):
            self.trainer.advance(window)
        self.trainer.report(self.log, window)
        self.waited += window.waited

    def pure(self) -> None:
        """Forward and backward alone."""
        module = self.trainer.engine.bare
        for _ in range(self.steps):
            total, _ = module(self.resident.pixels, self.resident.targets, self.resident.hints)
            total.backward()
            module.zero_grad(set_to_none=True)

    def timed(self, side: Callable[[], None]) -> float:
        synchronise(self.trainer.device)
        began = time.perf_counter()
        side()
        synchronise(self.trainer.device)
        return time.perf_counter() - began


def take_turns(turns: Turns, rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of every turn by side, and of all the loop's waiting and updating; the first round does not count."""
    torch.set_num_threads(threads)
    turns.loop()
    turns.pure()
    turns.waited = turns.updating = 0.0
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES if number % 2 else SIDES[::-1]:
            found[side].append(turns.timed(getattr(turns, side)))
    return found | {"waited": [turns.waited], "updating": [turns.updating]}


def row(trainer: Trainer, settings: Settings, threads: int, samples: dict[str, list[float]]) -> dict[str, Any]:
    """Rates and their ratio; see `measure`."""
    images = settings.steps * trainer.config.batch
    rates = {side: images / statistics.median(samples[side]) for side in SIDES}
    ratios = [pure / loop for loop, pure in zip(samples["loop"], samples["pure"], strict=True)]
    total = sum(samples["loop"])
    return {
        "threads": threads,
        "optimizer": trainer.config.optimizer,
        "precision": trainer.precision,
        "batch": trainer.config.batch,
        **{f"{side}_images_s": rate for side, rate in rates.items()},
        "ratio": rates["loop"] / rates["pure"],
        "ratio_range": [min(ratios), max(ratios)],
        "data_part": samples["waited"][0] / total,
        "update_part": samples["updating"][0] / total,
    }


def table(result: dict[str, Any]) -> str:
    """The rows as text for a terminal, with what they were measured on; the fastest loop is marked."""
    where, settings = result["machine"], result["settings"]
    best = max(result["rows"], key=lambda found: found["loop_images_s"])
    lines = [
        f"{where['accelerator'] or where['device']}, {where['cores']} core(s), load {where['load_1min']}; recipe "
        f"{settings['recipe']}, median of {settings['rounds']} turns of {settings['steps']} steps",
        f"{'threads':>7}{'optimizer':>11}{'precision':>11}{'batch':>7}{'loop img/s':>12}{'pure img/s':>12}{'ratio':>7}"
        f"{'over rounds':>15}{'data':>7}{'update':>8}",
    ]
    lines += [line(found, found is best) for found in result["rows"]]
    return "\n".join(lines)


def line(found: dict[str, Any], best: bool) -> str:
    spread = f"{found['ratio_range'][0]:.2f} to {found['ratio_range'][1]:.2f}"
    return (
        f"{found['threads']:>7}{found['optimizer']:>11}{found['precision']:>11}{found['batch']:>7}{found['loop_images_s']:>12.1f}"
        f"{found['pure_images_s']:>12.1f}{found['ratio']:>7.3f}{spread:>15}{found['data_part']:>7.1%}{found['update_part']:>8.1%}"
        f"{'  <- fastest' if best else ''}"
    )
