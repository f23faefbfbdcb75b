"""A transformer's layers for many rows: which kernels of prefill/ run, in which order, on which memory.

Per layer: norm | queries, keys and values | rotation into the cache | attention | output | norm | router | routing | sorting by
expert | gate and up | down. The next norm adds what the experts made. All work goes onto the device's stream, to be recorded as
a CUDA graph for up to `grid` rows: how many there are is read on the GPU, and thread blocks beyond them end at once.
"""

import ctypes
import math

from omni_ros.engines.cuda.compiler import (
    DeviceWeights,
    FeedForward,
    Group,
    Kernels,
    Pending,
    Product,
    Rotary,
    Stacked,
    SwiGLU,
    float_bytes,
)
from omni_ros.engines.cuda_device import CudaDevice

TOKENS, OUTPUTS, QUERIES = 32, 64, 16  # see prefill/tiles.cu and attend_rows.cu
WARP = 32


def multiply(kernels: Kernels, matrices: Stacked, outputs: int, most: int, product: Product) -> None:
    """Put `multiply` of prefill/multiply.cu on the stream, for up to `most` rows."""
    kernels.launch("multiply", (math.ceil(outputs / OUTPUTS), math.ceil(most / TOKENS)), 128, 0, matrices, product)


class Prefill:
    """`shape` is config.json's "decoder"; keys, values: addresses of each layer's cache, float16 [kv_heads, capacity, head_dim].

    Before the graph runs: x float32 [rows, hidden], turns float32 [rows, head_dim], features float32 [num_deepstack, most,
    hidden], counts int32 [3]: rows, rows that are in the cache, whether there are features. Afterwards x is the last layer's.
    """

    def __init__(
        self,
        device: CudaDevice,
        kernels: Kernels,
        weights: DeviceWeights,
        shape: dict,
        keys: list[int],
        values: list[int],
        capacity: int,
        most: int,
        num_deepstack: int,
    ):
        self.device, self.kernels, self.weights, self.shape = device, kernels, weights, shape
        self.keys, self.values, self.capacity, self.most, self.num_deepstack = keys, values, capacity, most, num_deepstack
        self.hidden, heads, head_dim = shape["hidden_size"], shape["num_heads"], shape["head_dim"]
        self.experts, self.top_k = shape["num_experts"], shape["top_k"]
        self.shared = bool(shape["shared_intermediate_size"])
        self.grid = most  # how many rows the graph that is being recorded is for
        pairs, memory = most * self.top_k, device.memory
        self.counts = memory(4 * 3)
        self.rows, self.past, self.visual = (self.counts + 4 * i for i in range(3))
        self.x, self.turns = memory(float_bytes(most, self.hidden)), memory(float_bytes(most, head_dim))
        self.features = memory(float_bytes(num_deepstack, most, self.hidden))
        halves = lambda *size: memory(float_bytes(*size) // 2)  # noqa: E731
        self.normed = halves(most, self.hidden)
        self.qkv = memory(float_bytes(most, heads + 2 * shape["num_kv_heads"], head_dim))
        self.q, self.attended = halves(most, heads, head_dim), halves(most, heads, head_dim)
        self.logits = memory(float_bytes(most, self.experts + 1))
        self.ids, self.routed, self.position, self.row = (memory(4 * pairs) for _ in range(4))
        self.tiles = memory(3 * 4 * (pairs // TOKENS + self.experts))
        self.expert_inner = halves(pairs, shape["moe_intermediate_size"])
        self.expert_out = memory(float_bytes(pairs, self.hidden))
        self.shared_inner = halves(most, shape["shared_intermediate_size"])
        self.shared_out = memory(float_bytes(most, self.hidden) if self.shared else 0)

    def forward(self, layer: int) -> None:
        """Layer `layer`, from its normed input; what it adds to x is left to the next `norm`."""
        name, s = f"layers.{layer}", self.shape
        attention, heads, kv_heads = f"{name}.self_attn", s["num_heads"], s["num_kv_heads"]
        self._product([f"{attention}.{p}_proj.weight" for p in "qkv"], self.normed, self.qkv)
        norms = [self.weights.tensor(f"{attention}.{p}_norm.weight").address for p in "qk"]
        rotary = Rotary(*norms, s["rms_norm_eps"], self.turns)
        q, attended, past, rows = map(ctypes.c_void_p, (self.q, self.attended, self.past, self.rows))
        cache, capacity = [ctypes.c_void_p(a[layer]) for a in (self.keys, self.values)], ctypes.c_int(self.capacity)
        self.kernels.launch(
            "rotate_rows",
            (self.grid, math.ceil((heads + 2 * kv_heads) / 8)),
            256,
            0,
            ctypes.c_void_p(self.qkv),
            rotary,
            q,
            *cache,
            past,
            ctypes.c_int(heads),
            ctypes.c_int(kv_heads),
            capacity,
            rows,
        )
        self.kernels.launch(
            "attend_rows",
            (kv_heads, math.ceil(self.grid / QUERIES)),
            WARP * (heads // kv_heads),
            0,
            q,
            *cache,
            past,
            capacity,
            attended,
            rows,
        )
        self._product([f"{attention}.o_proj.weight"], self.attended, self.x, add=True)
        self._norm(f"{name}.post_attention_layernorm.weight", Pending())
        self._feed_forward(f"{name}.mlp")

    def norm(self, layer: int, accepted: int | None) -> None:
        """Adds to x what layer - 1 left; makes the normed input of layer `layer`, if there is one.

        accepted float32 [rows, hidden], if asked for, receives what layer - 1 made, without a picture's features.
        """
        pending = Pending(self.expert_out, self.routed, self.position, self.top_k) if layer else Pending()
        if layer and self.shared:
            pending.shared, pending.logits, pending.experts = self.shared_out, self.logits, self.experts
            pending.gated = f"layers.{layer - 1}.mlp.shared_expert_gate.weight" in self.weights
        pending.accepted = accepted
        if 0 < layer <= self.num_deepstack:
            pending.features, pending.visual = self.features + float_bytes(layer - 1, self.most, self.hidden), self.visual
        self._norm(f"layers.{layer}.input_layernorm.weight" if layer < self.shape["num_layers"] else None, pending)

    def _norm(self, gamma: str | None, pending: Pending) -> None:
        weight, out = (self.weights.address(gamma), self.normed) if gamma else (ctypes.c_void_p(), None)
        self.kernels.launch(
            "norm_rows",
            (self.grid, 1),
            256,
            0,
            ctypes.c_void_p(self.x),
            ctypes.c_int(self.hidden),
            pending,
            weight,
            ctypes.c_float(self.shape["rms_norm_eps"]),
            ctypes.c_void_p(out),
            ctypes.c_void_p(self.rows),
        )

    def _feed_forward(self, name: str) -> None:
        gates = [n for n in (f"{name}.gate.weight", f"{name}.shared_expert_gate.weight") if n in self.weights]
        self._product(gates, self.normed, self.logits)
        f = FeedForward(
            experts=self.experts,
            top_k=self.top_k,
            normalize=self.shape["normalize_top_k"],
            logits=self.logits,
            ids=self.ids,
            weights=self.routed,
            gated=len(gates) - 1,
            hidden=self.hidden,
        )
        f.expert = self.weights.swiglu(*(f"{name}.experts.{p}_proj" for p in ("gate", "up", "down")))
        rows, ids, position, row, tiles = map(ctypes.c_void_p, (self.rows, self.ids, self.position, self.row, self.tiles))
        self.kernels.launch("route_rows", (math.ceil(self.grid / 4), 1), 128, 0, f, rows)
        self.kernels.launch("place", (self.experts, 1), 256, 0, ids, ctypes.c_int(self.top_k), position, row, tiles, rows)
        slots = self.grid * self.top_k // TOKENS + self.experts
        self._swiglu(
            f.expert, Group(self.tiles, self.experts, self.top_k, self.rows), slots, self.row, self.expert_inner, self.expert_out
        )
        if self.shared:
            shared = self.weights.swiglu(*(f"{name}.shared_expert.{p}_proj.weight" for p in ("gate", "up", "down")))
            self._swiglu(shared, Group(rows=self.rows), math.ceil(self.grid / TOKENS), None, self.shared_inner, self.shared_out)

    def _swiglu(self, weights: SwiGLU, group: Group, slots: int, row: int | None, inner: int, out: int) -> None:
        x, hidden, inner = ctypes.c_void_p(self.normed), ctypes.c_int(self.hidden), ctypes.c_void_p(inner)
        self.kernels.launch(
            "gate_up_tiles",
            (math.ceil(weights.inner / OUTPUTS), slots),
            128,
            0,
            weights,
            group,
            ctypes.c_void_p(row),
            x,
            hidden,
            inner,
        )
        self.kernels.launch(
            "down_tiles", (math.ceil(self.hidden / OUTPUTS), slots), 128, 0, weights, group, inner, hidden, ctypes.c_void_p(out)
        )

    def _product(self, names: list[str], x: int, out: int, add: bool = False) -> None:
        stacked, outputs = self.weights.stacked(*names)
        width = self.weights.tensor(names[0]).shape[-1]
        multiply(self.kernels, stacked, outputs, self.grid, Product(x, width, None, out, add, self.rows))

    def last_row(self, out: int) -> None:
        """out float32 [hidden] = the last row of x."""
        self.kernels.launch(
            "last_row",
            (1, 1),
            256,
            0,
            ctypes.c_void_p(self.x),
            ctypes.c_int(self.hidden),
            ctypes.c_void_p(out),
            ctypes.c_void_p(self.rows),
        )
