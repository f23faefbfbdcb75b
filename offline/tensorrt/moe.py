"""MoE for TensorRT: as TRT_MoE (IMoELayer), or in the generic form of standard operators. Which, and why: lower.py."""

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from .lower import Lowering

FP8_PER_NVFP4 = 6.0  # ModelOpt's input_scale is amax / (6 * 448); a static FP8 scale is amax / 448
TRT = "trt"  # the domain of TensorRT's own operators


def moe(g: "Lowering", node: onnx.NodeProto) -> None:
    """MoE(x, router_logits, gate, up, down [, input_scale, inner_scale]); the scales are those of W4A4."""
    x, logits, gate, up, down, *scales = node.input
    y, a = node.output[0], {a.name: a.i for a in node.attribute}
    probability = g.op("Softmax", [logits], f"{y}.probability", axis=-1)
    score, expert = f"{y}.score", f"{y}.expert"  # [S, k] each
    g.nodes.append(helper.make_node("TopK", [probability, g.const([a["top_k"]])], [score, expert], name=f"{y}.top", axis=-1))
    if a["normalize"]:
        total = g.op("ReduceSum", [score, g.const([-1])], f"{y}.score_sum", keepdims=1)
        score = g.op("Div", [score, total], f"{y}.score_normalized")
    if g.dtype != TensorProto.FLOAT:
        score = g.op("Cast", [score], f"{y}.score_cast", to=g.dtype)
    if g.moe_form != "generic":
        return moe_layer(g, x, score, expert, [gate, up, down], scales, y)
    if scales:
        x = g.quantize(x, scales[0], f"{y}.x")
    if not any(n.name == "moe.one_row" for n in g.nodes):
        is_one = g.op("Equal", [g.op("Shape", [x], "moe.rows", start=0, end=1), g.const([1])], "moe.is_one_row")
        g.op("Cast", [is_one], "moe.one_row", to=TensorProto.INT64)  # [1]: 1 or 0
    weights, experts = [g.weight(w) for w in (gate, up, down)], g.stored.shape(gate)[0]

    def rows(first: str, last: str, name: str) -> tuple[str, str, str]:
        part = lambda v, n: g.op("Slice", [v, first, last, g.const([0])], f"{name}.{n}")  # noqa: E731
        return part(x, "x"), part(score, "score"), part(expert, "expert")

    one = moe_one_row(g, *rows(g.const([0]), "moe.one_row", f"{y}.one"), weights, scales[1:], f"{y}.one")
    many = moe_rows(g, *rows("moe.one_row", g.const([2**31]), f"{y}.many"), weights, scales[1:], f"{y}.many", experts)
    g.op("Concat", [one, many], y, axis=0)


def moe_one_row(g: "Lowering", x: str, score: str, expert: str, weights: list[str], scale: list[str], name: str) -> str:
    """x [n, H], score and expert [n, k], n one or zero: matrix-vector products with k gathered experts."""
    index = g.op("Reshape", [expert, g.const([-1])], f"{name}.index")
    gathered = [
        g.op("Gather", [w, index], f"{name}.{part}_weight", axis=0) for w, part in zip(weights, ("gate", "up", "down"))
    ]  # [n*k, I, H] twice, [n*k, H, I]
    y = swiglu(g, x, gathered, scale, name)
    y = g.op("Mul", [y, g.op("Reshape", [score, g.const([-1, 1, 1])], f"{name}.route")], f"{name}.y_scored")
    return add_up(g, y, name)


def moe_rows(
    g: "Lowering", x: str, score: str, expert: str, weights: list[str], scale: list[str], name: str, experts: int
) -> str:
    """x [n, H], score and expert [n, k], n any number but one: all E experts, each weight read once."""
    y = swiglu(g, x, weights, scale, name)
    # route [E, 1, n]: the score of expert e for row n, or -1. Products that nobody asked for may be infinite, so
    # they are dropped by Where, not by a factor of zero.
    shape = g.op("Shape", [expert], f"{name}.row_count", start=0, end=1)
    shape = g.op("Concat", [shape, g.const([experts])], f"{name}.route_shape", axis=0)
    minus_one = helper.make_tensor("", g.dtype, [1], [-1.0])
    route = g.op("ConstantOfShape", [shape], f"{name}.no_route", value=minus_one)
    route = g.op("ScatterElements", [route, expert, score], f"{name}.route", axis=1)  # [n, E]
    route = g.op("Transpose", [route], f"{name}.route_columns", perm=[1, 0])
    route = g.op("Unsqueeze", [route, g.const([1])], f"{name}.route_expert")
    zero = g.const(0, helper.tensor_dtype_to_np_dtype(g.dtype))
    routed = g.op("GreaterOrEqual", [route, zero], f"{name}.routed")
    y = g.op("Where", [routed, g.op("Mul", [y, route], f"{name}.y_scored"), zero], f"{name}.y_routed")
    return add_up(g, y, name)


def swiglu(g: "Lowering", x: str, weights: list[str], scale: list[str], name: str) -> str:
    """x [n, H] through a stack of gate, up [E, I, H] and down [E, H, I] -> [E, H, n].

    Rows become columns, so that the weights need no transposed copy. `scale`: inner activations become NVFP4.
    """
    gate, up, down = weights
    x = g.op("Transpose", [x], f"{name}.columns", perm=[1, 0])  # [H, n]
    gated = g.op("Swish", [g.op("MatMul", [gate, x], f"{name}.gated")], f"{name}.activated")
    inner = g.op("Mul", [gated, g.op("MatMul", [up, x], f"{name}.upped")], f"{name}.inner")  # [E, I, n]
    if scale:  # in blocks of neighbouring channels, which therefore come last
        inner = g.op("Transpose", [inner], f"{name}.inner_rows", perm=[0, 2, 1])
        inner = g.quantize(inner, scale[0], f"{name}.inner_nvfp4", rank=3)
        inner = g.op("Transpose", [inner], f"{name}.inner_columns", perm=[0, 2, 1])
    return g.op("MatMul", [down, inner], f"{name}.down")


def add_up(g: "Lowering", y: str, name: str) -> str:
    """[E, H, n], weighted -> [n, H]"""
    y = g.op("ReduceSum", [y, g.const([0])], f"{name}.y_columns", keepdims=0)
    return g.op("Transpose", [y], f"{name}.y", perm=[1, 0])


def moe_layer(g: "Lowering", x: str, score: str, expert: str, weights: list[str], scales: list[str], y: str) -> None:
    """TRT_MoE on [1, S, H]; W4A4 becomes static FP8 activations, the only kind that the layer takes."""
    one = g.const([0])
    x, score, expert = (g.op("Unsqueeze", [v, one], f"{y}.{n}") for v, n in ((x, "x"), (score, "scores"), (expert, "experts")))
    expert = g.op("Cast", [expert], f"{y}.experts_i32", to=TensorProto.INT32)
    inputs = [x, expert, score, *(transpose_stack(g, w) for w in weights)]
    attributes = {"activation_type": 1}  # SiLU; anything but a number means none
    if scales:
        scale, inner = (g.const(g.stored.raw(s) * FP8_PER_NVFP4, np.float16) for s in scales)
        zero = g.add(TensorProto(name="fp8_zero", data_type=TensorProto.FLOAT8E4M3FN, raw_data=b"\0"))
        inputs[0] = g.op("QuantizeLinear", [x, scale, zero], f"{y}.x_fp8")
        inputs[0] = g.op("DequantizeLinear", [inputs[0], scale, zero], f"{y}.x_rounded")
        inputs += ["", "", "", inner]
        attributes |= {"quantization_mode": 1, "quantization_dtype": 6}  # static, FP8 (TensorRT's numbers)
    output = f"{y}.batched"
    if g.moe_form == "layer":
        g.op("TRT_MoE", inputs, output, domain=TRT, **attributes)
    else:
        g.moe_outputs[g.op("Add", [x, x], output)] = inputs  # a stand-in of the right shape
    g.op("Squeeze", [output, one], y)


def transpose_stack(g: "Lowering", weight: str) -> str:
    """[E, O, I] -> [E, I, O], one expert in memory at a time; FP4 stays FP4, with its blocks along axis 1."""
    if weight not in g.stored.packed:
        return write_transposed(g, weight)
    codes, scales, last = g.stored.packed[weight]
    return g.dequantize(write_transposed(g, codes), write_transposed(g, scales), last, 1, f"{codes}.t.value")


def write_transposed(g: "Lowering", name: str) -> str:
    t = g.stored.tensors[name]
    experts, rows, columns = t.dims
    packed = t.data_type == TensorProto.FLOAT4E2M1  # two codes a byte, the even column in the low nibble

    def part(e: int) -> np.ndarray:
        array = g.stored.raw(name, e)
        if not packed:
            return array.T
        codes = np.stack([array & 15, array >> 4], -1).reshape(rows, columns).T
        return codes[:, 0::2] | codes[:, 1::2] << 4

    dtype = part(0).dtype
    tensor = g.data.add(f"{name}.t", dtype, [experts, columns, rows], (part(e) for e in range(experts)))
    tensor.data_type = t.data_type
    return g.add(tensor)
