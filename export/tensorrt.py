"""A TensorRT engine from an EXPORT folder, built on the machine that will run it.

Beside the chain: EXPORT -> ENGINE folder (`engine.plan` + manifest). TensorRT 10, 11 and TensorRT-RTX offer the same few calls;
they go through one adapter that touches no name any of them removed. The network is always strongly typed: the types in the
ONNX file decide, so `--precision` belongs to `vega-edge export`. An engine fits one TensorRT version and kind of GPU only.

    vega-edge build EXPORT --out ENGINE
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.staging import staged_folder
from vega_artifact import UserError, read_manifest, verify_files, write_manifest

MODULES = ("tensorrt", "tensorrt_rtx")
ENGINE = "engine.plan"
MODEL = "student.onnx"
INPUT = "images"


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is bound to. `batches` are the profile's smallest, best and largest batch."""

    library: str
    version: str
    batches: tuple[int, int, int]
    precision: str


def import_tensorrt() -> ModuleType:
    """The first TensorRT that is installed. Raises UserError naming the ways to get one."""
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError: bindings without their libraries
            continue
    raise UserError(
        f"no TensorRT found (tried {', '.join(MODULES)}): on a Jetson use JetPack's Python, on a workstation "
        "`pip install tensorrt` from NVIDIA's index or `pip install tensorrt-rtx`; the runtime works without one"
    )


def build_engine(export: Path | str, out: Path | str, *, best_batch: int = 1) -> Path:
    """Build the engine for this machine's GPU (TensorRT-RTX also builds without one) and write it as an artifact.

    Args:
        export: folder of kind "export". out: folder to write; appears all at once.
        best_batch: the batch the engine is tuned for, at least 1 and at most the export's max_batch.

    Returns:
        `out` as a path; its manifest is of kind "engine" with parents {"export": fingerprint}.

    Raises:
        UserError: no export, no TensorRT, a batch outside the range, or a graph TensorRT refuses (its words are passed on).
    """
    export, out = Path(export), Path(out)
    manifest = read_manifest(export, "export")
    verify_files(export, manifest)
    largest = int(manifest["config"]["max_batch"])
    if not 1 <= best_batch <= largest:
        raise UserError(f"best_batch {best_batch}: a number from 1 to {largest} expected, the range of {export}")
    trt = import_tensorrt()
    batches = (1, best_batch, largest)
    shape = (3, *(int(side) for side in manifest["preprocess"]["size"]))
    plan = serialize(trt, (export / MODEL).read_bytes(), shape, batches)
    config = EngineConfig(trt.__name__, str(trt.__version__), batches, manifest["config"]["precision"])
    with staged_folder(out, "engine") as folder:
        (folder / ENGINE).write_bytes(plan)
        kept = {key: manifest[key] for key in ("preprocess", "outputs", "grid")}
        write_manifest(folder, "engine", config, {"export": manifest["fingerprint"]}, [ENGINE], **kept)
    return out


def serialize(trt: Any, model: bytes, shape: tuple[int, ...], batches: tuple[int, int, int]) -> bytes:
    """The engine's bytes for an ONNX model with input `images` of (batch, *shape).

    Every object stays in a variable until the end: a network collected while its parser lives crashes the process.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # TensorRT proper wants a driver even to parse
        raise UserError(f"{trt.__name__}: cannot start here ({error}); build on the machine with the GPU") from error
    network = builder.create_network(strongly_typed_flag(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise UserError(f"{trt.__name__} {trt.__version__} refuses the graph ({reasons}); try another --precision at export")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape(INPUT, *((batch, *shape) for batch in batches))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"{trt.__name__} {trt.__version__} could not build an engine; its own messages above say why")
    return bytes(plan)


def strongly_typed_flag(trt: Any) -> int:
    """Bit mask for `create_network`: TensorRT 10 must be told, 11 may have dropped the flag because it knows nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
