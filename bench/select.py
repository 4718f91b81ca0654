"""Which block and which sigma: scored by the 3D probes on validation rooms, never on test rooms.

python -m bench.select --teacher tiny --sigmas 0.05 0.1 0.2 0.3 0.5 --out select.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.probes import evaluate
from vega_artifact import UserError, write_json

if TYPE_CHECKING:
    from teacher.features import Teacher
    from teacher.scenes import PosedClip

METRICS = ("depth_r2", "correspondence_recall_centred")


@dataclass(frozen=True)
class Rooms:
    """Clips that fit the probes, tune their ridge and judge: train rooms twice, validation rooms once."""

    fit: list[PosedClip]
    tune: list[PosedClip]
    judge: list[PosedClip]

    @classmethod
    def open(cls, fit: int = 80, tune: int = 30, judge: int = 50, size: int = 128) -> Rooms:
        from teacher.scenes import open_scenes

        train = open_scenes(f"procedural:train?count={fit + tune}&frames=8&size={size}&seed=7")
        val = open_scenes(f"procedural:val?count={judge}&frames=8&size={size}&seed=7")
        clips = [train[i] for i in range(fit + tune)]
        return cls(clips[:fit], clips[fit:], [val[i] for i in range(judge)])


def grid(make: Callable[[float], Teacher], sigmas: Sequence[float], rooms: Rooms) -> list[dict[str, Any]]:
    """Probe every wanted block of `make(sigma)`; one row {block, sigma, metric: value, ...} per setting."""
    clips = [*rooms.fit, *rooms.tune, *rooms.judge]
    rows = []
    for sigma in sigmas:
        teacher = make(sigma)
        features = {
            clip.scene_id: teacher.features(clip.rgb, scene_id=clip.scene_id, frame_ids=clip.frame_ids).blocks for clip in clips
        }
        models = {
            f"block {block}": {scene: blocks[block].numpy() for scene, blocks in features.items()}
            for block in teacher.simulator.wanted
        }
        found = evaluate(models, rooms.fit, rooms.tune, rooms.judge, pairs=(), draws=100)
        values = {(row["model"], row["metric"]): row["value"] for row in found["probes"]}
        rows += [
            {"block": block, "sigma": sigma, "draws": teacher.config.draws}
            | {metric: values[f"block {block}", metric] for metric in METRICS}
            for block in teacher.simulator.wanted
        ]
    return rows


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the highest mean rank-free score: depth R2 plus centred correspondence recall."""
    if not rows:
        raise UserError("select: no setting was scored; give at least one block and one sigma")
    return max(rows, key=lambda row: np.mean([row[metric] for metric in METRICS]))


@dataclass(frozen=True, kw_only=True)
class Select:
    """Search block x sigma of a teacher on validation rooms."""

    teacher: str = "tiny"
    """Registry name or folder of weights."""
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    """Zero-based blocks to compare, all captured in one pass per sigma."""
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5)
    """Noise levels to compare."""
    draws: int = 4
    """Noise draws averaged per feature."""
    random_weights: int | None = None
    """Score the same architecture with fresh weights of this seed instead."""
    out: Path | None = None
    """JSON file for all rows and the winner."""

    def run(self) -> None:
        from teacher import load_teacher

        def make(sigma: float) -> Teacher:
            return load_teacher(
                self.teacher, blocks=self.blocks, sigma=sigma, draws=self.draws, random_weights=self.random_weights
            )

        rows = grid(make, self.sigmas, Rooms.open())
        for row in rows:
            print(
                "  ".join(f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
            )
        print("best:", best(rows))
        if self.out:
            write_json(self.out, {"rows": rows, "best": best(rows)})


if __name__ == "__main__":
    import tyro

    tyro.cli(Select).run()
