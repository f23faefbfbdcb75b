"""A transformer's layers for one row: which kernels of decode/ run, in which order, on which memory.

Per layer: queries, keys and values | attention | output | router | experts' gate and up | experts' down. A dense layer has
no router. All work goes onto the device's stream, to be recorded as a CUDA graph; nothing here runs per token.
"""

import ctypes
import math

import numpy as np

from omni_ros.engines.cuda.compiler import DeviceWeights, FeedForward, Kernels, Projection, Rotary, float_bytes
from omni_ros.engines.cuda_device import CudaDevice

THREADS, BLOCKS_PER_SM = 256, 3  # of `project` and `gate_up`: what fits at once
BLOCK, PITCH, TILE, MAX_SPLITS = 16, 20, 32, 32  # see decode/rows.cu and attend.cu


class Layers:
    """`shape` is config.json's "decoder": sizes, norms and rotation; `prefix` comes before the layers' names."""

    def __init__(
        self,
        device: CudaDevice,
        kernels: Kernels,
        weights: DeviceWeights,
        shape: dict,
        prefix: str,
        keys: list[int],
        values: list[int],
        capacity: int,
    ):
        self.device, self.kernels, self.weights, self.shape, self.prefix = device, kernels, weights, shape, prefix
        self.keys, self.values, self.capacity = keys, values, capacity  # addresses of [kv_heads, capacity, head_dim] float16
        self.hidden, self.eps = shape["hidden_size"], ctypes.c_float(shape["rms_norm_eps"])
        heads, kv_heads, head_dim = shape["num_heads"], shape["num_kv_heads"], shape["head_dim"]
        self.sms = device.call(device.cuda.cudaDeviceGetAttribute, device.cuda.cudaDeviceAttr.cudaDevAttrMultiProcessorCount, 0)
        self.splits = max(1, min(MAX_SPLITS, 2 * self.sms // kv_heads, math.ceil(capacity / TILE)))
        self.top_k, self.experts = shape.get("top_k", 0), shape.get("num_experts", 0)
        self.pitch = max(shape.get("moe_intermediate_size", 0), shape.get("shared_intermediate_size", 0))
        self.slots = self.top_k + bool(shape.get("shared_intermediate_size"))
        memory = device.memory
        self.qkv = memory(float_bytes(heads + 2 * kv_heads, head_dim))
        self.attended = memory(float_bytes(heads, head_dim))
        self.partial = memory(float_bytes(heads, self.splits, head_dim + 2))  # sums, and a maximum and a total for each
        self.arrived = memory(4 * kv_heads)
        self.logits = memory(float_bytes(self.experts + 1))
        self.ids, self.routed = memory(4 * self.top_k), memory(float_bytes(self.top_k))
        self.inner = memory(float_bytes(self.slots, self.pitch))
        device.zero(self.arrived, 4 * kv_heads)

    def forward(self, layer: int, x: int, past: int, turn: int) -> None:
        """x float32 [hidden], in place; past int32 [] rows are in the cache; turn float32 [head_dim], of `rotation`."""
        name, s = f"{self.prefix}layers.{layer}", self.shape
        attention = f"{name}.self_attn"
        self.project([f"{attention}.{p}_proj.weight" for p in "qkv"], x, self.qkv, norm=f"{name}.input_layernorm.weight")
        rotary = Rotary(*(self.weights.tensor(f"{attention}.{p}_norm.weight").address for p in "qk"), s["rms_norm_eps"], turn)
        pointers = [ctypes.c_void_p(a) for a in (self.keys[layer], self.values[layer], past)]
        self.kernels.launch(
            "attend",
            (s["num_kv_heads"], self.splits),
            32 * (s["num_heads"] // s["num_kv_heads"]),
            0,
            ctypes.c_void_p(self.qkv),
            rotary,
            *pointers,
            ctypes.c_int(self.capacity),
            *map(ctypes.c_void_p, (self.partial, self.arrived, self.attended)),
        )
        self.project([f"{attention}.o_proj.weight"], self.attended, x, add=True)
        self.feed_forward(f"{name}.mlp", x, f"{name}.post_attention_layernorm.weight")

    def feed_forward(self, name: str, x: int, norm: str) -> None:
        f = FeedForward(
            experts=self.experts,
            top_k=self.top_k,
            normalize=self.shape.get("normalize_top_k", 0),
            logits=self.logits,
            ids=self.ids,
            weights=self.routed,
            hidden=self.hidden,
        )
        if self.experts:
            f.expert = self.weights.swiglu(*(f"{name}.experts.{p}_proj" for p in ("gate", "up", "down")))
            f.gated = f"{name}.shared_expert_gate.weight" in self.weights
            gates = [f"{name}.gate.weight"] + [f"{name}.shared_expert_gate.weight"] * f.gated
            self.project(gates, x, self.logits, norm)
        dense = f"{name}.shared_expert" if self.experts else name
        if f"{dense}.gate_proj.weight" in self.weights:
            f.shared = self.weights.swiglu(*(f"{dense}.{p}_proj.weight" for p in ("gate", "up", "down")))
        width, inner = max(f.expert.inner, f.shared.inner), ctypes.c_void_p(self.inner)
        blocks = min(math.ceil(width / (THREADS // 32)), max(1, BLOCKS_PER_SM * self.sms // self.slots))
        self.kernels.launch(
            "gate_up",
            (blocks, self.slots),
            THREADS,
            padded(self.hidden),
            f,
            ctypes.c_void_p(x),
            self.weights.address(norm),
            self.eps,
            inner,
            ctypes.c_int(self.pitch),
        )
        warps = min(16, math.ceil(self.hidden / self.sms))  # a row each, on as many SMs as there are
        shared = padded(self.top_k * f.expert.inner) + padded(f.shared.inner)
        self.kernels.launch(
            "down",
            (math.ceil(self.hidden / warps), 1),
            32 * warps,
            shared,
            f,
            inner,
            ctypes.c_int(self.pitch),
            ctypes.c_void_p(x),
        )

    def project(self, names: list[str], x: int, out: int, norm: str = "", add: bool = False, normed: int = 0) -> None:
        """out = (add ? out : 0) + the named matrices times x, or times its RMSNorm; `normed` receives that."""
        stacked, rows = self.weights.stacked(*names)
        width = self.weights.tensor(names[0]).shape[-1]
        blocks = min(math.ceil(rows / (THREADS // 32)), BLOCKS_PER_SM * self.sms)
        gamma = self.weights.tensor(norm).address if norm else None
        self.kernels.launch(
            "project",
            (blocks, 1),
            THREADS,
            padded(width),
            stacked,
            Projection(x, gamma, self.shape["rms_norm_eps"], width, out, add, normed or None),
        )


def padded(floats: int) -> int:
    """Bytes of shared memory for a vector; see PITCH in decode/rows.cu."""
    return floats // BLOCK * PITCH * 4


class Rotation:
    """The angles by which a position turns a head's channel pairs: interleaved mRoPE, or plain RoPE without sections."""

    def __init__(self, shape: dict):
        head_dim = shape["head_dim"]
        self.axis = np.zeros(head_dim // 2, np.int64)
        for axis in (1, 2):
            self.axis[axis : shape.get("mrope_section", (0, 0, 0))[axis] * 3 : 3] = axis
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        self.inv_freq = (1 / shape["rope_theta"] ** exponent).astype(np.float32)

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """positions float32 [3, S] -> float32 [S, head_dim]: cosines, then sines."""
        angles = positions[self.axis].T * self.inv_freq
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
