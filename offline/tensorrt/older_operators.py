"""ONNX operators that TensorRT before 10.15 does not parse (JetPack 7.0 has 10.13), spelled out in older ones.

Each function adds what `node` means to the lowering `g`; the last node has the node's own output.
"""

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

if TYPE_CHECKING:
    from .lower import Lowering


def swish(g: "Lowering", node: onnx.NodeProto) -> None:
    x, y = node.input[0], node.output[0]
    g.op("Mul", [x, g.op("Sigmoid", [x], f"{y}.sigmoid")], y)


def rms_normalization(g: "Lowering", node: onnx.NodeProto) -> None:
    """Over the last axis, in float32."""
    x, weight = node.input
    y, epsilon = node.output[0], next(a.f for a in node.attribute if a.name == "epsilon")
    x = g.op("Cast", [x], f"{y}.float32", to=TensorProto.FLOAT)
    mean = g.op("ReduceMean", [g.op("Mul", [x, x], f"{y}.squares"), g.const([-1])], f"{y}.mean", keepdims=1)
    root = g.op("Sqrt", [g.op("Add", [mean, g.const(epsilon, np.float32)], f"{y}.above_zero")], f"{y}.root")
    x = g.op("Cast", [g.op("Div", [x, root], f"{y}.normalized")], f"{y}.cast", to=g.dtype)
    g.op("Mul", [x, weight], y)


def rotary_embedding(g: "Lowering", node: onnx.NodeProto) -> None:
    """x [B, n, S, D], or [B, S, n * D] with num_heads; cos, sin [B, S, D/2]; the halves of D are the pairs that turn."""
    (x, cos, sin), y = node.input, node.output[0]
    heads = next((a.i for a in node.attribute if a.name == "num_heads"), 0)
    if heads:
        x = g.op("Reshape", [x, g.const([0, 0, heads, -1])], f"{y}.heads")
    cos, sin = (g.op("Unsqueeze", [v, g.const([2 if heads else 1])], f"{y}.{n}") for v, n in ((cos, "cos"), (sin, "sin")))
    a, b = f"{y}.first", f"{y}.second"
    g.nodes.append(helper.make_node("Split", [x], [a, b], name=f"{y}.halves", axis=-1, num_outputs=2))

    def turn(first: str, second: str, how: str, name: str) -> str:
        parts = [g.op("Mul", [first, cos], f"{y}.{name}_cos"), g.op("Mul", [second, sin], f"{y}.{name}_sin")]
        return g.op(how, parts, f"{y}.{name}")

    halves = [turn(a, b, "Sub", "real"), turn(b, a, "Add", "imaginary")]
    turned = g.op("Concat", halves, f"{y}.turned" if heads else y, axis=-1)
    if heads:
        g.op("Reshape", [turned, g.const([0, 0, -1])], y)


def attention(g: "Lowering", node: onnx.NodeProto) -> None:
    """q [B, n, S, D], k and v [B, kv, T, D] (or [B, S, n * D] with q_num_heads), perhaps a boolean mask [S, T]."""
    (q, k, v, *mask), y = node.input, node.output[0]
    a = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    rows = "q_num_heads" in a
    if rows:
        n, kv = a["q_num_heads"], a["kv_num_heads"]
        q, k, v = (
            g.op(
                "Transpose",
                [g.op("Reshape", [x, g.const([0, 0, heads, -1])], f"{y}.{name}_heads")],
                f"{y}.{name}",
                perm=[0, 2, 1, 3],
            )
            for x, heads, name in ((q, n, "q"), (k, kv, "k"), (v, kv, "v"))
        )

    def size(x: str, axis: int, name: str) -> str:
        return g.op("Shape", [x], f"{y}.{name}", start=axis, end=axis + 1)

    # Query heads that share a key head get an axis of their own: [B, kv, n / kv, S, D].
    width = size(q, 3, "D")
    shape = [g.op("Shape", [k], f"{y}.kv", start=0, end=2), g.const([-1]), size(q, 2, "S"), width]
    grouped = g.op("Reshape", [q, g.op("Concat", shape, f"{y}.group_shape", axis=0)], f"{y}.groups")
    if "scale" in a:
        scale = g.const(a["scale"], np.float32)
    else:
        root = g.op("Sqrt", [g.op("Cast", [width], f"{y}.width", to=TensorProto.FLOAT)], f"{y}.root")
        scale = g.op("Reciprocal", [root], f"{y}.scale")
    k, v = (g.op("Unsqueeze", [x, g.const([2])], f"{y}.{name}_group") for x, name in ((k, "k"), (v, "v")))
    logits = g.op("MatMul", [grouped, g.op("Transpose", [k], f"{y}.k_columns", perm=[0, 1, 2, 4, 3])], f"{y}.products")
    logits = g.op("Mul", [g.op("Cast", [logits], f"{y}.float32", to=TensorProto.FLOAT), scale], f"{y}.logits")
    if a.get("is_causal"):
        row, column = (
            g.op(
                "Range",
                [g.const(0), g.op("Squeeze", [size(x, axis, name)], f"{y}.{name}_scalar"), g.const(1)],
                f"{y}.{name}_index",
            )
            for x, axis, name in ((q, 2, "query"), (k, 3, "key"))
        )
        mask = [g.op("LessOrEqual", [column, g.op("Unsqueeze", [row, g.const([1])], f"{y}.rows")], f"{y}.mask")]
    if mask:
        logits = g.op("Where", [mask[0], logits, g.const(-1e30, np.float32)], f"{y}.masked")
    probability = g.op("Cast", [g.op("Softmax", [logits], f"{y}.softmax", axis=-1)], f"{y}.probability", to=g.dtype)
    out = g.op("MatMul", [probability, v], f"{y}.grouped")
    out = g.op("Reshape", [out, g.op("Shape", [q], f"{y}.q_shape")], f"{y}.heads" if rows else y)
    if rows:
        out = g.op("Transpose", [out], f"{y}.by_row", perm=[0, 2, 1, 3])
        g.op("Reshape", [out, g.const([0, 0, -1])], y)


EXPAND = {"Swish": swish, "RMSNormalization": rms_normalization, "RotaryEmbedding": rotary_embedding, "Attention": attention}
