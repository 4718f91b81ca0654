"""The verb `vega-edge select`: which block, sigma and mode of a teacher know most of the room, on validation rooms only.

Flags alone live here, so that asking for help imports nothing heavy; bench/selection.py does it. `--out FOLDER` writes an
artifact (selection.json, heatmap.png, manifest.json), `--out FILE.json` only the first of these.

    vega-edge select --teacher tiny --out runs/select
    python -m bench.select --teacher tiny --modes frame --out runs/tiny/settings-tiny.json
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vega_artifact import UserError


@dataclass(frozen=True, kw_only=True)
class Select:
    """Search block x sigma x mode of a teacher by 3D probes on validation rooms, with a picture. Resumes."""

    teacher: str = "tiny"
    """A name from `vega-edge list teachers`, or a folder with a model."""
    scenes: str | None = None
    """Scenes URI of the validation rooms that judge, posed and with depth; none: procedural ones."""
    fit_scenes: str | None = None
    """Scenes URI of the training rooms that the probes are fitted on; none: procedural ones."""
    blocks: tuple[int, ...] | None = None
    """Zero-based blocks to compare, all captured in one pass; none: all, or eight spread evenly, and the one in use."""
    sigmas: tuple[float, ...] | None = None
    """Noise levels to compare; none: 0.05 0.1 0.2 0.3 0.5."""
    modes: tuple[Literal["frame", "clip"], ...] | None = None
    """frame: every frame alone; clip: frames attend to one another; none: both, where the teacher has both."""
    draws: int | None = None
    """Noise draws averaged per feature; none: what the teacher is used with."""
    seed: int = 0
    """Seed of the noise."""
    random_weights: int | None = None
    """Score the same architecture with fresh weights of this seed instead."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the teacher."""
    device: str = "auto"
    """auto: cuda where there is one."""
    quick: bool = False
    """Few rooms, two sigmas and one draw: to see that it runs, not to choose."""
    out: Path | None = None
    """A folder for the artifact, or FILE.json for the rows and the winner; none: only print."""

    def run(self) -> None:
        from bench import selection

        print(selection.text(selection.select(self)))


def main() -> int:
    """`python -m bench.select`: exit code 0, or 2 for bad input with one sentence on stderr."""
    import tyro

    try:
        tyro.cli(Select, prog="bench.select").run()
    except UserError as error:
        print(f"bench.select: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
