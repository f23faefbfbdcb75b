"""`make demo`: from nothing to a robot that answers.

Builds engines from a checkpoint with random weights (its words are nonsense; --engine_dir takes real ones), records a
bag, replays it against the omni node over DDS, each in a process of its own, and writes what happened to OUTPUT.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Before rclpy is loaded: stay on this machine, and away from any robot that runs on it.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))

import rclpy  # noqa: E402

from demo.check import problems  # noqa: E402
from demo.make_bag import QUESTIONS, make_bag, read_mono  # noqa: E402
from demo.recorder import Recorder  # noqa: E402
from demo.report import write_report  # noqa: E402

START = 120.0  # seconds the node may take to load engines
DISCOVERY = Path(__file__).parent.parent / "config" / "fastdds_discovery.xml"
FINISH = 60.0  # seconds the last answer may take after the bag has ended


def python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def build_engines(folder: Path) -> Path:
    """A random `small` checkpoint and its engines; what a previous run made is kept."""
    checkpoint, onnx, engines = folder / "checkpoint", folder / "onnx", folder / "engines"
    if (folder / "done").exists():
        print(f"engines: {engines} (from an earlier run)")
        return engines
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        python("offline.make_checkpoint", "--output", checkpoint, "--size", "small"),
        python("offline.export_onnx", checkpoint, onnx, "--dtype", "float32"),
        python("offline.build_engines", onnx, engines, "--backend", "onnxruntime"),
    ):
        print("$ " + " ".join(["python", *command[1:]]), flush=True)
        subprocess.run(command, check=True)
    shutil.rmtree(onnx)  # large, and the engines do not need it
    (folder / "done").touch()
    return engines


def start_node(engine_dir: Path, answer_tokens: int, answer_frames: int) -> subprocess.Popen:
    parameters = {
        "engine_dir": engine_dir,
        "image_transport": "compressed",
        "preempt": False,  # on a slow machine the second question must not cut the first answer short
        "seed": 0,
        "max_generate_length": answer_tokens,  # random weights seldom find an end
        "max_audio_length": answer_frames,
    }
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    command = python("omni_ros.nodes.omni_node", "--ros-args", *arguments)
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    environment = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(DISCOVERY)} | os.environ  # as the launch file does
    return subprocess.Popen(command, env=environment)


def wait(what: str, condition: Callable[[], object], seconds: float, node: subprocess.Popen) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if node.poll() is not None:
            sys.exit(f"the omni node has ended with exit code {node.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"{what} took more than {seconds:.0f} s")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--engine_dir", type=Path, help="engines to use instead of random ones")
    parser.add_argument("--answer_tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--answer_frames", type=int, default=50, help="longest answer in codec frames of 80 ms")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between the questions")
    args = parser.parse_args()
    began = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    engine_dir = args.engine_dir or build_engines(args.output / "build")
    bag = args.output / "bag"
    shutil.rmtree(bag, ignore_errors=True)
    make_bag(bag, QUESTIONS, args.pause)

    rclpy.init()
    recorder = Recorder()
    node = start_node(engine_dir, args.answer_tokens, args.answer_frames)
    try:
        wait("loading the engines", lambda: recorder.state == "idle", START, node)
        ready = recorder.now
        command = python("demo.replay_bag", bag, "--subscribers", 2)  # the node and the recorder
        print("$ " + " ".join(["python", *command[1:]]), flush=True)
        subprocess.run(command, check=True)
        expected = len(QUESTIONS)
        wait("answering", lambda: len(recorder.answers) >= expected and recorder.state == "idle", FINISH, node)
        node.send_signal(signal.SIGINT)
        node.wait(10)
    finally:
        node.kill()
        recorder.close()
        rclpy.shutdown()
    facts = {"engine_dir": str(engine_dir), "node_ready_s": round(ready, 2), "node_exit_code": node.returncode}
    for number, turn in enumerate(write_report(recorder, args.output, facts), 1):
        print(
            f"turn {number}: first text {turn['first_text_ms']} ms and first speech {turn['first_speech_ms']} ms after "
            f"the turn was closed; {turn['speech_s']} s of speech in {turn['speech_messages']} messages"
        )
    if found := problems(recorder.microphone, recorder.user_speaking, [read_mono(question) for question in QUESTIONS]):
        sys.exit("the demo has failed: " + "; ".join(found))
    print(f"{args.output}/speech.wav, timeline.png and metrics.json, after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
