"""The verbs of this room on the command line: `vega-edge extract` and `vega-edge fit`. Help imports nothing heavy.

vega-edge extract --teacher tiny --scenes "procedural:train?count=300" --out runs/cache --plan
vega-edge fit --cache runs/cache --questions questions.json --out runs/fit
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Scenes -> a cache of teacher features. Prints its plan first; resumes; run it several times at once to share the work."""

    teacher: str
    """A name from `vega-edge list teachers`, a folder with a model, NAME=FOLDER, or a hub id."""
    scenes: str
    """A scenes URI: procedural:val?count=20&seed=1, folder:, scannet:, scannetpp:, arkitscenes:PATH or video:PATH/*.mp4."""
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
        from teacher.launch import lone_launch

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
        """`device`, with auto resolved."""
        from teacher.extract import own_device

        return own_device() if self.device == "auto" else self.device


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Cache and questions -> projectors and fusion trained through a reader (and, if wanted, its language model). Resumes."""

    cache: Path
    """A folder made by `vega-edge extract`."""
    questions: tuple[Path, ...]
    """Files of ScanQA, SQA3D or VSI-Bench questions about the cached scenes."""
    out: Path
    """The folder to write."""
    reader: str = "embedded"
    """The embedded reader, or the folder of a Hugging Face causal language model (Qwen2, LLaVA-Video, Qwen2.5-VL, ...)."""
    fusion: str = "token_gated"
    """token_gated, token_gated_residual, gated, add, weighted, concat, cross_attention, context_gated, only; sequence: both
    streams unfused; semantic: that stream alone; blind: no visual tokens."""
    positions: Literal["none", "reference", "masked"] = "none"
    """3D positions added to the tokens (needs depth and poses): as VEGA-3D makes them, or without pixels of unknown depth."""
    semantic: Path | None = None
    """A SigLIP folder that reads the cached frames; none: the cache's own semantic stream."""
    language: Literal["frozen", "lora", "full"] = "frozen"
    """What of the language model is trained; lora needs the package peft."""
    lora_rank: int = 16
    """Rank of the LoRA matrices."""
    steps: int = 200
    """Optimiser steps."""
    accumulate: int = 4
    """Scenes per step and process."""
    per_scene: int = 16
    """At most so many questions of a scene at once."""
    rate: float = 1e-3
    """Peak learning rate of projectors and fusion."""
    language_rate: float = 1e-5
    """Peak learning rate of the language model."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: under autocast; auto: bf16 on a GPU."""
    checkpointing: bool = False
    """Recompute the language model's activations instead of keeping them: less memory, more time."""
    save_every: int = 50
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of fresh weights and of the order of scenes and questions."""

    def run(self) -> None:
        from teacher.fit import FitConfig, fit
        from teacher.launch import rank
        from teacher.tutor import Parts
        from vega_artifact import read_manifest

        parts = ("reader", "fusion", "positions", "language", "lora_rank", "seed")
        rest = ("steps", "accumulate", "rate", "language_rate", "precision", "checkpointing", "save_every", "seed")
        config = FitConfig(
            parts=Parts(**{name: getattr(self, name) for name in parts}),
            semantic=None if self.semantic is None else str(self.semantic),
            questions=self.per_scene,
            **{name: getattr(self, name) for name in rest},
        )
        manifest = read_manifest(fit(self.cache, self.questions, self.out, config), "fit")
        if rank() == 0:
            print(f"{self.out}: fit {manifest['fingerprint']}, {manifest['trained']} parameters trained, {manifest['lessons']}")
