"""Commands of this room that are no verbs of `vega-edge`: flags from a dataclass, one sentence for what goes wrong.

python -m distill.study --help
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tyro

from vega_artifact import UserError


class Command(Protocol):
    """Settings that know what to do."""

    def run(self) -> Path:
        """Do it; returns what was written."""
        ...


def run(settings: type[Command], prog: str, arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 for bad input with one sentence on stderr, 130 when interrupted."""
    try:
        print(tyro.cli(settings, prog=prog, args=arguments).run())
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0
