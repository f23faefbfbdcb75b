"""The Thinker, the Talker and the CodePredictor for an NVIDIA GPU: their weights alone, for the kernels of
omni_ros/engines/cuda/, which know the model.
"""

import json
from pathlib import Path

from omni_ros.errors import CheckpointError

from ..graphs.external_data import ExternalData, StoredGraph
from ..quantization.nvfp4 import BLOCK

# What tells matrices apart that one kernel multiplies by: they have to be of one kind
STACKS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("mlp.gate.weight", "mlp.shared_expert_gate.weight"))
HEAD = 32  # the kernels give each lane of a warp the same number of a head's channels


def write_weights(source: Path, target: Path, shape: dict) -> str:
    """weights.data, every weight of an exported graph as it is stored, and weights.json, which says where each one lies.

    `shape` is config.json's "decoder". Returns the SHA-256 of weights.data. Raises CheckpointError for a model that the GPU
    kernels cannot take.
    """
    widest = max(shape["hidden_size"], shape["num_heads"] * shape["head_dim"])
    inner = shape.get("top_k", 0) * shape.get("moe_intermediate_size", 0) + shape["shared_intermediate_size"]
    group = shape["num_heads"] // shape["num_kv_heads"]
    for name, value, largest in (
        ("rows of", widest, 4096),
        ("experts", shape.get("num_experts", 0), 256),
        ("experts per token", shape.get("top_k", 0), 15),
        ("inner values per token", inner, 9728),
        ("codes", shape["vocab_size"] if "num_code_groups" in shape else 0, 4096),
    ):
        if value > largest:
            raise CheckpointError(f"{source}: {name} {value}; GPU kernels take at most {largest}. Use --device cpu or TensorRT")
    if shape["head_dim"] // 8 % group:  # attention gives each thread the same share of a tile
        raise CheckpointError(
            f"{source}: {group} query heads share a key head of {shape['head_dim']} channels; GPU kernels take "
            f"a divisor of {shape['head_dim'] // 8}. Use --device cpu or TensorRT"
        )
    stored = StoredGraph(source)
    if any(f.name == "NVFP4Quantize" for f in stored.model.functions):
        raise CheckpointError(
            f"{source}: exported with --activations nvfp4, but GPU kernels round no activations: export with --activations float"
        )
    _check_stacks(source, stored)
    data, table = ExternalData(target, "weights.data"), {}
    for name, tensor in stored.tensors.items():
        if name.startswith("const_"):
            continue
        raw = stored.raw(name)
        multiple = 1 if name.endswith(("_scale", "_scale_2")) else HEAD if name.endswith("q_norm.weight") else BLOCK
        if raw.shape and tensor.dims[-1] % multiple:
            raise CheckpointError(f"{source}: {name} is {list(tensor.dims)}; GPU kernels take rows of a multiple of {multiple}")
        where = {e.key: e.value for e in data.add(name, raw.dtype, raw.shape, [raw]).external_data}
        table[name] = {"offset": int(where["offset"]), "shape": list(tensor.dims)}
    (target / "weights.json").write_text(json.dumps(table))
    return data.close()


def _check_stacks(source: Path, stored: StoredGraph) -> None:
    for first, *others in STACKS:
        for name in (n for n in stored.tensors if first in n):
            stack = [n for n in (name, *(name.replace(first, other) for other in others)) if n in stored.tensors]
            if len({f"{n}_scale" in stored.tensors for n in stack}) > 1:
                raise CheckpointError(
                    f"{source}: of {', '.join(stack)} some are NVFP4 and some are not; GPU kernels take them "
                    "of one kind: quantise all of them, or --exclude all"
                )
