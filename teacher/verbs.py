"""The verb of this room on the command line: `vega-edge extract`. Help imports nothing heavy.

vega-edge extract --teacher tiny --scenes "procedural:train?count=300" --out runs/cache --plan
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Scenes -> a cache of teacher features. Prints its plan first; resumes; run it several times at once to share the work."""

    teacher: str
    """A name from `vega-edge list teachers`, a folder with a model, NAME=FOLDER, or a hub id."""
    scenes: str
    """A scenes URI, such as procedural:val?count=20&seed=1, folder:PATH, scannet:PATH or video:PATH/*.mp4."""
    out: Path
    """The cache folder to write."""
    plan: bool = False
    """Print the plan (frames, bytes, time from one measured clip) and stop."""
    blocks: tuple[int, ...] | None = None
    """Blocks to read; none: those the teacher is used with. Likewise all that follow, unless they say otherwise."""
    sigma: float | None = None
    """Noise level in 0..1 at which the generator is stopped."""
    mode: Literal["frame", "clip"] | None = None
    """frame: every frame alone, as the paper's code does; clip: frames attend to one another."""
    crop: str | None = None
    """What the teacher sees of a frame. Wan: aligned (all of it), cover or reference (a cut); others: aligned or square."""
    size: tuple[int, int] | None = None
    """Height and width in pixels the teacher sees; with crop aligned the budget of pixels."""
    grid: tuple[int, int] | Literal["native"] | None = None
    """Rows and columns the maps are pooled to; native: the teacher's own tokens."""
    draws: int | None = None
    """Noise draws that are averaged."""
    seed: int = 0
    """Seed of the noise."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the teacher's weights and activations; maps are stored in float16 whatever it is."""
    prompt: Path | None = None
    """File with the encoding of the empty prompt; none: looked for in the teacher's folder."""
    device: str = "auto"
    """auto: each process takes a GPU of its own where there are any; else cpu, cuda:1, or cuda:0,cuda:1 for one big model."""
    on_bad_frame: Literal["error", "skip"] = "error"
    """skip: leave frames that cannot be read out, and list them in the manifest."""
    storage: str = "float16"
    """How maps lie on disk: float16, int8 (half of it) or pca:COMPONENTS; `vega-edge bench cache` measures what that costs."""
    frames: bool = True
    """Also keep the frames, without which no student can be trained from the cache."""
    scenes_per_shard: int = 16
    """Clips per file, which is also what a killed process loses at most, and about a third of the memory it holds."""

    def run(self) -> None:
        from teacher.extract import extract, prepare

        if advice := lone_launch(os.environ):
            print(advice, file=sys.stderr)
        settings: dict[str, Any] = {
            "seed": self.seed,
            "store_frames": self.frames,
            "scenes_per_shard": self.scenes_per_shard,
            "storage": self.storage,
            "on_bad_frame": self.on_bad_frame,
        }
        if self.plan:
            job = prepare(self.teacher, self.scenes, self.out, **settings, options=self.options())
            plan = job.plan()
            print(plan.text() if plan else f"plan: nothing to do, {self.out} is complete")
            if plan:
                job.writer.check_space(plan.bytes_needed)
            return
        cache = extract(self.teacher, self.scenes, self.out, **settings, **self.options())
        count = cache.manifest["dropped"]["count"]
        left = f"; {count} left out, listed in manifest.json under 'dropped'" if count else ""
        print(f"{self.out}: cache {cache.fingerprint}, {len(cache)} clips, {sum(cache.frames.values())} frames{left}")

    def options(self) -> dict[str, Any]:
        """What `load_teacher` is asked for: only what was said, so that every teacher keeps its own defaults."""
        import torch

        said = {name: getattr(self, name) for name in ("blocks", "sigma", "mode", "crop", "size", "draws")}
        found = {name: value for name, value in said.items() if value is not None}
        if self.grid is not None:
            found["grid"] = None if self.grid == "native" else self.grid
        if self.prompt is not None:
            found["prompt_embeds"] = self.prompt
        return found | {"dtype": getattr(torch, self.dtype), "device": self.chosen_device()}

    def chosen_device(self) -> str:
        """`device`, with auto resolved: processes on one machine take its GPUs in turn."""
        import torch

        from teacher.extract import local_rank

        if self.device != "auto":
            return self.device
        return f"cuda:{local_rank() % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def lone_launch(environment: Mapping[str, str]) -> str | None:
    """What to tell a user whose launcher was asked for several processes and started one, None if it did not."""
    if environment.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in environment and "RANK" not in environment:
        return (
            "note: accelerate starts one process on CPUs whatever --num_processes says (more need its MPI launcher); "
            "for N processes use torchrun --nproc_per_node N, or run this very command N times at once"
        )
    return None
