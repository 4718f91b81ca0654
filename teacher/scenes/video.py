"""Plain video files as clips: colours only, decoded by PyAV.

A scene source for pictures nobody measured: extraction and distillation need no geometry, only the 3D probes do. Also
written here, for data sets that pair questions with video files.

    python -c "from teacher.scenes import open_scenes; print(open_scenes('video:/data/*.mp4?frames=32').scene_ids)"
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vega_artifact import UserError, unknown_name

from .clip import PosedClip, resize_image
from .shots import POLICIES, spread


@dataclass(frozen=True)
class VideoConfig:
    """frames: how many, spread evenly over the video (0 = all); height: pixels, the width keeps the aspect (0 = as stored).

    on_bad_frame: what to do about a wanted frame that does not decode: "error", or "skip" it and list it in the clip.
    """

    frames: int = 32
    height: int = 0
    on_bad_frame: str = "error"

    def __post_init__(self) -> None:
        if self.frames < 0 or self.height < 0:
            raise UserError("videos: frames and height must not be negative (0 = all, as stored)")
        if self.on_bad_frame not in POLICIES:
            raise unknown_name("on_bad_frame", self.on_bad_frame, POLICIES)


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
        UserError: the file cannot be decoded, has no picture, or a wanted frame is damaged or missing; with `on_bad_frame`
            "skip" only if no wanted frame is left.
    """
    import av  # brings FFmpeg along: only for those who read video

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: holds no video stream")
            times = sorted(packet.pts or 0 for packet in container.demux(container.streams.video[0]) if packet.size)
        wanted = spread(len(times), config.frames)
        with av.open(str(path)) as container:
            images = _decode(container, times, set(wanted.tolist()), config.height)
    except av.error.FFmpegError as error:
        raise UserError(
            f"{path}: cannot be decoded as video ({error.strerror}); convert it, for example with ffmpeg to H.264"
        ) from None
    lost = [int(number) for number in wanted if images.get(int(number)) is None]
    if not images or len(lost) == len(wanted) or (lost and config.on_bad_frame == "error"):
        raise UserError(
            f"{path}: {len(lost)} of {len(wanted)} wanted frames do not decode (the first is number {(lost or [0])[0]}); "
            "the file is truncated or damaged, copy it again, or leave such frames out with on_bad_frame=skip"
        )
    kept = np.array([number for number in wanted if int(number) not in lost], np.int64)
    pictures = np.stack([images[int(number)] for number in kept])
    dropped = tuple(f"frame {number}: does not decode" for number in lost)
    return PosedClip(scene_id, pictures, None, None, None, kept, dropped=dropped)


def _decode(container: Any, times: list[int], wanted: set[int], height: int) -> dict[int, np.ndarray]:
    """Frame number -> uint8 (H, W, 3) for the wanted frames of the first video stream that decode undamaged.

    A frame's number is the rank of its time stamp, so that a lost one does not shift the others; streams without usable
    stamps are counted.
    """
    import av

    stamped = len(set(times)) == len(times)
    number_at = {time: number for number, time in enumerate(times)}
    images: dict[int, np.ndarray] = {}
    count = 0
    for packet in container.demux(container.streams.video[0]):
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            continue
        for frame in frames:
            number, count = (number_at.get(frame.pts, -1) if stamped else count), count + 1
            if number in wanted and not frame.is_corrupt:
                image = frame.to_ndarray(format="rgb24")
                if height:
                    image = resize_image(image, height, max(1, round(image.shape[1] * height / image.shape[0])))
                images[number] = image
        if len(images) == len(wanted):
            break
    return images


def write_video(path: Path, frames: np.ndarray, rate: int = 30) -> None:
    """Encode uint8 (T, H, W, 3) as MPEG-4 in whatever container the suffix names; odd sizes lose their last row or column."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1] // 2 * 2, frames.shape[2] // 2 * 2, "yuv420p"
        stream.bit_rate = 4_000_000
        for image in frames[:, : stream.height, : stream.width]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
