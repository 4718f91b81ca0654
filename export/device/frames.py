"""Frames from where a device finds them: a folder of images, a video file, a USB camera, a CSI camera.

First step of `export.device run`. Images need Pillow, videos PyAV or OpenCV, cameras OpenCV (JetPack brings it with GStreamer).

    python3 -m export.device run --source camera:0 --shm vega-edge
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime import RuntimeInputError
from export.runtime.__main__ import read_image

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".npy")
CSI = (
    "nvarguscamerasrc sensor-id={index} ! video/x-raw(memory:NVMM) ! nvvidconv ! video/x-raw,format=BGRx "
    "! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"
)


@dataclass(frozen=True)
class Frame:
    """One picture: RGB uint8 (H, W, 3), its number from 0, and its time in seconds (of a folder: when it was read)."""

    index: int
    seconds: float
    rgb: np.ndarray


def open_source(source: str) -> Iterator[Frame]:
    """Frames of "camera:N" (USB), "csi:N", a video file, or a folder of images in the order of their names.

    Raises:
        RuntimeInputError: nothing there, nothing in it, an unreadable picture, a camera that gives none, a missing library.
    """
    kind, _, number = source.partition(":")
    if kind in ("camera", "csi") and number.isdigit():
        return camera_frames(source, kind, int(number))
    path = Path(source)
    if path.is_dir():
        return folder_frames(path)
    if path.is_file():
        return video_frames(path)
    raise RuntimeInputError(f"{source}: no such source; give a folder of images, a video file, camera:0 or csi:0")


def folder_frames(folder: Path) -> Iterator[Frame]:
    """The images of a folder, sorted by name."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)
    if not paths:
        raise RuntimeInputError(f"{folder}: holds no image; {', '.join(IMAGES)} are read")
    for index, path in enumerate(paths):
        yield Frame(index, time.time(), read_image(path))


def video_frames(path: Path) -> Iterator[Frame]:
    """The frames of a video file, by PyAV where it is installed and by OpenCV elsewhere."""
    try:
        av: Any = importlib.import_module("av")
    except ImportError:
        capture = open_capture(str(path), str(path))
        rate = capture.get(importlib.import_module("cv2").CAP_PROP_FPS) or 1.0
        for index, rgb in enumerate(captured(capture)):
            yield Frame(index, index / rate, rgb)
        return
    index = -1
    try:
        with av.open(str(path)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                yield Frame(index, float(frame.time or 0.0), frame.to_ndarray(format="rgb24"))
    except (av.FFmpegError, IndexError) as error:  # IndexError: a file with sound only
        raise RuntimeInputError(f"{path}: cannot be decoded as a video after {index + 1} frames ({error})") from None
    if index < 0:
        raise RuntimeInputError(f"{path}: holds no frame")


def camera_frames(source: str, kind: str, number: int) -> Iterator[Frame]:
    """What a camera sees from now on; a camera has no end, so its silence is an error."""
    capture = open_capture(source, number if kind == "camera" else CSI.format(index=number))
    index = -1
    for index, rgb in enumerate(captured(capture)):
        yield Frame(index, time.time(), rgb)
    raise RuntimeInputError(f"{source}: the camera gives no picture after {index + 1} frames; check the cable and other users")


def open_capture(source: str, what: int | str) -> Any:
    """An open `cv2.VideoCapture`; a pipeline goes through GStreamer."""
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError:
        raise RuntimeInputError(f"{source}: needs OpenCV (JetPack's, or pip install opencv-python)") from None
    gstreamer = isinstance(what, str) and " ! " in what
    capture = cv2.VideoCapture(what, cv2.CAP_GSTREAMER) if gstreamer else cv2.VideoCapture(what)
    if not capture.isOpened():
        raise RuntimeInputError(f"{source}: OpenCV cannot open it; check that it exists and that this user may read it")
    return capture


def captured(capture: Any) -> Iterator[np.ndarray]:
    """RGB pictures until there are no more; the capture is given back at the end, also when the reader stops early."""
    try:
        while True:
            good, bgr = capture.read()
            if not good:
                return
            yield np.ascontiguousarray(bgr[..., ::-1])
    finally:
        capture.release()
