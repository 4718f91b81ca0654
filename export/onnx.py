"""A trained student becomes one ONNX file that has proved what it computes.

Third stage of the chain: RUN -> EXPORT. The folder holds `student.onnx` (opset 20, dynamic batch, weights inside, input
`images` float32 (B, 3, H, W) normalised, one output (B, N, C) per stream), golden arrays for the self test on the device, and
a manifest with preprocessing, structure and parity. Opset 20 has Gelu and LayerNormalization; TensorRT 10.0-10.3 read it.

    vega-edge export RUN --out EXPORT
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from export.parity import TOLERANCES, check_parity
from export.precision import PRECISIONS, to_half
from export.runtime.backends import OnnxRuntimeBackend
from export.runtime.manifest import GOLDEN_FRAMES, MODEL
from export.runtime.preprocess import preprocess
from export.staging import check_replaceable, staged_folder
from export.structure import INPUT, check_structure, count_layer_norms
from vega_artifact import UserError, canonical, read_manifest, unknown_name, verify_files, write_manifest

EXAMPLE_BATCH = 2  # the batch of the example; torch.export would specialise on 1


@dataclass(frozen=True)
class ExportConfig:
    """What was asked for; equal config and equal run mean an export can be reused.

    Attributes:
        precision: "fp32" or "fp16".
        heads: streams to keep, in the student's order; None keeps all.
        max_batch: upper bound of the symbolic batch.
        layout: version of the folder's layout, raised when an old export must be made again.
    """

    precision: str = "fp32"
    heads: tuple[str, ...] | None = None
    opset: int = 20
    max_batch: int = 64
    layout: int = 1


class StreamTuple(nn.Module):
    """The student with the wanted streams as a tuple, because ONNX outputs have an order and no names of their own."""

    def __init__(self, student: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.student = student
        self.names = names

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        streams = self.student(images)
        return tuple(streams[name] for name in self.names)


def export_run(run: Path | str, out: Path | str, *, precision: str = "fp32", heads: Sequence[str] | None = None) -> Path:
    """Export the student of a training run; a complete export of the same run and settings is reused.

    Args:
        run: folder of kind "run". out: folder to write; appears all at once.
        precision: "fp32", or "fp16": a typed half-precision graph with float32 input and outputs.
        heads: names of the streams to keep; None keeps all.

    Returns:
        `out` as a path.

    Raises:
        UserError: no finished run, unknown precision or head, `out` holds something else, a graph the checks refuse, or a
            file that does not compute what the student computes.
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
    from student import load_student

    with staged_folder(out, "export") as folder:
        write_export(load_student(run), folder, config, parent["fingerprint"])
    return out


def is_complete(out: Path, config: ExportConfig, run_fingerprint: str) -> bool:
    """Whether `out` is an undamaged export of this run with this config."""
    try:
        manifest = read_manifest(out, "export")
        verify_files(out, manifest)
    except UserError:  # nothing there yet, or damaged: made again either way
        return False
    return manifest["config"] == canonical(config) and manifest["parents"] == {"run": run_fingerprint}


def write_export(student: Any, folder: Path, config: ExportConfig, run_fingerprint: str) -> dict[str, Any]:
    """Fill an empty folder with the export of a student in eval mode; returns the manifest.

    Args:
        student: module (B, 3, H, W) -> dict of (B, N, C), with `.preprocess` (mean, std, size) and `.config.grid`.

    Raises:
        UserError: unknown head, refused graph, or failed parity.
    """
    started = time.perf_counter()
    size = (int(student.preprocess.size[0]), int(student.preprocess.size[1]))
    shapes = {name: value.shape for name, value in torch_streams(student, np.zeros((1, 3, *size), np.float32)).items()}
    names = wanted_heads(config.heads, list(shapes))
    model = to_onnx(student, names, size, config)
    norms = count_layer_norms(StreamTuple(student, names), torch.zeros(1, 3, *size))
    structure = check_structure(model, list(names), config.opset, norms, config.precision)
    data = model.SerializeToString(deterministic=True)
    (folder / MODEL).write_bytes(data)
    backend = OnnxRuntimeBackend(data, "onnxruntime", threads=1)
    parity = check_parity(
        lambda images: {name: torch_streams(student, images)[name] for name in names},
        lambda images: dict(zip(backend.outputs, backend(images))),
        size,
        config.precision,
    )
    return write_manifest(
        folder,
        "export",
        config,
        {"run": run_fingerprint},
        files=[MODEL, *write_golden(student, folder, names)],
        preprocess=asdict(student.preprocess) | {"resize": "bilinear, half-pixel centres, antialias when shrinking"},
        outputs=[{"name": name, "tokens": shapes[name][1], "channels": shapes[name][2]} for name in names],
        grid=[int(side) for side in student.config.grid],
        tolerances=TOLERANCES[config.precision],
        structure=structure,
        parity={"backend": backend.name, "rows": parity},
        seconds=round(time.perf_counter() - started, 2),
    )


def write_golden(student: Any, folder: Path, names: Sequence[str]) -> list[str]:
    """Write frames and what torch makes of them, for the self test on the device; returns the file names."""
    wish = student.preprocess
    frames = golden_frames(wish.size)
    np.save(folder / GOLDEN_FRAMES, frames)
    streams = torch_streams(student, preprocess(frames, wish.size, wish.mean, wish.std))
    for name in names:
        np.save(folder / f"golden_{name}.npy", streams[name])
    return [GOLDEN_FRAMES, *(f"golden_{name}.npy" for name in names)]


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


def to_onnx(student: nn.Module, names: tuple[str, ...], size: tuple[int, int], config: ExportConfig) -> onnx.ModelProto:
    """Trace with the dynamo exporter into one self-contained model without traces of the machine that made it.

    Branches that training keeps apart and inference can fuse (RepViT, MobileOne) are fused first.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from timm.utils.model import reparameterize_model

    module = StreamTuple(reparameterize_model(student), names).eval()
    try:
        with quiet_exporter(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (torch.zeros(EXAMPLE_BATCH, 3, *size),),
                dynamo=True,
                opset_version=config.opset,
                input_names=[INPUT],
                output_names=list(names),
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch", min=1, max=config.max_batch)}},
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
    return to_half(model) if config.precision == "fp16" else model


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


def torch_streams(student: nn.Module, images: np.ndarray) -> dict[str, np.ndarray]:
    """Normalised float32 (B, 3, H, W) -> stream name -> float32 (B, N, C), as torch computes it."""
    with torch.inference_mode():
        return {name: value.float().numpy() for name, value in student(torch.from_numpy(images)).items()}


def golden_frames(size: tuple[int, int], count: int = 3) -> np.ndarray:
    """Deterministic uint8 frames (count, H', W', 3), larger than the model's size so that the self test resizes too."""
    height, width = size[0] * 5 // 4, size[1] * 3 // 2
    rng = np.random.default_rng(20)
    coarse = rng.uniform(0, 255, (count, 6, 8, 3)).astype(np.float32)
    rows = np.linspace(0, 5.999, height).astype(int)
    columns = np.linspace(0, 7.999, width).astype(int)
    noisy = coarse[:, rows][:, :, columns] + rng.normal(0, 8, (count, height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)
