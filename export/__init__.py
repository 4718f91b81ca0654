"""From a trained student to the one file a device runs: ONNX, its checks, a TensorRT engine, a bundle.

Third room of the chain: student RUN -> `export_run` -> EXPORT folder -> `export.runtime` (torch-free) on the device. The names
below are imported when first used, because `export.runtime` lives in this package and must start without torch or onnx.

    vega-edge export RUN --out EXPORT
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.bundle import write_bundle
    from export.onnx import export_run
    from export.tensorrt import build_engine

__all__ = ["build_engine", "export_run", "write_bundle"]

_HOMES = {"build_engine": "export.tensorrt", "export_run": "export.onnx", "write_bundle": "export.bundle"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'export' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
