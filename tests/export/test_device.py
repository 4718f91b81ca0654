"""What a device runs: sources of frames, npz and shared memory, the commands, Triton's repository, the ROS 2 node.

python -m pytest tests/export/test_device.py
"""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import types
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from export import build_engine
from export.build_options import BuildOptions
from export.device import features, install_check
from export.device.__main__ import COMMANDS, main
from export.device.features import FeatureReader, NpzFolder, SharedFeatures
from export.device.frames import Frame, open_source
from export.device.ros2.node import FeaturePublisher, to_rgb
from export.device.triton import config_text, write_repository
from export.runtime import Encoder, RuntimeInputError
from export.runtime.manifest import read_description
from vega_artifact import UserError

from .export_cases import edit
from .fake_tensorrt import install


def write_video(path: Path, count: int = 5) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(count):
            picture = np.full((48, 64, 3), 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def fake_opencv(monkeypatch: pytest.MonkeyPatch, frames: list[np.ndarray], opens: bool = True) -> list[tuple]:
    """An OpenCV whose capture gives these BGR frames; returns what it was opened with."""
    calls: list[tuple] = []
    waiting = list(frames)

    class Capture:
        def __init__(self, *arguments: object) -> None:
            calls.append(arguments)

        def isOpened(self) -> bool:
            return opens

        def read(self) -> tuple[bool, np.ndarray | None]:
            return (True, waiting.pop(0)) if waiting else (False, None)

        def get(self, _property: int) -> float:
            return 25.0

        def release(self) -> None:
            calls.append(("release",))

    module = types.SimpleNamespace(VideoCapture=Capture, CAP_GSTREAMER=1800, CAP_PROP_FPS=5)
    monkeypatch.setitem(sys.modules, "cv2", module)  # type: ignore[arg-type]
    return calls


class TestSources:
    def test_folder_in_the_order_of_names(self, tmp_path: Path) -> None:
        for name, value in [("b.png", 20), ("a.png", 10)]:
            Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(tmp_path / name)
        (tmp_path / "notes.txt").write_text("no picture")
        found = list(open_source(str(tmp_path)))
        assert [(frame.index, int(frame.rgb[0, 0, 0])) for frame in found] == [(0, 10), (1, 20)]

    def test_video_with_its_times(self, tmp_path: Path) -> None:
        found = list(open_source(str(write_video(tmp_path / "v.mp4"))))
        assert [frame.index for frame in found] == [0, 1, 2, 3, 4]
        assert np.allclose([frame.seconds for frame in found], np.arange(5) / 10)
        assert found[0].rgb.shape == (48, 64, 3) and abs(float(found[3].rgb.mean()) - 120) < 4

    def test_video_by_opencv_where_pyav_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        bgr = np.zeros((4, 4, 3), np.uint8)
        bgr[..., 0] = 9
        calls = fake_opencv(monkeypatch, [bgr, bgr])
        path = tmp_path / "v.mp4"
        path.write_bytes(b"")
        found = list(open_source(str(path)))
        assert [frame.seconds for frame in found] == [0, 1 / 25] and tuple(found[0].rgb[0, 0]) == (0, 0, 9)
        assert calls == [(str(path),), ("release",)]

    def test_cameras(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = fake_opencv(monkeypatch, [np.zeros((4, 4, 3), np.uint8)] * 3)
        source = open_source("camera:2")
        assert next(source).index == 0
        source.close()  # type: ignore[attr-defined]
        assert calls == [(2,), ("release",)], "given back when the reader stops"
        next(open_source("csi:1"))
        pipeline, how = calls[2]
        assert "nvarguscamerasrc sensor-id=1 !" in pipeline and how == 1800

    def test_a_camera_that_falls_silent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake_opencv(monkeypatch, [np.zeros((4, 4, 3), np.uint8)] * 2)
        with pytest.raises(RuntimeInputError, match="camera:0: the camera gives no picture after 2 frames"):
            list(open_source("camera:0"))

    def test_bad_sources(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.mp4").write_text("no video")
        for source, message in [
            ("camera:x", "no such source; give a folder"),
            (str(tmp_path / "none.mp4"), "no such source"),
            (str(tmp_path / "empty"), "holds no image"),
            (str(tmp_path / "text.mp4"), "cannot be decoded as a video"),
        ]:
            with pytest.raises(RuntimeInputError, match=message):
                list(open_source(source))
        fake_opencv(monkeypatch, [], opens=False)
        with pytest.raises(RuntimeInputError, match="camera:0: OpenCV cannot open it"):
            list(open_source("camera:0"))
        monkeypatch.setitem(sys.modules, "cv2", None)
        with pytest.raises(RuntimeInputError, match="camera:0: needs OpenCV"):
            list(open_source("camera:0"))


@pytest.fixture
def streams() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.random((1, 16, channels), dtype=np.float32) for name, channels in (("fused", 24), ("generative", 16))}


def frame(index: int) -> Frame:
    return Frame(index, index / 10, np.zeros((4, 4, 3), np.uint8))


class TestNpz:
    def test_files_hold_at_most_so_many_frames(
        self, streams: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(features, "FRAMES_PER_FILE", 2)
        with NpzFolder(tmp_path / "out") as sink:
            for index in (0, 5, 10):
                sink.write(frame(index), {name: value + index for name, value in streams.items()})
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features-000000.npz", "features-000010.npz"]
        with np.load(tmp_path / "out" / "features-000000.npz", allow_pickle=False) as arrays:
            assert arrays["index"].tolist() == [0, 5] and arrays["seconds"].tolist() == [0, 0.5]
            np.testing.assert_array_equal(arrays["fused"][1], streams["fused"][0] + 5)

    def test_an_earlier_run_is_not_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "features-000000.npz").write_bytes(b"")
        with pytest.raises(RuntimeInputError, match="holds features already"):
            NpzFolder(tmp_path)


class TestSharedMemory:
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(features, "SHARED", tmp_path)
        return tmp_path

    def test_readers_get_the_latest_frame(self, exported: Path, streams: dict[str, np.ndarray], place: Path) -> None:
        description = read_description(exported)
        with SharedFeatures("vega", description) as sink:
            reader = FeatureReader("vega")
            assert reader.about["fingerprint"] == description.fingerprint and reader.about["grid"] == [4, 4]
            for index in (0, 7):
                sink.write(frame(index), {name: value * index for name, value in streams.items()})
            found_index, seconds, found = reader.latest()
            assert (found_index, seconds) == (7, 0.7)
            for name, value in streams.items():
                np.testing.assert_array_equal(found[name], value[0] * 7)
        assert list(place.iterdir()) == [], "gone with its writer"

    def test_half_a_frame_is_never_given(self, exported: Path, streams: dict[str, np.ndarray], place: Path) -> None:
        with SharedFeatures("vega", read_description(exported)) as sink:
            reader = FeatureReader("vega")
            with pytest.raises(RuntimeInputError, match="no frame was shared within"):
                reader.latest(timeout=0.01)
            sink.write(frame(1), streams)
            with open(place / "vega", "r+b") as stream:  # a writer in the middle of the next frame
                stream.seek(-64, 2)
                stream.write(b"\xff")
            with pytest.raises(RuntimeInputError, match="no frame was shared within"):
                reader.latest(timeout=0.01)

    def test_names(self, exported: Path, place: Path) -> None:
        with pytest.raises(RuntimeInputError, match="nobody shares features there; start `run --shm vega` first"):
            FeatureReader("vega")
        with pytest.raises(RuntimeInputError, match="letters, digits"):
            SharedFeatures("../vega", read_description(exported))
        (place / "other").write_bytes(bytes(128))
        with pytest.raises(RuntimeInputError, match="not shared features of this version"):
            FeatureReader("other")


class TestCommands:
    @pytest.fixture(autouse=True)
    def in_an_unpacked_bundle(self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(exported, tmp_path / "model")
        monkeypatch.chdir(tmp_path)

    def test_run_writes_the_encoders_features(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        video = write_video(tmp_path / "v.mp4")
        assert main(["run", "--source", str(video), "--out", "out", "--every", "2", "--limit", "2"]) == 0
        assert "2 frames in" in capsys.readouterr().out
        pictures = [frame.rgb for frame in open_source(str(video))]
        with np.load("out/features-000000.npz", allow_pickle=False) as arrays:
            assert arrays["index"].tolist() == [0, 2]
            for index, picture in enumerate((pictures[0], pictures[2])):
                np.testing.assert_allclose(arrays["fused"][index], Encoder("model")(picture[None])["fused"][0], atol=2e-5)

    def test_what_was_encoded_before_an_error_is_kept(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fake_opencv(monkeypatch, [np.zeros((4, 4, 3), np.uint8)] * 3)
        assert main(["run", "--source", "camera:0", "--out", "out"]) == 2
        assert capsys.readouterr().err.startswith("error: camera:0: the camera gives no picture after 3 frames")
        with np.load("out/features-000000.npz", allow_pickle=False) as arrays:
            assert len(arrays["fused"]) == 3

    def test_engine_is_built_checked_and_then_preferred(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        install(monkeypatch)
        assert main(["build", "--largest-batch", "2"]) == 0
        assert main(["install_check"]) == 0
        printed = capsys.readouterr().out
        assert '"batches": [1, 1, 2]' in printed and re.search(r"engine +fused: relative .* ok on tensorrt\n", printed)
        assert re.search(r"gpu +Orin \(SM 8\.7, 16 multiprocessors\)\n", printed)
        assert re.search(r"tensorrt +tensorrt 10\.3\.0\n", printed)
        fake_opencv(monkeypatch, [np.zeros((4, 4, 3), np.uint8)] * 2)
        assert main(["run", "--source", "camera:0", "--out", "out", "--limit", "2"]) == 0
        assert "on tensorrt" in capsys.readouterr().out

    def test_engine_of_another_model_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install(monkeypatch)
        build_engine("model", "engine")
        edit(Path("model"), lambda manifest: manifest["files"]["student.onnx"].update(sha256="0" * 64))
        assert main(["install_check"]) == 2
        assert "engine: built from another model than model; run `python3 -m export.device build`" in capsys.readouterr().err

    def test_bad_commands(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([]) == 0
        printed = capsys.readouterr().out
        assert all(f"    {name} " in printed for name in COMMANDS)
        assert main(["instal_check"]) == 2
        assert "Did you mean 'install_check'?" in capsys.readouterr().err
        assert main(["run", "--source", "x", "--out", "o", "--limit", "0"]) == 2
        with pytest.raises(SystemExit):
            main(["run", "--source", "x"])

    def test_jetpack_from_the_boards_own_file(self) -> None:
        text = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"
        assert install_check.jetpack(text) == "L4T 36.4, JetPack 6.1 or 6.2"
        assert install_check.jetpack("# R39 (release), REVISION: 0.0") == "L4T 39.0, JetPack 7.2"
        assert install_check.jetpack("?") == "a Jetson of unknown release"


class TestTriton:
    def test_an_export_and_an_engine(self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = write_repository(exported, tmp_path / "models", "student")
        assert (folder / "1" / "model.onnx").read_bytes() == (exported / "student.onnx").read_bytes()
        text = (folder / "config.pbtxt").read_text()
        assert 'name: "student"\nplatform: "onnxruntime_onnx"' in text and "max_batch_size: 64" in text
        assert '{ name: "images" data_type: TYPE_FP32 dims: [3, 64, 64] }' in text
        assert '{ name: "fused" data_type: TYPE_FP32 dims: [16, 24] },' in text
        assert text.count("{") == text.count("}") and text.count("[") == text.count("]")
        install(monkeypatch)
        engine = build_engine(exported, tmp_path / "engine", largest_batch=4)
        folder = write_repository(engine, tmp_path / "models")
        text = (folder / "config.pbtxt").read_text()
        assert (folder / "1" / "model.plan").is_file() and 'platform: "tensorrt_plan"' in text and "max_batch_size: 4" in text

    def test_memory_travels_with_the_request(self, exported: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(exported, tmp_path / "copy"))
        edit(copy, lambda manifest: manifest.update(states=[{"name": "state_0", "tokens": 16, "channels": 8}]))
        text = (write_repository(copy, tmp_path / "models") / "config.pbtxt").read_text()
        assert '{ name: "state_0" data_type: TYPE_FP32 dims: [16, 8] }' in text
        assert '{ name: "next_state_0" data_type: TYPE_FP32 dims: [16, 8] }' in text

    def test_bad_input(self, exported: Path, tmp_path: Path) -> None:
        write_repository(exported, tmp_path / "models")
        with pytest.raises(UserError, match="holds other files"):
            write_repository(exported, tmp_path / "models")
        with pytest.raises(UserError, match="model name '../x'"):
            write_repository(exported, tmp_path, "../x")
        with pytest.raises(RuntimeInputError, match="is no export"):
            write_repository(tmp_path, tmp_path / "other")

    def test_an_engine_of_an_accelerator_runs_on_it(self, exported: Path) -> None:
        description = dataclasses.replace(read_description(exported), engine={"dla": 1})
        assert "\ninstance_group [ { kind: KIND_GPU secondary_devices [ { kind: KIND_NVDLA device_id: 1 } ] } ]\n" in (
            config_text(description, "student")
        )
        assert "instance_group" not in config_text(read_description(exported), "student")

    def test_an_engine_without_its_weights(self, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(monkeypatch)
        engine = build_engine(exported, tmp_path / "engine", options=BuildOptions(strip=True))
        with pytest.raises(UserError, match="engine: built with --strip, .* build it again without: `vega-edge build"):
            write_repository(engine, tmp_path / "models")
        assert not (tmp_path / "models").exists()


class TestRos:
    @pytest.mark.parametrize(
        ("encoding", "depth", "expected"), [("rgb8", 3, (1, 2, 3)), ("bgra8", 4, (3, 2, 1)), ("mono8", 1, (1, 1, 1))]
    )
    def test_padded_rows_and_orders_of_colour(self, encoding: str, depth: int, expected: tuple[int, ...]) -> None:
        row = bytes(range(1, depth + 1)) * 2 + b"\xff" * 5
        message = types.SimpleNamespace(encoding=encoding, height=3, width=2, step=len(row), data=row * 3)
        found = to_rgb(message)
        assert found.shape == (3, 2, 3) and found.dtype == np.uint8 and (found == np.array(expected)).all()

    def test_node_publishes_one_message_per_stream(self, exported: Path) -> None:
        node = FakeNode({"model": str(exported)})
        messages = types.SimpleNamespace(
            Image=object,
            Float32MultiArray=types.SimpleNamespace,
            MultiArrayDimension=types.SimpleNamespace,
            MultiArrayLayout=types.SimpleNamespace,
        )
        FeaturePublisher(node, messages)
        data = np.random.default_rng(0).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        image = types.SimpleNamespace(encoding="rgb8", height=8, width=10, step=30, data=data.tobytes())
        node.callback(image)
        node.callback(types.SimpleNamespace(encoding="yuv422"))
        assert set(node.published) == {"features/fused", "features/generative"}
        (message,) = node.published["features/fused"]
        assert [(side.label, side.size, side.stride) for side in message.layout.dim] == [
            ("tokens", 16, 384),
            ("channels", 24, 24),
        ]
        np.testing.assert_allclose(message.data, Encoder(exported)(data[None])["fused"].ravel(), atol=2e-5)
        assert node.errors == ["image encoding 'yuv422': one of rgb8, bgr8, rgba8, bgra8, mono8 expected"]


class FakeNode:
    """What the node template uses of rclpy's Node."""

    def __init__(self, parameters: dict[str, str]) -> None:
        self.parameters, self.published, self.errors = parameters, {}, []

    def declare_parameter(self, name: str, default: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, _kind: type, topic: str, _depth: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(publish=self.published.setdefault(topic, []).append)

    def create_subscription(self, _kind: type, _topic: str, callback, _depth: int) -> None:
        self.callback = callback

    def get_logger(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(info=lambda _text: None, error=self.errors.append)
