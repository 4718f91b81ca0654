"""The settings of a teacher that are compared: blocks x sigmas x modes, the one it is shipped with among them.

Place in the chain: first step of `vega-edge select`; bench/search.py halves what is planned here.

    python -c "from bench.candidates import Plan; from bench.select import Select; print(Plan.of(Select()).grid)"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.search import SHARES, Alive, Pass, Setting
from bench.select import Select
from bench.validation import open_sources
from vega_artifact import UserError, canonical

if TYPE_CHECKING:
    from teacher.features import FeatureTeacher
    from teacher.scenes.source import SceneSource

MODES: tuple[str, ...] = ("frame", "clip")
MOST_BLOCKS = 8
SEARCHED = ("blocks", "sigma", "mode", "draws")  # fields of a teacher's settings that the grid varies


@dataclass(frozen=True)
class Size:
    """How much a search does where its flags leave it open: ten seconds of walk per room, dense enough for clip mode."""

    fit: int
    judge: int
    frames: int
    sigmas: tuple[float, ...]
    draws: int | None
    study: tuple[int, ...]

    def uri(self, split: str, count: int) -> str:
        return f"procedural:{split}?count={count}&frames={self.frames}&size=128&seed=7&span=0.35"


FULL = Size(96, 48, 17, (0.05, 0.1, 0.2, 0.3, 0.5), None, (1, 2, 4, 8))
QUICK = Size(8, 4, 5, (0.1, 0.3), 1, (1, 2))


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first room is watched.

    Attributes:
        grid: pass -> blocks; default: the setting the teacher is shipped with, in the grid too.
        draws: noise draws per feature.  sources: scenes that judge, and that fit.
        identity: JSON of all that changes a number; a search resumes only what has the same.
        scored: frames of a clip -> which of them every mode delivers.
    """

    size: Size
    grid: Alive
    default: Setting
    draws: int
    sources: tuple[SceneSource, SceneSource]
    identity: dict[str, Any]
    scored: Callable[[int], np.ndarray]

    @classmethod
    def of(cls, options: Select) -> Plan:
        """Load the teacher once per pass and look at the scenes, so that what is wrong shows before the work begins.

        Raises:
            UserError: unknown teacher or scenes, test rooms, settings out of range.
        """
        size = QUICK if options.quick else FULL
        sources = open_sources(options.scenes or size.uri("val", size.judge), options.fit_scenes or size.uri("train", size.fit))
        shipped = load(options)
        default = Setting(shipped.wanted[-1], Pass(shipped.config.sigma, shipped.config.mode))
        draws = options.draws if options.draws is not None else size.draws or shipped.config.draws
        if draws < 1:
            raise UserError(f"--draws {draws}: at least one noise draw is needed")
        sigmas = options.sigmas or (size.sigmas if shipped.sigma else (shipped.config.sigma,))
        grid = _distinct(options, default, sigmas, _blocks(options, default.block))
        modes = tuple(dict.fromkeys(at.mode for at in grid))
        searched = {"grid": [[at.sigma, at.mode, chosen] for at, chosen in grid.items()], "draws": draws, "shares": SHARES}
        fixed = {key: value for key, value in vars(shipped.config).items() if key not in ("name", *SEARCHED)}
        scenes = {"judge": sources[0].fingerprint, "fit": sources[1].fingerprint}
        identity = canonical({"teacher": fixed, "default": vars(default), **searched, "scenes": scenes, "study": size.study})
        return cls(size, grid, default, draws, sources, identity, cache(partial(_scored, options, default.at.sigma, modes)))


def load(
    options: Select, at: Pass | None = None, blocks: Sequence[int] | None = None, draws: int | None = None
) -> FeatureTeacher:
    """The teacher at a pass, or as it is shipped; always whole frames, for the probes know where a cell lies in the frame."""
    import torch

    from teacher import load_teacher

    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return load_teacher(
        options.teacher,
        blocks=None if blocks is None else tuple(blocks),
        sigma=at.sigma if at else None,
        mode=at.mode if at else None,
        draws=draws,
        seed=options.seed,
        dtype=getattr(torch, options.dtype),
        device=device,
        random_weights=options.random_weights,
    )


def _distinct(options: Select, default: Setting, sigmas: Sequence[float], blocks: tuple[int, ...]) -> Alive:
    """Passes that differ to the teacher, the shipped one first: sigmas snap to its schedule, and some take no noise."""
    grid: Alive = {default.at: tuple(sorted({*blocks, default.block}))}
    seen = {(load(options, default.at).sigma, default.at.mode)}
    for at in (Pass(sigma, mode) for mode in options.modes or MODES for sigma in sigmas):
        try:
            teacher = load(options, at, blocks)
        except UserError:
            if options.modes or at.mode == default.at.mode:
                raise
            continue  # a mode that nobody asked for and the teacher does not have
        if options.modes and teacher.config.mode != at.mode:
            raise UserError(f"--modes {at.mode}: {options.teacher} works in {teacher.config.mode} mode only; leave --modes out")
        if (key := (teacher.sigma, teacher.config.mode)) not in seen and key[1] == at.mode:
            seen.add(key)
            grid[at] = blocks
    return grid


def _scored(options: Select, sigma: float, modes: Sequence[str], frames: int) -> np.ndarray:
    return reduce(np.intersect1d, [load(options, Pass(sigma, mode)).frame_index(frames) for mode in modes])


def _blocks(options: Select, default: int) -> tuple[int, ...]:
    """Blocks to compare, counted from the front."""
    count = load(options, blocks=(-1,)).wanted[-1] + 1
    if options.blocks:
        return tuple(load(options, blocks=options.blocks).wanted)  # the teacher says which numbers are none
    spread = np.linspace(0, count - 1, min(count, MOST_BLOCKS)).round().astype(int)
    return tuple(sorted({*spread.tolist(), default}))
