"""The operators that every backend lowers its own way, as ONNX local functions of standard operators.

A runtime without a lowering can still run them: the bodies below are their definition. The lowerings are
`../onnxruntime/lower.py` (GroupQueryAttention, MoE), `../tensorrt/lower.py` and, without a graph, `../cuda/weights.py`.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .builder import DOMAIN, OPSET


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=values)


def cached_attention(num_heads: int, kv_num_heads: int, head_dim: int) -> onnx.FunctionProto:
    """CachedAttention(q, k, v, past_key, past_value, past_length, mask) -> (y, present_key, present_value).

    q [1, S, num_heads*D] and k, v [1, S, kv_num_heads*D] are already rotated; rows past_length..past_length+S-1 of the
    caches [1, kv_num_heads, C, D] are overwritten (TensorScatter, so the caches can stay in place), then each query
    attends to the cache columns where mask [S, C] is true. y is [1, S, num_heads*D].
    """
    node = helper.make_node
    nodes = [
        _constant("q_shape", [0, 0, num_heads, head_dim]),
        _constant("kv_shape", [0, 0, kv_num_heads, head_dim]),
        _constant("y_shape", [0, 0, num_heads * head_dim]),
    ]
    for name, shape in (("q", "q_shape"), ("k", "kv_shape"), ("v", "kv_shape")):
        nodes += [
            node("Reshape", [name, shape], [f"{name}_heads"]),
            node("Transpose", [f"{name}_heads"], [f"{name}_4d"], perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("TensorScatter", ["past_key", "k_4d", "past_length"], ["present_key"], axis=2),
        node("TensorScatter", ["past_value", "v_4d", "past_length"], ["present_value"], axis=2),
        node("Attention", ["q_4d", "present_key", "present_value", "mask"], ["y_4d"]),
        node("Transpose", ["y_4d"], ["y_heads"], perm=[0, 2, 1, 3]),
        node("Reshape", ["y_heads", "y_shape"], ["y"]),
    ]
    return helper.make_function(
        DOMAIN,
        "CachedAttention",
        ["q", "k", "v", "past_key", "past_value", "past_length", "mask"],
        ["y", "present_key", "present_value"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["num_heads", "kv_num_heads"],
    )


def moe(top_k: int, normalize: bool, quantize_activations: bool) -> onnx.FunctionProto:
    """MoE(x, router_logits, gate, up, down) -> y: Qwen3OmniMoeThinkerTextSparseMoeBlock without its router matrix.

    x [S, H]; router_logits [S, E] float32; gate, up [E, I, H]; down [E, H, I]. Each row goes through its top_k experts,
    down(silu(gate x) * up x), weighted by their softmax probabilities (re-normalised to sum 1 when `normalize`).
    With `quantize_activations` there are two more inputs, the NVFP4 scales [] of x and of what goes into `down`
    (see nvfp4_quantize).
    """
    node = helper.make_node
    nodes = [
        _constant("top_k", [top_k]),
        _constant("axis_1", [1]),
        _constant("axis_last", [-1]),
        node("Softmax", ["router_logits"], ["probability"], axis=-1),
        node("TopK", ["probability", "top_k"], ["score", "expert"], axis=-1),  # [S, k]
    ]
    score = "score"
    if normalize:
        nodes += [
            node("ReduceSum", ["score", "axis_last"], ["score_sum"], keepdims=1),
            node("Div", ["score", "score_sum"], ["score_normalized"]),
        ]
        score = "score_normalized"
    nodes += [
        node("Gather", ["gate", "expert"], ["gate_k"], axis=0),  # [S, k, I, H]
        node("Gather", ["up", "expert"], ["up_k"], axis=0),
        node("Gather", ["down", "expert"], ["down_k"], axis=0),  # [S, k, H, I]
    ]
    if quantize_activations:
        nodes.append(node("NVFP4Quantize", ["x", "input_scale"], ["x_4bit"], domain=DOMAIN))
    nodes += [
        node("Unsqueeze", ["x_4bit" if quantize_activations else "x", "axis_1"], ["x_1"]),
        node("Unsqueeze", ["x_1", "axis_last"], ["x_column"]),  # [S, 1, H, 1]
        node("MatMul", ["gate_k", "x_column"], ["gated"]),  # [S, k, I, 1]
        node("MatMul", ["up_k", "x_column"], ["upped"]),
        node("Swish", ["gated"], ["activated"]),
        node("Mul", ["activated", "upped"], ["inner"]),
    ]
    if quantize_activations:
        nodes += [
            node("Squeeze", ["inner", "axis_last"], ["inner_rows"]),  # [S, k, I]
            node("NVFP4Quantize", ["inner_rows", "inner_scale"], ["inner_quantized"], domain=DOMAIN),
            node("Unsqueeze", ["inner_quantized", "axis_last"], ["inner_4bit"]),
        ]
    nodes += [
        node("MatMul", ["down_k", "inner_4bit" if quantize_activations else "inner"], ["y_column"]),  # [S, k, H, 1]
        node("Squeeze", ["y_column", "axis_last"], ["y_k"]),
        node("CastLike", [score, "x"], ["score_cast"]),
        node("Unsqueeze", ["score_cast", "axis_1"], ["score_row"]),  # [S, 1, k]
        node("MatMul", ["score_row", "y_k"], ["y_row"]),  # [S, 1, H]
        node("Squeeze", ["y_row", "axis_1"], ["y"]),
    ]
    inputs = ["x", "router_logits", "gate", "up", "down"] + ["input_scale", "inner_scale"] * quantize_activations
    opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(DOMAIN, 1)] * quantize_activations
    return helper.make_function(DOMAIN, "MoE", inputs, ["y"], nodes, opsets, attributes=["top_k", "normalize"])


def fp8_quantize() -> onnx.FunctionProto:
    """FP8Quantize(x, scale) -> y: x rounded to scale * E4M3 and back; scale [] float32, which calibration found."""
    zero = TensorProto(name="zero", data_type=TensorProto.FLOAT8E4M3FN, raw_data=b"\0")
    nodes = [
        helper.make_node("Constant", [], ["zero"], value=zero),
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["wide", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["value"]),
        helper.make_node("CastLike", ["value", "x"], ["y"]),
    ]
    return helper.make_function(DOMAIN, "FP8Quantize", ["x", "scale"], ["y"], nodes, [helper.make_opsetid("", OPSET)])


def nvfp4_quantize() -> onnx.FunctionProto:
    """NVFP4Quantize(x, scale) -> y: x [..., K] rounded to NVFP4 and back, as `nvfp4.py` and ModelOpt's NVFP4QTensor do.

    Every 16 neighbours share an FP8 scale, chosen from their largest magnitude; scale [] float32 is the tensor's own,
    which calibration found. A GPU with FP4 arithmetic multiplies the codes themselves; this is the same arithmetic.
    """
    node = helper.make_node

    def const(name: str, value: np.ndarray | np.float32) -> onnx.NodeProto:
        return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name))

    numbers = {"zero": 0.0, "half": 0.5, "one": 1.0, "two": 2.0, "four": 4.0, "six": 6.0, "e4m3_min": 2.0**-9, "e4m3_max": 448.0}
    nodes = [const(name, np.float32(value)) for name, value in numbers.items()]
    nodes += [
        const("block_shape", np.array([-1, 16])),
        const("axis_last", np.array([-1])),
        node("Shape", ["x"], ["shape"]),
        node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        node("Reshape", ["wide", "block_shape"], ["block"]),
        node("Abs", ["block"], ["size"]),
        node("ReduceMax", ["size", "axis_last"], ["largest"], keepdims=1),
        node("Mul", ["six", "scale"], ["largest_code"]),
        node("Div", ["largest", "largest_code"], ["exact"]),
        node("Equal", ["exact", "zero"], ["is_zero"]),
        node("Where", ["is_zero", "one", "exact"], ["wanted"]),
        node("Clip", ["wanted", "e4m3_min", "e4m3_max"], ["in_range"]),
        node("Cast", ["in_range"], ["fp8"], to=TensorProto.FLOAT8E4M3FN),
        node("Cast", ["fp8"], ["block_scale"], to=TensorProto.FLOAT),
        node("Mul", ["block_scale", "scale"], ["unit"]),
        node("Div", ["block", "unit"], ["code"]),
        node("Abs", ["code"], ["a"]),
        node("Sign", ["code"], ["sign"]),
        # E2M1 has steps of 0.5 below 2, of 1 below 4, of 2 up to 6; Round goes to even, which is the even code each time
        node("Mul", ["a", "two"], ["a_2"]),
        node("Round", ["a_2"], ["r_2"]),
        node("Mul", ["r_2", "half"], ["fine"]),
        node("Round", ["a"], ["middle"]),
        node("Mul", ["a", "half"], ["a_half"]),
        node("Round", ["a_half"], ["r_half"]),
        node("Mul", ["r_half", "two"], ["r"]),
        node("Min", ["r", "six"], ["coarse"]),
        node("Less", ["a", "two"], ["below_2"]),
        node("Less", ["a", "four"], ["below_4"]),
        node("Where", ["below_4", "middle", "coarse"], ["above_2"]),
        node("Where", ["below_2", "fine", "above_2"], ["magnitude"]),
        node("Mul", ["magnitude", "sign"], ["signed"]),
        node("Mul", ["signed", "unit"], ["value"]),
        node("Reshape", ["value", "shape"], ["shaped"]),
        node("CastLike", ["shaped", "x"], ["y"]),
    ]
    return helper.make_function(DOMAIN, "NVFP4Quantize", ["x", "scale"], ["y"], nodes, [helper.make_opsetid("", OPSET)])
