"""Where does a variant of a graph go wrong? Every tensor that two exports share, compared in the order of the graph.

Beside `export.parity`, which says that a file is off: two EXPORT folders of one student, or one and the file of an export that
was refused -> the first tensor beyond a threshold, and the steps at which the error grows most. onnxruntime runs both on the
golden frames, or on frames of a cache.

    python -m export.bisect EXPORTS/fp32 EXPORTS/int8
    python -m export.bisect EXPORTS/fp32 EXPORTS/int8.refused.onnx
    python -m export.bisect EXPORTS/fp32 EXPORTS/int8 --run RUN --cache CACHE --threshold 0.05

For an engine on a device Polygraphy does the same: polygraphy run model/student.onnx --trt --onnxrt --trt-outputs mark all
--onnx-outputs mark all --fail-fast
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import tyro
from tyro.conf import Positional

from export.audit import load_model, open_session
from export.frames import calibration_frames
from export.runtime import Encoder, RuntimeInputError
from export.runtime.manifest import GOLDEN_FRAMES, MODEL
from vega_artifact import UserError, read_manifest, verify_files

WORST = 8  # steps that are shown
FRAMES = 8  # of a cache


@dataclass(frozen=True)
class Step:
    """One shared tensor: its name, the operator that makes it in the variant, and the error there.

    Attributes:
        error: largest absolute difference over the reference's largest absolute value.
        growth: that error less the largest of the tensors it is made from: what this step itself adds.
    """

    name: str
    operator: str
    error: float
    growth: float


def bisect(reference: Path | str, variant: Path | str, images: np.ndarray | None = None) -> list[Step]:
    """Errors of all tensors that both graphs have, in the order of the variant's nodes.

    Args:
        images: what the graphs take, (B, ...); None takes the reference's golden frames.

    Raises:
        UserError: no export, an altered file, exports of different runs, sizes or inputs, or graphs without a common tensor.
    """
    reference, variant = Path(reference), Path(variant)
    check_comparable(reference, variant)
    graphs = [load_model(reference / MODEL), load_model(variant / MODEL if variant.is_dir() else variant)]
    if len(graphs[0].graph.input) > 1:
        raise UserError(f"{reference}: the step of a student with memory, of which no frames alone can be asked")
    if (borders := [_borders(graph) for graph in graphs])[0] != borders[1]:
        raise UserError(f"{variant}: its inputs and outputs are not those of {reference}; compare graphs of one run and size")
    images = golden_images(reference) if images is None else images
    theirs, ours = (all_tensors(graph, images) for graph in graphs)
    errors: dict[str, float] = {}
    steps = []
    for node in graphs[1].graph.node:
        before = max((errors[name] for name in node.input if name in errors), default=0.0)
        for name in filter(None, node.output):
            if name in theirs and name in ours and theirs[name].shape == ours[name].shape:
                errors[name] = _error(theirs[name], ours[name])
                steps.append(Step(name, node.op_type, errors[name], errors[name] - before))
            else:  # a tensor of the variant's own, such as a cast, hands on the error of what it is made from
                errors[name] = before
    if not steps:
        raise UserError(f"{variant}: shares no tensor with {reference}; compare exports made by the same version")
    return steps


def check_comparable(reference: Path, variant: Path) -> None:
    """Raises UserError for an altered export, or two of different runs, sizes or inputs; a bare file says nothing of these."""
    manifests = [read_manifest(folder, "export") for folder in (reference, *([] if variant.is_file() else [variant]))]
    for folder, manifest in zip((reference, variant), manifests):
        verify_files(folder, manifest)
    for what in ("parents", "preprocess", "input"):
        if manifests[0].get(what) != manifests[-1].get(what):
            raise UserError(f"{variant}: its {what} differ from those of {reference}; compare two exports of one run and size")


def _borders(model: onnx.ModelProto) -> list[tuple[str, tuple[int, ...]]]:
    """Names and sizes of inputs and outputs, without the batch."""
    values = [*model.graph.input, *model.graph.output]
    return [(value.name, tuple(side.dim_value for side in value.type.tensor_type.shape.dim[1:])) for value in values]


def golden_images(export: Path) -> np.ndarray:
    """The golden frames as the graph takes them."""
    encoder = Encoder(export)
    return encoder.prepare(np.load(export / GOLDEN_FRAMES, allow_pickle=False))


def all_tensors(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Every floating tensor of a graph by name, in float32."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(watched.SerializeToString())
    found = session.run(None, {session.get_inputs()[0].name: images})
    named = zip([value.name for value in session.get_outputs()], found)
    return {name: value.astype(np.float32) for name, value in named if np.issubdtype(value.dtype, np.floating)}


def _error(reference: np.ndarray, found: np.ndarray) -> float:
    """Relative to the largest value; infinite where the variant is not finite."""
    if not np.isfinite(found).all():
        return float("inf")
    largest = float(np.abs(reference).max(initial=0.0))
    return float(np.abs(reference - found).max(initial=0.0)) / max(largest, 1e-12)


def text(steps: Sequence[Step], threshold: float) -> str:
    """The first step beyond the threshold, then those that add most, as lines for a terminal."""
    first = next((step for step in steps if not step.error <= threshold), None)
    verdict = f"all {len(steps)} shared tensors are within {threshold:g}"
    if first is not None:
        place = f"{first.operator}, tensor {steps.index(first) + 1} of {len(steps)}"
        verdict = f"first beyond {threshold:g}: {first.name} ({place}), {first.error:.2e}"
    worst = sorted(steps, key=lambda step: -step.growth)[:WORST]
    lines = [f"{step.growth:>10.2e} {step.error:>10.2e}  {step.operator:<20} {step.name}" for step in worst]
    return "\n".join([verdict, f"{'added':>10} {'error':>10}  made by", *lines])


@dataclass(frozen=True)
class Arguments:
    """Two exports of one student, compared tensor by tensor."""

    reference: Positional[Path]
    """The export that is right, usually fp32."""
    variant: Positional[Path]
    """The one that is off: an export, or the file that a refused one left."""
    run: Path | None = None
    """The run of both; with --cache, unseen frames of that cache are taken instead of the golden ones."""
    cache: Path | None = None
    """The cache the run was trained on."""
    threshold: float = 0.05
    """Error relative to a tensor's largest value."""


def main() -> int:
    """The command; exit code 2 and one sentence for bad input."""
    arguments = tyro.cli(Arguments, prog="python -m export.bisect")
    try:
        images = None
        if arguments.cache is not None and arguments.run is not None:
            frames = calibration_frames(arguments.cache, read_manifest(arguments.run, "run"), FRAMES)
            images = Encoder(arguments.reference).prepare(frames.unseen)
        elif arguments.cache is not None or arguments.run is not None:
            raise UserError("frames of a cache are chosen by the run that learned from it; give --run and --cache together")
        print(text(bisect(arguments.reference, arguments.variant, images), arguments.threshold))
    except (UserError, RuntimeInputError) as error:
        print(f"export.bisect: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
