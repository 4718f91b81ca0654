"""What goes into the bundle beside the model and the runtime: the commands of the device, samples for C++, Triton and ROS 2.

Last link of the chain, for Python 3.10 and numpy: install_check, build, run, bench and triton.

    python3 -m export.device install_check
"""
