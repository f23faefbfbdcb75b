"""Lower an exported float16 graph to the operators that are fast in ONNX Runtime on an NVIDIA GPU.

  q, k, v -> norm -> rotary -> CachedAttention   GroupQueryAttention with packed q|k|v, per-head norm and rotary inside
  Gemm on NVFP4 weights                          MatMulBlockQuantizedFp4Weight, ModelOpt's tensors as they are
  MoE                                            MoE on 16-bit weights, NVFP4 decoded exactly
  Add -> RMSNormalization                        SkipSimplifiedLayerNormalization
  gate, up                                       one matrix product, split afterwards

A decoder's graph is for many rows (prefill). One row at a time, and the CodePredictor, are kernels of our own
(omni_ros/engines/decode/), which read the exported weights as they are: see `write_decode_weights`.
"""
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from offline.external_data import NUMPY_TYPE, ExternalData, StoredGraph, in_parallel
from offline.graphs.builder import DOMAIN
from offline.nvfp4 import BLOCK
from omni_ros.errors import CheckpointError

OPSET = 23
MICROSOFT = "com.microsoft"
HEAD = 32  # the kernels give each lane of a warp the same number of a head's channels


class CudaLowering:
    """One graph on its way from `source` to `target`; `capacity` is a decoder's, 0 for other graphs."""

    def __init__(self, source: Path, target: Path, capacity: int):
        self.stored, self.target, self.capacity = StoredGraph(source), target, capacity
        self.graph = self.stored.model.graph
        self.producer = {o: n for n in self.graph.node for o in n.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for i in node.input:
                self.readers.setdefault(i, []).append(node)
        self.initializers: dict[str, TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.done: set[str] = set()  # outputs whose nodes a fusion has replaced
        self.data = ExternalData(target)

    # ---- weights ----------------------------------------------------------------------------------------------------
    def add(self, name: str, value: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = self.data.add(name, value.dtype, value.shape, [value])
        return name

    def const(self, name: str, value: np.ndarray) -> str:
        self.initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def node(self, op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    def matmul(self, x: str, weights: list[str], out: str, bias: str = "") -> str:
        """x [n, K] times the rows of all `weights` ([N_i, K] each) -> `out` [n, sum N_i], in one kernel."""
        name = "|".join(weights)
        if weights[0] not in self.stored.nvfp4:
            self.add(name, np.concatenate([self.stored.raw(w) for w in weights]))
            return self.node("Gemm", [x, name] + ([bias] if bias else []), [out], transB=1)
        parts = [self.stored.nvfp4[w] for w in weights]
        last = {float(self.stored.raw(s2)) for _, _, s2 in parts}
        if len(last) > 1:
            raise ValueError(f"{name}: fused NVFP4 matrices must share their global scale")
        self.add(f"{name}.codes", np.concatenate([self.stored.raw(c) for c, _, _ in parts]))
        self.add(f"{name}.scale", np.concatenate([self.stored.raw(s) for _, s, _ in parts]).view(np.uint8))
        self.add(f"{name}.scale_2", np.array(last.pop(), np.float32))
        return self.node("MatMulBlockQuantizedFp4Weight", [x, f"{name}.codes", f"{name}.scale", f"{name}.scale_2"], [out],
                         MICROSOFT, block_size=16)

    # ---- fusions ----------------------------------------------------------------------------------------------------
    def heads(self, value: str) -> tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]:
        """The Gemm, RMSNormalization and RotaryEmbedding that made queries or keys."""
        rotary = self.producer[value]
        before = self.producer[rotary.input[0]]
        norm = before if before.op_type == "RMSNormalization" else self.producer[before.input[0]]
        gemm = self.producer[norm.input[0]]
        while gemm.op_type != "Gemm":
            gemm = self.producer[gemm.input[0]]
        return gemm, norm, rotary

    def gemm_of(self, value: str) -> onnx.NodeProto:
        node = self.producer[value]
        while node.op_type != "Gemm":
            node = self.producer[node.input[0]]
        return node

    def attention(self, q: str, k: str, v: str, out: str, past: list[str], present: list[str], rows: list[str],
                  tables: list[str], heads: int, kv_heads: int) -> None:
        """GroupQueryAttention from the layer's normed input; `out` is [1, S, heads * head_dim]."""
        q_gemm, q_norm, _ = self.heads(q)
        k_gemm, k_norm, _ = self.heads(k)
        v_gemm = self.gemm_of(v)
        qkv = self.matmul(q_gemm.input[0], [g.input[1] for g in (q_gemm, k_gemm, v_gemm)], f"{out}.qkv")
        size = sum(self.stored.shape(g.input[1])[0] for g in (q_gemm, k_gemm, v_gemm))
        packed = self.node("Reshape", [qkv, self.const(f"shape_{size}", np.array([1, -1, size]))], [f"{out}.packed"])
        norms = [self.add(n.input[1], self.stored.raw(n.input[1])) for n in (q_norm, k_norm)]
        epsilon = next(a.f for a in q_norm.attribute if a.name == "epsilon")
        self.node("GroupQueryAttention", [packed, "", "", *past, *rows, *tables, "", "", "", "", *norms], [out, *present],
                  MICROSOFT, num_heads=heads, kv_num_heads=kv_heads, do_rotary=1, qk_norm_epsilon=epsilon)

    def cached_attention(self, node: onnx.NodeProto) -> None:
        q, k, v, past_key, past_value = node.input[:5]
        cos, sin = self.producer[q].input[1:3]
        a = {a.name: a.i for a in node.attribute}
        self.attention(q, k, v, node.output[0], [past_key, past_value], list(node.output[1:]), ["last_row", "total_rows"],
                       [self.table(cos), self.table(sin), "row_ids"], a["num_heads"], a["kv_num_heads"])

    def table(self, angle: str) -> str:
        """cos or sin [1, S, D/2] of the new rows as a table [S + capacity, D/2]: GroupQueryAttention looks rows up by
        `row_ids`, 0..S-1, and insists on a table longer than the cache. This is how mRoPE gets through it."""
        name = f"{angle}.table"
        if name not in self.done:
            self.done.add(name)
            half = self.stored.shape(next(i for i in self.stored.tensors if "q_norm" in i))[0] // 2
            self.node("Squeeze", [angle, self.const("axis_0", np.array([0]))], [f"{angle}.rows"])
            padding = self.const("table_padding", np.zeros((self.capacity, half), np.float16))
            self.node("Concat", [f"{angle}.rows", padding], [name], axis=0)
        return name

    def row_inputs(self) -> None:
        """last_row int32 [1] = past_length + S - 1 on the device; total_rows int32 [] on the host; row_ids int64 [1, S]."""
        zero, one = self.const("axis_0", np.array([0])), self.const("one", np.array([1]))
        self.node("Shape", ["inputs_embeds"], ["new_rows"], start=0, end=1)
        self.node("Add", ["past_length", "new_rows"], ["total_rows_i64"])
        self.node("Sub", ["total_rows_i64", one], ["last_row_i64"])
        self.node("Cast", ["last_row_i64"], ["last_row"], to=TensorProto.INT32)
        self.node("Cast", ["total_rows_i64"], ["total_rows_1"], to=TensorProto.INT32)
        self.node("Squeeze", ["total_rows_1", zero], ["total_rows"])
        self.node("Squeeze", ["new_rows", zero], ["row_count"])
        self.node("Range", [self.const("zero", np.array(0)), "row_count", self.const("one_0", np.array(1))], ["row_range"])
        self.node("Unsqueeze", ["row_range", zero], ["row_ids"])

    def moe(self, node: onnx.NodeProto) -> None:
        x, logits, gate, up, down = node.input
        logits = self.producer[logits].input[0] if self.producer[logits].op_type == "Cast" else logits
        a = {a.name: a.i for a in node.attribute}
        experts, inner, hidden = self.stored.shape(gate)
        fused = gate.replace("gate_proj", "gate_up_proj")

        def interleaved(e: int) -> np.ndarray:  # rows alternate gate, up
            return np.stack([self.stored.read(gate, e, np.float16), self.stored.read(up, e, np.float16)], 1)

        for name, shape, part in ((fused, [2 * inner, hidden], interleaved),
                                  (down, [hidden, inner], lambda e: self.stored.read(down, e, np.float16))):
            self.initializers[name] = self.data.add(name, np.float16, [experts, *shape], in_parallel(part, experts))
        self.node("MoE", [x, logits, fused, "", down], list(node.output), MICROSOFT, k=a["top_k"],
                  normalize_routing_weights=a["normalize"], activation_type="swiglu", swiglu_fusion=1, activation_alpha=1.0,
                  activation_beta=0.0)

    def norm(self, node: onnx.NodeProto) -> None:
        """RMSNormalization, together with the residual Add before it where there is one."""
        x, gamma = node.input[0], self.add(node.input[1], self.stored.raw(node.input[1]))
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        add = self.producer.get(x)
        pending = add is not None and add.op_type == "Add" and self.pending_add == x
        if pending:
            self.nodes.pop()
            self.node("SkipSimplifiedLayerNormalization", [*add.input, gamma], [node.output[0], "", "", x], MICROSOFT,
                      epsilon=epsilon)
        else:
            self.node("SimplifiedLayerNormalization", [x, gamma], [node.output[0]], axis=-1, epsilon=epsilon, stash_type=1)

    def swiglu(self, node: onnx.NodeProto) -> None:
        """Mul(Swish(gate x), up x)."""
        gate = self.producer[self.producer[node.input[0]].input[0]]
        up = self.producer[node.input[1]]
        both = self.matmul(gate.input[0], [gate.input[1], up.input[1]], f"{node.output[0]}.gate_up")
        halves = [f"{node.output[0]}.gate", f"{node.output[0]}.up"]
        self.node("Split", [both], halves, axis=-1, num_outputs=2)
        silu = self.node("QuickGelu", [halves[0]], [f"{node.output[0]}.silu"], MICROSOFT, alpha=1.0)
        self.node("Mul", [silu, halves[1]], list(node.output))

    def is_swiglu(self, node: onnx.NodeProto) -> bool:
        before = self.producer.get(node.input[0])
        return node.op_type == "Mul" and before is not None and before.op_type == "Swish"

    def fused_away(self) -> None:
        """Mark what attention() and swiglu() recompute from the layer's input."""
        for node in self.graph.node:
            if node.op_type == "CachedAttention":
                for value in node.input[:3]:
                    self.mark_until_gemm(value)
            elif self.is_swiglu(node):
                swish, up = self.producer[node.input[0]], self.producer[node.input[1]]
                self.done.update([swish.output[0], swish.input[0], up.output[0]])

    def mark_until_gemm(self, value: str) -> None:
        node = self.producer[value]
        self.done.add(value)
        if node.op_type == "Concat":
            self.mark_until_gemm(node.input[1])
        elif node.op_type != "Gemm":
            self.mark_until_gemm(node.input[0])

    # ---- graph ------------------------------------------------------------------------------------------------------
    def run(self, dimensions: dict[str, int]) -> None:
        if any(f.name == "NVFP4Quantize" for f in self.stored.model.functions):
            raise CheckpointError(f"{self.stored.directory}: exported with --activations nvfp4, but GPU kernels round no "
                                  "activations: export with --activations float")
        self.pending_add = ""
        self.fused_away()
        if self.capacity:
            self.row_inputs()
        for node in self.graph.node:
            output = node.output[0]
            if output in self.done or node.op_type == "DequantizeLinear" or output in self.stored.nvfp4:
                continue
            if node.op_type == "CachedAttention":
                self.cached_attention(node)
            elif node.op_type == "MoE" and node.domain == DOMAIN:
                self.moe(node)
            elif node.op_type == "Gemm" and node.input[1] in self.stored:
                bias = node.input[2] if len(node.input) > 2 else ""
                if node.input[1] in self.stored.nvfp4:
                    self.matmul(node.input[0], [node.input[1]], output, bias)
                else:
                    self.nodes.append(node)
            elif node.op_type == "RMSNormalization":
                self.norm(node)
            elif self.is_swiglu(node):
                self.swiglu(node)
            elif node.op_type == "Swish":
                self.node("QuickGelu", list(node.input), list(node.output), MICROSOFT, alpha=1.0)
            else:
                self.nodes.append(node)
            self.pending_add = output if self.nodes[-1].op_type == "Add" else ""
        self.finish(dimensions)

    def finish(self, dimensions: dict[str, int]) -> None:
        needed, kept = {o.name for o in self.graph.output}, []
        for node in reversed(self.nodes):
            if any(o in needed for o in node.output):
                kept.append(node)
                needed.update(node.input)
        nodes = kept[::-1]
        for name in dict.fromkeys(i for n in nodes for i in n.input):
            tensor = self.stored.tensors.get(name)
            if name in self.initializers or tensor is None:
                continue
            self.initializers[name] = (
                tensor if tensor.data_location != TensorProto.EXTERNAL else
                self.data.add(name, NUMPY_TYPE[tensor.data_type], tensor.dims, [self.stored.raw(name)]))
        self.data.close()
        for value in [*self.graph.input, *self.graph.output]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in dimensions:
                    dim.dim_value = dimensions[dim.dim_param]
        model = self.stored.model
        del self.graph.node[:], self.graph.initializer[:], model.functions[:], model.opset_import[:]
        used = {i for n in nodes for i in n.input}
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(t for name, t in self.initializers.items() if name in used)
        model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
        onnx.save(model, self.target / "model.onnx")


def write_decode_weights(source: Path, target: Path, shape: dict) -> None:
    """decode.data, every weight of an exported graph as it is stored, and decode.json, which says where each one lies.

    `shape` is config.json's "decoder". Raises CheckpointError for a model that the GPU kernels cannot take.
    """
    widest = max(shape["hidden_size"], shape["num_heads"] * shape["head_dim"])
    inner = shape.get("top_k", 0) * shape.get("moe_intermediate_size", 0) + shape["shared_intermediate_size"]
    group = shape["num_heads"] // shape["num_kv_heads"]
    for name, value, largest in (("rows of", widest, 4096), ("experts", shape.get("num_experts", 0), 256),
                                 ("experts per token", shape.get("top_k", 0), 15), ("inner values per token", inner, 9728),
                                 ("codes", shape["vocab_size"] if "num_code_groups" in shape else 0, 4096)):
        if value > largest:
            raise CheckpointError(f"{source}: {name} {value}; GPU kernels take at most {largest}. Use --device cpu or TensorRT")
    if shape["head_dim"] // 8 % group:  # attention gives each thread the same share of a tile
        raise CheckpointError(f"{source}: {group} query heads share a key head of {shape['head_dim']} channels; GPU kernels take "
                              f"a divisor of {shape['head_dim'] // 8}. Use --device cpu or TensorRT")
    stored, data, table = StoredGraph(source), ExternalData(target, "decode.data"), {}
    for name, tensor in stored.tensors.items():
        if name.startswith("const_"):
            continue
        raw = stored.raw(name)
        multiple = 1 if name.endswith(("_scale", "_scale_2")) else HEAD if name.endswith("q_norm.weight") else BLOCK
        if raw.shape and tensor.dims[-1] % multiple:
            raise CheckpointError(f"{source}: {name} is {list(tensor.dims)}; GPU kernels take rows of a multiple of {multiple}")
        where = {e.key: e.value for e in data.add(name, raw.dtype, raw.shape, [raw]).external_data}
        table[name] = {"offset": int(where["offset"]), "shape": list(tensor.dims)}
    data.close()
    (target / "decode.json").write_text(json.dumps(table))
