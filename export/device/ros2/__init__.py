"""A ROS 2 node as a template: images of a topic in, features out; the bundle lays it out as an ament_python package.

ros2 run vega_edge_ros node --ros-args -p model:=/opt/vega-edge/engine
"""
