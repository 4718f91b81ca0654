"""What this machine has, and what will therefore run. Stands beside the chain: ask it first on a new machine.

vega-edge doctor
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.latency import machine
from export.runtime.backends import preload_libraries
from export.tensorrt import import_tensorrt
from vega_artifact import UserError

GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """What was found; None stands for "absent"."""

    device: str
    python: str
    system: str
    cores: int
    memory_gib: float | None
    disk_free_gib: float
    torch: str
    gpu: str | None
    gpu_memory_gib: float | None
    onnxruntime: str | None
    onnx_device: str | None  # the provider that really ran a graph, not the one that is merely compiled in
    tensorrt: str | None
    java: str | None


def examine(folder: Path = Path()) -> Machine:
    """Look at this machine; `folder` is where artifacts would be written (its free space is reported)."""
    gpu, gpu_memory = _gpu()
    basics = machine()
    return Machine(
        device=basics["device"],
        python=basics["python"],
        system=basics["system"],
        cores=basics["cores"],
        memory_gib=_memory_gib(),
        disk_free_gib=shutil.disk_usage(folder).free / GIB,
        torch=importlib.metadata.version("torch"),
        gpu=gpu,
        gpu_memory_gib=gpu_memory,
        onnxruntime=_version("onnxruntime-gpu") or _version("onnxruntime"),
        onnx_device=_onnx_device(),
        tensorrt=_tensorrt(),
        java=_java(),
    )


def text(examined: Machine | None = None) -> str:
    """The machine and the consequences as lines of text."""
    m = examined or examine()
    found = [
        ("machine", f"{m.device}, {m.system}"),
        ("cores", str(m.cores)),
        ("memory", f"{m.memory_gib:.1f} GiB" if m.memory_gib else "unknown"),
        ("free disk", f"{m.disk_free_gib:.1f} GiB here"),
        ("python", m.python),
        ("torch", m.torch),
        ("GPU", f"{m.gpu}, {m.gpu_memory_gib:.0f} GiB" if m.gpu and m.gpu_memory_gib else "none that torch can use"),
        ("onnxruntime", f"{m.onnxruntime or 'absent'}, runs on {m.onnx_device or 'nothing'}"),
        ("TensorRT", m.tensorrt or "absent"),
        ("Java", m.java or "absent"),
    ]
    lines = [f"{name:<13}{value}" for name, value in found]
    return "\n".join([*lines, "", "Therefore:", *(f"  - {line}" for line in consequences(m))])


def consequences(m: Machine) -> list[str]:
    """One sentence per stage that depends on the machine."""
    meteor = "scored with the original Java program" if m.java else "left out (it needs Java), and the report says so"
    return [
        f"teacher and training run on {'the GPU' if m.gpu else 'the CPU: right for the embedded teacher; Wan2.1 wants a GPU'}",
        f"exported files are timed and scored with onnxruntime on {m.onnx_device}"
        if m.onnx_device
        else "exported files cannot run here: install onnxruntime",
        "`vega-edge build` makes TensorRT engines here"
        if m.tensorrt and (m.gpu or m.tensorrt.startswith("tensorrt_rtx"))  # RTX also builds ahead of time, without a GPU
        else "`vega-edge build` is refused here (it needs TensorRT and a GPU): use `vega-edge bundle` and build on the device",
        f"METEOR is {meteor}",
        "`vega-edge demo` fits" if m.disk_free_gib >= 2 else "`vega-edge demo` wants 2 GiB of free disk: free some space first",
    ]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):
        return None


def _gpu() -> tuple[str | None, float | None]:
    import torch

    if not torch.cuda.is_available():
        return None, None
    properties = torch.cuda.get_device_properties(0)
    return f"{properties.name} (compute {properties.major}.{properties.minor})", properties.total_memory / GIB


def _onnx_device() -> str | None:
    """Run a one-node graph: a provider that is listed as available falls back to the CPU silently when CUDA is missing."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime
    from onnx import TensorProto, helper

    tensor = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", tensor[:1], tensor[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnxruntime.set_default_logger_severity(4)  # the failed attempt is the finding, its log lines are noise
    preload_libraries()
    providers = [
        name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in onnxruntime.get_available_providers()
    ]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)
    return str(session.get_providers()[0]).removesuffix("ExecutionProvider")


def _tensorrt() -> str | None:
    try:
        library = import_tensorrt()
    except UserError:
        return None
    return f"{library.__name__} {library.__version__}"


def _java() -> str | None:
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stderr or done.stdout).splitlines()[0].strip()
