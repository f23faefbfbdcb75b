"""Graphs of `export_onnx` -> engines that a robot can load: all of a tree, or one.

    python -m offline.build_engines ONNX ENGINES [limits]
    python -m offline.build_engines --onnxDir ONNX/thinker/llm --engineDir ENGINES/thinker [limits]

The first writes ENGINES/{thinker,talker,code_predictor,code2wav} and ENGINES/multimodal/{audio,visual}; the second touches
nothing but its own folder. Each engine folder holds its graph, its sidecars, and a config.json with inputs, outputs,
state, limits, checksums and provenance. Inference looks for the CodePredictor beside the Talker.
"""

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from omni_ros.errors import CheckpointError, EngineError, OmniError

from .cuda import build as cuda
from .graphs import bandwidth
from .onnxruntime import build as onnxruntime
from .outputs.atomic import atomic_directory
from .outputs.engine_folder import EngineFolder
from .outputs.graph_folder import read_sealed
from .tensorrt import build as tensorrt

# engine folder <- ONNX folder
ENGINES = {
    "thinker": "thinker/llm",
    "talker": "talker/llm",
    "code_predictor": "multimodal/code_predictor",
    "code2wav": "multimodal/code2wav",
    "multimodal/audio": "multimodal/audio",
    "multimodal/visual": "multimodal/visual",
}
BUILDERS = {"onnxruntime": onnxruntime.build, "cuda": cuda.build, "tensorrt": tensorrt.build}
NO_FP8_CACHE = {
    "onnxruntime": "a CPU keeps them in float32",
    "tensorrt": "TensorRT updates no cache of 8 bits in place (docs/jetson.md)",
}
Limits = dict[str, dict[str, int]]  # engine, as config.json names it -> limits that it is built with


def build_tree(
    onnx: Path, engines: Path, backend: str = "onnxruntime", limits: Limits | None = None, **options: str | None
) -> list[str]:
    """Build every engine whose graph is below `onnx`; returns their folders below `engines`. `options` are the builder's."""
    graphs = _graphs(onnx)
    for name, source in tqdm(graphs.items(), desc="building", unit="engine"):
        build_one(source, engines / name, backend, limits, **options)
    return list(graphs)


def build_one(
    source: Path, place: Path, backend: str = "onnxruntime", limits: Limits | None = None, **options: str | None
) -> None:
    """Build the graph in `source` into `place`, which is replaced when the engine is complete."""
    with atomic_directory(place) as directory:
        engine = EngineFolder(source, directory, place)
        _check_place(place, engine.engine)
        engine.config["limits"].update((limits or {}).get(engine.engine, {}))
        BUILDERS[backend](engine, **options)


def _check_place(place: Path, engine: str) -> None:
    """Raise EngineError rather than replace a folder that is anything but an earlier build of the same engine."""
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not (place / "config.json").is_file():
        raise EngineError(f"{place}: is no engine's folder and not empty; give --engineDir a folder for this engine alone")
    try:
        there = json.loads((place / "config.json").read_text()).get("engine", engine)
    except (ValueError, AttributeError):
        return  # damaged: to be built again
    if there != engine:
        raise EngineError(f"{place}: holds the {there} engine; give the {engine} another --engineDir, or remove it")


def _graphs(onnx: Path) -> dict[str, Path]:
    """Engine folder -> exported graph, of all that are in the tree; of one graph's own folder, that one."""
    if (onnx / "model.onnx").is_file():
        engine = read_sealed(onnx)["engine"]
        return {name: onnx for name in ENGINES if Path(name).name == engine}
    present = {name: onnx / folder for name, folder in ENGINES.items() if (onnx / folder / "model.onnx").is_file()}
    if not present:
        raise CheckpointError(
            f"{onnx}: no exported graph found; run `python -m {__package__}.export_onnx CHECKPOINT {onnx}`, or give the "
            "folder of one graph with --onnxDir"
        )
    return present


def _limits(args: argparse.Namespace) -> Limits:
    decoder = {"max_input_len": args.maxInputLen, "capacity": args.maxKVCacheCapacity}
    return {"thinker": decoder, "talker": decoder, "code2wav": {"capacity": args.maxCodeLen}}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description=__doc__.replace("python -m offline", f"python -m {__package__}"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("onnx", type=Path, metavar="ONNX", nargs="?", help="folder written by export_onnx")
    parser.add_argument("engines", type=Path, metavar="ENGINES", nargs="?", help="folder for the engines")
    parser.add_argument("--onnxDir", type=Path, metavar="DIR", help="folder of one exported graph (with model.onnx), or a tree")
    parser.add_argument("--engineDir", type=Path, metavar="DIR", help="folder for that one engine, or for the tree's engines")
    parser.add_argument("--backend", choices=BUILDERS, default="onnxruntime", help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the same as --backend cuda")
    parser.add_argument("--target", choices=tensorrt.TARGETS, help="tensorrt: GPU to build for (default: the one here)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build nothing: print sizes, bytes read per step, memory at run time, and what Jetsons and GPUs by name allow",
    )
    parser.add_argument(
        "--weights",
        choices=("float32", "int4"),
        default="float32",
        help="int4: 4-bit Thinker, Talker and CodePredictor; faster, less exact (default: %(default)s)",
    )
    parser.add_argument(
        "--kv_cache_quantization",
        choices=("fp8",),
        help="cuda: Thinker and Talker keep keys and values in FP8 (E4M3), half the memory (default: float16)",
    )
    parser.add_argument("--maxBatchSize", type=int, default=1, choices=(1,), help="a robot holds one conversation: 1")
    parser.add_argument("--maxInputLen", type=int, default=1024, help="longest prompt in tokens (default: %(default)s)")
    parser.add_argument("--maxKVCacheCapacity", type=int, default=2048, help="prompt + reply, in rows (default: %(default)s)")
    parser.add_argument(
        "--maxCodeLen", type=int, default=1000, help="longest speech, in codec frames of 80 ms (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if (args.onnx is None) == (args.onnxDir is None) or (args.engines is None) == (args.engineDir is None):
        parser.error("give ONNX and ENGINES, or --onnxDir and --engineDir")
    onnx, engines = args.onnx or args.onnxDir, args.engines or args.engineDir
    if not 1 <= args.maxInputLen <= args.maxKVCacheCapacity:
        parser.error("--maxInputLen must be between 1 and --maxKVCacheCapacity")
    if args.maxCodeLen < 1:
        parser.error("--maxCodeLen must be at least 1")
    backend = "cuda" if args.device == "cuda" and args.backend == "onnxruntime" else args.backend
    if args.weights != "float32" and backend != "onnxruntime":
        parser.error(f"--weights int4 is for a CPU; for --backend {backend}, quantise to NVFP4 with the quantize command")
    if args.kv_cache_quantization and backend != "cuda":
        parser.error(f"--kv_cache_quantization fp8 is for --device cuda; {NO_FP8_CACHE[backend]}")
    if args.target and backend != "tensorrt":
        parser.error("--target is for --backend tensorrt")
    options = {
        "onnxruntime": {"weights": args.weights},
        "cuda": {"kv_cache": args.kv_cache_quantization},
        "tensorrt": {"target": args.target},
    }[backend]
    single = (onnx / "model.onnx").is_file()
    try:
        if args.dry_run:
            print(
                bandwidth.report(
                    _graphs(onnx), args.maxInputLen, backend, args.weights, _limits(args), args.kv_cache_quantization
                )
            )
            return 0
        if single:
            build_one(onnx, engines, backend, _limits(args), **options)
            built = 1
        else:
            built = len(build_tree(onnx, engines, backend, _limits(args), **options))
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    machine = {"onnxruntime": "CPU", "cuda": "GPU", "tensorrt": args.target or "this GPU"}[backend]
    print(f"{built} engine{'s' * (built > 1)} in {engines} ({backend}, {machine})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
