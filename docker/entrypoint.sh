#!/bin/bash
# ROS and this package in the environment of whatever is started.
set -e
source /opt/ros/jazzy/setup.bash
source /ws/install/setup.bash
exec "$@"
