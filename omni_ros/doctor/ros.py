"""ROS, its middleware, and what Fast DDS needs of the machine."""

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from omni_ros.doctor.finding import FAILURE, OK, WARNING, Finding, Subject, try_out
from omni_ros.nodes.middleware import VARIABLES

SHM = Path("/dev/shm")
ENOUGH_SHM, LITTLE_SHM = 128 << 20, 16 << 20  # bytes free: a camera's segments (config/fastdds_large_images.xml) take 32 MB each
MANY_SEGMENTS = 200
MIDDLEWARES = ("rmw_fastrtps_cpp", "rmw_fastrtps_dynamic_cpp", "rmw_cyclonedds_cpp", "rmw_connextdds", "rmw_zenoh_cpp")
SOURCE = "source /opt/ros/jazzy/setup.bash; without a ROS installation: pip install 'omni_ros[ros]'"
# <depend> of package.xml, which test/test_doctor.py compares.
MESSAGES = ("action_msgs", "diagnostic_msgs", "lifecycle_msgs", "rcl_interfaces", "sensor_msgs", "std_msgs", "std_srvs")
IMPORT = """
import importlib, json, sys
import rclpy
print(json.dumps(["rclpy", rclpy.__file__]), flush=True)
for name in sys.argv[1:]:
    importlib.import_module(name + (".srv" if name == "std_srvs" else ".msg"))
    print(json.dumps([name, ""]), flush=True)
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo  # its arrays are NumPy's, through code that was compiled against one version of it
import numpy
sent = CameraInfo(k=numpy.arange(9.0))
assert (deserialize_message(serialize_message(sent), CameraInfo).k == sent.k).all()
print(json.dumps(["numpy", numpy.__version__]), flush=True)
"""
NODE = """
import json, rclpy
rclpy.init(args=["--ros-args", "--disable-external-lib-logs"])  # leaves no file behind
node = rclpy.create_node("omni_doctor")
print(json.dumps(rclpy.get_rmw_implementation_identifier()), flush=True)
node.destroy_node()
rclpy.shutdown()
"""


def ros(subject: Subject) -> Iterator[Finding]:
    tried = try_out(IMPORT, *MESSAGES)
    seen = dict(tried.lines)
    distribution = os.environ.get("ROS_DISTRO")
    if "rclpy" not in seen:
        yield Finding("ros", FAILURE, f"rclpy cannot be imported ({tried.error}): the node cannot run", SOURCE)
    elif missing := next((name for name in MESSAGES if name not in seen), None):
        fix = f"sudo apt install ros-{distribution or 'jazzy'}-{missing.replace('_', '-')}, or rosdep install --from-paths src"
        yield Finding("ros", FAILURE, f"{missing} cannot be imported ({tried.error})", fix)
    elif "numpy" not in seen:
        fix = "pip install 'numpy<2' in the node's virtual environment: Jazzy's messages are compiled against NumPy 1.26"
        yield Finding("ros", FAILURE, f"messages with arrays cannot be sent ({tried.error})", fix)
    else:
        yield Finding("ros", OK, f"{distribution or 'no distribution is sourced'}, rclpy in {Path(seen['rclpy']).parent.parent}")


def middleware(subject: Subject) -> Iterator[Finding]:
    wanted = os.environ.get("RMW_IMPLEMENTATION", "")
    tried = try_out(NODE)
    if tried.code == 0 and tried.lines:
        name = tried.lines[-1]
        if wanted and name != wanted:
            text = f"{name} is used although RMW_IMPLEMENTATION is {wanted}"
            yield Finding("middleware", WARNING, text, f"sudo apt install ros-jazzy-{wanted.replace('_', '-')}")
        elif "zenoh" in name:
            yield Finding("middleware", OK, f"{name}: rmw_zenohd has to run, and Fast DDS profiles mean nothing to it")
        else:
            yield Finding("middleware", OK, name)
    elif "No module named 'rclpy'" in tried.error:
        return  # `ros` says so
    elif wanted and wanted not in MIDDLEWARES:
        text = f"RMW_IMPLEMENTATION is {wanted!r}, which is no middleware ({tried.error})"
        yield Finding("middleware", FAILURE, text, f"unset RMW_IMPLEMENTATION, or one of {', '.join(MIDDLEWARES)}")
    else:
        fix = f"sudo apt install ros-jazzy-{wanted.replace('_', '-')}, or unset RMW_IMPLEMENTATION" if wanted else SOURCE
        yield Finding("middleware", FAILURE, f"no node can be made ({tried.error})", fix)


def domain(subject: Subject) -> Iterator[Finding]:
    given = os.environ.get("ROS_DOMAIN_ID", "")
    if not given:
        yield Finding("domain", OK, "ROS_DOMAIN_ID is 0, as everywhere where nobody sets it")
    elif not given.isdigit() or int(given) > 232:
        yield Finding("domain", FAILURE, f"ROS_DOMAIN_ID is {given!r}", "a whole number from 0 to 101, the same on all machines")
    elif 101 < int(given) < 215:
        text = f"ROS_DOMAIN_ID is {given}: Linux gives its ports to other programs, too"
        yield Finding("domain", WARNING, text, "a whole number from 0 to 101, the same on all machines")
    else:
        yield Finding("domain", OK, f"ROS_DOMAIN_ID is {given}")


def shared_memory(subject: Subject) -> Iterator[Finding]:
    """What Fast DDS sends within a machine goes through /dev/shm; where that is full it falls silent, or back to UDP."""
    try:
        stat = os.statvfs(SHM)
    except OSError as error:
        yield Finding("shared memory", FAILURE, f"{SHM} cannot be used ({error})", f"mount -t tmpfs tmpfs {SHM}")
        return
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    text = f"{free >> 20} of {total >> 20} MB of {SHM} are free"
    fix = f"docker run --ipc=host or --shm-size=512m; else: fastdds shm clean, mount -o remount,size=1G {SHM}"
    if not os.access(SHM, os.W_OK):
        yield Finding("shared memory", FAILURE, f"{SHM} cannot be written", f"chmod 1777 {SHM}")
    elif free < LITTLE_SHM:
        yield Finding("shared memory", FAILURE, f"{text}: messages will be lost without a word", fix)
    elif free < ENOUGH_SHM:
        yield Finding("shared memory", WARNING, f"{text}: too little for raw camera pictures", fix)
    else:
        yield Finding("shared memory", OK, text)
    segments = sum(1 for _ in SHM.glob("fastrtps_*"))
    if segments > MANY_SEGMENTS:
        text = f"{segments} segments of Fast DDS in {SHM}, most of them left by processes that were killed"
        yield Finding("shared memory", WARNING, text, "fastdds shm clean")


def profile(subject: Subject) -> Iterator[Finding]:
    for variable in VARIABLES:
        if not (path := os.environ.get(variable, "")):
            continue
        try:
            ElementTree.parse(path)
        except (OSError, ElementTree.ParseError) as error:
            fix = f"unset {variable}: the nodes have a profile of their own"
            yield Finding("profile", FAILURE, f"{variable} is {path}, which Fast DDS cannot use ({error})", fix)
        else:
            yield Finding("profile", OK, f"{variable} is {path}")
