"""The time a graph cannot beat on a device: its arithmetic at the device's peak, or its unavoidable traffic at full bandwidth.

Beside `bench.latency`: EXPORT -> bounds, which are marked as such and are no measurement. Arithmetic counts MatMul, Gemm, Conv
and Attention; traffic counts every weight, input and output once, as if all that lies between stayed on the chip.

    vega-edge bench latency EXPORT --roofline "Orin Nano Super"
    python -m bench.roofline EXPORT

Sources: dense tensor-core peaks and bandwidths of vendor datasheets, without sparsity and without DLA; fp32 on CUDA cores, two
operations per core and clock (TF32 is off in all our backends). Thor's int8 is its FP8 figure.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import locate
from export.runtime.manifest import MODEL
from vega_artifact import UserError, read_manifest, unknown_name, verify_files

PEAKS = {"fp32": "fp32", "fp16": "fp16", "bf16": "fp16", "int8": "int8", "fp8": "int8"}  # precision -> field of `Device`


@dataclass(frozen=True)
class Device:
    """Peaks: tera-operations per second by precision, gigabytes per second. `words` must all be in a device's own name."""

    fp32: float
    fp16: float
    int8: float
    bandwidth: float
    words: tuple[str, ...] = ()

    def peak(self, precision: str) -> float:
        """Operations per second of a precision as exports name it."""
        return float(getattr(self, peak_of(precision))) * 1e12


DEVICES = {
    "Orin Nano": Device(1.28, 10.2, 20.5, 68),
    "Orin Nano Super": Device(2.09, 16.7, 33.4, 102),
    "Orin NX 16GB": Device(1.88, 15.0, 30.1, 102),
    "Orin NX 16GB Super": Device(2.40, 19.2, 38.4, 102),
    "AGX Orin 32GB": Device(3.33, 26.7, 53.3, 205),
    "AGX Orin 64GB": Device(5.33, 42.6, 85.3, 205),
    "Thor T5000": Device(8.06, 259, 517, 273, ("thor",)),
    "H100 SXM": Device(67, 989, 1979, 3350, ("h100", "hbm3")),
    "H200": Device(67, 989, 1979, 4800, ("h200",)),
}


def peak_of(precision: str) -> str:
    """The peak that bounds a precision: bfloat16 counts as fp16, fp8 as int8, a mixed one such as int8_fp16 as its faster half.

    Raises:
        UserError: no known precision.
    """
    named = precision.removesuffix("_fp16")
    if named not in PEAKS:
        raise unknown_name("precision", precision, PEAKS)
    return PEAKS[named]


def recognise(machine: Mapping[str, Any]) -> str | None:
    """The table's name of a measured machine; None where its name does not settle which peaks hold.

    Orin boards of one name run at clocks that differ by their power mode, so they are never guessed: name them.
    """
    name = str(machine.get("gpu") or machine.get("device") or "").lower()
    found = [key for key, device in DEVICES.items() if device.words and all(word in name for word in device.words)]
    return found[0] if len(found) == 1 else None


@dataclass(frozen=True)
class Work:
    """What one call of a graph must do: operations (two per multiply-add), and bytes of weights, inputs and outputs."""

    operations: int
    weight_bytes: int
    data_bytes: int

    def bound_ms(self, device: Device, precision: str) -> tuple[float, str]:
        """The longer of the two times in milliseconds, and what it comes from: "compute" or "memory"."""
        compute = self.operations / device.peak(precision) * 1e3
        memory = (self.weight_bytes + self.data_bytes) / (device.bandwidth * 1e9) * 1e3
        return (compute, "compute") if compute >= memory else (memory, "memory")


def work_of(model: Path | bytes, batch: int) -> Work:
    """Count the work of an ONNX graph for one batch.

    Raises:
        UserError: not a readable ONNX file, or a graph whose shapes cannot be inferred.
    """
    import onnx
    from onnx.shape_inference import infer_shapes

    try:
        loaded = onnx.load(model) if isinstance(model, Path) else onnx.load_from_string(model)
    except Exception as error:  # protobuf's errors share no base class
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{model if isinstance(model, Path) else 'the model'}: no readable ONNX ({reason}); export again"
        ) from None
    for value in [*loaded.graph.input, *loaded.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = batch
    del loaded.graph.value_info[:]  # symbolic shapes, which would win over the inferred ones
    graph = infer_shapes(loaded, data_prop=True).graph
    shapes = {value.name: sides(value) for value in [*graph.input, *graph.output, *graph.value_info]}
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    sizes = {tensor.name: math.prod(tensor.dims) * itemsize(tensor.data_type) for tensor in graph.initializer}
    data = sum(math.prod(shapes[v.name]) * itemsize(v.type.tensor_type.elem_type) for v in [*graph.input, *graph.output])
    return Work(sum(operations(node, shapes) for node in graph.node), sum(sizes.values()), data)


def itemsize(data_type: int) -> int:
    """Bytes of one element of an ONNX type."""
    from onnx import helper

    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def sides(value: Any) -> tuple[int, ...]:
    """Shape of a value; 0 for a side that was not inferred."""
    return tuple(int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)


def operations(node: Any, shapes: Mapping[str, Sequence[int]]) -> int:
    """Two per multiply-add of a node; 0 for kinds whose arithmetic is small beside their traffic.

    Raises:
        UserError: a shape that counts was not inferred.
    """
    if node.op_type not in COUNTS:
        return 0
    names = [*node.input[:2], node.output[0]]
    left, right, out = (tuple(shapes.get(name, ())) for name in names)
    if not all(side and min(side) > 0 for side in (left, right, out)):
        raise UserError(f"roofline: the shapes of {node.op_type} {node.name!r} cannot be inferred; export the run again")
    return 2 * int(COUNTS[node.op_type](node, left, right, out))


def gemm(node: Any, left: Sequence[int], right: Sequence[int], out: Sequence[int]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * left[0 if transposed else 1]


def attention(node: Any, query: Sequence[int], key: Sequence[int], out: Sequence[int]) -> int:
    """Scores and their weighted sum; query and key (B, heads, N, C) or (B, N, heads * C)."""
    return math.prod(query) * key[-2] + math.prod(out) * key[-2]


COUNTS = {
    "MatMul": lambda node, left, right, out: math.prod(out) * left[-1],
    "Gemm": gemm,
    "Conv": lambda node, image, weight, out: math.prod(out) * math.prod(weight[1:]),  # (out, in / groups, *kernel)
    "Attention": attention,
}


def check(artifacts: Sequence[Path], device: str | None) -> None:
    """Refuse, before anything is measured, a device the table does not have and exports of a precision without a peak.

    Reads manifests alone: a graph that was loaded would count to the memory of what is measured next. None asks for nothing.
    """
    if device is None:
        return
    if device not in DEVICES:
        raise unknown_name("device", device, DEVICES)
    with exports_among(artifacts) as exports:
        for export in exports:
            peak_of(read_manifest(export, "export")["config"]["precision"])


def of_artifacts(artifacts: Sequence[Path], batches: Sequence[int], device: str | None) -> list[dict[str, Any]]:
    """The rows of every export among the artifacts; arguments and errors as for `rows`."""
    with exports_among(artifacts) as exports:
        return [row for export in exports for row in rows(export, batches, device)]


@contextmanager
def exports_among(artifacts: Sequence[Path]) -> Iterator[list[Path]]:
    """The folders of those that are exports, in a bundle or not; an engine, even if it carries one, has no graph to count."""
    with tempfile.TemporaryDirectory() as room:  # of unpacked bundles
        folders = [locate(path, Path(room) / str(index)) for index, path in enumerate(artifacts)]
        yield [folder for folder in folders if is_export(folder)]


def is_export(folder: Path) -> bool:
    """Whether the folder is a finished export."""
    try:
        read_manifest(folder, "export")
    except UserError:
        return False
    return True


def rows(export: Path, batches: Sequence[int], device: str | None) -> list[dict[str, Any]]:
    """Work and bound of an export per batch.

    Args:
        device: of `DEVICES`; None counts the work and leaves the bound out.

    Raises:
        UserError: no export, an altered or unreadable graph, or a precision without a peak.
    """
    manifest = read_manifest(export, "export")
    verify_files(export, manifest)
    precision = str(manifest["config"]["precision"])
    found = []
    for batch in batches:
        work = work_of(export / MODEL, batch)
        row = {"kind": "bound", "precision": precision, "batch": batch, "size": manifest["preprocess"]["size"]}
        row |= {"gflop": work.operations / 1e9, "weight_mib": work.weight_bytes / 2**20, "data_mib": work.data_bytes / 2**20}
        if device is not None:
            bound, limit = work.bound_ms(DEVICES[device], precision)
            row |= {"device": device, "bound_ms": bound, "limited_by": limit}
        found.append(row)
    return found


def text(found: Sequence[Mapping[str, Any]]) -> str:
    """The bounds as lines for a terminal, each saying that it is none but a bound."""
    lines = []
    for row in found:
        work = f"{row['precision']} b{row['batch']}: {row['gflop']:.3f} GFLOP, weights {row['weight_mib']:.1f} MiB"
        bound = f"; bound on {row['device']}: {row['bound_ms']:.3f} ms ({row['limited_by']})" if "bound_ms" in row else ""
        lines.append(f"roofline {work}{bound}" + (", not a measurement" if bound else ""))
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Print the bounds of one export at batch 1 on every device of the table."""
    try:
        for device in DEVICES:
            print(text(rows(Path(arguments[0]), (1,), device)))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
