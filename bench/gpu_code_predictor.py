"""How long does the CodePredictor of Qwen3-Omni-30B-A3B take for a codec frame on this GPU, in 16, 8 and 4 bits?

    python -m bench.gpu_code_predictor --work DIR [--repetitions 300]

Random weights at its dimensions (0.3 GB), rounded as `offline.quantize --cp_quantization` rounds them. Prints a markdown table:
median of a frame, and the share of the bandwidth that a frame's bytes at that pace are. DIR is removed at the end.
"""

import argparse
import fnmatch
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from bench.full_size import full_size_config
from offline import build_engines, export_onnx
from offline.checkpoints.checkpoint import write_safetensors
from offline.checkpoints.random_weights import all_tensors, draw
from offline.graphs.bandwidth import traffic
from offline.graphs.external_data import StoredGraph
from offline.quantization import encode
from offline.quantization.selection import CODE_PREDICTOR
from omni_ros.engines.open import open_engine

PREFIX = "talker.code_predictor."


def write_checkpoint(folder: Path, form: str, config: dict, values: dict[str, np.ndarray]) -> None:
    tensors: dict[str, np.ndarray] = {}
    for name, value in values.items():
        tensors[name] = value
        if form == "float16" or not any(fnmatch.fnmatchcase(name, f"{p}.weight") for p in CODE_PREDICTOR):
            continue
        weight = torch.from_numpy(value.astype(np.float32))
        tensors[name.replace("weight", "input_scale")] = np.array(1, np.float32)
        if form == "fp8":
            codes, scale = encode.fp8(weight)
            tensors[name] = codes.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
            tensors[f"{name}_scale"] = np.array(scale.numpy())
        else:
            scale_2 = weight.abs().amax()[None] / (6 * 448)
            packed, scales = encode.nvfp4(weight[None], scale_2)
            tensors[name] = packed[0].numpy()
            tensors[f"{name}_scale"] = scales[0].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
            tensors[f"{name}_scale_2"] = np.array(scale_2[0].numpy())
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", {n: (v.dtype, v.shape, [v]) for n, v in tensors.items()})


def measure(folder: Path, repetitions: int, device: str) -> tuple[list[float], np.ndarray]:
    """Seconds of each frame, and the codes of the first, greedily."""
    export_onnx.export(folder, folder / "onnx", ["code_predictor"], np.dtype(np.float16))
    source = folder / "onnx" / "multimodal" / "code_predictor"
    build_engines.build_one(source, folder / "engine", device)
    engine = open_engine(folder / "engine")
    random, shapes = np.random.default_rng(0), {i.name: i.shape for i in engine.config.inputs}
    inputs = {n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items() if n != "noise"}
    inputs["noise"] = np.zeros(shapes["noise"], np.float32)
    codes, seconds = engine.run(inputs)["codes"], []
    for _ in range(repetitions):
        start = time.perf_counter()
        engine.run(inputs)
        seconds.append(time.perf_counter() - start)
    engine.close()
    return seconds, codes


def main() -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repetitions", type=int, default=300)
    parser.add_argument("--device", choices=("cuda", "onnxruntime"), default="cuda")
    args = parser.parse_args()
    config, _ = full_size_config()
    values = {w.name: draw(w, np.zeros(0, int), 0) for w in all_tensors(config) if w.name.startswith(PREFIX)}
    rows, exact = [], None
    for form in ("float16", "fp8", "nvfp4"):
        folder = args.work / form
        write_checkpoint(folder, form, config, values)
        seconds, codes = measure(folder, args.repetitions, args.device)
        exact = codes if exact is None else exact
        read = traffic(StoredGraph(folder / "onnx" / "multimodal" / "code_predictor")).read
        median = statistics.median(seconds)
        cells = (f"{1e3 * median:.2f} ms", f"{read / 1e9:.2f} GB", f"{read / median / 1e9:.0f} GB/s")
        rows.append(f"| {form} | {' | '.join(cells)} | {int((codes == exact).sum())} of {len(codes)} |")
    print("| weights | codec frame | read for it | at that pace | codes as in 16 bit |\n|---|--:|--:|--:|--:|")
    print("\n".join(rows))
    shutil.rmtree(args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
