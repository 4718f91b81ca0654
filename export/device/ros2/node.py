"""The node: subscribes to `image`, publishes one Float32MultiArray (tokens, channels) per stream on `features/STREAM`.

A template to be adapted. rclpy and the messages are those of the ROS 2 installation; the bundle's folder must be on PYTHONPATH.

    ros2 run vega_edge_ros node --ros-args -p model:=/opt/vega-edge/engine -r image:=/camera/image_raw
"""

from __future__ import annotations

from typing import Any

import numpy as np

from export.runtime import RuntimeInputError
from export.runtime.encoder import open_encoder

CHANNELS = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
PIXEL_BYTES = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


def to_rgb(message: Any) -> np.ndarray:
    """A sensor_msgs/Image as RGB uint8 (H, W, 3); its rows may be padded (`step`).

    Raises:
        RuntimeInputError: an encoding that is not 8-bit colour or grey.
    """
    if message.encoding not in CHANNELS:
        raise RuntimeInputError(f"image encoding {message.encoding!r}: one of {', '.join(CHANNELS)} expected")
    depth = PIXEL_BYTES[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * depth].reshape(message.height, message.width, depth)
    return np.ascontiguousarray(pixels[..., CHANNELS[message.encoding]])


class FeaturePublisher:
    """The node's work, apart from ROS itself: every message becomes one per stream, with the same header time in its log.

    Args:
        node: an rclpy Node. messages: a module with Image, Float32MultiArray, MultiArrayDimension and MultiArrayLayout.
    """

    def __init__(self, node: Any, messages: Any) -> None:
        self._node, self._messages = node, messages
        model = node.declare_parameter("model", "model").value
        backend = node.declare_parameter("backend", "auto").value
        self._encoder = open_encoder(model, backend)
        streams = self._encoder.description.streams
        array = messages.Float32MultiArray
        self._publishers = {name: node.create_publisher(array, f"features/{name}", 1) for name in streams}
        node.create_subscription(messages.Image, "image", self.on_image, 1)  # depth 1: a late frame is dropped, not queued
        node.get_logger().info(f"{model} on {self._encoder.backend}: {', '.join(streams)}")

    def on_image(self, message: Any) -> None:
        """Encode one image; a bad one is logged and dropped, the node lives on."""
        try:
            features = self._encoder(to_rgb(message)[None])
        except RuntimeInputError as error:
            self._node.get_logger().error(str(error))
            return
        for name, publisher in self._publishers.items():
            publisher.publish(self._to_message(features[name][0]))

    def _to_message(self, values: np.ndarray) -> Any:
        dimension = self._messages.MultiArrayDimension
        tokens, channels = values.shape
        sides = [
            dimension(label="tokens", size=tokens, stride=tokens * channels),
            dimension(label="channels", size=channels, stride=channels),
        ]
        layout = self._messages.MultiArrayLayout(dim=sides, data_offset=0)
        return self._messages.Float32MultiArray(layout=layout, data=values.ravel().tolist())


def main() -> None:
    """Spin until Ctrl-C."""
    import types

    import rclpy
    from sensor_msgs.msg import Image
    from std_msgs.msg import Float32MultiArray, MultiArrayDimension, MultiArrayLayout

    rclpy.init()
    node = rclpy.create_node("vega_edge")
    messages = types.SimpleNamespace(
        Image=Image,
        Float32MultiArray=Float32MultiArray,
        MultiArrayDimension=MultiArrayDimension,
        MultiArrayLayout=MultiArrayLayout,
    )
    try:
        FeaturePublisher(node, messages)
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
