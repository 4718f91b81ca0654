"""Plain video files as clips: colours only, decoded by PyAV.

A scene source for pictures nobody measured: extraction and distillation need no geometry, only the 3D probes do.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('video:/data/*.mp4?frames=32').scene_ids)"
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vega_artifact import UserError

from .clip import PosedClip, resize_image
from .folders import spread


@dataclass(frozen=True)
class VideoConfig:
    """frames: how many, spread evenly over the video (0 = all); height: pixels, the width keeps the aspect (0 = as stored)."""

    frames: int = 32
    height: int = 0

    def __post_init__(self) -> None:
        if self.frames < 0 or self.height < 0:
            raise UserError("videos: frames and height must not be negative (0 = all, as stored)")


def find_videos(pattern: str) -> dict[str, Path]:
    """Scene id -> file for a path or a glob pattern, by name.

    Raises:
        UserError: nothing matches.
    """
    paths = [
        Path(name).resolve() for name in sorted(glob.glob(os.path.expanduser(pattern), recursive=True)) if os.path.isfile(name)
    ]
    if not paths:
        raise UserError(f"{pattern}: no such video file; give a file or a pattern such as 'video:clips/*.mp4'")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    named = {"video-" + "-".join(path.relative_to(root).parts): path for path in paths}
    short = {"video-" + "-".join(path.relative_to(root).with_suffix("").parts): path for path in paths}
    return short if len(short) == len(paths) else named  # a.mp4 beside a.mkv keeps its ending


def video_clip(scene_id: str, path: Path, config: VideoConfig) -> PosedClip:
    """Decode evenly spread frames of one file; `frame_ids` are their numbers in the video.

    Raises:
        UserError: the file cannot be decoded, has no picture, or ends before its own index says.
    """
    import av  # brings FFmpeg along: only for those who read video

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: holds no video stream")
            total = sum(1 for packet in container.demux(container.streams.video[0]) if packet.size)
        with av.open(str(path)) as container:
            wanted = spread(total, config.frames)
            images = _decode(container, set(wanted.tolist()), config.height)
    except av.error.FFmpegError as error:
        raise UserError(
            f"{path}: cannot be decoded as video ({error.strerror}); convert it, for example with ffmpeg to H.264"
        ) from None
    if not images or len(images) < len(wanted):
        raise UserError(
            f"{path}: only {len(images)} of {len(wanted)} wanted frames decode, the file is truncated; copy it again"
        )
    return PosedClip(scene_id, np.stack(images), None, None, None, wanted)


def _decode(container: Any, wanted: set[int], height: int) -> list[np.ndarray]:
    """The wanted frames of the first video stream of an open PyAV container, uint8 (H, W, 3) each."""
    images: list[np.ndarray] = []
    for number, frame in enumerate(container.decode(video=0)):
        if number in wanted:
            image = frame.to_ndarray(format="rgb24")
            if height:
                image = resize_image(image, height, max(1, round(image.shape[1] * height / image.shape[0])))
            images.append(image)
            if len(images) == len(wanted):
                break
    return images
