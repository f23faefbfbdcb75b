"""Play a recorded conversation to the engines again, without ROS and always alike, and look at where its time went.

  ros2 run omni_ros replay BAG OUT --engine_dir ENGINES                      what the robot says now: words, codes, sound, times
  ros2 run omni_ros replay BAG OUT --engine_dir ENGINES --compare EARLIER    and whether an earlier replay said the same
  ros2 run omni_ros replay BAG OUT                                           only the latencies that were recorded with the bag

OUT is a new folder: conversation.json, conversation.wav (left: the microphone, right: the robot), speech.npz (codes and samples),
latency_replayed.png and latency_recorded.png. Exit code 0; 1 when a comparison found differences; 2 when nothing could be done.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from omni_ros import __version__
from omni_ros.errors import InputError, OmniError
from omni_ros.nodes.parameter_file import FileParameters

USES = ("audio", "audio_info", "push_to_talk", "camera", "points", "prompt", "facts", "say", "latency")  # of bag.TYPES
SAME, DIFFERENT, FAILED = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # each answer as it is made, into a pipe, too
    try:
        return _run(args)
    except ImportError as error:
        return _fail(f"{error}: pip install 'omni_ros[replay]', or rosbags and matplotlib")
    except OmniError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped; nothing was written")
        sys.stderr.flush()
        os._exit(FAILED)  # an engine may be computing, which a normal exit would wait for, or end badly


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bag", type=Path, help="folder of a rosbag2, mcap or sqlite3")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--engine_dir", type=Path, help="engines; or as in the parameter file")
    parser.add_argument("--params_file", type=Path, help="parameters of the omni node, as it was or is to be")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="single parameters; seed is 0 unless given")
    parser.add_argument("--compare", type=Path, metavar="EARLIER", help="folder of an earlier replay of the same bag")
    for use in USES:
        parser.add_argument(
            f"--{use}", metavar="TOPIC", help=f"the bag's {use} topic, or none; by default guessed by type and name"
        )
    answer_after = "seconds between the end of a turn and the first word of its answer: what interruptions meet"
    parser.add_argument("--answer_after", type=float, default=0.3, help=f"{answer_after} (default 0.3)")
    return parser


def _run(args: argparse.Namespace) -> int:
    from omni_ros.replay import compare, latencies, results
    from omni_ros.replay.bag import NONE, Bag

    results.check_new(args.out)
    parameters = _parameters(args)
    before = results.read_conversation(args.compare) if args.compare is not None else None
    seen = parameters.get_parameter("image_transport").value == "points"
    unseen = {"camera" if seen else "points": NONE}
    bag = Bag(args.bag, {use: getattr(args, use) or unseen.get(use) for use in USES})
    try:
        measured = latencies.recorded(bag)
        if not parameters.get_parameter("engine_dir").value:
            if args.compare is not None:
                raise InputError("--compare needs --engine_dir: without engines nothing is replayed")
            bag.needs("latency")
            return _write_recorded(args, measured)
        bag.needs("audio", "prompt", "say")
        conversation = _replay(args, bag, parameters)
    finally:
        bag.close()
    table = latencies.percentiles([turn.latency for turn in conversation.turns])
    facts = {
        "omni_ros": __version__,
        "bag": str(args.bag),
        "topics": bag.topics,
        "answer_after_s": args.answer_after,
        "parameters": parameters.values(),
        "latency_replayed": table,
        "latency_recorded": latencies.percentiles(measured),
    }

    def fill(folder: Path) -> None:
        results.write_conversation(folder, conversation, facts)
        if conversation.turns:
            latencies.plot([turn.latency for turn in conversation.turns], "replayed", folder / "latency_replayed.png")
        if measured:
            latencies.plot(measured, "recorded on the robot", folder / "latency_recorded.png")

    results.write(args.out, fill)
    for at, what in conversation.problems:
        print(f"{at:8.2f} s  {what}", file=sys.stderr)
    print("\n".join(latencies.in_lines(table, before[1].get("latency_replayed") if before else None)))
    print(f"{len(conversation.turns)} answers, {len(conversation.problems)} problems: {args.out}")
    if before is None:
        return SAME
    found = compare.differences(conversation, before[0])
    print("\n".join(found) if found else f"the same words, codes and samples as {args.compare}")
    return DIFFERENT if found else SAME


def _parameters(args: argparse.Namespace) -> FileParameters:
    given: dict[str, Any] = {}
    for setting in args.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {setting}: must be NAME=VALUE")
        given[name] = yaml.safe_load(value)
    if args.engine_dir is not None:
        given["engine_dir"] = str(args.engine_dir)
    parameters = FileParameters(args.params_file, **given)
    if parameters.get_parameter("seed").value < 0:  # different every time is what a replay must not be
        parameters = FileParameters(args.params_file, **given, seed=0)
    for line in parameters.unknown:
        print(f"warning: {line}", file=sys.stderr)
    return parameters


def _write_recorded(args: argparse.Namespace, measured: list[dict[str, float]]) -> int:
    from omni_ros.replay import latencies, results

    if not measured:
        raise InputError(f"{args.bag}: its latency topic has no answer; to replay the conversation give --engine_dir")
    results.write(args.out, lambda folder: latencies.plot(measured, "recorded on the robot", folder / "latency_recorded.png"))
    print("\n".join(latencies.in_lines(latencies.percentiles(measured))))
    print(f"{args.out}/latency_recorded.png")
    return SAME


def _replay(args: argparse.Namespace, bag: Any, parameters: FileParameters) -> Any:
    from tqdm import tqdm

    from omni_ros.replay.play import play

    with tqdm(
        total=round(bag.seconds, 1), unit="s", bar_format="{l_bar}{bar}| {n:.1f} of {total} s of the bag", leave=False
    ) as bar:

        def progress(at: float, line: str) -> None:
            bar.n = min(at, bar.total)
            bar.refresh() if line else bar.update(0)
            if line:
                bar.write(f"{at:8.2f} s  {line}")

        return play(bag, parameters, args.answer_after, progress)


def _fail(what: str) -> int:
    print(f"replay: {what}", file=sys.stderr)
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
