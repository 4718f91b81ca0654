"""Fetches a checkpoint from the hub: what the local hub cache already holds is used, and nothing is sent in that case.

Called only for a name the user gave as a hub id or a registry name; a folder never leads here.

    python -c "from teacher.hub import hub_folder; print(hub_folder('Wan-AI/Wan2.1-T2V-1.3B-Diffusers', ['vae/*'], bool))"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from vega_artifact import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_hub_id(name: str) -> bool:
    """Whether `name` can only be OWNER/REPOSITORY: of that form, and no path below a folder that is here."""
    return HUB_ID.fullmatch(name) is not None and not Path(name).parent.is_dir()


def hub_folder(hub_id: str, patterns: Sequence[str], complete: Callable[[Path], bool]) -> Path:
    """The local folder of a hub repository, downloaded only where the hub cache lacks something.

    Args:
        patterns: files wanted, as glob patterns.
        complete: whether a cached folder holds all that is needed; an interrupted download leaves one that does not.
    Raises:
        UserError: not in the cache, and not to be had from the hub.
    """
    return cached(hub_id, complete) or fetch(hub_id, patterns)


def cached(hub_id: str, complete: Callable[[Path], bool]) -> Path | None:
    """The repository's folder in the local hub cache, if it holds what `complete` asks for; no connection is made."""
    try:
        folder = Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if complete(folder) else None


def fetch(hub_id: str, patterns: Sequence[str], skip: Sequence[str] = ()) -> Path:
    """Download the files of a repository that match `patterns` and none of `skip`; what is cached is not fetched again.

    Raises:
        UserError: not to be had (offline, no such repository, gated).
    """
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), ignore_patterns=list(skip)))
    except Exception as error:  # offline, missing, gated: the hub's own classes differ by version
        raise UserError(
            f"{hub_id}: no such folder here, and it could not be fetched from the hub ({type(error).__name__}); "
            "copy the checkpoint to this machine and give its folder"
        ) from error
