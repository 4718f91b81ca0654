"""What an EXPORT or ENGINE folder says about itself: read, checked and turned into a small description.

First step of `export.runtime`. It repeats a few lines of the artifact format on purpose: this package travels alone.

    python -m export.runtime EXPORT --check
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = 1
KINDS = ("export", "engine")
MODEL = "student.onnx"
ENGINE = "engine.plan"
BOUND = ("library", "version", "gpu", "sm", "processors", "onnx", "any_gpu", "any_version", "strip", "dla")  # of its config
CONTRACT = ("preprocess", "input", "outputs", "states", "grid", "tolerances")  # what is computed with: fingerprinted
INPUT = "images"  # normalised float32 (B, 3, H, W)
PIXELS = "frames"  # instead of it, when the graph normalises by itself: uint8 (B, H, W, 3)
REBUILD = "`vega-edge build EXPORT --out ENGINE` (in a bundle: `python3 -m export.device build`)"
GOLDEN_FRAMES = "golden_frames.npy"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RuntimeInputError(Exception):
    """Bad input to the runtime: one clear sentence. The command exits with code 2."""


@dataclass(frozen=True)
class Description:
    """The part of the manifest of an export, or of an engine built from one, that the runtime needs.

    Attributes:
        size: (height, width) in pixels the model was exported for.
        mean, std: per RGB channel, for pixels scaled to [0, 1].
        streams: output name -> (tokens N, channels C), in the order of the model's outputs.
        grid: (rows, columns) of the tokens, row-major; rows * columns = N.
        max_batch: the largest batch one call of the model takes; longer inputs are cut into such pieces.
        tolerances: the self test's limits, "relative" (norm of the difference over norm) and "peak" (largest over largest).
        hashes: file name -> SHA-256.
        states: of a streaming student, memory tensor -> (tokens N, channels), in the order of the model's inputs.
        pixels: the model takes uint8 frames of `size` and normalises them itself.
        engine: of an engine, what it is bound to: library, version, gpu, sm and processors (None where it fits any), onnx
            (SHA-256); whether it was built for any_gpu and any_version, and stripped of its weights; and dla, the number of the
            accelerator it runs on, or None.
    """

    folder: Path
    fingerprint: str
    precision: str
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    streams: dict[str, tuple[int, int]]
    grid: tuple[int, int]
    max_batch: int
    tolerances: dict[str, float]
    hashes: dict[str, str]
    states: dict[str, tuple[int, int]]
    pixels: bool = False
    engine: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape without the batch of the model's inputs: the pictures first, then a streaming student's memory."""
        pictures = {PIXELS: (*self.size, 3)} if self.pixels else {INPUT: (3, *self.size)}
        return {**pictures, **self.states}

    def read(self, name: str) -> bytes:
        """The bytes of one of the export's files, after checking that they are the bytes that were exported.

        Raises:
            RuntimeInputError: the file is missing, altered, or unknown to the manifest.
        """
        path = self.folder / name
        if name not in self.hashes:
            raise RuntimeInputError(f"{self.folder / 'manifest.json'}: lists no file {name}; export the run again")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RuntimeInputError(f"{path}: cannot be read ({error.strerror}); copy the whole folder again") from None
        if hashlib.sha256(data).hexdigest() != self.hashes[name]:
            raise RuntimeInputError(
                f"{path}: not the file that was exported (truncated or altered); {_again(bool(self.engine))}"
            )
        return data


def read_description(folder: Path | str) -> Description:
    """Read and check `folder/manifest.json`.

    Raises:
        RuntimeInputError: a file instead of a folder, no manifest, broken JSON, another schema, another kind of artifact, one
            that was edited, or a missing or odd field.
    """
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise RuntimeInputError(f"{folder}: is a file; give the folder that holds it") from None
    except OSError:
        advice = "make one with `vega-edge export RUN --out DIR`"
        raise RuntimeInputError(f"{path}: missing, so {folder} is no export; {advice}") from None
    except ValueError as error:
        raise RuntimeInputError(f"{path}: not valid JSON ({error}); copy the export again") from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or manifest.get("kind") not in KINDS:
        kind = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
        advice = "give the folder `vega-edge export` or `vega-edge build` wrote"
        raise RuntimeInputError(f"{path}: an export of schema {SCHEMA} expected, found {kind!r}; {advice}")
    try:
        if _fingerprint(manifest) != manifest.get("fingerprint"):
            raise RuntimeInputError(f"{path}: altered since it was written; {_again(manifest['kind'] == 'engine')}")
        return _describe(Path(folder), manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RuntimeInputError(f"{path}: field missing or odd ({error}); export the run again") from None


def _again(engine: bool) -> str:
    return f"build it again: {REBUILD}" if engine else "copy the export again"


def _fingerprint(manifest: dict[str, Any]) -> str:
    """The fingerprint an artifact with these contents has: 16 digits of the SHA-256 of its canonical JSON.

    It covers the fields named in "contract", which manifests of before there was one lack: those are opened as they are.
    """
    covered = ("kind", "config", "parents", "files", *manifest.get("contract", ()))
    identity = {key: manifest.get(key) for key in covered}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _describe(folder: Path, manifest: dict[str, Any]) -> Description:
    height, width = manifest["preprocess"]["size"]
    rows, columns = manifest["grid"]
    mean = tuple(float(value) for value in manifest["preprocess"]["mean"])
    std = tuple(float(value) for value in manifest["preprocess"]["std"])
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError("preprocess needs three means and three positive deviations")
    streams = {output["name"]: (int(output["tokens"]), int(output["channels"])) for output in manifest["outputs"]}
    config = manifest["config"]
    engine = {key: config.get(key) for key in BOUND} if manifest["kind"] == "engine" else {}
    for name in streams:  # names become file names
        if not SAFE_NAME.fullmatch(name):
            raise ValueError(f"output name {name!r}")
    return Description(
        folder=folder,
        fingerprint=str(manifest["fingerprint"]),
        precision=str(config["precision"]),
        size=(int(height), int(width)),
        mean=mean,
        std=std,
        streams=streams,
        grid=(int(rows), int(columns)),
        max_batch=int(config["batches"][-1] if engine else config["max_batch"]),
        tolerances={key: float(manifest["tolerances"][key]) for key in ("relative", "peak")},
        hashes={name: record["sha256"] for name, record in manifest["files"].items()},
        states={state["name"]: (int(state["tokens"]), int(state["channels"])) for state in manifest.get("states", [])},
        pixels=manifest.get("input", {}).get("name", INPUT) == PIXELS,
        engine=engine,
    )
