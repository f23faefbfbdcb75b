"""ONNX tree of `offline.export_onnx` -> engines that a robot can load.

    python -m offline.build_engines ONNX ENGINES --backend onnxruntime

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

from offline.atomic import atomic_directory
from offline.lower_onnxruntime import Lowering
from omni_ros import __version__
from omni_ros.errors import CheckpointError, OmniError

# engine folder <- ONNX folder
ENGINES = {
    "thinker": "thinker/llm", "talker": "talker/llm", "code_predictor": "multimodal/code_predictor",
    "code2wav": "multimodal/code2wav", "multimodal/audio": "multimodal/audio", "multimodal/visual": "multimodal/visual",
}
INT4_ENGINES = ("thinker", "talker", "code_predictor")  # the encoders and Code2Wav keep their precision


def build_onnxruntime(onnx_root: Path, engines_root: Path, weights: str, limits: dict[str, dict[str, int]]) -> list[str]:
    """Build every engine whose ONNX folder exists; `limits` maps an engine folder to the limits it is built with."""
    present = [name for name, folder in ENGINES.items() if (onnx_root / folder / "model.onnx").is_file()]
    if not present:
        raise CheckpointError(f"{onnx_root}: no exported graph found; run `python -m offline.export_onnx CHECKPOINT {onnx_root}`")
    for name in tqdm(present, desc="building", unit="engine"):
        source = onnx_root / ENGINES[name]
        config = json.loads((source / "config.json").read_text())
        config["limits"] = {**config.get("limits", {}), **limits.get(name, {})}
        with atomic_directory(engines_root / name) as directory:
            int4 = weights == "int4" and name in INT4_ENGINES
            Lowering(source, directory, int4).run(config["limits"])
            for file in sorted(source.iterdir()):
                if file.name not in ("model.onnx", "model.onnx.data", "config.json"):
                    shutil.copy(file, directory / file.name)
            _write_config(directory, config, source, "int4" if int4 else "float32")
    return present


def _write_config(directory: Path, config: dict, source: Path, weights: str) -> None:
    """The exported config.json with symbolic limits made numbers, float16 made float32, and this build's identity."""
    limits = config["limits"]
    for entry in config["inputs"] + config["outputs"] + config["state"]:
        entry["dtype"] = entry["dtype"].replace("float16", "float32")
        entry["shape"] = [limits.get(d, d) if isinstance(d, str) else d for d in entry["shape"]]
    config.update(backend="onnxruntime", weights=weights, dtype="float32")
    config["graph_sha256"] = hashlib.sha256((directory / "model.onnx").read_bytes()).hexdigest()
    config["provenance"]["onnx_sha256"] = hashlib.sha256((source / "model.onnx").read_bytes()).hexdigest()
    config["provenance"]["built_with"] = __version__
    config["files"] = {p.name: p.stat().st_size for p in sorted(directory.iterdir())}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m offline.build_engines", description=__doc__.split("\n")[0])
    parser.add_argument("onnx", type=Path, metavar="ONNX", help="folder written by offline.export_onnx")
    parser.add_argument("engines", type=Path, metavar="ENGINES", help="folder for the engines")
    parser.add_argument("--backend", choices=("onnxruntime",), default="onnxruntime")
    parser.add_argument("--weights", choices=("float32", "int4"), default="float32",
                        help="int4: 4-bit weights in Thinker, Talker and CodePredictor; faster, less exact (default: %(default)s)")
    parser.add_argument("--maxBatchSize", type=int, default=1, choices=(1,), help="a robot holds one conversation: 1")
    parser.add_argument("--maxInputLen", type=int, default=1024, help="longest prompt in tokens (default: %(default)s)")
    parser.add_argument("--maxKVCacheCapacity", type=int, default=2048, help="prompt + reply, in rows (default: %(default)s)")
    parser.add_argument("--maxCodeLen", type=int, default=1000, help="longest speech, in codec frames of 80 ms (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 1 <= args.maxInputLen <= args.maxKVCacheCapacity:
        parser.error("--maxInputLen must be between 1 and --maxKVCacheCapacity")
    if args.maxCodeLen < 1:
        parser.error("--maxCodeLen must be at least 1")
    decoder = {"max_input_len": args.maxInputLen, "capacity": args.maxKVCacheCapacity}
    limits = {"thinker": decoder, "talker": decoder, "code2wav": {"capacity": args.maxCodeLen}}
    try:
        built = build_onnxruntime(args.onnx, args.engines, args.weights, limits)
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    print(f"{len(built)} engines in {args.engines} (onnxruntime, {args.weights})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
