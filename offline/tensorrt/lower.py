"""Lower an exported graph to what TensorRT parses and builds. Weights are not copied: the new graph points to them.

  CachedAttention -> TensorScatter (KVCacheUpdate: the caches stay in place) and Attention with a boolean mask
  MoE             -> TRT_MoE (IMoELayer, SM100/103/110), or the generic form of standard operators: one row gathers its
                     top_k experts; several rows pass every expert, and a routing mask picks
  NVFP4Quantize   -> TRT_FP4DynamicQuantize + DequantizeLinear
  operators that the parser at hand does not know -> older ones (older_operators.py)

The generic form has both ways side by side, and one of them gets no rows: the choice is arithmetic on shapes, without
control flow, so decode steps remain CUDA graphs. (FP4 weights may not enter the branches of an If.) Gathering for many
rows would copy top_k experts for each; passing all experts computes what no row asked for, but reads each weight once.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from offline.graphs.external_data import ExternalData, StoredGraph
from offline.graphs.older_operators import EXPAND

NVFP4_BLOCK = 16
FP8_PER_NVFP4 = 6.0  # ModelOpt's input_scale is amax / (6 * 448); a static FP8 scale is amax / 448
LINK = "exported.data"
TRT = "trt"  # the domain of TensorRT's own operators


class Lowering:
    """One graph on its way from `source` to `target`."""

    def __init__(
        self,
        source: Path,
        target: Path,
        capacity: int = 0,
        moe: str = "generic",
        supports: Callable[[str], bool] = lambda op: True,
    ):
        """`capacity`: rows of the KV caches, where there are any; `moe`: "layer" (TRT_MoE), "splice" (for a parser without
        it: build_tensorrt.splice_moe) or "generic"; `supports(op)`: whether the parser knows the operator."""
        self.stored, self.target, self.moe_form, self.supports = StoredGraph(source), target, moe, supports
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
            "MoE": self.moe,
            "NVFP4Quantize": self.quantize_node,
            "RotaryEmbedding": self.rotary,
            "Attention": self.attention,
        }
        for node in self.graph.node:
            if node.output[0] in self.stored.nvfp4 or (node.op_type == "DequantizeLinear" and node.input[0] in self.stored):
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

    # ---- NVFP4 ------------------------------------------------------------------------------------------------------
    def weight(self, name: str) -> str:
        """`name` itself, or the FP4 weight of that name behind DequantizeLinear nodes made here."""
        if name not in self.stored.nvfp4:
            return name
        codes, scales, last = self.stored.nvfp4[name]
        return self.dequantize(codes, scales, last, len(self.stored.shape(name)) - 1, f"{codes}.value")

    def dequantize(self, codes: str, scales: str, last: str, axis: int, output: str) -> str:
        """codes * (block scales * last scale) in float32, cast; `last` is one number, or one per matrix of a stack."""
        per_matrix = {"axis": 0} if last in self.stored.tensors and self.stored.shape(last) else {}
        scale = self.op("DequantizeLinear", [scales, last], f"{output}.scale", **per_matrix)
        exact = output if self.dtype == TensorProto.FLOAT else f"{output}.float32"
        self.op("DequantizeLinear", [codes, scale], exact, axis=axis, block_size=NVFP4_BLOCK)
        return exact if exact == output else self.op("Cast", [exact], output, to=self.dtype)

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

    # ---- mixture of experts -----------------------------------------------------------------------------------------
    def moe(self, node: onnx.NodeProto) -> None:
        """MoE(x, router_logits, gate, up, down [, input_scale, inner_scale]); the scales are those of W4A4."""
        x, logits, gate, up, down, *scales = node.input
        y, a = node.output[0], {a.name: a.i for a in node.attribute}
        probability = self.op("Softmax", [logits], f"{y}.probability", axis=-1)
        score, expert = f"{y}.score", f"{y}.expert"  # [S, k] each
        self.nodes.append(
            helper.make_node("TopK", [probability, self.const([a["top_k"]])], [score, expert], name=f"{y}.top", axis=-1)
        )
        if a["normalize"]:
            total = self.op("ReduceSum", [score, self.const([-1])], f"{y}.score_sum", keepdims=1)
            score = self.op("Div", [score, total], f"{y}.score_normalized")
        if self.dtype != TensorProto.FLOAT:
            score = self.op("Cast", [score], f"{y}.score_cast", to=self.dtype)
        if self.moe_form != "generic":
            return self.moe_layer(x, score, expert, [gate, up, down], scales, y)
        if scales:
            x = self.quantize(x, scales[0], f"{y}.x")
        if not any(n.name == "moe.one_row" for n in self.nodes):
            is_one = self.op("Equal", [self.op("Shape", [x], "moe.rows", start=0, end=1), self.const([1])], "moe.is_one_row")
            self.op("Cast", [is_one], "moe.one_row", to=TensorProto.INT64)  # [1]: 1 or 0
        weights, experts = [self.weight(w) for w in (gate, up, down)], self.stored.shape(gate)[0]

        def rows(first: str, last: str, name: str) -> list[str]:
            return [
                self.op("Slice", [v, first, last, self.const([0])], f"{name}.{n}")
                for v, n in ((x, "x"), (score, "score"), (expert, "expert"))
            ]

        one = self.moe_one_row(*rows(self.const([0]), "moe.one_row", f"{y}.one"), weights, scales[1:], f"{y}.one")
        many = self.moe_rows(*rows("moe.one_row", self.const([2**31]), f"{y}.many"), weights, scales[1:], f"{y}.many", experts)
        self.op("Concat", [one, many], y, axis=0)

    def moe_one_row(self, x: str, score: str, expert: str, weights: list[str], scale: list[str], name: str) -> str:
        """x [n, H], score and expert [n, k], n one or zero: matrix-vector products with k gathered experts."""
        index = self.op("Reshape", [expert, self.const([-1])], f"{name}.index")
        gathered = [
            self.op("Gather", [w, index], f"{name}.{part}_weight", axis=0) for w, part in zip(weights, ("gate", "up", "down"))
        ]  # [n*k, I, H] twice, [n*k, H, I]
        y = self.swiglu(x, gathered, scale, name)
        y = self.op("Mul", [y, self.op("Reshape", [score, self.const([-1, 1, 1])], f"{name}.route")], f"{name}.y_scored")
        return self.add_up(y, name)

    def moe_rows(self, x: str, score: str, expert: str, weights: list[str], scale: list[str], name: str, experts: int) -> str:
        """x [n, H], score and expert [n, k], n any number but one: all E experts, each weight read once."""
        y = self.swiglu(x, weights, scale, name)
        # route [E, 1, n]: the score of expert e for row n, or -1. Products that nobody asked for may be infinite, so
        # they are dropped by Where, not by a factor of zero.
        shape = self.op("Shape", [expert], f"{name}.row_count", start=0, end=1)
        shape = self.op("Concat", [shape, self.const([experts])], f"{name}.route_shape", axis=0)
        minus_one = helper.make_tensor("", self.dtype, [1], [-1.0])
        route = self.op("ConstantOfShape", [shape], f"{name}.no_route", value=minus_one)
        route = self.op("ScatterElements", [route, expert, score], f"{name}.route", axis=1)  # [n, E]
        route = self.op("Transpose", [route], f"{name}.route_columns", perm=[1, 0])
        route = self.op("Unsqueeze", [route, self.const([1])], f"{name}.route_expert")
        zero = self.const(0, helper.tensor_dtype_to_np_dtype(self.dtype))
        routed = self.op("GreaterOrEqual", [route, zero], f"{name}.routed")
        y = self.op("Where", [routed, self.op("Mul", [y, route], f"{name}.y_scored"), zero], f"{name}.y_routed")
        return self.add_up(y, name)

    def swiglu(self, x: str, weights: list[str], scale: list[str], name: str) -> str:
        """x [n, H] through a stack of gate, up [E, I, H] and down [E, H, I] -> [E, H, n].

        Rows become columns, so that the weights need no transposed copy. `scale`: inner activations become NVFP4.
        """
        gate, up, down = weights
        x = self.op("Transpose", [x], f"{name}.columns", perm=[1, 0])  # [H, n]
        gated = self.op("Swish", [self.op("MatMul", [gate, x], f"{name}.gated")], f"{name}.activated")
        inner = self.op("Mul", [gated, self.op("MatMul", [up, x], f"{name}.upped")], f"{name}.inner")  # [E, I, n]
        if scale:  # in blocks of neighbouring channels, which therefore come last
            inner = self.op("Transpose", [inner], f"{name}.inner_rows", perm=[0, 2, 1])
            inner = self.quantize(inner, scale[0], f"{name}.inner_nvfp4", rank=3)
            inner = self.op("Transpose", [inner], f"{name}.inner_columns", perm=[0, 2, 1])
        return self.op("MatMul", [down, inner], f"{name}.down")

    def add_up(self, y: str, name: str) -> str:
        """[E, H, n], weighted -> [n, H]"""
        y = self.op("ReduceSum", [y, self.const([0])], f"{name}.y_columns", keepdims=0)
        return self.op("Transpose", [y], f"{name}.y", perm=[1, 0])

    def moe_layer(self, x: str, score: str, expert: str, weights: list[str], scales: list[str], y: str) -> None:
        """TRT_MoE on [1, S, H]; W4A4 becomes static FP8 activations, the only kind that the layer takes."""
        one = self.const([0])
        x, score, expert = (
            self.op("Unsqueeze", [v, one], f"{y}.{n}") for v, n in ((x, "x"), (score, "scores"), (expert, "experts"))
        )
        expert = self.op("Cast", [expert], f"{y}.experts_i32", to=TensorProto.INT32)
        inputs = [x, expert, score, *(self.transpose_stack(w) for w in weights)]
        attributes = {"activation_type": 1}  # SiLU; anything but a number means none
        if scales:
            scale, inner = (self.const(self.stored.raw(s) * FP8_PER_NVFP4, np.float16) for s in scales)
            zero = self.add(TensorProto(name="fp8_zero", data_type=TensorProto.FLOAT8E4M3FN, raw_data=b"\0"))
            inputs[0] = self.op("QuantizeLinear", [x, scale, zero], f"{y}.x_fp8")
            inputs[0] = self.op("DequantizeLinear", [inputs[0], scale, zero], f"{y}.x_rounded")
            inputs += ["", "", "", inner]
            attributes |= {"quantization_mode": 1, "quantization_dtype": 6}  # static, FP8 (TensorRT's numbers)
        output = f"{y}.batched"
        if self.moe_form == "layer":
            self.op("TRT_MoE", inputs, output, domain=TRT, **attributes)
        else:
            self.moe_outputs[self.op("Add", [x, x], output)] = inputs  # a stand-in of the right shape
        self.op("Squeeze", [output, one], y)

    def transpose_stack(self, weight: str) -> str:
        """[E, O, I] -> [E, I, O], one expert in memory at a time; FP4 stays FP4, with its blocks along axis 1."""
        if weight not in self.stored.nvfp4:
            return self.write_transposed(weight)
        codes, scales, last = self.stored.nvfp4[weight]
        return self.dequantize(self.write_transposed(codes), self.write_transposed(scales), last, 1, f"{codes}.t.value")

    def write_transposed(self, name: str) -> str:
        t = self.stored.tensors[name]
        experts, rows, columns = t.dims
        packed = t.data_type == TensorProto.FLOAT4E2M1  # two codes a byte, the even column in the low nibble

        def part(e: int) -> np.ndarray:
            array = self.stored.raw(name, e)
            if not packed:
                return array.T
            codes = np.stack([array & 15, array >> 4], -1).reshape(rows, columns).T
            return codes[:, 0::2] | codes[:, 1::2] << 4

        dtype = part(0).dtype
        tensor = self.data.add(f"{name}.t", dtype, [experts, columns, rows], (part(e) for e in range(experts)))
        tensor.data_type = t.data_type
        return self.add(tensor)
