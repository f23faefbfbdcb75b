"""`make demo`: a robot that sees a table with coloured shapes, hears questions about it, answers, and lets itself be interrupted.

Builds engines from the model in demo/model once, records a bag, replays it against the omni node over DDS, each in a process
of its own, and writes what happened to OUTPUT. Ends with an exit code other than 0 when an answer is wrong or missing.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Before rclpy is loaded: stay on this machine, and away from any robot that runs on it.
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))

import rclpy  # noqa: E402

from demo import check, outcome  # noqa: E402
from demo.make_bag import make_bag, read_mono  # noqa: E402
from demo.recorder import Recorder  # noqa: E402
from demo.report import write_report  # noqa: E402
from demo.script import TURNS, Turn  # noqa: E402

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "demo" / "model"
START = 120.0  # seconds the node may take to load engines
FINISH = 30.0  # seconds the last answer may take after the bag has ended
PARAMETERS = {
    "image_transport": "compressed",
    "image_max_age": 3.0,  # seconds: on a busy machine pictures and sound come late
    "temperature": 0.0,  # the same answer every time
    "talker_temperature": 0.0,
    "seed": 0,
}


def python(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def show(command: list[str]) -> None:
    print("$ " + " ".join(["python", *command[1:]]), flush=True)


def fingerprint() -> str:
    """Of what the engines are made from: the model, and the code that makes and describes them."""
    found = hashlib.sha256()
    for folder, kind in ((MODEL, "*"), (ROOT / "offline", "*.py"), (ROOT / "omni_ros" / "engines", "*.py")):
        for file in sorted(folder.rglob(kind)):
            found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()


def build_engines(folder: Path, device: str) -> Path:
    """Engines of demo/model for `device`; those of an earlier run are kept as long as model and code are the same."""
    onnx, engines, made_from = folder / "onnx", folder / "engines", folder / "made_from"
    now = fingerprint()
    if made_from.exists() and made_from.read_text() == now:
        print(f"engines: {engines} (from an earlier run)")
        return engines
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for command in (
        python("offline.export_onnx", MODEL, onnx),
        python("offline.build_engines", onnx, engines, "--device", device),
    ):
        show(command)
        subprocess.run(command, check=True)
    shutil.rmtree(onnx)  # the engines do not need it
    made_from.write_text(now)
    return engines


def start_node(engine_dir: Path) -> subprocess.Popen:
    parameters = {"engine_dir": engine_dir, **PARAMETERS}
    arguments = [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]
    command = python("omni_ros.nodes.omni_node", "--ros-args", *arguments)
    show(command)
    return subprocess.Popen(command)


def wait(what: str, condition: Callable[[], object], seconds: float, node: subprocess.Popen) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if node.poll() is not None:
            sys.exit(f"the omni node has ended with exit code {node.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"{what} took more than {seconds:.0f} s")
        time.sleep(0.05)


def play(turns: Sequence[Turn], engine_dir: Path, bag: Path) -> tuple[Recorder, dict]:
    """Record `turns` as a bag and replay it against a node with these engines: what was seen, and facts about the node."""
    rclpy.init()
    recorder = Recorder()
    node = start_node(engine_dir)
    try:
        shutil.rmtree(bag, ignore_errors=True)
        make_bag(bag, turns)  # while the node loads its engines
        wait("loading the engines", lambda: recorder.state == "idle", START, node)
        ready = recorder.now
        command = python("demo.replay_bag", bag, "--subscribers", 2)  # the node and the recorder
        show(command)
        recorder.rewind()
        subprocess.run(command, check=True)
        wait("answering", lambda: recorder.state == "idle", FINISH, node)
        node.send_signal(signal.SIGINT)
        node.wait(10)
    finally:
        node.kill()
        recorder.close()
        rclpy.shutdown()
    return recorder, {"engine_dir": str(engine_dir), "node_ready_s": round(ready, 2), "node_exit_code": node.returncode}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="that the engines are built for")
    parser.add_argument("--engine_dir", type=Path, help="other engines to use; how they word their answers is not judged")
    args = parser.parse_args()
    began = time.monotonic()
    args.output.mkdir(parents=True, exist_ok=True)
    engine_dir = args.engine_dir or build_engines(args.output / "build" / args.device, args.device)
    recorder, facts = play(TURNS, engine_dir, args.output / "bag")

    answers, interruptions = outcome.answers(recorder), outcome.interruptions(recorder)
    problems = check.unheard(recorder.microphone, recorder.user_speaking, [read_mono(turn.sound) for turn in TURNS])
    problems += check.uninterrupted(TURNS, answers, interruptions)
    if args.engine_dir is None:
        problems += check.wrong(TURNS, answers)
    facts |= {"judged": args.engine_dir is None, "problems": problems}
    write_report(recorder, args.output, TURNS, answers, interruptions, facts)
    print()
    for turn, answer in zip(TURNS, answers):
        verdict = "" if args.engine_dir else "| right" if answer.text == turn.answer else "| WRONG"
        print(f"{turn.question:>28} | {answer.text:<55} {verdict}")
    for found in interruptions:
        stopped = f"the last sample came {found.last_sample - found.at:+.2f} s after the robot heard the user"
        print(f"interrupted after {found.spoken:.2f} s of speech: {stopped}; it remembers saying {found.remembered!r}")
    if problems:
        sys.exit("the demo has failed: " + "; ".join(problems))
    print(f"{args.output}/speech.wav, timeline.png and metrics.json, after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
