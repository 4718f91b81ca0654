"""Live: a teacher that watches its scenes now, where a parity claim has no cache of it yet.

In place of the cache that bench/parity.py compares with; it is made below its output folder, and a second call resumes it.

    vega-edge bench parity --task ladder --teacher live --backbone tiny-geometry --scenes "procedural:test?count=20" \
        --student EXPORT
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.lineage import check_student
from teacher.cache import FeatureCache
from teacher.extract import extract
from teacher.streams import load_pipeline
from teacher.verbs import Extract
from vega_artifact import UserError

WORD = "live"


@dataclass(frozen=True)
class Live:
    """backbone: name or folder of a teacher; scenes: URI of what it watches; out: folder of the cache, filled or completed."""

    backbone: str
    scenes: str
    out: Path

    def cache(self, student: Path, run: Path | None = None) -> FeatureCache:
        """What the teacher says about its scenes, with the settings of `vega-edge extract`; the student must be its own.

        Raises:
            UserError: an unknown teacher, scenes that cannot be read, a foreign student, or another cache at `out`.
        """
        options = Extract(teacher=self.backbone, scenes=self.scenes, out=self.out).options()
        # loaded once more by the extraction, so that a foreign student is refused before hours of it
        check_student(student, load_pipeline(self.backbone, **options).fingerprint, f"--backbone {self.backbone}", run)
        return extract(self.backbone, self.scenes, self.out, **options)


def chosen(teacher: str, backbone: str | None, scenes: str | None, out: Path) -> Path | Live:
    """The teacher that the options name: a path, or with the word "live" one that runs now.

    Raises:
        UserError: "live" without --backbone or --scenes, or one of these without "live".
    """
    if teacher != WORD:
        if backbone is not None or scenes is not None:
            raise UserError(f"--backbone and --scenes belong to --teacher {WORD}, but --teacher is {teacher}; leave them out")
        return Path(teacher)
    if backbone is None or scenes is None:
        lacking = " and ".join(name for name, given in (("--backbone", backbone), ("--scenes", scenes)) if given is None)
        raise UserError(f"--teacher {WORD} runs a teacher now and lacks {lacking}; give --backbone NAME and --scenes URI")
    return Live(backbone, scenes, out)
