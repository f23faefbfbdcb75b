"""Turn an audio file into the mel features that requests may name instead of it.

    python -m offline.preprocess_audio --input FILE --output FILE.safetensors

The output holds `input_features`, float32 [128, frames] (10 ms a frame), and the metadata sample_rate, seconds, source.
"""

import argparse
import sys
from pathlib import Path

from safetensors.numpy import save_file

from omni_ros.errors import InputError, OmniError
from omni_ros.preprocess.audio import SAMPLE_RATE, load_audio, log_mel

from .outputs.atomic import atomic_file


def preprocess(source: Path, target: Path) -> None:
    """Write the features of `source` to `target`, which either appears whole or not at all."""
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: the output must end in .safetensors")
    pcm = load_audio(source)
    try:
        features = log_mel(pcm)
    except InputError as e:
        raise InputError(f"{source}: {e}") from e
    metadata = {"sample_rate": str(SAMPLE_RATE), "seconds": f"{len(pcm) / SAMPLE_RATE:.3f}", "source": source.name}
    try:
        with atomic_file(target) as path:
            save_file({"input_features": features}, path, metadata)
    except OSError as e:
        raise InputError(f"{target}: cannot be written ({e})") from e
    print(f"{target}: {features.shape[1]} frames, {metadata['seconds']} s")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, help="audio file (.wav .mp3 .flac .ogg .m4a, ...)")
    parser.add_argument("--output", type=Path, required=True, help="features to write (.safetensors)")
    args = parser.parse_args(argv)
    try:
        preprocess(args.input, args.output)
    except OmniError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
