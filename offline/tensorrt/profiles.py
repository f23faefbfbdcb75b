"""The limits of an engine as TensorRT's optimisation profiles: for each input with sizes that vary, the least, the usual and
the largest shape."""

from collections.abc import Callable

MAX_RUN_FRAMES = 100  # codec frames per Code2Wav run: 8 s; the real model then needs 0.3 GB of activations
Shapes = dict[str, tuple[tuple[int, ...], ...]]  # input -> shapes: min, opt, max
Sizes = dict[str, dict[str, tuple[int, int, int]]]  # profile -> symbol -> min, opt, max


def profiles(config: dict) -> dict[str, Shapes]:
    """Optimisation profiles of an engine, by name; inputs without symbolic dimensions appear in none."""
    limits, model = config["limits"], config["model"]
    sizes: dict[str, Callable[[], Sizes]] = {
        "thinker": lambda: _decoder_sizes(limits),
        "talker": lambda: _decoder_sizes(limits),
        "code_predictor": lambda: {"frame": {}},
        "code2wav": lambda: {"chunk": {"frames": _range(limits["max_run_frames"])}},
        "audio": lambda: {
            "clip": {
                "windows": (1, 1, limits["max_chunks"] // model["window_chunks"]),
                "chunks": _range(model["window_chunks"]),
                "frames": (1, model["chunk_frames"], model["chunk_frames"]),
                "tokens": _range(model["window_chunks"] * model["chunk_tokens"]),
            }
        },
        "visual": lambda: {
            "image": {"frames": (1, 1, limits["max_frames"]), "n": (4, limits["max_patches"] // 8, limits["max_patches"])}
        },
    }
    dynamic = {i["name"]: i["shape"] for i in config["inputs"] if any(isinstance(d, str) for d in i["shape"])}
    return {
        name: {
            i: tuple(tuple(symbols[d][k] if isinstance(d, str) else d for d in shape) for k in range(3))
            for i, shape in dynamic.items()
        }
        for name, symbols in sizes[config["engine"]]().items()
    }


def _decoder_sizes(limits: dict) -> Sizes:
    # TensorRT-RTX 1.7 fails on attention of at most 64 rows over 512 or more cached ones, unless it is exactly one row.
    longest = max(limits["max_input_len"], min(128, limits["capacity"]))
    return {"decode": {"S": (1, 1, 1)}, "prefill": {"S": _range(longest)}}


def _range(largest: int) -> tuple[int, int, int]:
    return 1, max(1, largest // 4), largest
