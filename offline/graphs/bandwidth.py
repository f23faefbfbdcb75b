"""What fits into the memory of a GPU and what its bandwidth allows, from the exported graphs alone: `offline.build_engines
--dry-run`.

At batch 1 a step reads every weight that it multiplies by, and computes next to nothing with it. So bytes divided by
bandwidth is a floor for its time, which good kernels approach to 70-80 %.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from .external_data import StoredGraph
from .memory import Memory, memory


@dataclass(frozen=True)
class Module:
    memory: float  # bytes; of a Jetson, shared by CPU and GPU
    bandwidth: float  # bytes/s
    target: str  # compute capability of its GPU


MODULES = {  # as NVIDIA advertises them; not checked against the data sheets (docs/verification.md)
    "Jetson T5000 (AGX Thor)": Module(128e9, 273e9, "sm110"),
    "Jetson T4000": Module(64e9, 273e9, "sm110"),
    "Jetson AGX Orin 64GB": Module(64e9, 204.8e9, "sm87"),
    "Jetson AGX Orin 32GB": Module(32e9, 204.8e9, "sm87"),
    "Jetson Orin NX 16GB": Module(16e9, 102.4e9, "sm87"),
    "Jetson Orin Nano 8GB (Super)": Module(8e9, 102e9, "sm87"),
    "DGX Spark (GB10)": Module(128e9, 273e9, "sm121"),
    "GeForce RTX 4090": Module(24e9, 1008e9, "sm89"),
    "GeForce RTX 5090": Module(32e9, 1792e9, "sm120"),
    "RTX PRO 6000 Blackwell": Module(96e9, 1792e9, "sm120"),
    "H100 80GB": Module(85e9, 3350e9, "sm90"),
    "H200": Module(150e9, 4800e9, "sm90"),
}
FRAME_SECONDS = 0.08  # of speech in a codec frame
STEPS = {
    "thinker": "one token",
    "talker": "one codec frame",
    "code_predictor": "one codec frame",
    "code2wav": "one call, any number of frames",
    "multimodal/audio": "one window",
    "multimodal/visual": "one image",
}


@dataclass(frozen=True)
class Traffic:
    weights: int  # bytes of all weights
    read: int  # bytes of weights that one step of one row reads: of a stack of experts only the routed ones
    kv_row: int  # bytes of keys and values that each cached row adds to that
    nvfp4: bool  # whether some weights are NVFP4


def traffic(graph: StoredGraph, kv_cache: str | None = None) -> Traffic:
    """Of one exported graph, with a KV cache as exported or in "fp8". A weight that several nodes use is read by each: caches
    are smaller than a layer."""
    sizes = {name: _bytes(t) for name, t in graph.tensors.items()}
    values = {t.name: t.type.tensor_type for t in graph.model.graph.input}
    of = {**sizes, **{name: sum(sizes[part] for part in parts) for name, parts in graph.packed.items()}}
    read = kv_row = 0
    for node in graph.model.graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type == "Gather" or (node.output[0] in graph.packed or node.op_type == "DequantizeLinear"):
            continue  # a few rows of a table; or counted where the dequantised weight is used
        for i, name in enumerate(node.input):
            if name not in of:
                continue
            routed = node.op_type == "MoE" and i in (2, 3, 4)
            read += of[name] * attributes["top_k"] // graph.shape(name)[0] if routed else of[name]
        if node.op_type == "CachedAttention":
            for cache in node.input[3:5]:
                heads, head_dim = (values[cache].shape.dim[i].dim_value for i in (1, 3))
                size = 1 if kv_cache == "fp8" else helper.tensor_dtype_to_np_dtype(values[cache].elem_type).itemsize
                kv_row += heads * head_dim * size
    return Traffic(sum(sizes.values()), read, kv_row, graph.nvfp4)


def _bytes(tensor: TensorProto) -> int:
    bits = 4 if tensor.data_type == TensorProto.FLOAT4E2M1 else 8 * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * bits // 8


def report(
    graphs: dict[str, Path],
    rows: int,
    backend: str,
    weights: str,
    limits: dict[str, dict[str, int]],
    kv_cache: str | None = None,
) -> str:
    """`graphs`: engine name -> exported folder; `rows` in the KV caches; the rest as for `memory`. Three tables: what engines
    read, what they take, and modules."""
    found = {name: traffic(StoredGraph(folder), kv_cache) for name, folder in graphs.items()}
    taken = {name: memory(folder, limits, backend, weights, kv_cache) for name, folder in graphs.items()}
    needed = sum(m.total for m in taken.values())
    tables = [_engine_table(found, rows), _memory_table(taken, backend), _module_table(found, rows, needed, backend)]
    return "\n\n".join("\n".join(lines) for lines in tables)


def _engine_table(found: dict[str, Traffic], rows: int) -> list[str]:
    lines = [f"{'engine':20}{'weights':>12}{'read a step':>14}{f'KV, {rows} rows':>16}   a step is"]
    for name, t in found.items():
        lines.append(f"{name:20}{_size(t.weights):>12}{_size(t.read):>14}{_size(t.kv_row * rows):>16}   {STEPS[name]}")
    return [*lines, f"{'all':20}{_size(sum(t.weights for t in found.values())):>12}"]


def _memory_table(taken: dict[str, Memory], backend: str) -> list[str]:
    lines = [f"{f'memory, {backend}':20}{'weights':>12}{'caches':>14}{'activations':>16}{'all':>12}"]
    for name, m in taken.items():
        lines.append(f"{name:20}{_size(m.weights):>12}{_size(m.caches):>14}{_size(m.activations):>16}{_size(m.total):>12}")
    sums = [sum(getattr(m, part) for m in taken.values()) for part in ("weights", "caches", "activations", "total")]
    return [
        *lines,
        f"{'all':20}{_size(sums[0]):>12}{_size(sums[1]):>14}{_size(sums[2]):>16}{_size(sums[3]):>12}",
        "Activations: values alive at once at the largest sizes, a lower bound; operators and the runtime need more.",
    ]


def _module_table(found: dict[str, Traffic], rows: int, needed: int, backend: str) -> list[str]:
    """Floors of one token and one codec frame, where the engines, which need so many bytes, fit and the GPU can compute with
    their weights. A CPU has no floor here: it is not memory alone that holds it up."""
    step = {name: t.read + t.kv_row * rows for name, t in found.items()}  # bytes
    token = step.get("thinker")
    frame = step["talker"] + step["code_predictor"] if {"talker", "code_predictor"} <= set(found) else None
    lines = [f"{'at best':42}{'Thinker':>16}{'codec frame':>14}{'both, of 80 ms':>16}   memory"]
    for name, module in MODULES.items():
        cells = ["-", "-", "-"]
        if backend == "onnxruntime" and not name.startswith("Jetson"):
            continue  # its memory is not what a CPU uses
        if needed > module.memory:
            verdict = f"too small for {_size(needed)}"
        elif backend == "tensorrt" and any(t.nvfp4 for t in found.values()) and int(module.target[2:]) < 100:
            verdict = f"{module.target} cannot compute with NVFP4 (--backend cuda can)"
        else:
            verdict = f"{needed / 1e9:.1f} of {module.memory / 1e9:.0f} GB"
            if backend == "onnxruntime":
                token = frame = None
            if token:
                cells[0] = f"{module.bandwidth / token:,.1f} tokens/s"
            if frame:
                cells[1] = f"{1e3 * frame / module.bandwidth:.2f} ms"
            if token and frame:
                cells[2] = f"{(token + frame) / module.bandwidth / FRAME_SECONDS:.0%}"
        head = f"{name}, {module.bandwidth / 1e9:.0f} GB/s"
        lines.append(f"{head:42}{cells[0]:>16}{cells[1]:>14}{cells[2]:>16}   {verdict}")
    return [
        *lines,
        "At best: bytes read / advertised bandwidth; good kernels reach 70-80 % of it. Measured: docs/benchmarks_gpu.md.",
        "codec frame: Talker and CodePredictor. While it speaks, the robot makes a token and a frame in every 80 ms;",
        "Code2Wav reads its weights once a call on top. Memory also holds all other programs.",
    ]


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"
