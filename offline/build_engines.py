"""ONNX tree of `offline.export_onnx` -> engines that a robot can load.

    python -m offline.build_engines ONNX ENGINES --backend onnxruntime|tensorrt

writes ENGINES/{thinker,talker,code_predictor,code2wav} and ENGINES/multimodal/{audio,visual}. Each engine folder holds
its graph, its sidecars, and a config.json with inputs, outputs, state, limits and provenance.
"""

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from offline import bandwidth
from offline.atomic import atomic_directory
from offline.cuda.lower_code2wav import Code2WavLowering
from offline.cuda.lower_encoder import lower_encoder
from offline.cuda.weights import write_weights
from offline.onnxruntime.lower import Lowering
from offline.tensorrt import build as tensorrt
from omni_ros import __version__
from omni_ros.engines.tensorrt.package import import_tensorrt
from omni_ros.errors import CheckpointError, OmniError

# engine folder <- ONNX folder
ENGINES = {
    "thinker": "thinker/llm",
    "talker": "talker/llm",
    "code_predictor": "multimodal/code_predictor",
    "code2wav": "multimodal/code2wav",
    "multimodal/audio": "multimodal/audio",
    "multimodal/visual": "multimodal/visual",
}
INT4_ENGINES = ("thinker", "talker", "code_predictor")  # the encoders and Code2Wav keep their precision


def build_onnxruntime(onnx_root: Path, engines_root: Path, weights: str, limits: dict[str, dict[str, int]]) -> list[str]:
    """Build every engine whose ONNX folder exists; `limits` maps an engine folder to the limits it is built with."""
    present = _present(onnx_root)
    for name in tqdm(present, desc="building", unit="engine"):
        source = onnx_root / ENGINES[name]
        config = _exported_config(source)
        config["limits"] = {**config.get("limits", {}), **limits.get(name, {})}
        with atomic_directory(engines_root / name) as directory:
            int4 = weights == "int4" and name in INT4_ENGINES
            Lowering(source, directory, int4).run(config["limits"])
            _copy_sidecars(source, directory)
            _write_config(directory, config, "int4" if int4 else "float32", "float32")
    return present


def build_onnxruntime_cuda(onnx_root: Path, engines_root: Path, limits: dict[str, dict[str, int]]) -> list[str]:
    """The same for `--device cuda`, from graphs exported with --dtype float16 (encoders and Code2Wav: either; Code2Wav
    becomes float32)."""
    present = _present(onnx_root)
    for name in tqdm(present, desc="building", unit="engine"):
        source = onnx_root / ENGINES[name]
        config = _exported_config(source)
        if config["dtype"] != "float16" and name in ("thinker", "talker", "code_predictor"):
            raise CheckpointError(f"{source}: exported as {config['dtype']}; a GPU wants `offline.export_onnx --dtype float16`")
        config["limits"] = {**config.get("limits", {}), **limits.get(name, {})}
        with atomic_directory(engines_root / name) as directory:
            _copy_sidecars(source, directory)
            weights, dtype = "as exported", config["dtype"]
            if "decoder" in config:
                write_weights(source, directory, config["decoder"])
                dtype = "float32"  # of what goes in and out
            elif name == "code2wav":
                Code2WavLowering(source, directory).run(config)
                weights = dtype = "float32"
            else:
                lower_encoder(source, directory)
            config["device"] = "cuda"
            _write_config(directory, config, weights, dtype)
    return present


def build_tensorrt(onnx_root: Path, engines_root: Path, target: str | None, limits: dict[str, dict[str, int]]) -> list[str]:
    """The same with TensorRT or TensorRT-RTX, for the GPU `target` (None: the one here)."""
    present = _present(onnx_root)
    trt = import_tensorrt()
    target = tensorrt.check_target(trt, target)
    for name in tqdm(present, desc=f"building for {target}", unit="engine"):
        source = onnx_root / ENGINES[name]
        config = _exported_config(source)
        config["limits"] = {**config.get("limits", {}), **limits.get(name, {})}
        with atomic_directory(engines_root / name) as directory:
            _copy_sidecars(source, directory)
            tensorrt.build_engine(trt, source, directory, config, target)
    return present


def _present(onnx_root: Path) -> list[str]:
    present = [name for name, folder in ENGINES.items() if (onnx_root / folder / "model.onnx").is_file()]
    if not present:
        raise CheckpointError(f"{onnx_root}: no exported graph found; run `python -m offline.export_onnx CHECKPOINT {onnx_root}`")
    return present


def _copy_sidecars(source: Path, directory: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.name not in ("model.onnx", "model.onnx.data", "config.json"):
            shutil.copy(file, directory / file.name)


def _exported_config(source: Path) -> dict:
    """config.json of an exported graph whose files are all there as they were written, or a CheckpointError."""
    path = source / "config.json"
    try:
        config = json.loads(path.read_text())
        sizes, checksum = config["files"], config["graph_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(f"{path}: missing or damaged ({e}); export the checkpoint again") from e
    for name, size in sizes.items():
        if not (source / name).is_file() or (source / name).stat().st_size != size:
            raise CheckpointError(f"{source / name}: missing or truncated; export the checkpoint again")
    if hashlib.sha256((source / "model.onnx").read_bytes()).hexdigest() != checksum:
        raise CheckpointError(f"{source / 'model.onnx'}: damaged (its checksum differs); export the checkpoint again")
    return config


def _write_config(directory: Path, config: dict, weights: str, dtype: str) -> None:
    """The exported config.json with symbolic limits made numbers, the build's dtype for float16, and its identity."""
    limits = config["limits"]
    for entry in config["inputs"] + config["outputs"] + config["state"]:
        entry["dtype"] = entry["dtype"].replace("float16", dtype)
        entry["shape"] = [limits.get(d, d) if isinstance(d, str) else d for d in entry["shape"]]
    config.update(backend="cuda" if config.pop("device", "") else "onnxruntime", weights=weights, dtype=dtype)
    config["provenance"].update(onnx_sha256=config["graph_sha256"], built_with=__version__)
    if (directory / "model.onnx").is_file():
        config["graph_sha256"] = hashlib.sha256((directory / "model.onnx").read_bytes()).hexdigest()
    config["files"] = {p.name: p.stat().st_size for p in sorted(directory.iterdir())}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m offline.build_engines", description=__doc__.split("\n")[0])
    parser.add_argument("onnx", type=Path, metavar="ONNX", help="folder written by offline.export_onnx")
    parser.add_argument("engines", type=Path, metavar="ENGINES", help="folder for the engines")
    parser.add_argument("--backend", choices=("onnxruntime", "tensorrt"), default="onnxruntime")
    parser.add_argument("--target", choices=tensorrt.TARGETS, help="tensorrt: GPU to build for (default: the one here)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build nothing: print sizes, bytes read per step, and what Jetson memory bandwidth allows",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--weights",
        choices=("float32", "int4"),
        default="float32",
        help="int4: 4-bit Thinker, Talker and CodePredictor; faster, less exact (default: %(default)s)",
    )
    parser.add_argument("--maxBatchSize", type=int, default=1, choices=(1,), help="a robot holds one conversation: 1")
    parser.add_argument("--maxInputLen", type=int, default=1024, help="longest prompt in tokens (default: %(default)s)")
    parser.add_argument("--maxKVCacheCapacity", type=int, default=2048, help="prompt + reply, in rows (default: %(default)s)")
    parser.add_argument(
        "--maxCodeLen", type=int, default=1000, help="longest speech, in codec frames of 80 ms (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if not 1 <= args.maxInputLen <= args.maxKVCacheCapacity:
        parser.error("--maxInputLen must be between 1 and --maxKVCacheCapacity")
    if args.maxCodeLen < 1:
        parser.error("--maxCodeLen must be at least 1")
    decoder = {"max_input_len": args.maxInputLen, "capacity": args.maxKVCacheCapacity}
    limits = {"thinker": decoder, "talker": decoder, "code2wav": {"capacity": args.maxCodeLen}}
    if args.device == "cuda" and args.weights != "float32":
        parser.error("--weights int4 is for --device cpu; on a GPU, quantise to NVFP4 with offline.quantize")
    if args.backend == "tensorrt" and args.weights != "float32":
        parser.error("--weights int4 is for --backend onnxruntime; for TensorRT, quantise to NVFP4 with offline.quantize")
    if args.target and args.backend != "tensorrt":
        parser.error("--target is for --backend tensorrt")
    try:
        if args.dry_run:
            graphs = {name: args.onnx / ENGINES[name] for name in _present(args.onnx)}
            print(bandwidth.report(graphs, args.maxInputLen))
            return 0
        if args.backend == "tensorrt":
            built = build_tensorrt(args.onnx, args.engines, args.target, limits)
        elif args.device == "cuda":
            built = build_onnxruntime_cuda(args.onnx, args.engines, limits)
        else:
            built = build_onnxruntime(args.onnx, args.engines, args.weights, limits)
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(
        f"{len(built)} engines in {args.engines} ({args.backend}, "
        f"{args.target or 'this GPU' if args.backend == 'tensorrt' else args.device})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
