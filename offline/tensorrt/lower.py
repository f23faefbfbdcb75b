"""Lower an exported graph to what TensorRT parses and builds. Weights are not copied: the new graph points to them.

  CachedAttention -> TensorScatter (KVCacheUpdate: the caches stay in place) and Attention with a boolean mask
  MoE             -> TRT_MoE (IMoELayer, SM100/103/110), or the generic form of standard operators: one row gathers its
                     top_k experts; several rows pass every expert, and a routing mask picks (moe.py)
  NVFP4Quantize   -> TRT_FP4DynamicQuantize + DequantizeLinear
  operators that the parser at hand does not know -> older ones (older_operators.py)

The generic form has both ways side by side, and one of them gets no rows: the choice is arithmetic on shapes, without
control flow, so decode steps remain CUDA graphs. (FP4 weights may not enter the branches of an If.) Gathering for many
rows would copy top_k experts for each; passing all experts computes what no row asked for, but reads each weight once.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..graphs.external_data import ExternalData, StoredGraph
from .moe import TRT, moe
from .older_operators import EXPAND

NVFP4_BLOCK = 16
LINK = "exported.data"


class Lowering:
    """One graph on its way from `source` to `target`."""

    def __init__(
        self,
        source: Path,
        target: Path,
        capacity: int = 0,
        moe_form: str = "generic",
        supports: Callable[[str], bool] = lambda op: True,
    ):
        """`capacity`: rows of the KV caches, where there are any; `moe_form`: "layer" (TRT_MoE), "splice" (for a
        parser without it: network.splice_moe) or "generic"; `supports(op)`: whether the parser knows the operator."""
        self.stored, self.target, self.moe_form, self.supports = StoredGraph(source), target, moe_form, supports
        self.model, self.graph = self.stored.model, self.stored.model.graph
        for value in [*self.graph.input, *self.graph.output]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param == "capacity":
                    dim.dim_value = capacity
        self.shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in self.graph.input}
        matrices = {t.data_type for t in self.stored.tensors.values() if len(t.dims) > 1}
        self.dtype = TensorProto.FLOAT16 if TensorProto.FLOAT16 in matrices else TensorProto.FLOAT
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple, str] = {}
        self._dequantized: dict[str, str] = {}  # codes -> their value
        self.widths: dict[str, int] = {}  # rotated value -> heads * head_dim
        self.moe_outputs: dict[str, list[str]] = {}  # output of each spliced MoE -> what goes into it
        self.in_place = supports("TensorScatter")  # whether KV caches are updated in place
        self.has_moe = any(n.op_type == "MoE" for n in self.graph.node)
        self.data = ExternalData(target)  # weights that TRT_MoE wants transposed

    # ---- nodes and constants ----------------------------------------------------------------------------------------
    def op(self, op_type: str, inputs: list[str], output: str, domain: str = "", **attributes) -> str:
        """One node, named after its output so that TensorRT's messages can be traced."""
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def const(self, value: object, dtype: type | np.dtype = np.int64) -> str:
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.add(numpy_helper.from_array(array, f"lowered_const_{len(self._constants)}"))
        return self._constants[key]

    def add(self, tensor: TensorProto) -> str:
        self.initializers[tensor.name] = tensor
        return tensor.name

    def run(self) -> None:
        """Write the lowered graph; `in_place` and `moe_outputs` say what it came to."""
        lower = {
            "CachedAttention": self.cached_attention,
            "MoE": lambda node: moe(self, node),
            "NVFP4Quantize": self.quantize_node,
            "FP8Quantize": self.quantize_fp8,
            "RotaryEmbedding": self.rotary,
            "Attention": self.attention,
        }
        for node in self.graph.node:
            if node.output[0] in self.stored.packed or (node.op_type == "DequantizeLinear" and node.input[0] in self.stored):
                continue  # weights: `weight` makes these nodes where they are used
            if node.op_type in lower:
                lower[node.op_type](node)
            else:
                for i, name in enumerate(node.input):
                    node.input[i] = self.weight(name)
                self.nodes.append(node)
        nodes, self.nodes = self.nodes, []
        for node in nodes:
            if node.op_type in EXPAND and not self.supports(node.op_type):
                EXPAND[node.op_type](self, node)
            else:
                self.nodes.append(node)
        self.save()

    def save(self) -> None:
        """Write model.onnx; the exported weights are reached by a link beside it."""
        self.data.close()
        for name in dict.fromkeys(n for inputs in self.moe_outputs.values() for n in inputs if n):
            dtype = TensorProto.INT32 if name.endswith(".experts_i32") else self.dtype
            self.graph.output.append(helper.make_tensor_value_info(name, dtype, None))
        used = {i for node in self.nodes for i in node.input} | {o.name for o in self.graph.output}
        kept = [t for name, t in self.stored.tensors.items() if name in used]
        for tensor in kept:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = LINK
        os.symlink((self.stored.directory / "model.onnx.data").resolve(), self.target / LINK)
        del self.graph.node[:], self.graph.initializer[:], self.model.functions[:], self.model.opset_import[1:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend([*kept, *self.initializers.values()])
        self.model.opset_import.append(helper.make_opsetid(TRT, 1))
        onnx.save(self.model, self.target / "model.onnx")

    # ---- attention --------------------------------------------------------------------------------------------------
    def cached_attention(self, node: onnx.NodeProto) -> None:
        """The body of `functions.cached_attention`."""
        q, k, v, past_key, past_value, past_length, mask = node.input
        y, present_key, present_value = node.output
        heads = {a.name: a.i for a in node.attribute}
        kv_heads, head_dim = heads["kv_num_heads"], self.shapes[past_key][3]

        def split(x: str, n: int, name: str) -> str:
            x = self.op("Reshape", [x, self.const([0, 0, n, head_dim])], f"{y}.{name}_heads")
            return self.op("Transpose", [x], f"{y}.{name}", perm=[0, 2, 1, 3])

        q = split(q, heads["num_heads"], "q")
        key = self.write_rows(past_key, split(k, kv_heads, "k"), past_length, present_key)
        value = self.write_rows(past_value, split(v, kv_heads, "v"), past_length, present_value)
        out = self.op("Attention", [q, key, value, mask], f"{y}.attention")
        out = self.op("Transpose", [out], f"{y}.rows", perm=[0, 2, 1, 3])
        self.op("Reshape", [out, self.const([0, 0, heads["num_heads"] * head_dim])], y)

    def write_rows(self, cache: str, new: str, past_length: str, output: str) -> str:
        """`cache` [1, kv_heads, capacity, D] with `new` [1, kv_heads, S, D] at row past_length."""
        if self.in_place:
            return self.op("TensorScatter", [cache, new, past_length], output, axis=2)
        # Row r of the result is new[r - past_length] where there is one, else cache[r].
        capacity = self.shapes[cache][2]
        if not any(n.name == "kv.is_new" for n in self.nodes):  # the same for every cache
            rows = self.op("Shape", [new], "kv.rows", start=2, end=3)
            row = self.op("Sub", [self.const(range(capacity)), past_length], "kv.row")
            first = self.op("GreaterOrEqual", [row, self.const(0)], "kv.not_before")
            fresh = self.op("And", [first, self.op("Less", [row, rows], "kv.not_after")], "kv.fresh")
            self.op("Reshape", [fresh, self.const([1, 1, capacity, 1])], "kv.is_new")
            self.op("Where", [fresh, row, self.const(0)], "kv.new_row")
        spread = self.op("Gather", [new, "kv.new_row"], f"{output}.new", axis=2)
        return self.op("Where", ["kv.is_new", spread, cache], output)

    def rotary(self, node: onnx.NodeProto) -> None:
        """[batch, rows, heads * D]: a Reshape to a computed shape hides the last dimension, which TensorRT asks for."""
        heads = next((a.i for a in node.attribute if a.name == "num_heads"), 0)
        if heads and node.input[1] in self.shapes:
            width = heads * 2 * self.shapes[node.input[1]][-1]
            node.input[0] = self.op("Reshape", [node.input[0], self.const([0, 0, width])], f"{node.output[0]}.input")
            self.widths[node.output[0]] = width
        self.nodes.append(node)

    def attention(self, node: onnx.NodeProto) -> None:
        """TensorRT takes no softmax_precision (its softmax is float32 inside); values get the width of rotated keys."""
        for attribute in [a for a in node.attribute if a.name == "softmax_precision"]:
            node.attribute.remove(attribute)
        if node.input[1] in self.widths:
            shape = self.const([0, 0, self.widths[node.input[1]]])
            node.input[2] = self.op("Reshape", [node.input[2], shape], f"{node.output[0]}.value")
        self.nodes.append(node)

    # ---- NVFP4, FP8 ------------------------------------------------------------------------------------------------------
    def weight(self, name: str) -> str:
        """`name` itself, or the FP4 or FP8 weight of that name behind DequantizeLinear nodes made here."""
        if name not in self.stored.packed:
            return name
        codes, *scales, last = self.stored.packed[name]
        if codes not in self._dequantized:  # once, though the CodePredictor uses it 15 times
            output, axis = f"{codes}.value", len(self.stored.shape(name)) - 1
            self._dequantized[codes] = (
                self.dequantize(codes, scales[0], last, axis, output) if scales else self.dequantize_fp8(codes, last, output)
            )
        return self._dequantized[codes]

    def dequantize(self, codes: str, scales: str, last: str, axis: int, output: str) -> str:
        """codes * (block scales * last scale) in float32, cast; `last` is one number, or one per matrix of a stack."""
        per_matrix: dict[str, Any] = {"axis": 0} if last in self.stored.tensors and self.stored.shape(last) else {}
        scale = self.op("DequantizeLinear", [scales, last], f"{output}.scale", **per_matrix)
        exact = output if self.dtype == TensorProto.FLOAT else f"{output}.float32"
        self.op("DequantizeLinear", [codes, scale], exact, axis=axis, block_size=NVFP4_BLOCK)
        return exact if exact == output else self.op("Cast", [exact], output, to=self.dtype)

    def dequantize_fp8(self, codes: str, scale: str, output: str) -> str:
        if self.dtype == TensorProto.FLOAT:
            return self.op("DequantizeLinear", [codes, scale], output)
        return self.op("Cast", [self.op("DequantizeLinear", [codes, scale], f"{output}.float32")], output, to=self.dtype)

    def quantize_fp8(self, node: onnx.NodeProto) -> None:
        """x rounded to FP8 and back: TensorRT multiplies codes by codes where weights are FP8, too."""
        x, scale = node.input
        codes = f"{node.output[0]}.codes"
        if self.dtype != TensorProto.FLOAT:
            x = self.op("Cast", [x], f"{codes}.input", to=TensorProto.FLOAT)
        zero = self.add(TensorProto(name="fp8_zero", data_type=TensorProto.FLOAT8E4M3FN, raw_data=b"\0"))
        self.dequantize_fp8(self.op("QuantizeLinear", [x, scale, zero], codes), scale, node.output[0])

    def quantize_node(self, node: onnx.NodeProto) -> None:
        self.quantize(node.input[0], node.input[1], node.output[0])

    def quantize(self, x: str, scale: str, output: str, rank: int = 2) -> str:
        """x rounded to NVFP4 along its last axis and back, as ModelOpt does; kernels compute with the codes."""
        self.nodes.append(
            helper.make_node(
                "TRT_FP4DynamicQuantize",
                [x, scale],
                [f"{output}.codes", f"{output}.scales"],
                name=f"{output}.quantize",
                domain=TRT,
                axis=-1,
                block_size=NVFP4_BLOCK,
                scale_type=TensorProto.FLOAT8E4M3FN,
            )
        )
        return self.dequantize(f"{output}.codes", f"{output}.scales", scale, rank - 1, output)
