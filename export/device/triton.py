"""A model repository for the Triton inference server: the export through onnxruntime, or the engine through TensorRT.

Beside `export.device run`, for devices and servers that serve models to others. Clients send normalised images
(`export.runtime.preprocess`); the memory of a streaming student travels with the request, as inputs and outputs of its own.

    python3 -m export.device triton engine --out models
    tritonserver --model-repository models
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from export.runtime.manifest import ENGINE, MODEL, PIXELS, REBUILD, SAFE_NAME, Description, read_description
from export.staging import check_replaceable
from vega_artifact import UserError, atomic_write, write_text

PLATFORMS = {False: ("onnxruntime_onnx", "model.onnx", MODEL), True: ("tensorrt_plan", "model.plan", ENGINE)}


def write_repository(model: Path | str, out: Path | str, name: str = "vega_edge") -> Path:
    """Write `out/name/config.pbtxt` and `out/name/1/model.onnx` (of an engine: `model.plan`); returns `out/name`.

    Raises:
        RuntimeInputError: `model` is no export or engine, or was altered.
        UserError: `out/name` exists already, `name` is no plain name, or the engine was stripped of its weights.
    """
    folder = Path(out) / name
    if not SAFE_NAME.fullmatch(name):
        raise UserError(f"model name {name!r}: letters, digits, '.', '_' and '-' expected")
    check_replaceable(folder, "model repository")
    description = read_description(model)
    if description.engine.get("strip"):
        raise UserError(f"{model}: built with --strip, and Triton puts no weights back; build it again without: {REBUILD}")
    _, there, here = PLATFORMS[bool(description.engine)]
    data = description.read(here)
    atomic_write(folder / "1" / there, lambda temporary: temporary.write_bytes(data))
    write_text(folder / "config.pbtxt", config_text(description, name))
    return folder


def config_text(description: Description, name: str) -> str:
    """Triton's configuration; shapes are without the batch, which Triton adds and fills from waiting requests."""
    platform, there, _ = PLATFORMS[bool(description.engine)]
    states, streams = description.states, description.streams
    outputs = {**streams, **{f"next_{state}": shape for state, shape in states.items()}}
    lines = [
        f'name: "{name}"',
        f'platform: "{platform}"',
        f'default_model_filename: "{there}"',
        f"max_batch_size: {description.max_batch}",
        tensors("input", description.inputs),
        tensors("output", outputs),
        "dynamic_batching { max_queue_delay_microseconds: 1000 }",
        *accelerator(description.engine.get("dla")),
        f'parameters {{ key: "fingerprint" value {{ string_value: "{description.fingerprint}" }} }}',
        f'parameters {{ key: "mean" value {{ string_value: "{list(description.mean)}" }} }}',
        f'parameters {{ key: "std" value {{ string_value: "{list(description.std)}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def accelerator(core: int | None) -> list[str]:
    """The line that makes Triton run an engine on the accelerator it was built for."""
    devices = f"secondary_devices [ {{ kind: KIND_NVDLA device_id: {core} }} ]"
    return [] if core is None else [f"instance_group [ {{ kind: KIND_GPU {devices} }} ]"]


def tensors(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """One `input` or `output` list; all tensors are float32 but for pixels."""
    types = {name: "TYPE_UINT8" if name == PIXELS else "TYPE_FP32" for name in shapes}
    rows = [f'  {{ name: "{name}" data_type: {types[name]} dims: {list(shape)} }}' for name, shape in shapes.items()]
    return f"{kind} [\n" + ",\n".join(rows) + "\n]"


def main(arguments: list[str] | None = None) -> int:
    """The command; raises what `write_repository` raises."""
    parser = argparse.ArgumentParser(prog="python3 -m export.device triton", description="Write a Triton model repository.")
    parser.add_argument("model", type=Path, nargs="?", default=Path("model"), help="an export or an engine")
    parser.add_argument("--out", type=Path, required=True, help="the model repository")
    parser.add_argument("--name", default="vega_edge", help="the model's name on the server")
    options = parser.parse_args(arguments)
    print(write_repository(options.model, options.out, options.name))
    return 0
