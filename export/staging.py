"""A folder that appears all at once: built beside its destination, then renamed.

Used by every step of `export` that writes an artifact, so that a killed export leaves either the old folder or the new one.

    from export.staging import staged_folder
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.parity import WrongAnswers
from export.runtime.manifest import MODEL
from vega_artifact import MANIFEST, UserError, read_manifest


@contextmanager
def staged_folder(out: Path, kind: str) -> Iterator[Path]:
    """Yield an empty folder; when the block ends without an error it takes the place of `out`.

    Only a missing or empty folder, or an earlier artifact of the same kind, is ever replaced. A graph that gave wrong answers
    is kept beside it for `export.bisect`.

    Raises:
        UserError: `out` holds something else, or the disk is full; `out` is then what it was.
    """
    check_replaceable(out, kind)
    partial = out.with_name(f".{out.name}.partial")
    retired = out.with_name(f".{out.name}.old")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed attempt left
    try:
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(retired, ignore_errors=True)
        if out.exists():
            os.replace(out, retired)
        os.replace(partial, out)
    except WrongAnswers as error:
        kept = out.with_name(f"{out.name}.refused.onnx")
        os.replace(partial / MODEL, kept)
        where = f"kept as {kept}; `python -m export.bisect FP32_EXPORT {kept}` shows where it goes wrong"
        raise WrongAnswers(f"{error}; {where}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{out}: the disk is full; free some space and run the same command again") from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def check_replaceable(out: Path, kind: str) -> None:
    """Raise UserError unless `out` is missing, empty, or an artifact of this kind."""
    if out.is_file():
        raise UserError(f"{out}: is a file; give the name of a folder for the {kind}")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).exists():
        raise UserError(f"{out}: holds other files and no {kind}; give a new or empty folder")
    try:
        read_manifest(out, kind)
    except UserError as error:
        raise UserError(f"{out}: would be replaced but is no {kind} ({error}); delete it or give another folder") from None
