"""A transformer's layers for many rows: which kernels of kernels/prefill/ run, in which order, on which memory.

Per layer: norm | queries, keys and values | rope into the cache | attention | output | norm | router | routing | scatter by
expert | gate and up | down. The next norm adds what the experts made. All work goes onto the device's stream, to be recorded as
a CUDA graph for up to `grid` rows: how many there are is read on the GPU, and thread blocks beyond them end at once.
"""

import math
from collections.abc import Sequence

from omni_ros.engines.config import DecoderConfig
from omni_ros.engines.cuda.arguments import (
    FeedForwardArgs,
    Float,
    GemmArgs,
    GroupArgs,
    Int,
    Pending,
    Pointer,
    Rope,
    Stacked,
    SwiGLU,
    float_bytes,
    half_bytes,
)
from omni_ros.engines.cuda.decode import router
from omni_ros.engines.cuda.kernels import Kernels
from omni_ros.engines.cuda.weights import DeviceWeights
from omni_ros.engines.cuda_device import CudaDevice

TOKENS, OUTPUTS, QUERIES = 32, 64, 16  # see prefill/tiles.cu and attend_rows.cu
WARP = 32


def gemm(kernels: Kernels, matrices: Stacked, outputs: int, max_rows: int, args: GemmArgs) -> None:
    """Put `gemm` of prefill/gemm.cu on the stream, for up to `max_rows` rows."""
    kernels.launch("gemm", (math.ceil(outputs / OUTPUTS), math.ceil(max_rows / TOKENS)), 128, 0, matrices, args)


class PrefillLayers:
    """keys, values, scales: as DecodeLayers has them.

    Before the graph runs: x float32 [rows, hidden], cos_sin float32 [rows, head_dim], features float32 [num_deepstack, max_rows,
    hidden], counts int32 [3]: rows, rows that are in the cache, whether there are features. Afterwards x is the last layer's.
    """

    def __init__(
        self,
        device: CudaDevice,
        kernels: Kernels,
        weights: DeviceWeights,
        config: DecoderConfig,
        keys: list[int],
        values: list[int],
        capacity: int,
        max_rows: int,
        num_deepstack: int,
        scales: Sequence[tuple[float, float]],
    ):
        self.kernels, self.weights, self.config = kernels, weights, config
        self.keys, self.values, self.capacity, self.scales = keys, values, capacity, scales
        self.max_rows, self.num_deepstack = max_rows, num_deepstack
        self.grid = max_rows  # how many rows the graph that is being recorded is for
        c, memory = config, device.memory
        pairs = max_rows * c.top_k
        self.counts = memory(4 * 3)
        self.rows, self.past, self.visual = (self.counts + 4 * i for i in range(3))
        self.x = memory(float_bytes(max_rows, c.hidden_size))
        self.cos_sin = memory(float_bytes(max_rows, c.head_dim))
        self.features = memory(float_bytes(num_deepstack, max_rows, c.hidden_size))
        self.normed = memory(half_bytes(max_rows, c.hidden_size))
        self.qkv = memory(float_bytes(max_rows, c.num_heads + 2 * c.num_kv_heads, c.head_dim))
        self.q = memory(half_bytes(max_rows, c.num_heads, c.head_dim))
        self.attended = memory(half_bytes(max_rows, c.num_heads, c.head_dim))
        self.logits = memory(float_bytes(max_rows, c.num_experts + 1))
        self.ids, self.routed, self.position, self.row = (memory(4 * pairs) for _ in range(4))
        self.tiles = memory(3 * 4 * (pairs // TOKENS + c.num_experts))
        self.expert_inner = memory(half_bytes(pairs, c.moe_intermediate_size))
        self.expert_out = memory(float_bytes(pairs, c.hidden_size))
        self.shared_inner = memory(half_bytes(max_rows, c.shared_intermediate_size))
        self.shared_out = memory(float_bytes(max_rows, c.hidden_size) if c.shared_intermediate_size else 0)

    def forward(self, layer: int) -> None:
        """Layer `layer`, from its normed input; what it adds to x is left to the next `norm`."""
        name = f"layers.{layer}"
        self._attention(layer, f"{name}.self_attn")
        self._norm(f"{name}.post_attention_layernorm.weight", Pending())
        self._feed_forward(f"{name}.mlp")

    def norm(self, layer: int, accepted: int | None) -> None:
        """Adds to x what layer - 1 left; makes the normed input of layer `layer`, if there is one.

        accepted float32 [rows, hidden], if asked for, receives what layer - 1 made, without a picture's features.
        """
        c, pending = self.config, Pending(accepted=accepted)
        if layer:
            pending.routed, pending.weights, pending.position = self.expert_out, self.routed, self.position
            pending.top_k = c.top_k
        if layer and c.shared_intermediate_size:
            pending.shared, pending.logits, pending.experts = self.shared_out, self.logits, c.num_experts
            pending.gated = len(router(self.weights, f"layers.{layer - 1}.mlp", c)) - 1
        if 0 < layer <= self.num_deepstack:
            pending.features = self.features + float_bytes(layer - 1, self.max_rows, c.hidden_size)
            pending.visual = self.visual
        self._norm(f"layers.{layer}.input_layernorm.weight" if layer < c.num_layers else None, pending)

    def last_row(self, out: int) -> None:
        """out float32 [hidden] = the last row of x."""
        hidden = Int(self.config.hidden_size)
        self.kernels.launch("last_row", (1, 1), 256, 0, Pointer(self.x), hidden, Pointer(out), Pointer(self.rows))

    def _attention(self, layer: int, name: str) -> None:
        c = self.config
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        rows = {f"{name}.q_proj.weight": queries, f"{name}.k_proj.weight": keys, f"{name}.v_proj.weight": keys}
        self._gemm(rows, c.hidden_size, self.normed, self.qkv)
        norms = [self.weights.address(f"{name}.{p}_norm.weight", c.head_dim) for p in "qk"]
        self.kernels.launch(
            "rope_rows",
            (self.grid, math.ceil((c.num_heads + 2 * c.num_kv_heads) / 8)),
            256,
            0,
            Pointer(self.qkv),
            Rope(*norms, c.rms_norm_eps, self.cos_sin),
            Pointer(self.q),
            Pointer(self.keys[layer]),
            Pointer(self.values[layer]),
            Pointer(self.past),
            Int(c.num_heads),
            Int(c.num_kv_heads),
            Int(self.capacity),
            Pointer(self.rows),
            *map(Float, self.scales[layer]),
        )
        self.kernels.launch(
            "attend_rows",
            (c.num_kv_heads, math.ceil(self.grid / QUERIES)),
            WARP * (c.num_heads // c.num_kv_heads),
            0,
            Pointer(self.q),
            Pointer(self.keys[layer]),
            Pointer(self.values[layer]),
            Pointer(self.past),
            Int(self.capacity),
            Pointer(self.attended),
            Pointer(self.rows),
            *map(Float, self.scales[layer]),
        )
        self._gemm({f"{name}.o_proj.weight": c.hidden_size}, queries, self.attended, self.x, add=True)

    def _norm(self, gamma: str | None, pending: Pending) -> None:
        hidden = self.config.hidden_size
        self.kernels.launch(
            "norm_rows",
            (self.grid, 1),
            256,
            0,
            Pointer(self.x),
            Int(hidden),
            pending,
            Pointer(self.weights.address(gamma, hidden) if gamma else None),
            Float(self.config.rms_norm_eps),
            Pointer(self.normed if gamma else None),
            Pointer(self.rows),
        )

    def _feed_forward(self, name: str) -> None:
        c, gates = self.config, router(self.weights, name, self.config)
        self._gemm(gates, c.hidden_size, self.normed, self.logits)
        args = FeedForwardArgs(
            experts=c.num_experts,
            top_k=c.top_k,
            normalize=c.normalize_top_k,
            logits=self.logits,
            ids=self.ids,
            weights=self.routed,
            gated=len(gates) - 1,
            hidden=c.hidden_size,
        )
        names = (f"{name}.experts.{p}_proj" for p in ("gate", "up", "down"))
        args.expert = self.weights.swiglu(names, c.hidden_size, c.moe_intermediate_size, c.num_experts)
        self.kernels.launch("route_rows", (math.ceil(self.grid / 4), 1), 128, 0, args, Pointer(self.rows))
        self.kernels.launch(
            "scatter",
            (c.num_experts, 1),
            256,
            0,
            Pointer(self.ids),
            Int(c.top_k),
            Pointer(self.position),
            Pointer(self.row),
            Pointer(self.tiles),
            Pointer(self.rows),
        )
        groups = GroupArgs(self.tiles, c.num_experts, c.top_k, self.rows)
        slots = self.grid * c.top_k // TOKENS + c.num_experts
        self._grouped_gemm(args.expert, groups, slots, self.row, self.expert_inner, self.expert_out)
        if c.shared_intermediate_size:
            names = (f"{name}.shared_expert.{p}_proj.weight" for p in ("gate", "up", "down"))
            shared = self.weights.swiglu(names, c.hidden_size, c.shared_intermediate_size)
            groups, slots = GroupArgs(rows=self.rows), math.ceil(self.grid / TOKENS)
            self._grouped_gemm(shared, groups, slots, None, self.shared_inner, self.shared_out)

    def _grouped_gemm(self, weights: SwiGLU, groups: GroupArgs, slots: int, row: int | None, inner: int, out: int) -> None:
        hidden = self.config.hidden_size
        self.kernels.launch(
            "grouped_gate_up",
            (math.ceil(weights.inner / OUTPUTS), slots),
            128,
            0,
            weights,
            groups,
            Pointer(row),
            Pointer(self.normed),
            Int(hidden),
            Pointer(inner),
        )
        self.kernels.launch(
            "grouped_down",
            (math.ceil(hidden / OUTPUTS), slots),
            128,
            0,
            weights,
            groups,
            Pointer(inner),
            Int(hidden),
            Pointer(out),
        )

    def _gemm(self, rows: dict[str, int], width: int, x: int, out: int, add: bool = False) -> None:
        """out [rows, outputs] = (add ? out : 0) + the matrices, by name with their rows, times x [rows, width]."""
        args = GemmArgs(x, width, None, out, add, self.rows)
        gemm(self.kernels, self.weights.stacked(rows, width), sum(rows.values()), self.grid, args)
