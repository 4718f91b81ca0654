"""Lineage: whose student an exported file is, read from the manifests between it and its teacher.

Before anything is compared: export -> run (its `parents.run`) -> teacher (what the run was distilled from). An engine is one
step further down. Parents are looked for beside the artifact; a run that lies elsewhere has to be named.

    python -c "from bench.lineage import check_student; check_student('runs/demo/export', '6e5b98fb1896a552', 'a cache')"
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vega_artifact import MANIFEST, UserError, check_parent, read_json, read_manifest

PARENTS = {"engine": "export", "export": "run"}


def check_student(student: Path | str, teacher: str, where: Path | str, run: Path | str | None = None) -> None:
    """Refuse a student that another teacher taught.

    Args:
        student: folder of kind "export" or "engine". teacher: fingerprint of the teacher it is compared with.
        where: what that teacher was read from, for the sentence. run: the student's run; None looks beside the export.

    Raises:
        UserError: no such artifact, a run that is not beside it or not its own, or a student of another teacher.
    """
    record, found = run_of(Path(student), run)
    taught = record.get("teacher")
    if taught != teacher:
        raise UserError(
            f"{student}: a student of teacher {taught} (run {found}), but {where} is of teacher {teacher}; "
            "give both of one teacher"
        )


def run_of(student: Path, run: Path | str | None = None) -> tuple[dict[str, Any], Path]:
    """The manifest and folder of the run that an export or an engine came from; arguments and errors as in `check_student`."""
    folder, manifest = student, _read(student)
    while manifest["kind"] in PARENTS:
        stage = PARENTS[manifest["kind"]]
        expected = manifest["parents"].get(stage)
        if stage == "run" and run is not None:
            record = read_manifest(run, "run")
            check_parent(manifest, "run", record["fingerprint"], folder)
            return record, Path(run)
        parent = _beside(folder, stage, expected)
        if parent is None:
            raise UserError(
                f"{folder}: its {stage} {expected} is not beside it, so nobody can say who taught it; "
                f"{'give that folder by --run' if stage == 'run' else f'give the {stage} itself'}"
            )
        folder, manifest = parent
    return manifest, folder


def _read(student: Path) -> dict[str, Any]:
    kind = "engine" if (student / "engine.plan").exists() else "export"
    return read_manifest(student, kind)


def _beside(folder: Path, kind: str, fingerprint: str | None) -> tuple[Path, dict[str, Any]] | None:
    """The artifact of this kind and fingerprint in the same parent folder, with its manifest."""
    for path in sorted(folder.resolve().parent.glob(f"*/{MANIFEST}")):
        try:
            found = read_json(path)
        except UserError:  # a neighbour that is none of ours
            continue
        if isinstance(found, dict) and found.get("kind") == kind and found.get("fingerprint") == fingerprint:
            return path.parent, read_manifest(path.parent, kind)
    return None
