"""What the node takes while nobody speaks: it waits most of the day."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.models import ROOT
from bench.report import Part, Row
from bench.sounds import sound

RATE, PIECE = 16000, 320  # Hz; samples a message: 20 ms
WIDTH, HEIGHT, PICTURES = 640, 480, 30  # a camera's usual stream, a second
SECONDS, START_LIMIT = 20, 120
PHASES = {"no input": None, "microphone": None, "microphone and camera": ("<=", 5)}  # and goals
METHOD = f"""\
CPU time of the omni node's process in {SECONDS} s, in percent of one core (/proc/PID/stat), in state idle, after 5 s of the
same. Another process publishes over DDS: pink noise of -50 dBFS, {RATE} Hz, a message each {1000 * PIECE // RATE} ms, and rgb8
pictures of {WIDTH} x {HEIGHT}, {PICTURES} a second. Silero VAD, as by default."""


def measure(output: Path, threads: int, repetitions: int) -> Part:
    os.environ.update(
        ROS_DOMAIN_ID=str(102 + os.getpid() % 100), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_LOG_DIR=str(output.resolve())
    )
    command = [sys.executable, "-m", "omni_ros.nodes.omni_node", "--ros-args", "-r", "__ns:=/idle"]
    command += ["-p", f"engine_dir:={output / 'engines'}", "-p", f"threads:={threads}"]
    with (output / "idle_node.log").open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        shares = _live(process)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    rows = [Row(f"CPU of the idle node: {what}", share, "%", goal) for (what, goal), share in zip(PHASES.items(), shares)]
    return Part("Idle", METHOD, rows, {})


def _live(process: subprocess.Popen) -> list[float]:
    """Percent of a core in each of PHASES."""
    import rclpy
    from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Int16MultiArray, String

    rclpy.init()
    node, states = rclpy.create_node("devices", namespace="idle"), []
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    node.create_subscription(String, "state", lambda msg: states.append(msg.data), latched)
    deadline = time.monotonic() + START_LIMIT
    while "idle" not in states:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("the node was not idle in time; see idle_node.log beside bench.json")
        rclpy.spin_once(node, timeout_sec=0.1)
    noise = (sound("pink noise", SECONDS, -50) * 32767).astype("<i2")
    audio = [Int16MultiArray(data=noise[i : i + PIECE]) for i in range(0, noise.size, PIECE)]
    picture = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH, data=os.urandom(3 * WIDTH * HEIGHT))
    microphone, camera = (
        node.create_publisher(Int16MultiArray, "audio", 10),
        node.create_publisher(Image, "image_raw", qos_profile_sensor_data),
    )
    shares = []
    for phase in PHASES:
        sounds, pictures = "microphone" in phase, "camera" in phase
        for seconds in (5, SECONDS):
            cpu, began, heard, seen = _cpu(process.pid), time.monotonic(), 0, 0
            while (now := time.monotonic() - began) < seconds:
                while sounds and heard < now * RATE / PIECE:
                    microphone.publish(audio[heard % len(audio)])
                    heard += 1
                if pictures and seen < now * PICTURES:
                    camera.publish(picture)
                    seen += 1
                time.sleep(0.005)
            share = 100 * (_cpu(process.pid) - cpu) / (time.monotonic() - began)
        shares.append(share)
    rclpy.shutdown()
    if states[states.index("idle") :] != ["idle"]:
        raise RuntimeError(f"the noise made the node leave idle: {states}")
    return shares


def _cpu(pid: int) -> float:
    """Seconds that all threads of a process have computed."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
