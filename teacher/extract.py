"""Runs the teacher over scenes and fills a feature cache: plan first, resumable, by any number of processes.

vega-edge extract --teacher tiny --scenes "procedural:train?count=300" --out runs/cache
torchrun --nproc_per_node 2 -m vega_edge extract ...       # or the first command, as often as you like, on any machine
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from teacher.cache import FeatureCache
from teacher.launch import local_rank, rank
from teacher.plan import Plan, Probe
from teacher.prefetch import prefetch
from teacher.scenes import PosedClip, SceneSource, open_scenes
from teacher.storage import Storage, open_storage
from teacher.streams import Pipeline, load_pipeline
from teacher.writer import CacheWriter

SAMPLE = 16  # clips that fit a reduced storage which needs statistics


def extract(
    teacher: str | Pipeline,
    scenes: str,
    out: Path | str,
    *,
    seed: int | None = None,
    store_frames: bool = True,
    scenes_per_shard: int = 16,
    storage: str = "float16",
    on_bad_frame: str = "error",
    **options: Any,
) -> FeatureCache:
    """Fill (or complete) the cache at `out`; processes that do so at once share the work, see `teacher.writer`.

    Args:
        teacher: registry name, folder of weights, or a ready pipeline.
        scenes: scenes URI, see `teacher.scenes`.
        seed: noise seed; None takes the teacher's.
        store_frames: also keep the frames, so that a student can train from the cache alone.
        storage: how maps lie on disk, see `teacher.storage`.
        on_bad_frame: "skip" leaves frames out that cannot be read and lists them in the manifest; same as in the URI.
        options: passed to `load_teacher` (blocks, sigma, mode, ...).
    Raises:
        UserError: the folder holds another cache, the disk is short, a frame cannot be read, or a feature is not finite.
    """
    job = prepare(teacher, scenes, out, seed, store_frames, scenes_per_shard, storage, on_bad_frame, options)
    if plan := job.plan():
        if rank() == 0:
            Console(stderr=True, highlight=False, soft_wrap=True).print(plan.text())
        job.writer.check_space(plan.bytes_needed)
    job.fill()
    job.writer.finish()
    return FeatureCache(out)


def prepare(
    teacher: str | Pipeline,
    scenes: str,
    out: Path | str,
    seed: int | None,
    store_frames: bool,
    scenes_per_shard: int,
    storage: str,
    on_bad_frame: str,
    options: Mapping[str, Any],
) -> Job:
    """Everything that can be refused without running the teacher; arguments as in `extract`. Writes nothing."""
    if on_bad_frame != "error":
        scenes += f"{'&' if '?' in scenes else '?'}on_bad_frame={on_bad_frame}"
    source = open_scenes(scenes)  # first: a typo in the URI must not cost the loading of a teacher
    form = open_storage(storage, Path(out))
    pipeline = teacher if isinstance(teacher, Pipeline) else load_pipeline(teacher, **options)
    config = {
        "teacher": vars(pipeline.teacher.config),
        "asked_for": teacher if isinstance(teacher, str) else pipeline.teacher.config.name,
        "block": pipeline.block,
        "sigma_used": pipeline.teacher.sigma,
        "prompt": str(given) if isinstance(given := options.get("prompt_embeds"), (str, Path)) else None,
        "scenes": source.uri,
        "scenes_fingerprint": source.fingerprint,
        "seed": pipeline.teacher.config.seed if seed is None else seed,
        "store_frames": store_frames,
        "storage": form.name,
    }
    parents = {"teacher": pipeline.fingerprint}
    writer = CacheWriter(out, config, parents, list(source.scene_ids), scenes_per_shard, form)
    return Job(pipeline, source, writer, form, seed, store_frames)


@dataclass
class Job:
    """One process's part in filling a cache.

    Attributes:
        probe: the clip that was measured for the plan; its features are not computed again.
    """

    pipeline: Pipeline
    source: SceneSource
    writer: CacheWriter
    storage: Storage
    seed: int | None
    store_frames: bool
    probe: Probe | None = field(default=None)

    def plan(self) -> Plan | None:
        """What is still to be done, from a measured clip; None when nothing is. Writes nothing.

        Raises:
            UserError: the clip cannot be read, or holds what the cache refuses.
        """
        if not (shards := self.writer.missing_shards()):
            return None
        index = self.source.scene_ids.index(self.writer.groups[self.first(shards)][0])
        self.probe = Probe.measure(lambda: self.source[index], self.record)
        self.writer.check(self.probe.clip.scene_id, self.probe.arrays)
        missing = len(self.writer.missing())
        total = len(self.writer.scene_ids)
        return Plan.of(self.probe, self.storage, total, missing, len(self.writer.groups), self.writer.free_space())

    def fill(self) -> None:
        """Make shards until the cache has all of them, be it by others."""
        shards = self.writer.missing_shards()
        if shards or self.storage.files:
            self.writer.begin()
            self.storage.prepare(self._sample)
        total = len(self.writer.missing())
        columns = (TextColumn("extract"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), disable=rank() != 0 or not total) as progress:
            task = progress.add_task("extract", total=total)
            for scenes in self.writer.claims(self.first(shards)) if shards else ():
                for clip in prefetch(self.source.__getitem__, map(self.source.scene_ids.index, scenes)):
                    self.writer.add(clip.scene_id, self._of(clip), clip.dropped)
                    progress.update(task, completed=total - len(self.writer.missing()))

    def first(self, shards: Sequence[int]) -> int:
        """Where this process begins, so that processes started together begin apart."""
        return shards[rank() % len(shards)]

    def record(self, clip: PosedClip) -> dict[str, np.ndarray]:
        return clip_record(self.pipeline, clip, self.seed, self.store_frames)

    def _of(self, clip: PosedClip) -> Mapping[str, np.ndarray]:
        if self.probe and self.probe.clip.scene_id == clip.scene_id:
            return self.probe.arrays
        return self.record(clip)

    def _sample(self) -> Iterator[Mapping[str, np.ndarray]]:
        """Clips spread evenly over the plan, whatever is on disk: the same for every process and every resume."""
        count = len(self.source.scene_ids)
        for index in sorted(set(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int).tolist())):
            yield self._of(self.source[index])


def clip_record(pipeline: Pipeline, clip: PosedClip, seed: int | None, store_frames: bool) -> dict[str, np.ndarray]:
    """What the cache holds of one clip: float16 streams, frame ids, and the frames if wanted."""
    record = {
        name: value.astype(np.float16)
        for name, value in pipeline.streams(clip.rgb, clip.scene_id, clip.frame_ids, seed).items()
    }
    kept = pipeline.teacher.frame_index(len(clip.rgb))
    record["frame_ids"] = np.asarray(clip.frame_ids, dtype=np.int64)[kept]
    if store_frames:
        record["rgb"] = clip.rgb[kept]
    return record


def own_device() -> str:
    """Where this process computes if nothing else is said: processes on one machine take its GPUs in turn; else the CPU."""
    return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
