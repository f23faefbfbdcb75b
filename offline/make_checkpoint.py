"""Write a Qwen3-Omni checkpoint with random weights: every part, tokenizer and processor, no torch needed.

    python -m offline.make_checkpoint --output checkpoint --size tiny

transformers' Qwen3OmniMoeForConditionalGeneration and Qwen3OmniMoeProcessor load it like the real one. Its words and
its voice are nonsense, but no weight is idle: what transformers initialises to zero or nearly so (routers, snake
activations, layer scales) is random here, so a wrong graph cannot pass for a right one. Weights are made and written
one tensor at a time, in bfloat16 as in the published checkpoint.
"""

import argparse
import sys
from pathlib import Path

from omni_ros.errors import CheckpointError, OmniError

from .checkpoints.random_config import complete_config, merge
from .checkpoints.random_processor import silent_tokens, write_json, write_processor
from .checkpoints.random_sizes import SIZES
from .checkpoints.random_tokenizer import train_tokenizer
from .checkpoints.random_weights import all_tensors, write_weights
from .outputs.atomic import atomic_directory

SHARD_BYTES = 10**9


def make_checkpoint(
    directory: str | Path,
    size: str = "tiny",
    seed: int = 0,
    overrides: dict | None = None,
    shard_bytes: int = SHARD_BYTES,
    force: bool = False,
) -> Path:
    """Write a random checkpoint to `directory` and return it; the directory appears only when it is complete.

    `overrides` is a nested dict in the names of config.json, for other dimensions or token ids than the size's own.
    The same arguments give the same bytes. Raises CheckpointError when `directory` holds files (unless `force`).
    """
    directory = Path(directory)
    if directory.exists() and not force and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory}: exists and is not empty; choose another folder or use --force")
    chosen = merge(SIZES[size], overrides or {})
    max_pixels = chosen.pop("max_pixels")
    tokenizer = train_tokenizer(chosen["thinker_config"]["text_config"]["vocab_size"])
    config = complete_config(chosen, tokenizer)
    with atomic_directory(directory) as partial:
        write_json(partial / "config.json", config)
        write_json(partial / "generation_config.json", {"eos_token_id": config["im_end_token_id"], "use_cache": True})
        write_processor(partial, tokenizer, max_pixels)
        write_weights(partial, list(all_tensors(config)), silent_tokens(tokenizer, config), seed, shard_bytes)
    return directory


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True, type=Path, help="folder to create")
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="tiny",
        help="tiny: 2 M parameters, for tests; small: 180 M, for benchmarks (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument(
        "--layers",
        type=int,
        help="number of Thinker layers, if not the size's own; each layer of "
        "small is 26 MB: --size small --layers 80 makes a checkpoint of 2.2 GB",
    )
    parser.add_argument(
        "--shard_size", type=int, default=SHARD_BYTES, metavar="BYTES", help="largest .safetensors file (default: %(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="replace what is in the folder")
    args = parser.parse_args(argv)
    overrides = {"thinker_config": {"text_config": {"num_hidden_layers": args.layers}}} if args.layers else None
    try:
        make_checkpoint(args.output, args.size, args.seed, overrides, args.shard_size, args.force)
    except (OmniError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    size = sum(f.stat().st_size for f in args.output.iterdir())
    print(f"{args.size} checkpoint with random weights in {args.output} ({size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
