"""The Thinker, the Talker and the CodePredictor for an NVIDIA GPU: their weights alone, for the kernels of
omni_ros/engines/cuda/, which know the model.
"""

import json
from pathlib import Path

from omni_ros.engines.config import DecoderConfig
from omni_ros.engines.cuda.sizes import beyond_kernels
from omni_ros.engines.parse import parse
from omni_ros.errors import CheckpointError

from ..graphs.external_data import ExternalData, StoredGraph
from ..quantization.nvfp4 import BLOCK

# What tells matrices apart that one kernel multiplies by: they have to be of one kind
STACKS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("mlp.gate.weight", "mlp.shared_expert_gate.weight"))


def write_weights(source: Path, target: Path, shape: dict) -> str:
    """weights.data, every weight of an exported graph as it is stored, and weights.json, which says where each one lies.

    `shape` is config.json's "decoder". Returns the SHA-256 of weights.data. Raises CheckpointError for a model that the GPU
    kernels cannot take.
    """
    if problem := beyond_kernels(parse(DecoderConfig, shape, "decoder", source / "config.json")):
        raise CheckpointError(f"{source}: {problem}. Use --device cpu or TensorRT")
    stored = StoredGraph(source)
    if any(f.name in ("NVFP4Quantize", "FP8Quantize") for f in stored.model.functions):
        raise CheckpointError(
            f"{source}: exported with --activations nvfp4, but GPU kernels round no activations: export with --activations float"
        )
    _check_stacks(source, stored)
    for name in (f"{n.removesuffix('_scale_2')}" for n in stored.tensors if n.endswith("down_proj.weight_scale_2")):
        if f"{name}_scale" not in stored.tensors:
            raise CheckpointError(f"{source}: {name} is FP8; GPU kernels take a down_proj in NVFP4 or 16 bit")
    data, table = ExternalData(target, "weights.data"), {}
    for name, tensor in stored.tensors.items():
        if name.startswith("const_"):
            continue
        raw = stored.raw(name)
        multiple = 1 if name.endswith(("_scale", "_scale_2")) else BLOCK
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
            if len({(f"{n}_scale" in stored.tensors, f"{n}_scale_2" in stored.tensors) for n in stack}) > 1:
                raise CheckpointError(
                    f"{source}: of {', '.join(stack)} some are NVFP4 or FP8 and some are not; GPU kernels take them "
                    "of one kind: quantise all of them, or --exclude all"
                )
