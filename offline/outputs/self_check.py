"""What an engine should answer to a few inputs: stored with it at build, compared wherever it is opened.

Compilers are known to make graphs fast and wrong without a word. self_check.safetensors holds, for calls 0, 1, ... of one
sequence, `0.in.NAME` and `0.out.NAME` (float32 throughout: whole numbers below 2^24 are exact in it). The answers are those
of the exported graph on a CPU in float32 (graphs/reference.py). config.json says, under `self_check`, how far the engine may
be from them: the cosine of every output in every call must be at least `cosine`. The CodePredictor returns nothing but codes,
each of which depends on those before it: of its calls, all alone, at least the share `first_code` must begin with the same code.
"""

import sys
from pathlib import Path

import numpy as np

from omni_ros.engines.sidecar import Embedding
from omni_ros.errors import CheckpointError

from ..checkpoints.checkpoint import write_safetensors
from ..graphs.external_data import StoredGraph
from ..graphs.reference import ReferenceUnavailable, run_calls

FILE = "self_check.safetensors"
# What the engine's weights and arithmetic became -> the least cosine. Where something is rounded, an expert may be chosen
# otherwise, which moves one row to 0.97 (seen on random weights); what a compiler gets wrong is near 0.
COSINE = {"float32": 0.9999, "float16": 0.9, "activations": 0.9, "int4": 0.9}
FIRST_CODE = 0.75
PREFILL_ROWS, CAPACITY = 4, 8  # decoders: a prompt of so many rows, then one row
FRAMES = 3  # code2wav: codec frames in a call
CODE_PREDICTOR_CALLS = 8


def store(graph: StoredGraph, directory: Path, config: dict) -> None:
    """Write self_check.safetensors into an engine's folder, and what belongs to it into `config`, its config.json.

    Says so, there and on stderr, when it cannot be made.
    """
    source = graph.directory
    try:
        calls = example_calls(config, source)
        answers = run_calls(graph, config, calls, CAPACITY)
    except (ReferenceUnavailable, MemoryError) as e:
        config["self_check"] = {"skipped": str(e) or "not enough memory"}
        print(f"warning: {config['engine']}: no self-check is stored ({config['self_check']['skipped']})", file=sys.stderr)
        return
    tensors = {f"{i}.in.{name}": array for i, call in enumerate(calls) for name, array in call.items()}
    tensors |= {f"{i}.out.{name}": array for i, answer in enumerate(answers) for name, array in answer.items()}
    tensors = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"{source}: {name.split('.out.')[-1]} of the exported graph is not finite; the checkpoint is damaged"
            )
    write_safetensors(directory / FILE, {n: (a.dtype, a.shape, [a]) for n, a in tensors.items()})
    rounds = any(f.name == "NVFP4Quantize" for f in graph.model.functions)
    config["self_check"] = {"file": FILE, "calls": len(calls), "rounds_activations": rounds}
    config.setdefault("sidecars", {})[FILE] = {n: {"dtype": "float32", "shape": list(a.shape)} for n, a in tensors.items()}


def set_bound(config: dict) -> None:
    """Complete `self_check` in config.json, whose `weights` and `dtype` say what the engine became."""
    check = config["self_check"]
    if "skipped" in check:
        return
    rounds = check.pop("rounds_activations")
    exact = config["weights"] == config["dtype"] == "float32"
    form = "int4" if config["weights"] == "int4" else "activations" if rounds else "float32" if exact else "float16"
    check |= {"first_code": FIRST_CODE} if config["engine"] == "code_predictor" else {"cosine": COSINE[form]}


# ---- inputs -----------------------------------------------------------------------------------------------------------
def example_calls(config: dict, source: Path) -> list[dict[str, np.ndarray]]:
    """Inputs of a sequence of runs, without what the engine counts itself; none of them is all zero."""
    random, model = np.random.default_rng(0), config["model"]

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    engine = config["engine"]
    if engine in ("thinker", "talker"):
        return _decoder_calls(config, source, normal)
    if engine == "code_predictor":
        hidden = config["decoder"]["hidden_size"]
        noise = np.ones((model["num_code_groups"] - 1, model["noise_width"]), np.float32)  # the same for all: the likeliest code
        rows = lambda: {"last_hidden": normal(1, hidden), "code0_embed": normal(1, hidden), "noise": noise}  # noqa: E731
        return [rows() for _ in range(CODE_PREDICTOR_CALLS)]
    if engine == "code2wav":
        shape = (model["num_quantizers"], FRAMES)
        return [{"codes": random.integers(1, model["codebook_size"], shape)} for _ in range(2)]
    if engine == "audio":
        frames, tokens = model["chunk_frames"], np.arange(model["chunk_tokens"])
        return [{"mel": normal(1, 1, model["mel_bins"], frames), "valid_indices": tokens, "positions": tokens}]
    n = 4 * model["merge_size"] ** 2  # visual: a picture of 4 merged tokens
    taps = random.integers(0, model["position_side"] ** 2, (n, 4))
    angle = random.uniform(-3, 3, (1, n, model["head_dim"] // 2)).astype(np.float32)
    weights = random.uniform(0.1, 1, (n, 4)).astype(np.float32)
    return [
        {
            "patches": normal(1, n, model["patch_width"]),
            "pos_indices": taps,
            "pos_weights": weights / weights.sum(axis=1, keepdims=True),
            "cos": np.cos(angle),
            "sin": np.sin(angle),
        }
    ]


def _decoder_calls(config: dict, source: Path, normal) -> list[dict[str, np.ndarray]]:
    """Rows of the embedding itself, since other rows would meet experts that no real one meets."""
    embedding, model = Embedding(source / "embedding.safetensors"), config["model"]
    ids, calls, first = np.linspace(1, model["vocab_size"] - 1, PREFILL_ROWS + 1).astype(int), [], 0
    for rows in (PREFILL_ROWS, 1):
        call = {
            "inputs_embeds": embedding[ids[first : first + rows]],
            "position_ids": np.tile(np.arange(first + 1, first + 1 + rows, dtype=np.float32), (3, 1)),
        }
        if config["engine"] == "thinker":
            call["deepstack"] = 0.01 * normal(model["num_deepstack"], rows, model["hidden_size"])
        calls.append(call)
        first += rows
    return calls
