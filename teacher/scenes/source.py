"""Scene sources behind one URI: `open_scenes("procedural:test?count=20")`, `"scannet:PATH"`, `"video:PATH/*.mp4"`.

First stop of every stage that needs pictures. A source is sequence-like and lazy: opening costs nothing, `[i]` makes clip i.

    python -c "from teacher.scenes import open_scenes; s = open_scenes('procedural:val?count=3'); print(s.uri, s.fingerprint)"
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vega_artifact import UserError, fingerprint, unknown_name

from .clip import PosedClip
from .folders import FolderConfig, find_scenes, folder_clip
from .procedural import VERSION, ProceduralConfig, procedural_clip
from .video import VideoConfig, find_videos, video_clip


@dataclass(frozen=True)
class SceneSource:
    """A fixed list of scenes.

    Attributes:
        uri: the resolved URI: every option spelled out, always in the same order.
        fingerprint: identity of the content; equal sources give equal clips. For files it covers names, sizes and options,
            not every byte, so that opening stays cheap; moving the folder does not change it.
        scene_ids: unique names, in order.
        make: index -> clip; picklable, so that worker processes can use it.
    """

    uri: str
    fingerprint: str
    scene_ids: tuple[str, ...]
    make: Callable[[int], PosedClip]

    def __len__(self) -> int:
        return len(self.scene_ids)

    def __getitem__(self, index: int) -> PosedClip:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.uri} has {len(self)} scenes, index {index} asked for")
        return self.make(index % len(self))

    def __iter__(self) -> Iterator[PosedClip]:
        return (self.make(index) for index in range(len(self)))


def parse_options(config: type, query: str, uri: str) -> dict[str, Any]:
    """Typed keyword arguments out of `a=1&b=2` for the defaulted fields of a config dataclass.

    Raises:
        UserError: an unknown or repeated key, or a value of the wrong type.
    """
    types = typing.get_type_hints(config)
    known = {field.name: types[field.name] for field in fields(config) if field.default is not MISSING}
    values: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise unknown_name(f"option in {uri!r}:", key, known)
        if key in values:
            raise UserError(f"{uri}: option {key} is given twice; give it once")
        try:
            values[key] = known[key](text)
        except ValueError:
            raise UserError(f"{uri}: option {key} must be {known[key].__name__}, found {text!r}") from None
    return values


def canonical_uri(scheme: str, rest: str, config: Any) -> str:
    """The URI with every option of `config` spelled out in the order of its fields."""
    options = [f"{field.name}={getattr(config, field.name)}" for field in fields(config) if field.default is not MISSING]
    return f"{scheme}:{rest}?{'&'.join(options)}"


def _open_procedural(scheme: str, rest: str, query: str) -> SceneSource:
    """procedural:SPLIT?count=20&seed=1&frames=8&size=128&span=1.0 -- seeded rooms with exact ground truth"""
    config = ProceduralConfig(rest, **parse_options(ProceduralConfig, query, f"{scheme}:{rest}?{query}"))
    uri = canonical_uri(scheme, rest, config)
    ids = tuple(config.scene_id(index) for index in range(config.count))
    return SceneSource(uri, fingerprint({"uri": uri, "version": VERSION}), ids, partial(procedural_clip, config))


def _open_folder(scheme: str, rest: str, query: str) -> SceneSource:
    """folder:PATH?frames=32&height=0&on_bad_frame=error -- posed RGB-D folders (also scannet:PATH), see `folders.py`"""
    config = FolderConfig(**parse_options(FolderConfig, query, f"{scheme}:{rest}?{query}"))
    path = Path(rest).expanduser().resolve()
    scenes = find_scenes(path)
    files = {
        scene.name: [(file.name, file.stat().st_size) for file in sorted(scene.iterdir()) if file.is_file()] for scene in scenes
    }
    identity = fingerprint({"files": files, "config": config})
    make = partial(_folder_at, tuple(scenes), config)
    return SceneSource(canonical_uri(scheme, str(path), config), identity, tuple(scene.name for scene in scenes), make)


def _folder_at(scenes: tuple[Path, ...], config: FolderConfig, index: int) -> PosedClip:
    return folder_clip(scenes[index], config)


def _open_video(scheme: str, rest: str, query: str) -> SceneSource:
    """video:PATH/*.mp4?frames=32&height=0&on_bad_frame=error -- plain video, colours only"""
    config = VideoConfig(**parse_options(VideoConfig, query, f"{scheme}:{rest}?{query}"))
    found = find_videos(rest)
    identity = fingerprint({"files": {name: path.stat().st_size for name, path in found.items()}, "config": config})
    pattern = str(Path(rest).expanduser().absolute())
    return SceneSource(
        canonical_uri(scheme, pattern, config), identity, tuple(found), partial(_video_at, tuple(found.items()), config)
    )


def _video_at(videos: tuple[tuple[str, Path], ...], config: VideoConfig, index: int) -> PosedClip:
    return video_clip(*videos[index], config)


SCHEMES: dict[str, Callable[[str, str, str], SceneSource]] = {
    "procedural": _open_procedural,
    "folder": _open_folder,
    "scannet": _open_folder,
    "video": _open_video,
}


def open_scenes(uri: str) -> SceneSource:
    """Open a scene source.

    Args:
        uri: "procedural:SPLIT?count=20&seed=1&frames=8&size=128&span=1.0" with SPLIT train, val or test;
            "folder:PATH" or "scannet:PATH" (posed_images layout); "video:PATH/*.mp4". The last three take
            `frames` (32; 0 = all), `height` in pixels (0 = as stored) and `on_bad_frame` (error; or skip). The first
            question mark starts the options.

    Raises:
        UserError: an unknown scheme, split or option (the known ones are listed), or nothing readable at the path.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise unknown_name("kind of scenes", scheme, SCHEMES)
    rest, _, query = rest.partition("?")
    return SCHEMES[scheme](scheme, rest, query)
