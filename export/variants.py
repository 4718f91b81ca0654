"""Several sizes and precisions of one student side by side, scored on the same unseen frames, with a recommendation.

Beside `export.onnx`: RUN -> a folder of EXPORT folders (`fp16`, `int8-192x256`, ...) and `precisions.json`. The graph of a
size is traced once for all its precisions; onnxruntime times them in turns.

    vega-edge export RUN --out EXPORTS --precision all --cache CACHE
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from export.audit import open_session
from export.frames import calibration_frames
from export.onnx import ExportConfig, is_complete, trace, write_export
from export.precision import CALIBRATED, FP8, KNOWN, VARIANTS, Probes, Variant, as_variant, recommend
from export.runtime.manifest import MODEL
from export.staging import check_replaceable, staged_folder
from export.structure import PIXELS
from vega_artifact import UserError, read_manifest, unknown_name, verify_files, write_json

TABLE = "precisions.json"
REPEATS = 15


def export_variants(
    run: Path | str,
    out: Path | str,
    *,
    precisions: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = (),
    heads: Sequence[str] | None = None,
    pixels: bool = False,
    cache: Path | str | None = None,
    probes: Probes | None = None,
) -> dict[str, Any]:
    """Export every precision at every size into a folder of its own below `out`; complete ones are reused.

    Args:
        run, heads, pixels, cache: as for `export.onnx.export_run`; INT8 needs the cache.
        precisions: names from `export.precision.KNOWN`; none: those of VARIANTS.
        sizes: (H, W) of the images; none: the student's own.
        probes: name -> streams of the unseen frames to a number, more is better; they take part in the recommendation.

    Returns:
        What `precisions.json` says: one row per variant (folder, precision, size, bytes, cosine, cpu_ms) and, per size, the
        recommended precision for the CPU (timed here) and for TensorRT (nothing timed here) with the reason.

    Raises:
        UserError: as `export_run`; a variant that fails its parity is listed with the reason, if another one is left.
    """
    run, out = Path(run), Path(out)
    precisions = precisions or VARIANTS
    for precision in precisions:
        if precision not in KNOWN:
            raise unknown_name("precision", precision, KNOWN)
    if cache is None and set(precisions) & set(CALIBRATED):
        raise UserError("INT8 variants need real frames to measure ranges on; give the cache of the run (--cache CACHE)")
    parent = read_manifest(run, "run")
    verify_files(run, parent)
    source = "synthetic" if cache is None else f"cache {read_manifest(cache, 'cache')['fingerprint']}"
    base = ExportConfig(heads=None if heads is None else tuple(heads), pixels=pixels, calibration=source)
    found: dict[str, Any] = {"rows": [], "refused": [], "recommended": []}
    for size in sizes or (None,):
        configs = [replace(base, precision=precision, size=size) for precision in precisions]
        _write_size(run, out, parent, configs, cache, found, probes)
    if not found["rows"]:
        raise UserError("; ".join(row["why"] for row in found["refused"]))
    write_json(out / TABLE, found)
    return found


def _write_size(
    run: Path,
    out: Path,
    parent: Mapping[str, Any],
    configs: list[ExportConfig],
    cache: Path | str | None,
    found: dict[str, Any],
    probes: Probes | None,
) -> None:
    """Make the exports of one size that are not there yet; append to `found`."""
    places = {config: out / folder_name(config) for config in configs}
    missing = [config for config, place in places.items() if not is_complete(place, config, parent["fingerprint"])]
    refused: dict[ExportConfig, str] = {}
    if missing:
        from student import load_student

        frames = None if cache is None else calibration_frames(cache, dict(parent))
        student = load_student(run)
        traced = trace(student, max(missing, key=lambda config: KNOWN.index(config.precision)), frames)
        for config in missing:
            check_replaceable(places[config], "export")
            try:
                with staged_folder(places[config], "export") as folder:
                    write_export(student, folder, config, parent["fingerprint"], frames, traced, probes)
            except UserError as error:
                refused[config] = str(error)
    made = {config: place for config, place in places.items() if config not in refused}
    times = time_in_turns({config.precision: place for config, place in made.items()})
    rows = [_row(config, place, times[config.precision]) for config, place in made.items()]
    found["rows"] += rows
    found["refused"] += [{"folder": places[config].name, "why": why} for config, why in refused.items()]
    if any(row["cosine"] is not None for row in rows):
        found["recommended"] += _recommendations(made, times)


def folder_name(config: ExportConfig) -> str:
    """`int8`, or `int8-192x256` where a size was asked for."""
    return config.precision if config.size is None else f"{config.precision}-{config.size[0]}x{config.size[1]}"


def _row(config: ExportConfig, place: Path, milliseconds: float) -> dict[str, Any]:
    manifest = read_manifest(place, "export")
    streams = manifest["score"].get("streams", {})
    return {
        "folder": place.name,
        "precision": config.precision,
        "size": manifest["preprocess"]["size"],
        "bytes": manifest["files"][MODEL]["bytes"],
        "cosine": {name: round(record["cosine"], 6) for name, record in streams.items()} or None,
        "probes": manifest["score"].get("probes", {}),
        "cpu_ms": round(milliseconds, 3),
    }


def _recommendations(made: Mapping[ExportConfig, Path], times: Mapping[str, float]) -> list[dict[str, Any]]:
    """For the CPU and for TensorRT; the graph of INT8 in float32 is the CPU's, that of INT8 in half TensorRT's."""
    found = []
    scores = {config: read_manifest(place, "export")["score"] for config, place in made.items()}
    for target, unfit in (("cpu", "int8_fp16"), ("tensorrt", "int8")):
        fit = [config for config in made if config.precision not in (unfit, FP8)]  # FP8 is for another device than either
        if not fit:
            continue
        clock = times if target == "cpu" else {}
        variants: list[Variant] = [as_variant(c.precision, scores[c], clock.get(c.precision)) for c in fit]
        try:
            verdict = recommend(variants)
        except UserError as error:
            verdict = {"precision": "none", "why": str(error)}
        size = list(fit[0].size) if fit[0].size else None
        found.append({"target": target, "size": size, **verdict})
    return found


def time_in_turns(folders: Mapping[str, Path], repeats: int = REPEATS) -> dict[str, float]:
    """Median milliseconds of one image in onnxruntime, CPU time of its one thread; the files take turns.

    CPU time and turns, because what is wanted is an order of precisions on a machine that may be busy: `vega-edge bench
    latency` measures what a caller waits.
    """
    sessions = {name: open_session((folder / MODEL).read_bytes()) for name, folder in folders.items()}
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    feeds = {name: _example(session) for name, session in sessions.items()}
    for turn in range(repeats + 1):
        for name, session in sessions.items():
            start = time.thread_time()
            session.run(None, feeds[name])
            if turn:  # the first one warms up
                samples[name].append(1e3 * (time.thread_time() - start))
    return {name: float(np.median(values)) for name, values in samples.items()}


def _example(session: Any) -> dict[str, np.ndarray]:
    entry = session.get_inputs()[0]
    kind = np.uint8 if entry.name == PIXELS else np.float32
    return {entry.name: np.zeros((1, *entry.shape[1:]), kind)}


def table(found: Mapping[str, Any]) -> str:
    """The result as text, one line per variant, then the recommendations."""
    lines = [f"{'folder':20} {'MB':>7} {'CPU ms':>8}  cosine per output (worst first)"]
    for row in found["rows"]:
        cosines = sorted((row["cosine"] or {}).items(), key=lambda item: item[1])
        text = ", ".join(f"{name} {value:.5f}" for name, value in cosines) or "not scored (no --cache)"
        lines.append(f"{row['folder']:20} {row['bytes'] / 1e6:7.2f} {row['cpu_ms']:8.2f}  {text}")
    lines += [f"{row['folder']:20} refused: {row['why']}" for row in found["refused"]]
    for row in found["recommended"]:
        where = row["target"] + (f" at {row['size'][0]}x{row['size'][1]}" if row["size"] else "")
        lines.append(f"for {where}: {row['precision']}, {row['why']}")
    return "\n".join(lines)
