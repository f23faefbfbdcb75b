"""The two operators that every backend lowers its own way, as ONNX local functions of standard operators.

A runtime without a lowering can still run them: the bodies below are their definition. The lowerings are
`offline/lower_onnxruntime.py` (GroupQueryAttention, MoE) and those of later backends.
"""
import onnx
from onnx import helper

from offline.graphs.builder import DOMAIN, OPSET


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=values)


def cached_attention(num_heads: int, kv_num_heads: int, head_dim: int) -> onnx.FunctionProto:
    """CachedAttention(q, k, v, past_key, past_value, past_length, mask) -> (y, present_key, present_value).

    q [1, S, num_heads*D] and k, v [1, S, kv_num_heads*D] are already rotated; rows past_length..past_length+S-1 of the
    caches [1, kv_num_heads, C, D] are overwritten (TensorScatter, so the caches can stay in place), then each query
    attends to the cache columns where mask [S, C] is true. y is [1, S, num_heads*D].
    """
    node = helper.make_node
    nodes = [_constant("q_shape", [0, 0, num_heads, head_dim]), _constant("kv_shape", [0, 0, kv_num_heads, head_dim]),
             _constant("y_shape", [0, 0, num_heads * head_dim])]
    for name, shape in (("q", "q_shape"), ("k", "kv_shape"), ("v", "kv_shape")):
        nodes += [node("Reshape", [name, shape], [f"{name}_heads"]),
                  node("Transpose", [f"{name}_heads"], [f"{name}_4d"], perm=[0, 2, 1, 3])]
    nodes += [
        node("TensorScatter", ["past_key", "k_4d", "past_length"], ["present_key"], axis=2),
        node("TensorScatter", ["past_value", "v_4d", "past_length"], ["present_value"], axis=2),
        node("Attention", ["q_4d", "present_key", "present_value", "mask"], ["y_4d"]),
        node("Transpose", ["y_4d"], ["y_heads"], perm=[0, 2, 1, 3]),
        node("Reshape", ["y_heads", "y_shape"], ["y"]),
    ]
    return helper.make_function(
        DOMAIN, "CachedAttention", ["q", "k", "v", "past_key", "past_value", "past_length", "mask"],
        ["y", "present_key", "present_value"], nodes, [helper.make_opsetid("", OPSET)],
        attributes=["num_heads", "kv_num_heads"])


def moe(top_k: int, normalize: bool) -> onnx.FunctionProto:
    """MoE(x, router_logits, gate, up, down) -> y: Qwen3OmniMoeThinkerTextSparseMoeBlock without its router matrix.

    x [S, H]; router_logits [S, E] float32; gate, up [E, I, H]; down [E, H, I]. Each row goes through its top_k experts,
    down(silu(gate x) * up x), weighted by their softmax probabilities (re-normalised to sum 1 when `normalize`).
    """
    node = helper.make_node
    nodes = [
        _constant("top_k", [top_k]), _constant("axis_1", [1]), _constant("axis_last", [-1]),
        node("Softmax", ["router_logits"], ["probability"], axis=-1),
        node("TopK", ["probability", "top_k"], ["score", "expert"], axis=-1),  # [S, k]
    ]
    score = "score"
    if normalize:
        nodes += [node("ReduceSum", ["score", "axis_last"], ["score_sum"], keepdims=1),
                  node("Div", ["score", "score_sum"], ["score_normalized"])]
        score = "score_normalized"
    nodes += [
        node("Gather", ["gate", "expert"], ["gate_k"], axis=0),  # [S, k, I, H]
        node("Gather", ["up", "expert"], ["up_k"], axis=0),
        node("Gather", ["down", "expert"], ["down_k"], axis=0),  # [S, k, H, I]
        node("Unsqueeze", ["x", "axis_1"], ["x_1"]),
        node("Unsqueeze", ["x_1", "axis_last"], ["x_column"]),  # [S, 1, H, 1]
        node("MatMul", ["gate_k", "x_column"], ["gated"]),  # [S, k, I, 1]
        node("MatMul", ["up_k", "x_column"], ["upped"]),
        node("Swish", ["gated"], ["activated"]),
        node("Mul", ["activated", "upped"], ["inner"]),
        node("MatMul", ["down_k", "inner"], ["y_column"]),  # [S, k, H, 1]
        node("Squeeze", ["y_column", "axis_last"], ["y_k"]),
        node("CastLike", [score, "x"], ["score_cast"]),
        node("Unsqueeze", ["score_cast", "axis_1"], ["score_row"]),  # [S, 1, k]
        node("MatMul", ["score_row", "y_k"], ["y_row"]),  # [S, 1, H]
        node("Squeeze", ["y_row", "axis_1"], ["y"]),
    ]
    return helper.make_function(DOMAIN, "MoE", ["x", "router_logits", "gate", "up", "down"], ["y"], nodes,
                                [helper.make_opsetid("", OPSET)], attributes=["top_k", "normalize"])
