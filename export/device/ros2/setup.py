"""Build file of the ROS 2 package, for colcon in an unpacked bundle.

colcon build --base-paths ros2
"""

from setuptools import setup

NAME = "vega_edge_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[("share/ament_index/resource_index/packages", [f"resource/{NAME}"]), (f"share/{NAME}", ["package.xml"])],
    entry_points={"console_scripts": [f"node = {NAME}.node:main"]},
)
