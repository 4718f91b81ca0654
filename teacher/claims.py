"""Claims: how processes that share nothing but a folder divide its work. No launcher, no network, no collective call.

Beside `teacher.writer`. A claim is an advisory lock on a small file; the kernel drops it when its holder dies, also by kill -9,
so that a lost worker's part becomes free at once. Works between machines where the file system carries locks
(NFS does; Lustre does with `-o flock`).

    with claim(folder / ".shard-00003.lock", wait=False) as ours:
        if ours: ...
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def claim(path: Path, wait: bool) -> Iterator[bool]:
    """Hold `path` for the length of a `with` block; yields whether it is ours.

    Args:
        path: lock file, made if missing and removed after a block that ended well. Because another process may have opened
            it just before it was removed, whoever gets a claim must look again whether there is still something to do.
        wait: until the present holder ends or dies; otherwise False is yielded at once.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor, path, wait):
            yield False
            return
        yield True
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, wait: bool) -> bool:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no file locks on this system")
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: no file locks here (%s); let only one process at a time write to this folder", path.parent, error)
    return True
