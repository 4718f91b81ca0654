"""Real frames for calibration: the very pictures the student was trained on, and others it was not, from its cache.

Beside the chain: CACHE -> `export.variants`, `export.onnx`. Quantization without real pictures measures ranges nobody will ever
see. The cache is read as the artifact it is (manifest, safetensors with keys `SCENE/rgb`); this room knows no teacher.

    vega-edge export RUN --out EXPORT --precision int8 --cache CACHE
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vega_artifact import UserError, check_parent, file_sha256, read_manifest

COUNT = 32  # frames of each kind: ranges of activations settle within a few dozen


@dataclass(frozen=True)
class Calibration:
    """What a student is calibrated with and scored on.

    Attributes:
        source: "cache FINGERPRINT", goes into the export's manifest and decides whether an export can be reused.
        seen: uint8 (COUNT, H, W, 3) from the run's training scenes: ranges are measured on them.
        unseen: the same from its validation scenes: variants are scored on them, never calibrated.
    """

    source: str
    seen: np.ndarray
    unseen: np.ndarray


def calibration_frames(cache: Path | str, run: dict[str, Any], count: int = COUNT) -> Calibration:
    """Frames of the cache a run was trained on, spread evenly over its scenes; the same call gives the same frames.

    Args:
        cache: the cache's folder. run: the manifest of the run.

    Raises:
        UserError: no cache, one the run was not trained on, one without frames or without unseen scenes, a damaged shard.
    """
    folder = Path(cache)
    manifest = read_manifest(folder, "cache")
    check_parent(run, "cache", manifest["fingerprint"], "the run")
    if "rgb" not in manifest["streams"]:
        raise UserError(f"{folder}: holds no frames to calibrate with; extract it again with its frames stored")
    lacking = [part for part in ("train", "validation") if not run.get("scenes", {}).get(part)]
    if lacking:
        raise UserError(f"the run names no scenes for {lacking[0]}, so none are left to score a variant on; train it again")
    seen, unseen = (_read(folder, manifest, run["scenes"][part], count) for part in ("train", "validation"))
    return Calibration(f"cache {manifest['fingerprint']}", seen, unseen)


def _read(folder: Path, manifest: dict[str, Any], scenes: Sequence[str], count: int) -> np.ndarray:
    frames = dict(zip(manifest["scenes"], manifest["frames"], strict=True))
    if foreign := [scene for scene in scenes if scene not in frames]:
        raise UserError(f"{folder}: lacks scene {foreign[0]!r} of the run; give the cache the run was trained on")
    places = [(scene, index) for scene in scenes for index in range(frames[scene])]
    chosen = [places[i] for i in np.linspace(0, len(places) - 1, min(count, len(places))).astype(int)]
    checked: set[str] = set()
    found = []
    for scene, index in chosen:
        name = manifest["index"][scene]
        if name not in checked:
            _check(folder / name, manifest["files"][name]["sha256"])
            checked.add(name)
        with safe_open(folder / name, "np") as shard:
            found.append(shard.get_slice(f"{scene}/rgb")[index])
    return np.stack(found)


def _check(path: Path, sha256: str) -> None:
    """A shard that was cut or altered would calibrate to nonsense without a word."""
    try:
        if file_sha256(path) == sha256:
            with safe_open(path, "np"):
                return
    except (OSError, SafetensorError):
        pass
    raise UserError(f"{path}: missing, cut or altered; run the same extract command again, it makes only that")
