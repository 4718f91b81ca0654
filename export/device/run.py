"""Features of a camera, a video or a folder of images, frame by frame, into .npz files or shared memory.

python3 -m export.device run --source video.mp4 --out features
python3 -m export.device run engine --source csi:0 --shm vega-edge
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

from export.runtime import RuntimeInputError
from export.runtime.encoder import open_encoder
from export.runtime.manifest import read_description

from .build import ENGINE, MODEL
from .features import NpzFolder, SharedFeatures, Sink
from .frames import open_source


def default_model() -> Path:
    """The bundle's engine where one was built, else its export."""
    return ENGINE if (ENGINE / "manifest.json").exists() else MODEL


def run(model: Path, source: str, sink: Sink, backend: str = "auto", limit: int | None = None, every: int = 1) -> int:
    """Encode every `every`-th frame of `source` into `sink` until it ends, `limit` frames are done, or Ctrl-C.

    Returns:
        How many frames were encoded.

    Raises:
        RuntimeInputError: what the encoder or the source raise; the sink keeps what came before.
    """
    count = 0
    with sink:
        encoder = open_encoder(model, backend)
        started = time.perf_counter()
        try:
            for frame in islice(islice(open_source(source), 0, None, every), limit):
                sink.write(frame, encoder(frame.rgb[None]))
                count += 1
        except KeyboardInterrupt:
            pass
    seconds = time.perf_counter() - started
    print(f"{count} frames in {seconds:.1f} s, {count / max(seconds, 1e-9):.1f} per second, on {encoder.backend}")
    return count


def main(arguments: list[str] | None = None) -> int:
    """The command; raises RuntimeInputError for bad input."""
    parser = argparse.ArgumentParser(prog="python3 -m export.device run", description="Encode a camera, a video or a folder.")
    parser.add_argument("model", type=Path, nargs="?", help="an engine or export; the bundle's own by default")
    parser.add_argument("--source", required=True, help="folder, video file, camera:N or csi:N")
    parser.add_argument("--out", type=Path, help="folder for .npz files")
    parser.add_argument("--shm", help="name of the shared memory for the latest frame")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--limit", type=int, help="stop after so many frames")
    parser.add_argument("--every", type=int, default=1, help="encode every n-th frame")
    options = parser.parse_args(arguments)
    if (options.out is None) == (options.shm is None):
        parser.error("give --out DIR or --shm NAME, one of them")
    if options.every < 1 or (options.limit is not None and options.limit < 1):
        raise RuntimeInputError("--every and --limit: numbers of at least 1 expected")
    model = options.model or default_model()
    sink = NpzFolder(options.out) if options.out else SharedFeatures(options.shm, read_description(model))
    run(model, options.source, sink, options.backend, options.limit, options.every)
    return 0
