"""How a TensorRT engine is built, beyond what its graph says: limits, where it may run, what it leaves out.

Between the command line and `export.tensorrt`. Every option that this TensorRT or this machine lacks is refused by name,
because TensorRT itself would ignore some and crash on others.

    vega-edge build EXPORT --out ENGINE --workspace-mib 1024 --strip
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vega_artifact import UserError

MIB = 1 << 20


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        workspace_mib: limit of the builder's scratch memory; None for TensorRT's own.
        timing_cache: file where timings are kept between builds; None for none.
        any_gpu: run on every GPU from Ampere on, some per cent slower (TensorRT's AMPERE_PLUS); no Jetson is promised.
        any_version: run on later versions of TensorRT too, which must then be allowed to load code from the engine.
        strip: leave the weights out of the engine; they are put back from the ONNX file beside it when it is opened.
        dla: number of the deep learning accelerator that convolutional students run on, one frame a call, with the layers it
            lacks on the GPU; None: none.
    """

    workspace_mib: int | None = None
    timing_cache: Path | None = None
    any_gpu: bool = False
    any_version: bool = False
    strip: bool = False
    dla: int | None = None


def check_options(options: BuildOptions, manifest: dict[str, Any]) -> None:
    """Raises UserError for an accelerator asked to run what it cannot: float32, or attention."""
    if options.dla is None:
        return
    attention = manifest.get("structure", {}).get("attention", {}).get("network", 0)
    if attention or manifest["config"]["precision"] == "fp32":
        reason = f"{attention} attention layers" if attention else "float32"
        raise UserError(
            f"--dla {options.dla}: this export has {reason}, which an accelerator does not run; export a convolutional student "
            "(vega-edge list students) in fp16, the safe choice: graphs with Q/DQ it takes on some versions of TensorRT only"
        )


def apply(trt: Any, builder: Any, config: Any, options: BuildOptions) -> None:
    """Set what was asked for. Raises UserError for what this TensorRT or machine does not have."""
    tf32 = getattr(getattr(trt, "BuilderFlag", None), "TF32", None)
    if tf32 is not None:
        config.clear_flag(tf32)  # TF32 keeps 10 bits of the mantissa, and fp32 exports promise more
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    if options.any_gpu:
        config.hardware_compatibility_level = _known(trt, "--any-gpu", "HardwareCompatibilityLevel", "AMPERE_PLUS")
    if options.any_version:
        config.set_flag(_known(trt, "--any-version", "BuilderFlag", "VERSION_COMPATIBLE"))
    if options.strip:
        config.set_flag(_known(trt, "--strip", "BuilderFlag", "STRIP_PLAN"))
        config.set_flag(_known(trt, "--strip", "BuilderFlag", "REFIT_IDENTICAL"))
    if options.dla is not None:
        device = _known(trt, "--dla", "DeviceType", "DLA")
        cores = int(builder.num_DLA_cores)
        if not 0 <= options.dla < cores:
            raise UserError(f"--dla {options.dla}: this device has {cores} accelerators; build without --dla")
        config.default_device_type, config.DLA_core = device, options.dla
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def accelerated_layers(network: Any, config: Any, dla: int | None) -> dict[str, int]:
    """How many layers there are ("all") and can run on the accelerator ("dla"); nothing without one. The builder decides more.

    Raises:
        UserError: none can, so that an engine for the accelerator would be one for the GPU.
    """
    if dla is None:
        return {}
    count = int(network.num_layers)
    able = sum(bool(config.can_run_on_DLA(network.get_layer(index))) for index in range(count))
    if not able:
        raise UserError(f"--dla {dla}: none of the {count} layers can run on an accelerator; build without --dla")
    return {"all": count, "dla": able}


def _known(trt: Any, flag: str, kind: str, name: str) -> Any:
    found = getattr(getattr(trt, kind, None), name, None)
    if found is None:
        raise UserError(f"{flag}: {trt.__name__} {trt.__version__} has no {kind}.{name}; build without {flag}")
    return found
