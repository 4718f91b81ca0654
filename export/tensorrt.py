"""A TensorRT engine from an EXPORT folder, built on the machine that will run it.

Beside the chain: EXPORT -> ENGINE folder (`engine.plan`, the export's golden arrays, and a manifest that is the engine's
sidecar). TensorRT 10, 11 and TensorRT-RTX offer the same few calls; they go through one adapter that touches no name any of
them removed. The network is always strongly typed: the types in the ONNX file decide, so `--precision` belongs to `vega-edge
export`. An engine fits one TensorRT version and kind of GPU only, which `export.runtime` checks before it runs one.

    vega-edge build EXPORT --out ENGINE
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from export.build_options import MIB, BuildOptions, accelerated_layers, apply, check_options
from export.runtime import RuntimeInputError
from export.runtime.cuda import Gpu, find_gpu
from export.runtime.encoder import open_encoder
from export.runtime.engine import import_tensorrt as import_any_tensorrt
from export.runtime.engine import library_name
from export.runtime.manifest import CONTRACT, ENGINE, INPUT, MODEL, PIXELS, SAFE_NAME
from export.staging import staged_folder
from vega_artifact import UserError, atomic_write, check_fingerprint, file_sha256, read_manifest, verify_files, write_manifest

MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class EngineConfig:
    """What an engine is bound to.

    Attributes:
        library, version: the TensorRT that built it and must run it.
        batches: the profile's smallest, best and largest batch; all 1 with `dla`.
        precision: of the export.
        gpu, sm, processors: name, compute capability and number of multiprocessors of the GPU; None for TensorRT-RTX without a
            GPU, whose engines fit any.
        onnx: SHA-256 of the ONNX file.
        workspace_mib, any_gpu, any_version, strip, dla: of `BuildOptions`.
    """

    library: str
    version: str
    batches: tuple[int, int, int]
    precision: str
    gpu: str | None
    sm: str | None
    processors: int | None
    onnx: str
    workspace_mib: int | None
    any_gpu: bool
    any_version: bool
    strip: bool
    dla: int | None


def import_tensorrt() -> ModuleType:
    """The first TensorRT that is installed. Raises UserError naming the ways to get one."""
    try:
        return import_any_tensorrt()
    except RuntimeInputError as error:
        raise UserError(str(error)) from None


def build_engine(
    export: Path | str,
    out: Path | str,
    *,
    best_batch: int = 1,
    largest_batch: int | None = None,
    options: BuildOptions | None = None,
) -> Path:
    """Build the engine for this machine's GPU (TensorRT-RTX also builds without one), test it, and write it as an artifact.

    Args:
        export: folder of kind "export". out: folder to write; appears all at once.
        best_batch: the batch the engine is tuned for, at least 1 and at most `largest_batch`.
        largest_batch: the most frames one call takes, which memory is reserved for; None takes the export's max_batch, or with
            an accelerator 1.
        options: limits, where the engine may run, what it leaves out.

    Returns:
        `out` as a path; its manifest is of kind "engine" with parents {"export": fingerprint}, and its `self_test` holds the
        differences from torch on the golden frames, or the reason why the engine could not run here. With an accelerator,
        `layers` counts those that can run on it.

    Raises:
        UserError: no export, an edited one, no TensorRT, a batch outside the range, too little memory, a graph TensorRT refuses
            (its words are passed on), or an engine that does not compute what torch computed; then nothing is written.
    """
    export, out, options = Path(export), Path(out), options or BuildOptions()
    manifest = read_manifest(export, "export")
    verify_files(export, manifest)
    check_fingerprint(export, manifest)
    check_options(options, manifest)
    batches = check_batches(export, manifest, best_batch, largest_batch, options.dla)
    trt, gpu = import_tensorrt(), find_gpu()
    check_memory((export / MODEL).stat().st_size, options.workspace_mib)
    plan, layers = serialize(trt, (export / MODEL).read_bytes(), input_shapes(manifest), batches, options)
    place: dict[str, Any] = {"gpu": gpu and gpu.name, "sm": gpu and gpu.sm, "processors": gpu and gpu.processors}
    asked = {name: getattr(options, name) for name in ("workspace_mib", "any_gpu", "any_version", "strip", "dla")}
    config = EngineConfig(
        library=library_name(trt),
        version=str(trt.__version__),
        batches=batches,
        precision=manifest["config"]["precision"],
        onnx=file_sha256(export / MODEL),
        **place,
        **asked,
    )
    with staged_folder(out, "engine") as folder:
        write_engine(folder, plan, config, export, manifest)
        result = self_test(folder, out, gpu)
        write_engine(folder, plan, config, export, manifest, self_test=result, layers=layers)
    return out


def check_batches(
    export: Path, manifest: dict[str, Any], best: int, largest: int | None, dla: int | None = None
) -> tuple[int, int, int]:
    """The profile (1, best, largest). Raises UserError for numbers outside the range the export allows.

    An accelerator takes no dynamic dimensions: with a profile of several batches every layer would stay on the GPU. Its one
    batch is 1, which a camera gives, and larger ones are cut into by the runtime.
    """
    if dla is not None:
        if best != 1 or largest not in (None, 1):
            raise UserError(f"--dla {dla}: an accelerator takes batches of one size only, here 1; leave the batches out")
        return 1, 1, 1
    most = int(manifest["config"]["max_batch"])
    largest = most if largest is None else largest
    if not 1 <= largest <= most:
        raise UserError(f"largest_batch {largest}: a number from 1 to {most} expected, the range of {export}")
    if not 1 <= best <= largest:
        raise UserError(f"best_batch {best}: a number from 1 to {largest} expected, the largest batch")
    return 1, best, largest


def input_shapes(manifest: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Input name -> shape without the batch: the pictures, and the memory of a streaming student."""
    height, width = (int(side) for side in manifest["preprocess"]["size"])
    pixels = manifest.get("input", {}).get("name") == PIXELS
    pictures: dict[str, tuple[int, ...]] = {PIXELS: (height, width, 3)} if pixels else {INPUT: (3, height, width)}
    states = {state["name"]: (int(state["tokens"]), int(state["channels"])) for state in manifest.get("states", [])}
    return {**pictures, **states}


def check_memory(model_bytes: int, workspace_mib: int | None) -> None:
    """Refuse to start where the build would be killed: it holds several copies of the weights beside the workspace.

    The 1 GiB and the factor 4 are what ahead-of-time builds of ViT-S and of ViT-Ti took, rounded up.
    """
    try:
        fields = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) // 1024
    except (OSError, KeyError, ValueError):  # not Linux: TensorRT itself will say
        return
    needed = 1024 + 4 * model_bytes // MIB + (workspace_mib or 0)
    if free < needed:
        advice = "close other programs, add swap, or give a smaller --workspace-mib"
        raise UserError(f"building needs about {needed} MiB of memory, {free} MiB are free; {advice}")


def serialize(
    trt: Any, model: bytes, shapes: dict[str, tuple[int, ...]], batches: tuple[int, int, int], options: BuildOptions
) -> tuple[bytes, dict[str, int]]:
    """The engine's bytes for an ONNX model with these inputs of (batch, *shape), and its `accelerated_layers`.

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
        advice = "an unknown operator needs a newer TensorRT or another student, an unknown type another --precision at export"
        raise UserError(f"{trt.__name__} {trt.__version__} refuses the graph ({reasons}); {advice}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, *((batch, *shape) for batch in batches))
    config.add_optimization_profile(profile)
    apply(trt, builder, config, options)
    layers = accelerated_layers(network, config, options.dla)
    cache = open_timing_cache(config, options.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise UserError(f"{trt.__name__} {trt.__version__} could not build an engine; its own messages above say why")
    if cache is not None and options.timing_cache is not None:
        data = bytes(config.get_timing_cache().serialize())
        atomic_write(options.timing_cache, lambda temporary: temporary.write_bytes(data))
    return bytes(plan), layers


def open_timing_cache(config: Any, path: Path | None) -> Any:
    """Give the build the timings of earlier ones; those of another GPU or version TensorRT itself sets aside."""
    if path is None:
        return None
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, False) and known:
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def strongly_typed_flag(trt: Any) -> int:
    """Bit mask for `create_network`: TensorRT 10 must be told, 11 may have dropped the flag because it knows nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def write_engine(folder: Path, plan: bytes, config: EngineConfig, export: Path, manifest: dict[str, Any], **extra: Any) -> None:
    """Fill `folder` with the engine, the golden arrays its self test needs, the weights it was stripped of, and the sidecar."""
    golden = [name for name in manifest["files"] if name.startswith("golden_") and SAFE_NAME.fullmatch(name)]
    golden += [MODEL] if config.strip else []
    (folder / ENGINE).write_bytes(plan)
    for name in golden:
        shutil.copyfile(export / name, folder / name)
    kept = {key: manifest[key] for key in CONTRACT if key in manifest}
    parents = {"export": manifest["fingerprint"]}
    write_manifest(folder, "engine", config, parents, [ENGINE, *golden], CONTRACT, **kept, **extra)


def self_test(folder: Path, out: Path, gpu: Gpu | None) -> dict[str, Any]:
    """Run the engine in `folder`, soon to be `out`, on the golden frames.

    Returns:
        stream -> {"relative", "peak"} differences under "differences"; or "skipped" with the reason.

    Raises:
        UserError: the engine does not start, or computes something else than torch did.
    """
    if gpu is None:
        return {"skipped": "no GPU where it was built; run the self test on the device"}
    try:
        return {"differences": open_encoder(folder).check()}
    except RuntimeInputError as error:
        sentence = str(error).replace(str(folder), str(out))
        raise UserError(f"{out}: the engine was built but is not kept: {sentence}") from None
