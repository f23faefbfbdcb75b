"""Engines at the dimensions of Qwen3-Omni-30B-A3B on one NVIDIA GPU, and transformers beside them.

    python -m bench.gpu --work /dev/shm/omni                     # everything
    python -m bench.gpu --work /dev/shm/omni --reuse --only engines
    python -m bench.gpu --thinker-layers 4 --talker-layers 4     # a quick look

Makes a checkpoint with random NVFP4 weights, exports and builds it (54 GB in --work at its fullest, 23 GB of engines stay),
measures, prints a table and writes bench_gpu.json. Needs a GPU with 32 GB, onnxruntime-gpu and cuda-bindings; transformers
needs torch with CUDA. What fails is reported and the rest goes on; a missed goal is marked, not an error.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import gpu_build, gpu_engines, gpu_transformers
from bench.models import ROOT
from bench.report import Part, Row, machine, text_table, to_json, to_markdown
from omni_ros.engines.cuda.compiler import DECODE, PREFILL, compile_kernels
from omni_ros.engines.cuda_device import gpu_target
from omni_ros.errors import EngineError, OmniError

NAMES = ("engines", "transformers")
SILENT_S = 240  # a measurement that takes longer is stuck, and its process is ended
INTRODUCTION = """\
Written by `{command}`; `make bench-gpu` prints the same numbers. The weights are random, NVFP4 as `offline.quantize` writes
them, bfloat16 for transformers: words and voice mean nothing, only times count."""
BESIDE = """\
Same GPU, same run, same dimensions, one after the other. transformers computes in bfloat16, greedily, and gives speech once all
of it is made; ours has NVFP4 weights, samples, and streams."""
START = time.monotonic()
failures: list[str] = []


class Failure(Exception):
    """What a measurement died of, in words."""


def log(message: str) -> None:
    print(f"{time.monotonic() - START:5.0f} s  {message}", file=sys.stderr, flush=True)


def fail(message: str) -> None:
    failures.append(message)
    log(f"FAILED {message}")


def check_machine(names: set[str]) -> None:
    """Raises EngineError when there is no GPU, or not what the engines run with: at once, not after minutes of work."""
    target = gpu_target()
    if target is None:
        raise EngineError("no NVIDIA GPU answers here (nvidia-smi shows what the driver sees); without one: python -m bench.run")
    if "engines" in names:
        import onnxruntime  # only where it is used: it takes a second to load

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise EngineError("this ONNX Runtime has no CUDA provider: pip uninstall onnxruntime, pip install onnxruntime-gpu")
        try:
            compile_kernels(target.replace("sm", "sm_"), 128, 8, DECODE, PREFILL)
        except (ImportError, RuntimeError) as e:
            raise EngineError(
                f"CUDA's run-time compiler is missing ({e}): pip install cuda-bindings nvidia-cuda-nvrtc, of the "
                "CUDA version (12 or 13) that nvidia-smi shows"
            ) from e


# ---- measuring ------------------------------------------------------------------------------------------------------
def in_process(stages: Callable[..., Iterator], *arguments: object) -> Iterator[Part]:
    """What `stages(*arguments)` measures, in a process of its own: the GPU's memory is free afterwards, and whatever ends the
    process, what it measured before is here."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, stages, arguments))
    process.start()
    sender.close()
    try:
        while receiver.poll(SILENT_S):
            message = receiver.recv()
            if message is None:
                return
            if isinstance(message, Part):
                yield message
            elif isinstance(message, Failure):
                fail(str(message))
            else:
                log(message)
        fail(f"{stages.__module__}: nothing came for {SILENT_S} s")
    except EOFError:
        process.join()
        fail(f"{stages.__module__}: its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _measure(sender: Connection, stages: Callable[..., Iterator], arguments: tuple) -> None:
    for name, stage in stages(*arguments):
        sender.send(name)
        try:
            sender.send(stage())
        except Exception as e:  # noqa: BLE001 - one measurement less, whatever it was
            traceback.print_exc()
            sender.send(Failure(f"{name}: {type(e).__name__}: {e}"))
    sender.send(None)


def merged(parts: list[Part]) -> list[Part]:
    """Parts of the same title as one."""
    titles: dict[str, Part] = {}
    for part in parts:
        first = titles.get(part.title, Part(part.title, part.method, [], {}))
        titles[part.title] = Part(part.title, part.method, first.rows + part.rows, {**first.details, **part.details})
    return list(titles.values())


def beside(parts: list[Part]) -> list[Part]:
    """Ours against transformers, when both were measured."""
    details = {part.title: part.details for part in parts}
    if not {"Turns", "transformers"} <= details.keys():
        return []
    ours, theirs = details["Turns"], details["transformers"]
    times = {"ms_per_frame": "codec frame", "rtf": "whole reply, per second of speech", "first_pcm_s": "first PCM"}
    return [
        Part(
            "Beside transformers",
            BESIDE,
            [
                Row("Thinker tokens/s, ours / transformers", ours["tokens_per_s"] / theirs["tokens_per_s"], "x"),
                *[Row(f"{name}: time of transformers / ours", theirs[key] / ours[key], "x") for key, name in times.items()],
            ],
            {},
        )
    ]


# ---- command line ---------------------------------------------------------------------------------------------------
def measure(names: set[str], work: Path, reuse: bool, layers: dict[str, int], repetitions: int) -> Iterator[Part]:
    config, ids = gpu_build.model(layers)
    if "engines" in names:
        try:
            if not reuse:
                gpu_build.make(work, config, layers, log, fail)
            traffic, making = gpu_build.read_made(work)
            yield making
            yield from in_process(gpu_engines.stages, work / "engines", traffic, repetitions)
        except OSError as e:  # a full disk, say
            fail(f"engines: {e}")
    if "transformers" in names:
        yield from in_process(gpu_transformers.stages, config, ids, "cuda")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for the engines (default: one that is deleted)")
    parser.add_argument("--reuse", action="store_true", help="measure the engines that an earlier run left in --work")
    parser.add_argument("--only", default=",".join(NAMES), metavar="PARTS", help="comma list (default: %(default)s)")
    parser.add_argument("--thinker-layers", type=int, metavar="N", help="instead of 48")
    parser.add_argument("--talker-layers", type=int, metavar="N", help="instead of 20")
    parser.add_argument("--repetitions", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "bench_output", help="folder (default: bench_output)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the results as a page")
    args = parser.parse_args(argv)
    names = {name.strip() for name in args.only.split(",")}
    if unknown := sorted(names - set(NAMES)):
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    if args.reuse and not args.work:
        parser.error("--reuse needs --work")
    layers = {part: n for part, n in (("thinker", args.thinker_layers), ("talker", args.talker_layers)) if n is not None}
    if min(layers.values(), default=2) < 2 or args.repetitions < 1:
        parser.error("layers must be at least 2, --repetitions at least 1")
    shorter = "".join(f", {n} {part} layers" for part, n in layers.items())
    parts: list[Part] = []
    try:
        check_machine(names)
        facts = {**machine(), "model": f"dimensions of Qwen3-Omni-30B-A3B{shorter}"}
        output = args.output.resolve()
        output.mkdir(parents=True, exist_ok=True)
        with nullcontext(args.work.resolve()) if args.work else TemporaryDirectory(prefix="gpu-", dir=output) as work:
            for part in measure(names, Path(work), args.reuse, layers, args.repetitions):
                parts.append(part)
                (output / "bench_gpu.json").write_text(to_json(merged(parts), facts))  # as far as it got
                log(text_table([part]))
    except OmniError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    parts = beside(parts) + merged(parts)
    if failures:
        facts["not measured"] = "; ".join(failures)
    print(text_table(parts))
    (output / "bench_gpu.json").write_text(to_json(parts, facts))
    if args.markdown:
        command = f"python -m bench.gpu --work FOLDER --repetitions {args.repetitions} --markdown FILE"
        args.markdown.write_text(to_markdown(parts, facts, command, "Benchmarks on a GPU", INTRODUCTION))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
