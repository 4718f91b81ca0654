"""Fits: the rows of a parity claim for readers that `vega-edge fit` made, whatever their language model.

A fit reads the semantic and the generative stream, so the student's own two streams take the place of the teacher's, before
the very same projectors, fusion and language model. Which row a fit answers is told by its fusion: "semantic", "blind", or any
other for the teacher, the student and the noise floor. Beside bench/conditions.py, which has the rows of the embedded readers.

    vega-edge bench parity --task scanqa --reader FUSED_FIT SEMANTIC_FIT BLIND_FIT --teacher CACHE --student EXPORT \
        --questions ScanQA_v1.0_val.json
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.conditions import as_stored
from bench.maps import exported_maps
from teacher.cache import FeatureCache
from teacher.fit_folder import load_fit
from teacher.fit_streams import SceneStreams
from teacher.tutor import BLIND, Parts, Tutor
from teacher.visual import SEMANTIC
from vega_artifact import UserError, read_manifest

FUSED, GENERATIVE = "fused", "generative"
Streams = Callable[[str], Mapping[str, Tensor]]  # scene_id -> what a Tutor reads of it


@dataclass(frozen=True)
class Fitted:
    """One row (`bench.conditions.Row`): what is read of a scene, and the fit that answers from it."""

    streams: Streams
    tutor: Tutor

    @property
    def readers(self) -> tuple[Tutor]:
        return (self.tutor,)

    def answer(self, scene: str, prompts: Sequence[str], views: Sequence[int | None]) -> list[list[str]]:
        """See `bench.conditions.Row`."""
        return [self.tutor.answer(self.streams(scene), prompts, views)]


def fitted(folders: Sequence[str], cache: FeatureCache, export: Path, reseeded: FeatureCache) -> dict[str, Fitted]:
    """The rows in the order of the table; a row without a fit is absent.

    Args:
        folders: of `vega-edge fit`, at most one each for fused, semantic and blind.

    Raises:
        UserError: no fused fit, two of one kind, no finished fit, or a cache or export without the streams a fit reads.
    """
    fits = _by_kind(folders)
    streams = {kind: _streams(folder, cache).read for kind, folder in fits.items()}
    tutors = {kind: load_fit(folder) for kind, folder in fits.items()}
    read = streams[FUSED]
    student = {name: exported_maps([cache], export, name) for name in (SEMANTIC, GENERATIVE)}

    def of_student(scene: str) -> dict[str, Tensor]:
        return {**read(scene)} | {name: as_stored(maps[scene]) for name, maps in student.items()}

    def of_other_noise(scene: str) -> dict[str, Tensor]:
        return {**read(scene)} | {GENERATIVE: torch.from_numpy(reseeded.read(scene, GENERATIVE)).float()}

    fused = tutors[FUSED]
    rows = {"teacher": Fitted(read, fused), "student_exported": Fitted(of_student, fused)}
    rows |= {kind: Fitted(streams[kind], tutors[kind]) for kind in (SEMANTIC, BLIND) if kind in fits}
    return rows | {"teacher_reseeded": Fitted(of_other_noise, fused)}


def _by_kind(folders: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder in map(Path, folders):
        fusion = read_manifest(folder, "fit")["config"]["parts"]["fusion"]
        kind = fusion if fusion in (SEMANTIC, BLIND) else FUSED
        if kind in found:
            raise UserError(f"{folder}: a second {kind} fit beside {found[kind]}; give one of a kind as --reader")
        found[kind] = folder
    if FUSED not in found:
        raise UserError(
            f"{', '.join(folders)}: no fit of fused tokens among them; give the one whose student is judged as well"
        )
    return found


def _streams(folder: Path, cache: FeatureCache) -> SceneStreams:
    config = read_manifest(folder, "fit")["config"]
    return SceneStreams(cache, Parts(**config["parts"]), config["semantic"])
