"""Measure the pipeline on the small random checkpoint and hold the numbers against the goals.

    python -m bench.run                          # everything, about ten minutes on two cores
    python -m bench.run --only decode,ros        # some parts
    python -m bench.run --markdown docs/benchmarks.md

Prints a table and writes bench.json beside the engines that it keeps in the output folder. A missed goal is marked, not
an error.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bench import (
    barge_in,
    conversation,
    decode,
    echo,
    endpointing,
    engine_share,
    export_memory,
    first_audio,
    idle,
    prefill,
    ros_path,
)
from bench.models import ROOT, prepare
from bench.report import Part, machine, text_table, to_json, to_markdown

PARTS = {
    "decode": decode.measure,
    "engines": engine_share.measure,
    "audio": first_audio.measure,
    "conversation": conversation.measure,
    "prefill": prefill.measure,
    "barge_in": barge_in.measure,
    "endpointing": endpointing.measure,
    "ros": ros_path.measure,
    "idle": idle.measure,
    "echo": echo.measure,
    "export": export_memory.measure,
}


def run_part(name: str, output: Path, threads: int, repetitions: int) -> Part:
    """In a process of its own, so that no part meets the threads and the memory of another."""
    started = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        part = process.submit(PARTS[name], output, threads, repetitions).result()
    print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return part


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), metavar="PARTS", help="comma list (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of each engine and of torch (default: every core)")
    parser.add_argument("--output", type=Path, default=ROOT / "bench_output", help="folder (default: bench_output)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the results as a page")
    args = parser.parse_args(argv)
    names = [name.strip() for name in args.only.split(",")]
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    if args.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    prepare(output)
    facts = machine()
    parts = [run_part(name, output, args.threads, args.repetitions) for name in names]
    print(text_table(parts))
    (output / "bench.json").write_text(to_json(parts, facts))
    if args.markdown:
        args.markdown.write_text(to_markdown(parts, facts, f"python -m bench.run --markdown {args.markdown}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
