"""The commands of an unpacked bundle; each is a file of this folder with a `main`. Exit codes: 0 done, 2 bad input.

python3 -m export.device install_check
"""

from __future__ import annotations

import importlib
import sys

from export.runtime import RuntimeInputError
from vega_artifact import UserError, unknown_name

COMMANDS = {
    "install_check": ("export.device.install_check", "what this machine has, whether every file is intact, and the self test"),
    "build": ("export.device.build", "the TensorRT engine for this very machine"),
    "run": ("export.device.run", "features of a camera, a video or a folder of images"),
    "bench": ("bench.latency", "how fast the model is here"),
    "triton": ("export.device.triton", "a model repository for the Triton server"),
}
USAGE = "usage: python3 -m export.device COMMAND [--help]\n\n" + "\n".join(
    f"    {name:<14} {text}" for name, (_, text) in COMMANDS.items()
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input becomes one sentence and exit code 2."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
        return int(importlib.import_module(COMMANDS[name][0]).main(rest))
    except (RuntimeInputError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
