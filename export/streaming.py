"""A streaming student becomes the ONNX file of one step: frame and memory in, features and memory out.

Beside `export.onnx`, for runs that hold a `student.StreamingStudent`: RUN -> EXPORT. Inputs are `images` float32 (B, 3, H, W)
and `state_0`, `state_1`, ... float32 (B, N, memory), one per layer, zeros before the first frame; outputs are one (B, N, C) per
stream and `next_state_0`, ... to be given back with the next frame. `export.runtime.StreamingEncoder` keeps them between calls.

    python -m export.streaming RUN --out EXPORT --precision fp16
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
import tyro
from torch import Tensor, nn
from tyro.conf import Positional

from export.audit import audit, ranges_over
from export.onnx import EXAMPLE_BATCH, ExportConfig, is_complete, quiet_exporter, torch_streams, wanted_heads, write_golden
from export.parity import TOLERANCES, Streams, check_parity, probe_images
from export.precision import PRECISIONS, typed
from export.runtime.backends import OnnxRuntimeBackend
from export.runtime.manifest import CONTRACT, MODEL
from export.staging import check_replaceable, staged_folder
from export.structure import INPUT, count_layer_norms, count_layers, deployed
from vega_artifact import UserError, read_manifest, unknown_name, verify_files, write_manifest

FRAMES = 5  # consecutive frames the parity check runs before it compares


class StepTuple(nn.Module):
    """The step with streams and memory as one tuple, because ONNX outputs have an order and no names of their own."""

    def __init__(self, student: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.student = student
        self.names = names

    def forward(self, images: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        streams, after = self.student.step(images, state)
        return (*(streams[name] for name in self.names), *after)


class FirstStep(StepTuple):
    """The step of a camera that has seen nothing yet, as a function of its frame alone."""

    def forward(self, images: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        return super().forward(images, *self.student.initial_state(images.shape[0]))


class Film(nn.Module):
    """Frames (T, 3, H, W) of one camera in order -> {stream: (T, N, C)}, by the whole-sequence forward of training."""

    def __init__(self, student: Any) -> None:
        super().__init__()
        self.student = student
        self.preprocess = student.preprocess

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.student(images[None]).items()}


def state_names(layers: int) -> tuple[list[str], list[str]]:
    """Names of the memory tensors going in and coming out."""
    names = [f"state_{layer}" for layer in range(layers)]
    return names, [f"next_{name}" for name in names]


def export_streaming(run: Path | str, out: Path | str, *, precision: str = "fp32", heads: Sequence[str] | None = None) -> Path:
    """Export the step of a streaming student's run; a complete export of the same run and settings is reused.

    Args:
        run: folder of kind "run" with a streaming student. out: folder to write; appears all at once.
        precision, heads: as for `export.onnx.export_run`.

    Raises:
        UserError: no finished run of a streaming student, unknown precision or head, `out` holds something else, a graph the
            checks refuse, or a file whose steps do not compute what the whole sequence gives.
    """
    run, out = Path(run), Path(out)
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    config = ExportConfig(precision=precision, heads=None if heads is None else tuple(heads))
    parent = read_manifest(run, "run")
    check_replaceable(out, "export")
    if is_complete(out, config, parent["fingerprint"]):
        return out
    verify_files(run, parent)
    from student import load_streaming

    with staged_folder(out, "export") as folder:
        write_step(load_streaming(run), folder, config, parent["fingerprint"])
    return out


def write_step(student: Any, folder: Path, config: ExportConfig, run_fingerprint: str) -> dict[str, Any]:
    """Fill an empty folder with the export of a `StreamingStudent` in eval mode; returns the manifest."""
    started = time.perf_counter()
    size = (int(student.preprocess.size[0]), int(student.preprocess.size[1]))
    film = Film(student)
    shapes = {name: value.shape for name, value in torch_streams(film, np.zeros((1, 3, *size), np.float32)).items()}
    names = wanted_heads(config.heads, list(shapes))
    model = step_to_onnx(student, names, size, config)
    ranges = ranges_over(model, steps_of(student, probe_images(EXAMPLE_BATCH, size)))
    model, facts = typed(model, config.precision, ranges, [])
    structure = check_step(model, student, names, config.opset)
    data = model.SerializeToString(deterministic=True)
    (folder / MODEL).write_bytes(data)
    backend = OnnxRuntimeBackend(data, "onnxruntime", threads=1)
    layers, tokens, memory = student.state_shape
    parity = check_parity(by_sequence(student, names), by_steps(backend, student, names), size, config.precision)
    return write_manifest(
        folder,
        "export",
        config,
        {"run": run_fingerprint},
        files=[MODEL, *write_golden(film, folder, names)],
        contract=CONTRACT,
        preprocess=asdict(student.preprocess) | {"resize": "bilinear, half-pixel centres, antialias when shrinking"},
        outputs=[{"name": name, "tokens": shapes[name][1], "channels": shapes[name][2]} for name in names],
        input={"name": INPUT, "type": "float32 (B, 3, H, W), normalised"},
        states=[{"name": f"state_{layer}", "tokens": tokens, "channels": memory} for layer in range(layers)],
        grid=[int(side) for side in student.config.frame.grid],
        tolerances=TOLERANCES[config.precision],
        structure=structure | audit(model, count_attention(student, names, size), ranges) | facts,
        parity={"backend": backend.name, "frames": FRAMES, "rows": parity},
        seconds=round(time.perf_counter() - started, 2),
    )


def step_to_onnx(student: Any, names: tuple[str, ...], size: tuple[int, int], config: ExportConfig) -> onnx.ModelProto:
    """Trace one step of what is shipped into a self-contained float32 model."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    module = StepTuple(deployed(student), names).eval()
    before, after = state_names(student.state_shape[0])
    batch = {0: torch.export.Dim("batch", min=1, max=config.max_batch)}
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (torch.zeros(EXAMPLE_BATCH, 3, *size), *student.initial_state(EXAMPLE_BATCH)),
                dynamo=True,
                opset_version=config.opset,
                input_names=[INPUT, *before],
                output_names=[*names, *after],
                dynamic_shapes={INPUT: batch, "state": tuple(batch for _ in before)},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own and torch's errors alike
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"torch cannot export this streaming student to ONNX ({reason}); choose another backbone") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # as in export.onnx: no traces of the machine in the file
    model = program.model_proto
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        value.ClearField("metadata_props")
    return model


def check_step(model: onnx.ModelProto, student: Any, names: tuple[str, ...], opset: int) -> dict[str, Any]:
    """The rules of `export.structure` for a graph with memory; returns its facts for the manifest.

    Raises:
        UserError: invalid ONNX, another opset, a foreign operator, wrong names, borders that are not float32 or do not share
            one symbolic batch, memory that comes out in another shape than it goes in, or decomposed LayerNorms.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise _refusal(f"is not valid ONNX: {str(error).splitlines()[0]}") from error
    if [(entry.domain, entry.version) for entry in model.opset_import] != [("", opset)] or model.functions:
        raise _refusal(f"needs more than opset {opset} of the ONNX standard")
    before, after = state_names(student.state_shape[0])
    borders = {value.name: _border(value) for value in [*model.graph.input, *model.graph.output]}
    wanted = [INPUT, *before, *names, *after]
    if list(borders) != wanted:
        raise _refusal(f"has inputs and outputs {list(borders)}, {wanted} expected")
    if len({shape[0] for _, shape in borders.values()}) != 1 or not isinstance(borders[INPUT][1][0], str):
        raise _refusal("has no single symbolic batch: the batch was frozen")
    if {kind for kind, _ in borders.values()} != {onnx.TensorProto.FLOAT}:
        raise _refusal("has inputs or outputs that are not float32")
    if [borders[name] for name in before] != [borders[name] for name in after]:
        raise _refusal("gives its memory back in another shape than it takes it")
    operators = Counter(node.op_type for node in model.graph.node)
    fewest, most = count_layer_norms(FirstStep(student, names), torch.zeros(1, 3, *student.preprocess.size))
    if not fewest <= operators["LayerNormalization"] <= most:
        found = operators["LayerNormalization"]
        raise _refusal(f"has {found} LayerNormalization nodes for {fewest} LayerNorms: the exporter decomposed some")
    return {"opset": opset, "nodes": len(model.graph.node), "operators": dict(sorted(operators.items()))}


def _border(value: onnx.ValueInfoProto) -> tuple[int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    return tensor.elem_type, tuple(side.dim_param or side.dim_value for side in tensor.shape.dim)


def _refusal(text: str) -> UserError:
    return UserError(f"the exported step {text}; choose another backbone (vega-edge list students)")


def count_attention(student: Any, names: tuple[str, ...], size: tuple[int, int]) -> dict[str, int]:
    """Softmax attentions of one step, as `export.structure.count_layers` says."""
    return count_layers(FirstStep(deployed(student).requires_grad_(), names), torch.zeros(1, 3, *size))[1]


def steps_of(student: Any, images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What the graph is given, step by step, while a camera turns and ends at `images`."""
    before, _ = state_names(student.state_shape[0])
    state = student.initial_state(len(images))
    for frame in film_of(images):
        yield {INPUT: frame} | {name: memory.numpy() for name, memory in zip(before, state)}
        with torch.inference_mode():
            _, state = student.step(torch.from_numpy(frame), state)


def by_sequence(student: Any, names: tuple[str, ...]) -> Callable[[np.ndarray], Streams]:
    """What training computes for the last of FRAMES frames, from all of them at once."""

    def answer(images: np.ndarray) -> Streams:
        film = torch.from_numpy(np.stack(film_of(images), 1))
        with torch.inference_mode():
            return {name: value[:, -1].numpy() for name, value in student(film).items() if name in names}

    return answer


def by_steps(backend: OnnxRuntimeBackend, student: Any, names: tuple[str, ...]) -> Callable[[np.ndarray], Streams]:
    """What the file computes for the same frame, step by step from an empty memory."""
    before, after = state_names(student.state_shape[0])

    def answer(images: np.ndarray) -> Streams:
        state = {name: memory.numpy() for name, memory in zip(before, student.initial_state(len(images)))}
        for frame in film_of(images):
            found = dict(zip(backend.outputs, backend(frame, state)))
            state = {old: found[new] for old, new in zip(before, after)}
        return {name: found[name] for name in names}

    return answer


def film_of(images: np.ndarray) -> list[np.ndarray]:
    """(B, 3, H, W) -> FRAMES such arrays: a camera that turns and ends at `images`."""
    return [np.roll(images, 5 * (FRAMES - 1 - frame), axis=-1) for frame in range(FRAMES)]


@dataclass(frozen=True)
class Arguments:
    """A streaming student's run -> the checked ONNX file of its step."""

    run: Positional[Path]
    """A run folder that holds a streaming student."""
    out: Path
    """The export folder to write."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """Type of the weights and activations in the graph."""


def main() -> int:
    """The command; exit code 2 and one sentence for bad input."""
    arguments = tyro.cli(Arguments, prog="python -m export.streaming")
    try:
        export_streaming(arguments.run, arguments.out, precision=arguments.precision)
    except UserError as error:
        print(f"export.streaming: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
