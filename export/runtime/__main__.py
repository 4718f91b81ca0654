"""The runtime as a command: images in, features out, or the self test.

    python -m export.runtime EXPORT --check
    python -m export.runtime EXPORT a.png b.npy --out features.npz

The .npz holds one float32 (B, N, C) array per stream and `names`, the images in order; read it with
`numpy.load(path, allow_pickle=False)`. Exit codes: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .encoder import Encoder, open_encoder
from .manifest import RuntimeInputError


def read_image(path: Path) -> np.ndarray:
    """One RGB image, uint8 (H, W, 3): .npy directly, everything else through Pillow where it is installed.

    Raises:
        RuntimeInputError: no such file, not an image, or Pillow is missing.
    """
    if not path.is_file():
        raise RuntimeInputError(f"{path}: no such image")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except ImportError:
        advice = "pip install pillow, or pass .npy arrays of shape (H, W, 3)"
        raise RuntimeInputError(f"{path}: reading it needs Pillow; {advice}") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise RuntimeInputError(f"{path}: cannot be decoded as an image ({error})") from None


def encode(encoder: Encoder, paths: list[Path]) -> dict[str, np.ndarray]:
    """Encode images of any size in batches of the model's size; returns the arrays of the .npz.

    To a streaming student the images are the frames of one camera, in the given order.
    """
    pieces = []
    step = 1 if encoder.streaming else encoder.description.max_batch
    for start in range(0, len(paths), step):
        prepared = []
        for path in paths[start : start + step]:
            try:
                prepared.append(encoder.prepare(read_image(path)[None]))
            except RuntimeInputError as error:
                text = str(error)
                raise RuntimeInputError(text if text.startswith(str(path)) else f"{path}: {text}") from None
        pieces.append(encoder.finish(encoder.infer(np.concatenate(prepared))))
    arrays = {name: np.concatenate([piece[name] for piece in pieces]) for name in encoder.description.streams}
    return {**arrays, "names": np.array([str(path) for path in paths])}


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write the .npz beside its destination and rename it, so that nobody reads half of it.

    Args:
        arrays: numpy's, of numbers or text, never of objects; nothing else is given to `np.savez`, because numpy 1.21
            (JetPack 6) takes every keyword for an array.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **arrays)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except OSError as error:
        raise RuntimeInputError(f"{path}: cannot be written ({error.strerror})") from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.runtime", description="Encode images with an exported student.")
    parser.add_argument("export", type=Path, help="the folder `vega-edge export` wrote")
    parser.add_argument("images", type=Path, nargs="*", help="images, or .npy arrays uint8 (H, W, 3)")
    parser.add_argument("--out", type=Path, help="the .npz to write")
    parser.add_argument("--backend", default="auto", help="auto, onnxruntime or onnxruntime-cuda")
    parser.add_argument("--threads", type=int, help="CPU threads inside one operator")
    parser.add_argument("--check", action="store_true", help="compare with the values stored at export time")
    options = parser.parse_intermixed_args(arguments)  # images may follow the options
    if not options.check and not options.images:
        parser.error("nothing to do: give images and --out, or --check")
    if bool(options.images) != bool(options.out):
        parser.error("images and --out FILE.npz belong together")
    try:
        encoder = open_encoder(options.export, options.backend, options.threads)
        if options.check:
            for name, difference in encoder.check().items():
                print(f"{name}: relative difference {difference['relative']:.1e}, ok ({encoder.backend})")
        if options.images:
            arrays = encode(encoder, options.images)
            save(options.out, arrays)
            print(f"{options.out}: {', '.join(f'{name} {value.shape}' for name, value in arrays.items() if name != 'names')}")
    except RuntimeInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
