"""Java: whether a working one is there, and the jars of pycocoevalcap that need it.

Below bench/tasks/captions.py and meteor.py: METEOR and the PTB tokenizer are Java programs, without which their metrics are
reported as missing.

    python -c "from bench.tasks.java import has_java; print(has_java())"
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from vega_artifact import UserError

NO_JAVA = "no working `java`: METEOR and the PTB tokenizer are Java programs (install a JRE, for example openjdk-17-jre)"
# A comma locale breaks METEOR's number parsing (salaniz/pycocoevalcap#15).
JAVA = ("java", "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")


def has_java() -> bool:
    """Whether `java` is on the path and runs (macOS has one that only says where to get Java)."""
    return _runs(shutil.which("java"))


@functools.cache
def _runs(program: str | None) -> bool:
    return program is not None and subprocess.run([program, "-version"], capture_output=True, check=False).returncode == 0


def jar_folder(part: str) -> Path:
    """A folder of pycocoevalcap: "meteor" or "tokenizer". UserError without Java, since nothing in them runs then."""
    if not has_java():
        raise UserError(NO_JAVA)
    import pycocoevalcap

    return Path(next(iter(pycocoevalcap.__path__))) / part  # a namespace package: it has no __file__


def one_line(text: str) -> str:
    """The text with every line break as one space, since both Java programs read line by line."""
    return " ".join(text.splitlines()) if len(text.splitlines()) > 1 else text.rstrip("\r\n")
