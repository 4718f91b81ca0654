"""A trained student becomes one ONNX file that has proved what it computes.

Third stage of the chain: RUN -> EXPORT. The folder holds `student.onnx` (opset 20, dynamic batch, weights inside, input
`images` float32 (B, 3, H, W) normalised, or `frames` uint8 (B, H, W, 3) with the preprocessing inside, one output (B, N, C) per
stream), golden arrays for the self test on the device, and a manifest with preprocessing, structure, audit and parity. Opset 20
has Gelu and LayerNormalization; TensorRT 10.0-10.3 read it. Several sizes or precisions at once: `export.variants`.

    vega-edge export RUN --out EXPORT
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.audit import Ranges, audit, measure_ranges, open_session
from export.frames import Calibration, calibration_frames
from export.golden import golden_frames, torch_streams, write_golden
from export.int8 import weighted_nodes
from export.parity import TOLERANCES, check_parity, probe_images
from export.precision import CALIBRATED, KNOWN, PRECISIONS, Probes, score, typed
from export.runtime.manifest import CONTRACT, MODEL
from export.runtime.preprocess import preprocess
from export.sizes import at_size
from export.staging import check_replaceable, staged_folder
from export.structure import INPUT, PIXELS, check_structure, count_layer_norms, count_layers, deployed
from vega_artifact import UserError, canonical, check_fingerprint, read_manifest, unknown_name, verify_files, write_manifest

EXAMPLE_BATCH = 2  # the batch of the example; torch.export would specialise on 1


@dataclass(frozen=True)
class ExportConfig:
    """What was asked for; equal config and equal run mean an export can be reused.

    Attributes:
        precision: a name from `export.precision.KNOWN`.
        heads: streams to keep, in the student's order; None keeps all.
        max_batch: upper bound of the symbolic batch.
        size: (H, W) the graph is made for; None: the student's own.
        pixels: the graph takes uint8 frames of that size and normalises them itself.
        calibration: where the frames of the ranges come from; "synthetic" without a cache.
        layout: version of the folder's layout, raised when an old export must be made again.
    """

    precision: str = "fp32"
    heads: tuple[str, ...] | None = None
    opset: int = 20
    max_batch: int = 64
    size: tuple[int, int] | None = None
    pixels: bool = False
    calibration: str = "synthetic"
    layout: int = 3


class StreamTuple(nn.Module):
    """The student with the wanted streams as a tuple, because ONNX outputs have an order and no names of their own."""

    def __init__(self, student: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.student = student
        self.names = names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        streams = self.student(images)
        return tuple(streams[name] for name in self.names)


class FromPixels(nn.Module):
    """Normalisation in front of a `StreamTuple`: uint8 (B, H, W, 3) of the student's size; resizing stays outside."""

    scale: Tensor
    shift: Tensor

    def __init__(self, inner: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("scale", 1 / (255 * torch.tensor(std).view(3, 1, 1)), persistent=False)
        self.register_buffer("shift", (-torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return self.inner(frames.permute(0, 3, 1, 2).float() * self.scale + self.shift)


@dataclass(frozen=True)
class Traced:
    """A student at one size as an fp32 graph, with all that its variants share.

    Attributes:
        nodes: Conv, Gemm and MatMul of the graph that hold learned weights; attention: softmax attentions of
            the network.
        ranges: of every activation on the calibration frames; None for an fp32 export without a cache.
    """

    student: Any
    names: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    model: onnx.ModelProto
    layer_norms: tuple[int, int]
    nodes: list[str]
    attention: dict[str, int]
    ranges: Ranges | None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.student.preprocess.size[0]), int(self.student.preprocess.size[1])

    def prepare(self, frames: np.ndarray, pixels: bool) -> np.ndarray:
        """uint8 (B, H', W', 3) -> what the graph takes: normalised float32 (B, 3, H, W), or uint8 (B, H, W, 3)."""
        wish = self.student.preprocess
        if not pixels:
            return preprocess(frames, self.size, wish.mean, wish.std)
        plain = preprocess(frames, self.size, (0.0,) * 3, (1.0,) * 3)
        return np.rint(plain.transpose(0, 2, 3, 1) * 255).clip(0, 255).astype(np.uint8)

    def answer(self, given: np.ndarray) -> dict[str, np.ndarray]:
        """What torch computes for what the graph takes."""
        wish = self.student.preprocess
        images = preprocess(given, self.size, wish.mean, wish.std) if given.dtype == np.uint8 else given
        streams = torch_streams(self.student, images)
        return {name: streams[name] for name in self.names}


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    precision: str = "fp32",
    heads: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    pixels: bool = False,
    cache: Path | str | None = None,
) -> Path:
    """Export the student of a training run; a complete export of the same run and settings is reused.

    Args:
        run: folder of kind "run". out: folder to write; appears all at once.
        precision: "fp32"; "fp16", a typed half-precision graph with float32 input and outputs; "int8", Q/DQ around the layers
            with weights and float32 elsewhere; "int8_fp16", the same with half elsewhere.
        heads: names of the streams to keep; None keeps all.
        size: (H, W) of the images; None: what the student was trained on.
        pixels: take uint8 frames of that size and normalise inside the graph.
        cache: the cache of the run; its frames calibrate and score. INT8 cannot do without.

    Returns:
        `out` as a path.

    Raises:
        UserError: no finished run, unknown precision or head, `out` holds something else, INT8 without a cache, a foreign
            cache, a graph the checks refuse, or a file that does not compute what the student computes.
    """
    run, out = Path(run), Path(out)
    if precision not in KNOWN:
        raise unknown_name("precision", precision, KNOWN)
    if precision in CALIBRATED and cache is None:
        raise UserError(f"precision {precision}: ranges are measured on real frames; give the cache of the run (--cache CACHE)")
    config = ExportConfig(precision, None if heads is None else tuple(heads), size=size, pixels=pixels)
    parent = read_manifest(run, "run")
    if "frame" in parent.get("student", {}):
        return _export_step(run, out, config)
    check_replaceable(out, "export")
    if cache is not None:
        config = replace(config, calibration=f"cache {read_manifest(cache, 'cache')['fingerprint']}")
    if is_complete(out, config, parent["fingerprint"]):
        return out
    verify_files(run, parent)
    frames = None if cache is None else calibration_frames(cache, parent)
    from student import load_student

    with staged_folder(out, "export") as folder:
        write_export(load_student(run), folder, config, parent["fingerprint"], frames)
    return out


def _export_step(run: Path, out: Path, config: ExportConfig) -> Path:
    """The same for a student with memory, of which one step is written."""
    from export.streaming import export_streaming

    if config != ExportConfig(config.precision, config.heads) or config.precision not in PRECISIONS:
        raise UserError(
            f"{run}: holds a student with memory, whose step is written in {' or '.join(PRECISIONS)} at the size it learned "
            "with, and takes float frames; leave the other flags out"
        )
    return export_streaming(run, out, precision=config.precision, heads=config.heads)


def is_complete(out: Path, config: ExportConfig, run_fingerprint: str) -> bool:
    """Whether `out` is an undamaged export of this run with this config."""
    try:
        manifest = read_manifest(out, "export")
        verify_files(out, manifest)
        check_fingerprint(out, manifest)
    except UserError:  # nothing there yet, or damaged: made again either way
        return False
    return manifest["config"] == canonical(config) and manifest["parents"] == {"run": run_fingerprint}


def write_export(
    student: Any,
    folder: Path,
    config: ExportConfig,
    run_fingerprint: str,
    frames: Calibration | None = None,
    traced: Traced | None = None,
    probes: Probes | None = None,
) -> dict[str, Any]:
    """Fill an empty folder with the export of a student in eval mode; returns the manifest.

    Args:
        student: module (B, 3, H, W) -> dict of (B, N, C), with `.preprocess` (mean, std, size) and `.config.grid`.
        frames: real ones to calibrate and score with. traced: from `trace`, where another variant needed it already.
        probes: name -> streams of the unseen frames to a number, for the score.

    Raises:
        UserError: unknown head, refused graph, or failed parity.
    """
    started = time.perf_counter()
    traced = traced or trace(student, config, frames)
    model, facts = typed(traced.model, config.precision, traced.ranges or {}, traced.nodes)
    border = PIXELS if config.pixels else INPUT
    structure = check_structure(model, list(traced.names), config.opset, traced.layer_norms, config.precision, border)
    data = model.SerializeToString(deterministic=True)
    (folder / MODEL).write_bytes(data)
    session = open_session(data)

    def found(given: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(traced.names, session.run(list(traced.names), {border: given})))

    def golden(images: np.ndarray) -> dict[str, np.ndarray]:
        given = traced.prepare(images, config.pixels)
        return found(given) if config.precision in CALIBRATED else traced.answer(given)

    rows = check_parity(traced.answer, found, traced.size, config.precision, images=_test_images(traced, config, frames))
    unseen = None if frames is None else traced.prepare(frames.unseen, config.pixels)
    calibration = {"source": config.calibration, "frames": 0 if frames is None else len(frames.seen)}
    return write_manifest(
        folder,
        "export",
        config,
        {"run": run_fingerprint},
        files=[MODEL, *write_golden(traced.student, folder, traced.names, golden)],
        contract=CONTRACT,
        preprocess=asdict(traced.student.preprocess) | {"resize": "bilinear, half-pixel centres, antialias when shrinking"},
        input={"name": border, "type": "uint8 (B, H, W, 3)" if config.pixels else "float32 (B, 3, H, W), normalised"},
        outputs=[{"name": name, "tokens": traced.shapes[name][1], "channels": traced.shapes[name][2]} for name in traced.names],
        grid=[int(side) for side in traced.student.config.grid],
        tolerances=TOLERANCES[config.precision],
        structure=structure | audit(model, traced.attention, traced.ranges) | facts | {"calibration": calibration},
        parity={"backend": "onnxruntime", "rows": rows},
        score={} if unseen is None else score(traced.answer(unseen), found(unseen), probes),
        seconds=round(time.perf_counter() - started, 2),
    )


def trace(student: Any, config: ExportConfig, frames: Calibration | None = None) -> Traced:
    """The fp32 graph of a student at the config's size, and what its variants need to know about it."""
    student = student if config.size is None else at_size(student, config.size)
    size = (int(student.preprocess.size[0]), int(student.preprocess.size[1]))
    shapes = {name: value.shape for name, value in torch_streams(student, np.zeros((1, 3, *size), np.float32)).items()}
    names = wanted_heads(config.heads, list(shapes))
    model = to_onnx(student, names, size, config)
    images = torch.zeros(1, 3, *size)
    norms = count_layer_norms(StreamTuple(student, names), images)
    shipped = StreamTuple(deployed(student), names).requires_grad_()
    layers, attention = count_layers(shipped, images)
    learned = [value.detach().numpy() for name, value in shipped.named_buffers() if value.is_floating_point()]
    nodes = weighted_nodes(model, learned)
    traced = Traced(student, names, shapes, model, norms, nodes, attention, None)
    if config.precision in CALIBRATED and len(nodes) != layers:
        text = f"{len(nodes)} of the graph's operators hold weights, but {layers} layers of the student do"
        raise UserError(f"precision {config.precision}: {text}; export with --precision fp16")
    if config.precision == "fp32" and frames is None:
        return traced
    real = golden_frames(size) if frames is None else frames.seen
    return replace(traced, ranges=measure_ranges(model, traced.prepare(real, config.pixels)))


def _test_images(traced: Traced, config: ExportConfig, frames: Calibration | None) -> Callable[[int], np.ndarray]:
    """batch -> images for the parity check: patterns nobody trained on, but frames for INT8, whose ranges end with the data."""

    def images(batch: int) -> np.ndarray:
        if frames is not None and config.precision in CALIBRATED:
            return traced.prepare(np.resize(frames.unseen, (batch, *frames.unseen.shape[1:])), config.pixels)
        if config.pixels:
            return traced.prepare(golden_frames(traced.size, batch), True)
        return probe_images(batch, traced.size)

    return images


def wanted_heads(heads: tuple[str, ...] | None, known: list[str]) -> tuple[str, ...]:
    """The streams to export, in the student's order. Raises UserError for a name the student lacks, or for none at all."""
    if heads is None:
        return tuple(known)
    for name in heads:
        if name not in known:
            raise unknown_name("head", name, known)
    if not heads:
        raise UserError(f"heads: at least one is needed; the student has {', '.join(known)}")
    return tuple(name for name in known if name in heads)


def to_onnx(student: Any, names: tuple[str, ...], size: tuple[int, int], config: ExportConfig) -> onnx.ModelProto:
    """Trace what is shipped with the dynamo exporter into one self-contained fp32 model without traces of the machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    module: nn.Module = StreamTuple(deployed(student), names)
    border, example = INPUT, torch.zeros(EXAMPLE_BATCH, 3, *size)
    if config.pixels:
        module = FromPixels(module, student.preprocess.mean, student.preprocess.std)
        border, example = PIXELS, torch.zeros(EXAMPLE_BATCH, *size, 3, dtype=torch.uint8)
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                opset_version=config.opset,
                input_names=[border],
                output_names=list(names),
                dynamic_shapes={border: {0: torch.export.Dim("batch", min=1, max=config.max_batch)}},
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own and torch's errors alike
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        advice = "choose another one (vega-edge list students)"
        raise UserError(f"torch cannot export this student to ONNX ({reason}); {advice}") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # stack traces with file names; they would also change the hash
    model = program.model_proto
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]:
        value.ClearField("metadata_props")
    return model


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence deprecations and progress inside torch and onnxscript that nobody here can act on."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
