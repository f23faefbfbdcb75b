"""What an engine will take in memory when it runs, from its exported graph alone: weights, caches and values in between.

weights       as the backend keeps them: a CPU decodes NVFP4 and FP8 and computes in float32, or with --weights int4 in
              4 bits and a float32 scale for 32; GPUs keep what is stored, and CUDA's Code2Wav is float32
caches        KV caches of --maxKVCacheCapacity rows, a byte a number with --kv_cache_quantization fp8, and Code2Wav's state;
              twice where a run writes a new copy
activations   the most that is alive at once when the nodes run in their order at the largest sizes; what an operator
              needs inside is not in it, nor what a runtime keeps for its next run: a lower bound, often half of the truth
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from omni_ros.engines.agreement import FP8

from ..onnxruntime.int4 import INT4_BLOCK, int4_weights
from ..tensorrt.profiles import MAX_RUN_FRAMES, profiles
from .builder import DOMAIN
from .external_data import StoredGraph

FOLDED = tuple("Add Cast Concat Div Equal Gather Greater Less Max Min Mul Range Slice Squeeze Sub Unsqueeze Where".split())
INT4_BITS = 4 + 32 / INT4_BLOCK


@dataclass(frozen=True)
class Memory:
    weights: int
    caches: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.caches + self.activations


def memory(folder: Path, limits: dict[str, dict[str, int]], backend: str, weights: str, kv_cache: str | None = None) -> Memory:
    """Of the graph exported to `folder`; limits, backend, weights and kv_cache as build_engines has them."""
    graph, config = StoredGraph(folder), json.loads((folder / "config.json").read_text())
    own = config.get("limits", {}) | limits.get(config["engine"], {})
    if config["engine"] == "code2wav":
        own["max_run_frames"] = min(own["capacity"], MAX_RUN_FRAMES)
    if config["engine"] == "visual":
        own["max_frames"] = 1
    config["limits"] = own
    if kv_cache == "fp8" and "decoder" in config:
        config["state"] = [{**state, "dtype": FP8} for state in config["state"]]
    wide = backend == "onnxruntime" or (backend == "cuda" and config["engine"] == "code2wav")  # float16 becomes float32
    int4 = int4_weights(graph) if weights == "int4" and "decoder" in config else set()
    return Memory(_weights(graph, wide, int4), _caches(config, wide), _activations(graph, config, wide))


def _weights(graph: StoredGraph, wide: bool, int4: set[str]) -> int:
    decoded = {parts[0] for parts in graph.packed.values()}
    scales = {name for parts in graph.packed.values() for name in parts[1:]}
    codes = {parts[0] for name, parts in graph.packed.items() if name in int4} | int4
    bits = 0.0
    for name, tensor in graph.tensors.items():
        count = int(np.prod(tensor.dims, dtype=np.int64))
        if not wide:
            bits += count * _bits(tensor.data_type)
        elif name not in scales:
            is_float = name in decoded or tensor.data_type == TensorProto.FLOAT16
            bits += count * (INT4_BITS if name in codes else 32 if is_float else _bits(tensor.data_type))
    return int(bits) // 8


def _caches(config: dict, wide: bool) -> int:
    total = 0
    for state in config["state"]:
        shape = [config["limits"]["capacity"] if isinstance(d, str) else d for d in state["shape"]]
        size = 4 if wide and state["dtype"] == "float16" else np.dtype(state["dtype"]).itemsize
        total += int(np.prod(shape)) * size * (1 if state["in_place"] else 2)
    return total


def _activations(graph: StoredGraph, config: dict, wide: bool) -> int:
    sizes = _value_bytes(graph, config, wide)
    nodes = [n for n in graph.model.graph.node if n.output[0] not in graph.packed and n.op_type != "DequantizeLinear"]
    kept = {o.name for o in graph.model.graph.output} | {s["input"] for s in config["state"]}
    last = {name: i for i, node in enumerate(nodes) for name in node.input}
    alive = most = sum(size for name, size in sizes.items() if name in {i["name"] for i in config["inputs"]})
    for i, node in enumerate(nodes):
        alive += sum(sizes.get(o, 0) for o in node.output if o not in {s["output"] for s in config["state"]})
        most = max(most, alive + _inside(graph, node, sizes))
        alive -= sum(sizes.get(n, 0) for n in set(node.input) if last[n] == i and n not in kept and n not in graph)
    return most


def _inside(graph: StoredGraph, node: onnx.NodeProto, sizes: dict[str, int]) -> int:
    """Of experts: a row for each of its routes, at the widths of gate, up and down."""
    if node.op_type != "MoE" or node.domain != DOMAIN:
        return 0
    _, inner, hidden = graph.shape(node.input[2])
    top_k = next(a.i for a in node.attribute if a.name == "top_k")
    return sizes.get(node.input[0], 0) // hidden * top_k * (2 * inner + hidden)


def _value_bytes(graph: StoredGraph, config: dict, wide: bool) -> dict[str, int]:
    """Value -> its bytes at the largest sizes of the engine's limits, where ONNX can tell them."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    largest: dict[str, list[int]] = {}
    for shapes in profiles(config).values():
        for name, (_, _, shape) in shapes.items():
            largest[name] = [max(a, b) for a, b in zip(shape, largest.get(name, shape))]
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, largest.get(value.name, [0] * len(dims))):
            if dim.dim_param:
                dim.dim_value = size or config["limits"].get(dim.dim_param, config["limits"].get("capacity", 1))
    if position := config.get("position"):  # a cache that is half full
        half = np.array([config["limits"]["capacity"] // 2], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(half, position["input"]))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    while _fold(model, inferred):  # what follows from sizes alone: ONNX looks through no Range
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {v.name: _size(v.type.tensor_type, wide) for v in [*inferred.input, *inferred.value_info, *inferred.output]}


def _fold(model: onnx.ModelProto, inferred: onnx.GraphProto) -> bool:
    """Replace nodes that depend on known shapes and constants alone; whether there was one."""
    known = {v.name: v.type.tensor_type.shape for v in [*inferred.input, *inferred.value_info]}
    constants = {t.name: t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL}
    before, left = len(model.graph.node), []
    for node in model.graph.node:
        shape = known.get(node.input[0]) if node.op_type == "Shape" else None
        if shape is not None and shape.dim and all(d.dim_value for d in shape.dim):
            bounds = {a.name: a.i for a in node.attribute}
            dims = [d.dim_value for d in shape.dim][bounds.get("start", 0) : bounds.get("end")]
            values: list[Any] = [np.array(dims, np.int64)]
        elif node.op_type in FOLDED and all(n in constants for n in node.input if n):
            values = list(ReferenceEvaluator(node).run(None, {n: numpy_helper.to_array(constants[n]) for n in node.input if n}))
        else:
            left.append(node)
            continue
        for name, value in zip(node.output, values):
            constants[name] = numpy_helper.from_array(np.asarray(value), name)
            model.graph.initializer.append(constants[name])
    del model.graph.node[:]
    model.graph.node.extend(left)
    return len(left) < before


def _size(kind: Any, wide: bool) -> int:
    count = int(np.prod([d.dim_value for d in kind.shape.dim], dtype=np.int64))
    return count * (32 if wide and kind.elem_type == TensorProto.FLOAT16 else _bits(kind.elem_type)) // 8


def _bits(data_type: int) -> int:
    if data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    return 4 if data_type == TensorProto.FLOAT4E2M1 else 8 * helper.tensor_dtype_to_np_dtype(data_type).itemsize
