"""Engines with random weights at the dimensions of Qwen3-Omni-30B-A3B, made with the product's own command lines."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from bench import full_size
from bench.gpu_turns import QUESTION
from bench.models import python
from bench.report import Part, Row
from offline.build_engines import ENGINES
from offline.checkpoints.random_weights import all_tensors
from offline.graphs.bandwidth import Traffic, traffic
from offline.graphs.external_data import StoredGraph
from offline.make_checkpoint import write_processor
from omni_ros.errors import CheckpointError, EngineError
from omni_ros.pipeline.tokenizer import ChatTokenizer

EXPORTS = {"thinker": "thinker", "talker": "talker", "root": "code_predictor,code2wav,audio,visual"}  # folder -> components
PEAK, MORE = 0.7, 5e9  # bytes on disk at the fullest moment, for each of the weights in 16 bit: twice that of NVFP4; and more
METHOD = """\
Wall time and bytes written. Thinker, Talker and the rest are exported and built side by side, so their times overlap."""


def model(layers: dict[str, int]) -> tuple[dict, np.ndarray]:
    """config.json of the model, with `layers` ({"thinker": 4}, say) instead of its own, and the question's ids int64 [S]."""
    config, tokenizer = full_size.full_size_config(layers)
    with tempfile.TemporaryDirectory() as folder:
        write_processor(Path(folder), tokenizer, full_size.MAX_PIXELS)
        return config, ChatTokenizer(Path(folder)).encode(QUESTION)


def make(work: Path, config: dict, layers: dict[str, int], log: Callable[[str], None], fail: Callable[[str], None]) -> None:
    """`work`/engines, and `work`/made.json with what making them took and what a step of each reads.

    Checkpoint and graphs are deleted as soon as they are used. A part that fails is told to `fail` and left out.
    Raises CheckpointError when `work` holds files or is too small.
    """
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise CheckpointError(f"{work}: is not empty; measure the engines in it with --reuse, or give --work another folder")
    needed, free = PEAK * sum(w.nbytes for w in all_tensors(config)) + MORE, shutil.disk_usage(work).free
    if free < needed:
        raise CheckpointError(
            f"{work}: {free / 1e9:.0f} GB are free, {needed / 1e9:.0f} GB are needed; give --work a larger "
            "folder (/dev/shm/omni, say), or measure fewer layers"
        )
    making = _Making(work, log)
    making.step("checkpoint", [making.checkpoint], full_size.write_full_size, making.checkpoint, layers)
    with ThreadPoolExecutor() as pool:
        parts = {part: pool.submit(making.export_and_build, part) for part in EXPORTS}
    for part, future in parts.items():
        if error := future.exception():
            fail(f"{part}: {error}")
    shutil.rmtree(making.checkpoint)
    (work / "made.json").write_text(json.dumps({"steps": making.steps, "traffic": making.traffic}, indent=2) + "\n")


def read_made(work: Path) -> tuple[dict[str, Traffic], Part]:
    """What a step of each engine reads, and how the engines were made. Raises EngineError without made.json."""
    path = work / "made.json"
    try:
        made = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise EngineError(f"{path}: missing or damaged ({e}); run without --reuse, in an empty folder") from e
    rows = [
        row
        for name, step in made["steps"].items()
        for row in (Row(f"{name}, time", step["seconds"], "s"), Row(f"{name}, written", step["bytes"] / 1e9, "GB"))
    ]
    return {name: Traffic(**t) for name, t in made["traffic"].items()}, Part("Making the engines", METHOD, rows, made)


class _Making:
    """The folders of one run, and its record."""

    def __init__(self, work: Path, log: Callable[[str], None]):
        self.work, self.checkpoint, self.engines, self.log = work, work / "checkpoint", work / "engines", log
        self.steps: dict[str, dict[str, float]] = {}
        self.traffic: dict[str, dict] = {}

    def step(self, name: str, folders: list[Path], action: Callable, *arguments: object) -> None:
        """`action(*arguments)`, which writes `folders`."""
        started = time.monotonic()
        action(*arguments)
        seconds = time.monotonic() - started
        size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
        self.steps[name] = {"seconds": seconds, "bytes": size}
        self.log(f"{name}: {seconds:.0f} s, {size / 1e9:.1f} GB")

    def export_and_build(self, part: str) -> None:
        source, onnx = self.checkpoint / part, self.work / f"onnx_{part}"
        sidecars = ["--talker-sidecar-from", self.checkpoint / "root"] if part == "talker" else []
        components = EXPORTS[part]
        folders = [onnx / folder for name, folder in ENGINES.items() if Path(name).name in components.split(",")]
        self.step(
            f"export {components}",
            folders,
            python,
            "-m",
            "offline.export_onnx",
            source,
            onnx,
            "--components",
            components,
            "--dtype",
            "float16",
            *sidecars,
        )
        built = {name: onnx / folder for name, folder in ENGINES.items() if (onnx / folder).is_dir()}
        self.traffic |= {name: asdict(traffic(StoredGraph(folder))) for name, folder in built.items()}
        if part != "root":  # the Talker's export reads there, too
            shutil.rmtree(source)
        self.step(
            f"build {', '.join(Path(name).name for name in built)}",
            [self.engines / name for name in built],
            python,
            "-m",
            "offline.build_engines",
            onnx,
            self.engines,
            "--device",
            "cuda",
        )
        shutil.rmtree(onnx)
