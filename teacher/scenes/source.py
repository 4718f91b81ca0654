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

from .arkitscenes import arkit_clip, arkit_scenes
from .clip import PosedClip
from .folders import ScanNetConfig, alignment_for, find_scenes, folder_clip
from .procedural import VERSION, ProceduralConfig, procedural_clip
from .scannetpp import scannetpp_clip, scannetpp_scenes
from .shots import FolderConfig
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
    """folder:PATH?frames=32&height=0&on_bad_frame=error -- posed RGB-D folders, see `folders.py`"""
    config = FolderConfig(**parse_options(FolderConfig, query, f"{scheme}:{rest}?{query}"))
    return _files_source(scheme, rest, config, find_scenes, folder_clip)


def _open_scannet(scheme: str, rest: str, query: str) -> SceneSource:
    """scannet:PATH?frames=32&height=0&on_bad_frame=error&align=auto -- posed RGB-D folders turned to the walls"""
    config = ScanNetConfig(**parse_options(ScanNetConfig, query, f"{scheme}:{rest}?{query}"))
    scenes = find_scenes(Path(rest).expanduser().resolve())
    worlds = [alignment_for(scene, config.align) for scene in scenes]  # from outside the scene's folder: part of the identity
    return _files_source(scheme, rest, config, find_scenes, folder_clip, [w if w is None else w.tolist() for w in worlds])


def _open_scannetpp(scheme: str, rest: str, query: str) -> SceneSource:
    """scannetpp:PATH?frames=32&height=0&on_bad_frame=error -- ScanNet++ iPhone streams, see `scannetpp.py`"""
    config = FolderConfig(**parse_options(FolderConfig, query, f"{scheme}:{rest}?{query}"))
    return _files_source(scheme, rest, config, scannetpp_scenes, scannetpp_clip)


def _open_arkitscenes(scheme: str, rest: str, query: str) -> SceneSource:
    """arkitscenes:PATH?frames=32&height=0&on_bad_frame=error -- ARKitScenes videos, see `arkitscenes.py`"""
    config = FolderConfig(**parse_options(FolderConfig, query, f"{scheme}:{rest}?{query}"))
    return _files_source(scheme, rest, config, arkit_scenes, arkit_clip)


def _files_source(
    scheme: str,
    rest: str,
    config: FolderConfig,
    find: Callable[[Path], list[Path]],
    read: Callable[[Path, Any], PosedClip],
    beside: object = None,
) -> SceneSource:
    """Scene folders on disk; `beside` is what else decides their content."""
    path = Path(rest).expanduser().resolve()
    scenes = find(path)
    files = {
        scene.name: [
            (file.relative_to(scene).as_posix(), file.stat().st_size) for file in sorted(scene.rglob("*")) if file.is_file()
        ]
        for scene in scenes
    }
    identity = {"files": files, "config": config} | ({"beside": beside} if beside is not None else {})
    make = partial(_folder_at, tuple(scenes), read, config)
    names = tuple(scene.name for scene in scenes)
    return SceneSource(canonical_uri(scheme, str(path), config), fingerprint(identity), names, make)


def _folder_at(scenes: tuple[Path, ...], read: Callable[[Path, Any], PosedClip], config: FolderConfig, index: int) -> PosedClip:
    return read(scenes[index], config)


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
    "scannet": _open_scannet,
    "scannetpp": _open_scannetpp,
    "arkitscenes": _open_arkitscenes,
    "video": _open_video,
}


def open_scenes(uri: str) -> SceneSource:
    """Open a scene source.

    Args:
        uri: "procedural:SPLIT?count=20&seed=1&frames=8&size=128&span=1.0" with SPLIT train, val or test;
            "folder:PATH" or "scannet:PATH" (posed_images layout; scannet also `align`: auto, none or require),
            "scannetpp:PATH", "arkitscenes:PATH", "video:PATH/*.mp4". All but procedural take `frames` (32; 0 = all),
            `height` in pixels (0 = as stored) and `on_bad_frame` (error; or skip). The first question mark starts the options.

    Raises:
        UserError: an unknown scheme, split or option (the known ones are listed), or nothing readable at the path.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in SCHEMES:
        raise unknown_name("kind of scenes", scheme, SCHEMES)
    rest, _, query = rest.partition("?")
    return SCHEMES[scheme](scheme, rest, query)
