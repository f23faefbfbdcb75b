"""Lower an exported graph to the operators that are fast in ONNX Runtime on a CPU.

CachedAttention -> com.microsoft GroupQueryAttention: caches in place, cost follows the rows used, not the capacity
MoE             -> com.microsoft MoE (or QMoE): only the routed experts are computed
Attention       -> com.microsoft MultiHeadAttention in the encoders: half the time and memory on large pictures
Swish (24)      -> com.microsoft QuickGelu: opset 23 remains, which ONNX Runtime 1.23 (Python 3.10) reads too
NVFP4, FP8      -> decoded, exactly; rounded activations (W4A4) are reproduced with plain operators, slowly
float16         -> float32, which is what the CPU computes in
--weights int4  -> Gemm becomes MatMulNBits and MoE becomes QMoE: blocks of 32, symmetric, int8 activations
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper, numpy_helper

from ..graphs.builder import DOMAIN
from ..graphs.builder import OPSET as EXPORT_OPSET
from ..graphs.external_data import NUMPY_TYPE, ExternalData, StoredGraph, in_parallel
from .int4 import INT4_BLOCK, int4_weights, quantize_int4

OPSET = 23  # of the lowered graphs
MICROSOFT = "com.microsoft"


class Lowering:
    """One graph on its way from `source` to `target`; weights pass through one expert or one matrix at a time."""

    def __init__(self, source: Path, target: Path, int4: bool):
        self.stored, self.target = StoredGraph(source), target
        self.int4 = int4_weights(self.stored) if int4 else set()
        self.graph = self.stored.model.graph
        self.initializers: list[TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.data = ExternalData(target)

    def add(self, name: str, dtype: DTypeLike, shape: Iterable[int], parts: Iterable[np.ndarray]) -> str:
        self.initializers.append(self.data.add(name, dtype, shape, parts))
        return name

    # ---- operators ------------------------------------------------------------------------------------------------
    def cached_attention(self, node: onnx.NodeProto) -> None:
        q, k, v, past_key, past_value = node.input[:5]
        heads = {a.name: a.i for a in node.attribute}
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [q, k, v, past_key, past_value, "last_row", "total_rows"],
                list(node.output),
                node.output[0],
                domain=MICROSOFT,
                num_heads=heads["num_heads"],
                kv_num_heads=heads["kv_num_heads"],
            )
        )

    def row_counts(self) -> None:
        """GroupQueryAttention's int32 inputs: last_row [1] = past_length + S - 1 and total_rows [] = past_length + S."""
        add = lambda *args, **kw: self.nodes.append(helper.make_node(*args, **kw))  # noqa: E731
        for name, value in (("one_i32", np.array([1], np.int32)), ("axis_0", np.array([0], np.int64))):
            self.initializers.append(numpy_helper.from_array(value, name))
        add("Shape", ["inputs_embeds"], ["new_rows"], start=0, end=1)
        add("Add", ["past_length", "new_rows"], ["total_rows_i64"])
        add("Cast", ["total_rows_i64"], ["total_rows_1"], to=TensorProto.INT32)
        add("Squeeze", ["total_rows_1", "axis_0"], ["total_rows"])
        add("Sub", ["total_rows_1", "one_i32"], ["last_row"])

    def moe(self, node: onnx.NodeProto) -> None:
        x, logits, gate, up, down = node.input
        a = {a.name: a.i for a in node.attribute}
        experts, inner, hidden = self.stored.shape(gate)

        def gate_up() -> Iterator[np.ndarray]:  # rows alternate gate, up: the layout of swiglu_fusion=1
            return in_parallel(lambda e: np.stack([self.stored.read(gate, e), self.stored.read(up, e)], axis=1), experts)

        def downs() -> Iterator[np.ndarray]:
            return in_parallel(lambda e: self.stored.read(down, e), experts)

        attributes = dict(
            k=a["top_k"],
            normalize_routing_weights=a["normalize"],
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0,
            activation_beta=0.0,
        )
        gate_up_name = gate.replace("gate_proj", "gate_up_proj")
        if gate in self.int4:
            w1_int4 = self.add_int4(gate_up_name, [experts, 2 * inner, hidden], gate_up)
            w2_int4 = self.add_int4(down, [experts, hidden, inner], downs)
            self.nodes.append(
                helper.make_node(
                    "QMoE",
                    [x, logits, *w1_int4, "", *w2_int4],
                    list(node.output),
                    node.output[0],
                    domain=MICROSOFT,
                    expert_weight_bits=4,
                    block_size=INT4_BLOCK,
                    accuracy_level=4,
                    **attributes,
                )
            )
        else:
            w1 = self.add(gate_up_name, np.float32, [experts, 2 * inner, hidden], gate_up())
            w2 = self.add(down, np.float32, [experts, hidden, inner], downs())
            self.nodes.append(
                helper.make_node(
                    "MoE", [x, logits, w1, "", w2], list(node.output), node.output[0], domain=MICROSOFT, **attributes
                )
            )

    def add_int4(self, name: str, shape: list[int], matrices) -> tuple[str, str]:
        """Two passes (codes, then scales), so that no more than one expert is ever in memory."""
        packed = self.add(f"{name}.int4", np.uint8, [*shape[:-1], shape[-1] // 2], (quantize_int4(m)[0] for m in matrices()))
        scales = self.add(
            f"{name}.scale", np.float32, [*shape[:-1], shape[-1] // INT4_BLOCK], (quantize_int4(m)[1] for m in matrices())
        )
        return packed, scales

    def gemm_int4(self, node: onnx.NodeProto) -> None:
        x, weight = node.input[:2]
        out, inner = self.stored.shape(weight)
        if f"{weight}.int4" not in {t.name for t in self.initializers}:
            packed, scale = quantize_int4(self.stored.read(weight))
            self.add(f"{weight}.int4", np.uint8, [out, inner // INT4_BLOCK, INT4_BLOCK // 2], [packed])
            self.add(f"{weight}.scale", np.float32, [out * inner // INT4_BLOCK], [scale])
        bias = ["", "", node.input[2]] if len(node.input) > 2 else []
        self.nodes.append(
            helper.make_node(
                "MatMulNBits",
                [x, f"{weight}.int4", f"{weight}.scale", *bias],
                list(node.output),
                node.name,
                domain=MICROSOFT,
                K=inner,
                N=out,
                bits=4,
                block_size=INT4_BLOCK,
                accuracy_level=4,
            )
        )

    # ---- graph ------------------------------------------------------------------------------------------------------
    def run(self, dimensions: dict[str, int]) -> None:
        """`dimensions` fixes symbolic sizes, such as capacity."""
        if any(n.op_type == "CachedAttention" for n in self.graph.node):
            self.row_counts()
        for node in self.graph.node:
            if node.op_type == "CachedAttention":
                self.cached_attention(node)
            elif node.op_type == "MoE" and len(node.input) == 5:
                self.moe(node)
            elif node.op_type == "DequantizeLinear" or node.output[0] in self.stored.packed:
                continue  # NVFP4, FP8: the CPU has no kernels for them, so the weight itself is decoded and stored
            elif node.op_type == "Swish":
                self.nodes.append(
                    helper.make_node("QuickGelu", list(node.input), list(node.output), node.name, domain=MICROSOFT, alpha=1.0)
                )
            elif is_encoder_attention(node):
                self.nodes.append(encoder_attention(node))
            elif node.op_type == "Gemm" and node.input[1] in self.int4:
                self.gemm_int4(node)
            else:
                self.nodes.append(node)
        self.finish(dimensions)

    def finish(self, dimensions: dict[str, int]) -> None:
        """Write the lowered nodes and what they read, all of it float32."""
        self.drop_dead_nodes()
        self.keep_used_initializers()
        self.weights_sha256 = self.data.close()
        for node in self.nodes:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                    attribute.i = TensorProto.FLOAT
        for value in [*self.graph.input, *self.graph.output]:
            tensor = value.type.tensor_type
            if tensor.elem_type == TensorProto.FLOAT16:
                tensor.elem_type = TensorProto.FLOAT
            for dim in tensor.shape.dim:
                if dim.dim_param in dimensions:
                    dim.dim_value = dimensions[dim.dim_param]
        # W4A4: no operator of ONNX Runtime rounds activations to NVFP4, so those functions run as they are written.
        called = {n.op_type for n in self.nodes if n.domain == DOMAIN}
        functions = [f for f in self.stored.model.functions if f.name in called | {"NVFP4Quantize"}] if called else []
        del self.graph.node[:], self.graph.initializer[:], self.stored.model.functions[:], self.stored.model.opset_import[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self.initializers)
        self.stored.model.functions.extend(functions)
        opset = EXPORT_OPSET if functions else OPSET
        self.stored.model.opset_import.extend([helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)])
        if functions:
            self.stored.model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        onnx.save(self.stored.model, self.target / "model.onnx")

    def drop_dead_nodes(self) -> None:
        """The attention mask of the standard form has no reader any more."""
        needed, kept = {o.name for o in self.graph.output}, []
        for node in reversed(self.nodes):
            if any(o in needed for o in node.output):
                kept.append(node)
                needed.update(node.input)
        self.nodes = kept[::-1]

    def keep_used_initializers(self) -> None:
        """Copy what the lowered nodes still read: float16 as float32, NVFP4 decoded."""
        used = dict.fromkeys(i for n in self.nodes for i in n.input)
        new = {t.name for t in self.initializers}
        for name in used:
            if name in new or name not in self.stored:
                continue
            tensor = self.stored.tensors.get(name)
            if tensor is not None and tensor.data_location != TensorProto.EXTERNAL:
                self.initializers.append(numpy_helper.from_array(self.stored.read(name), name))
                continue
            shape = self.stored.shape(name)
            dtype = np.dtype(np.float32) if tensor is None else NUMPY_TYPE[tensor.data_type]
            parts = (self.stored.read(name, i) for i in range(shape[0])) if len(shape) > 2 else [self.stored.read(name)]
            self.add(name, np.dtype(np.float32) if dtype == np.float16 else dtype, shape, parts)


def is_encoder_attention(node: onnx.NodeProto) -> bool:
    """Attention without mask, cache or causality, on rows [1, n, heads * head_dim]."""
    attributes = {a.name for a in node.attribute}
    return (
        node.op_type == "Attention"
        and len(node.input) == 3
        and "q_num_heads" in attributes
        and not attributes - {"q_num_heads", "kv_num_heads", "scale"}
    )


def encoder_attention(node: onnx.NodeProto) -> onnx.NodeProto:
    """Such a node as MultiHeadAttention."""
    a = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return helper.make_node(
        "MultiHeadAttention",
        list(node.input),
        list(node.output),
        node.name,
        domain=MICROSOFT,
        num_heads=a["q_num_heads"],
        **({"scale": a["scale"]} if "scale" in a else {}),
    )
