"""The teacher room: scenes in, cached mid-denoising features of a frozen video generator out.

from teacher import load_teacher, open_scenes
"""

from __future__ import annotations

from typing import Any

_HOME = {
    "load_teacher": "teacher.backbones",
    "BACKBONES": "teacher.backbones",
    "load_pipeline": "teacher.streams",
    "open_scenes": "teacher.scenes",
    "FeatureCache": "teacher.cache",
    "CacheWriter": "teacher.cache",
    "create_fusion": "teacher.fusion",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Public names on first use: importing the room must not import torch and diffusers."""
    if name not in _HOME:
        raise AttributeError(f"module 'teacher' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
