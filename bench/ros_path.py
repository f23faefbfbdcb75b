"""What ROS adds: from the pipeline's event in the node to its message in another process, over DDS."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.models import ROOT
from bench.report import Part, Row
from bench.turns import FRAMES, QUESTION, TOKENS

GOAL = ("<=", 10)
METHOD = """\
From the moment at which `Pipeline.generate` gives an event to the node until its message arrives in the callback of a
subscriber in another process (Fast DDS, this machine), while the engines go on computing. Speech is not paced here
(`speech_lead` as long as the reply); on a robot the node holds it back on purpose, to be able to stop."""
START_LIMIT, TURN_LIMIT = 120, 60  # seconds
# A lead as long as the reply switches the pacing of speech off, and a message as long as a codec frame lets every chunk
# of the pipeline leave at once; both change when a message is due, not what sending it costs.
PARAMETERS = {
    "use_camera": "false",
    "vad": "energy",
    "turn_detector": "silence",
    "max_generate_length": TOKENS,
    "max_audio_length": FRAMES,
    "temperature": 0.0,
    "talker_temperature": 0.0,
    "history_turns": 0,
    "speech_lead": 5.0,
    "speech_chunk": 0.08,
}


def measure(output: Path, threads: int, repetitions: int) -> Part:
    os.environ.update(
        ROS_DOMAIN_ID=str(102 + os.getpid() % 100), ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST", ROS_LOG_DIR=str(output.resolve())
    )
    turns = 2 * repetitions
    events_file, log = output / "ros_events.txt", output / "ros_node.log"
    events_file.unlink(missing_ok=True)
    parameters = {**PARAMETERS, "engine_dir": output / "engines", "threads": threads}
    command = [sys.executable, "-m", "bench.stamped_node", str(events_file), "--ros-args", "-r", "__ns:=/bench"]
    command += [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        received = _converse(turns, lambda: events_file.read_text().count("end\n"), lambda: process.poll() is None)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
    sent = [turn.splitlines() for turn in events_file.read_text().split("end\n")[-turns - 1 : -1]]  # warm-up comes first
    text, pcm = [], []
    for lines, (texts, chunks) in zip(sent, received):
        text += _text_delays(lines, texts)
        pcm += _pcm_delays(lines, chunks)
    rows = []
    for name, delays in (("text delta", text), ("PCM chunk", pcm)):
        rows += [
            Row(f"{name}, median of {len(delays)}", 1e3 * float(np.median(delays)), "ms"),
            Row(f"{name}, p99", 1e3 * float(np.quantile(delays, 0.99)), "ms", GOAL),
        ]
    return Part("What ROS adds", METHOD, rows, {"text_ms": [1e3 * d for d in text], "pcm_ms": [1e3 * d for d in pcm]})


def _converse(turns: int, ended: Callable[[], int], alive: Callable[[], bool]) -> list[tuple[list, list]]:
    """Per turn, the arrivals (time.monotonic, characters or samples) of its text deltas and its PCM messages.

    `ended` counts the turns, warm-up included, that the pipeline has finished; `alive` is false when the node died.
    """
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import DurabilityPolicy, QoSProfile
    from std_msgs.msg import Int16MultiArray, String

    rclpy.init()
    node = rclpy.create_node("listener", namespace="bench")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    texts, chunks, responses, states = [], [], [], []
    record = lambda arrivals: lambda msg: arrivals.append((time.monotonic(), len(msg.data)))  # noqa: E731
    node.create_subscription(String, "response_stream", record(texts), 100)
    node.create_subscription(Int16MultiArray, "speech/audio", record(chunks), 100)
    node.create_subscription(String, "response", record(responses), 10)
    node.create_subscription(
        String, "state", lambda msg: states.append(msg.data), QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    )
    prompt = node.create_publisher(String, "prompt", 10)

    def wait(condition: Callable[[], bool], what: str, limit: float) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            if not alive() or time.monotonic() > deadline:
                raise RuntimeError(f"the node gave no {what} within {limit} s; see ros_node.log beside bench.json")
            executor.spin_once(timeout_sec=0.1)

    try:
        wait(lambda: "idle" in states and prompt.get_subscription_count(), "state idle", START_LIMIT)
        received = []
        for turn in range(turns):
            texts.clear(), chunks.clear(), responses.clear()
            prompt.publish(String(data=QUESTION[0]["content"]))
            wait(lambda turn=turn: responses and ended() > turn + 1, "whole reply", TURN_LIMIT)
            settled = time.monotonic() + 0.3  # the last chunk's remainder leaves when playback is about to run dry
            while time.monotonic() < settled:
                executor.spin_once(timeout_sec=0.05)
            received.append((list(texts), list(chunks)))  # the next prompt stops what is left of this turn
        return received
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()


def _text_delays(lines: list[str], arrivals: list[tuple[float, int]]) -> list[float]:
    sent = [(float(t), int(n)) for t, kind, n in map(str.split, lines) if kind == "text"]
    if [n for _, n in sent] != [n for _, n in arrivals]:
        raise RuntimeError(f"{len(sent)} text deltas were given out, {len(arrivals)} arrived or in another order")
    return [arrived - t for (t, _), (arrived, _) in zip(sent, arrivals)]


def _pcm_delays(lines: list[str], arrivals: list[tuple[float, int]]) -> list[float]:
    """For each chunk of the pipeline, until the message arrives that holds its first sample."""
    sent = [(float(t), int(n)) for t, kind, n in map(str.split, lines) if kind == "pcm"]
    first_samples = np.cumsum([0] + [n for _, n in sent])[:-1]
    message_ends = np.cumsum([n for _, n in arrivals])
    holders = np.searchsorted(message_ends, first_samples, side="right")
    if holders[-1] >= len(arrivals):
        raise RuntimeError(f"the pipeline gave {first_samples[-1]} samples and more, {message_ends[-1]} arrived")
    return [arrivals[holder][0] - t for holder, (t, _) in zip(holders, sent)]
