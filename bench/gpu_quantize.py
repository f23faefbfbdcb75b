"""How long does `offline.quantize` take at the dimensions of Qwen3-Omni-30B-A3B, and how much memory?

    python -m bench.gpu_quantize --work /dev/shm/omni --output OUT [--layers 2] [--samples 500]

Random 16-bit weights (70.5 GB, in WORK), made samples of real lengths: recordings of 2 to 16 s, pictures of up to a megapixel,
texts of 100 to 900 tokens. Prints the machine, seconds and memory of every stage. WORK is removed at the end.
"""

import argparse
import shutil
import sys
import time
import wave
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from bench.full_size import write_full_size_root
from offline import quantize

WORDS = "the robot sees a red box beside the window and asks where it should be put before night falls again".split()


def write_samples(directory: Path, counts: dict[str, int]) -> None:
    random = np.random.default_rng(1)
    for folder in ("audio", "images", "text"):
        (directory / folder).mkdir(parents=True)
    for i in range(counts["audio"]):
        sound = (random.standard_normal(int(random.uniform(2, 16) * 16000)) * 3000).astype("<i2")
        with wave.open(str(directory / "audio" / f"{i}.wav"), "wb") as f:
            f.setparams((1, 2, 16000, 0, "NONE", ""))
            f.writeframes(sound.tobytes())
    for i in range(counts["image"]):
        width, height = random.integers(320, 1025, 2)
        small = random.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        Image.fromarray(small).resize((width, height)).save(directory / "images" / f"{i}.jpg")
    for i in range(counts["text"]):
        text = " ".join(random.choice(WORDS, random.integers(100, 900)))
        (directory / "text" / f"{i}.txt").write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder to make, on a disk or in memory, for 71 GB")
    parser.add_argument("--output", type=Path, required=True, help="folder for the result, 22 GB; stays")
    parser.add_argument("--layers", type=int, help="decoder layers of Thinker and Talker, for a quick look")
    parser.add_argument("--samples", type=int, default=500, help="default: %(default)s")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    sys.modules.setdefault("torchvision", None)  # type: ignore[arg-type]  # as offline.quantize does
    from offline.quantization import checkpoints

    counts = {"audio": 3 * args.samples // 10, "image": 3 * args.samples // 10, "text": 4 * args.samples // 10}
    seconds: dict[str, float] = {}

    def timed(name: str, call):
        def measured(*values, **keywords):
            start = time.perf_counter()
            result = call(*values, **keywords)
            seconds[name] = seconds.get(name, 0) + time.perf_counter() - start
            return result

        return measured

    layers = {"thinker": args.layers, "talker": args.layers} if args.layers else None
    timed("make the checkpoint", write_full_size_root)(args.work / "root", layers)
    timed("make samples", write_samples)(args.work / "samples", counts)
    for stage in ("calibrate", "export"):
        setattr(checkpoints._Run, stage, _by_part(getattr(checkpoints._Run, stage), seconds))
    numbers = [word for kind, n in counts.items() for word in (f"--talker_num_{kind}", str(n))]
    folders = ["--model_dir", args.work / "root", "--output_dir", args.output, "--calibration_dir", args.work / "samples"]
    failed = timed("quantise, all", quantize.main)([*map(str, folders), "--device", args.device, *numbers])
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        print(f"{gpu.name}: {torch.cuda.max_memory_reserved(i) / 1e9:.1f} of {gpu.total_memory / 1e9:.1f} GB taken at most")
    print(f"process: {psutil.Process().memory_info().rss / 1e9:.1f} GB; {psutil.cpu_count()} CPUs; torch {torch.__version__}")
    size = sum(f.stat().st_size for f in args.output.rglob("*.safetensors"))
    print(f"written: {size / 1e9:.2f} GB; {sum(counts.values())} samples {counts}")
    for name, value in seconds.items():
        print(f"{name:24}{value:8.1f} s")
    shutil.rmtree(args.work)
    return failed


def _by_part(stage, seconds: dict[str, float]):
    def measured(self, part, *values):
        start = time.perf_counter()
        result = stage(self, part, *values)
        seconds[f"{stage.__name__} {part}"] = time.perf_counter() - start
        return result

    return measured


if __name__ == "__main__":
    sys.exit(main())
