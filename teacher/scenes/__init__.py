"""Scenes: clips with geometry, from seeded rooms, posed RGB-D folders or plain video. See `source.open_scenes`."""

from .clip import PosedClip, SceneObject
from .source import SceneSource, open_scenes

__all__ = ["PosedClip", "SceneObject", "SceneSource", "open_scenes"]
