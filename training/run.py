"""Trains the micro Qwen3-Omni from packages alone: data, codec, Code2Wav, Talker with CodePredictor, Thinker with its encoders.

    python -m training.run --work WORK --out OUT --minutes 19 [--assemble demo/model]
    python -m training.run --work WORK --out OUT1 --minutes 9.5 --span 0 0.5       # the same in two runs
    python -m training.run --work WORK --out OUT2 --minutes 9.5 --span 0.5 1 --resume OUT1 --assemble demo/model

Everything goes at once, each program from when the files that it needs are there; with two GPUs, Code2Wav has the second one for
itself. Each part ends when the time is over; a part that fails ends all. OUT gets NAME.pt (float16), NAME.state.pt (to go on
exactly), NAME.jsonl and losses.png.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from training import plot


def start(module: str, *arguments, gpu: str | None = None) -> subprocess.Popen:
    """A program of the training, on a GPU (its number) or, with None, on none; one thread for each of its processes."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env = {**os.environ, **threads, "CUDA_VISIBLE_DEVICES": gpu or ""}
    return subprocess.Popen([sys.executable, "-m", module, *map(str, arguments)], env=env)


def count_gpus() -> int:
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return 0
    return listed.stdout.count("GPU ")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the data (about 4 GB; memory is best)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--base", type=Path, help="tokenizer, config, embeddings; default: WORK/base, made if it is missing")
    parser.add_argument("--minutes", type=float, default=19.0, help="for everything, data included")
    parser.add_argument("--span", type=float, nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"), help="part of the training")
    parser.add_argument("--resume", type=Path, help="OUT of the run before")
    parser.add_argument("--assemble", type=Path, help="write the checkpoint there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that speak")
    parser.add_argument("--share", type=float, default=1.0, help="of the questions' clips, for a trial")
    parser.add_argument("--talker_gpu", type=int, default=0)
    parser.add_argument(
        "--talker_minutes", type=float, help="the Talker's whole training is the first so many minutes of the first run"
    )
    for name in ("thinker", "talker", "code2wav"):
        parser.add_argument(f"--{name}", default="", help=f'more arguments for training\'s {name}, as "--lr 1e-3"')
    args = parser.parse_args()
    begin = time.time()
    until = begin + args.minutes * 60
    base = args.base or args.work / "base"
    for folder in (args.work, args.out):
        folder.mkdir(parents=True, exist_ok=True)
    if not (base / "embedding.pt").exists():
        subprocess.run([sys.executable, "-m", "training.base", base], check=True)
    common = ["--until", until, "--span", *args.span, "--seed", args.seed, *(["--resume", args.resume] if args.resume else [])]
    last = max(0, count_gpus() - 1)
    speak = ["--processes", args.processes]
    train = lambda name, more: (f"training.{name}", args.work, base, args.out, *common, *more.split())  # noqa: E731
    todo = {  # name: files that it waits for, program and arguments, GPU
        "answers": ((), ("training.voice.answers", args.work, *speak), None),
        "clips": ((), ("training.clips", args.work, *speak, "--share", args.share), None),
        "thinker": ((), train("thinker", args.thinker), 0),
        "code2wav": (("answers.npz",), train("voice.code2wav", args.code2wav), last),
        "talker": (("codes.npz",), train("voice.talker", args.talker), min(args.talker_gpu, last)),
    }
    if (args.work / "answers.npz").exists():
        del todo["answers"]
    if args.talker_minutes and args.resume:
        del todo["talker"]
        for file in ("talker.pt", "talker.jsonl"):
            shutil.copy(args.resume / file, args.out)
    elif args.talker_minutes:
        files, command, gpu = todo["talker"]
        todo["talker"] = files, (*command, "--span", 0, 1, "--until", min(until, begin + 60 * args.talker_minutes)), gpu
    running: dict[str, subprocess.Popen] = {}
    failed = []
    while todo or running:
        for name, (files, command, gpu) in list(todo.items()):
            if all((args.work / file).exists() for file in files):
                running[name] = start(*command, gpu=None if gpu is None else str(gpu))
                del todo[name]
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                if process.returncode:  # the others may wait for it for ever, or be worth nothing without it
                    failed.append(name)
                    print(f"{name} failed with {process.returncode}", flush=True)
                    todo.clear()
                    for other in running.values():
                        other.terminate()
        time.sleep(0.3)
    plot.losses(args.out, args.out / "losses.png")
    if args.assemble and not failed:
        subprocess.run([sys.executable, "-m", "training.checkpoint", base, args.out, args.assemble], check=True)
    print(f"{'failed: ' + ', '.join(failed) if failed else 'all'}: {(time.time() - begin) / 60:.1f} minutes", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
