"""A transformer's layers for one row: which kernels of kernels/decode/ run, in which order, on which memory.

Per layer: queries, keys and values | attention | output | router | experts' gate and up | experts' down. A dense layer has
no router. All work goes onto the device's stream, to be recorded as a CUDA graph; nothing here runs per token.
"""

import math
from collections.abc import Sequence

from omni_ros.engines.config import DecoderConfig
from omni_ros.engines.cuda.arguments import FeedForwardArgs, Float, GemvArgs, Int, Pointer, Rope, float_bytes
from omni_ros.engines.cuda.kernels import Kernels
from omni_ros.engines.cuda.weights import DeviceWeights
from omni_ros.engines.cuda_device import CudaDevice

THREADS, BLOCKS_PER_SM = 256, 3  # of `gemv` and `gate_up`: what fits at once
BLOCK, PITCH, TILE, MAX_SPLIT_K = 16, 20, 32, 32  # see decode/rows.cu and attend.cu


class DecodeLayers:
    """`prefix` comes before the layers' names.

    keys, values: addresses of each layer's cache, float16 or E4M3 [kv_heads, capacity, head_dim]; scales: what its codes are to
    be multiplied by, of keys and of values.
    """

    def __init__(
        self,
        device: CudaDevice,
        kernels: Kernels,
        weights: DeviceWeights,
        config: DecoderConfig,
        prefix: str,
        keys: list[int],
        values: list[int],
        capacity: int,
        scales: Sequence[tuple[float, float]] = (),
    ):
        self.device, self.kernels, self.weights, self.config, self.prefix = device, kernels, weights, config, prefix
        self.keys, self.values, self.capacity = keys, values, capacity
        self.scales = scales or [(1.0, 1.0)] * config.num_layers
        self.sms = device.call(device.cuda.cudaDeviceGetAttribute, device.cuda.cudaDeviceAttr.cudaDevAttrMultiProcessorCount, 0)
        c, memory = config, device.memory
        self.split_k = max(1, min(MAX_SPLIT_K, 2 * self.sms // c.num_kv_heads, math.ceil(capacity / TILE)))
        self.pitch = max(c.moe_intermediate_size, c.shared_intermediate_size)
        self.slots = c.top_k + bool(c.shared_intermediate_size)
        self.heads = c.num_heads + 2 * c.num_kv_heads  # of queries, keys and values
        self.qkv = memory(float_bytes(self.heads, c.head_dim))
        self.attended = memory(float_bytes(c.num_heads, c.head_dim))
        # sums, and a maximum and a total for each
        self.partial = memory(float_bytes(c.num_heads, self.split_k, c.head_dim + 2))
        self.arrived = memory(4 * c.num_kv_heads)
        self.logits = memory(float_bytes(c.num_experts + 1))
        self.ids, self.routed = memory(4 * c.top_k), memory(float_bytes(c.top_k))
        self.inner = memory(float_bytes(self.slots, self.pitch))
        device.zero(self.arrived, 4 * c.num_kv_heads)

    def forward(self, layer: int, x: int, past: int, cos_sin: int) -> None:
        """x float32 [hidden], in place; past int32 [] rows are in the cache; cos_sin float32 [head_dim], of RopeTable."""
        name = f"{self.prefix}layers.{layer}"
        self.attention(layer, f"{name}.self_attn", x, past, cos_sin, norm=f"{name}.input_layernorm.weight")
        self.feed_forward(f"{name}.mlp", x, norm=f"{name}.post_attention_layernorm.weight")

    def attention(self, layer: int, name: str, x: int, past: int, cos_sin: int, norm: str) -> None:
        c = self.config
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        rows = {f"{name}.q_proj.weight": queries, f"{name}.k_proj.weight": keys, f"{name}.v_proj.weight": keys}
        self.gemv(rows, c.hidden_size, x, self.qkv, norm=norm)
        norms = [self.weights.address(f"{name}.{p}_norm.weight", c.head_dim) for p in "qk"]
        self.kernels.launch(
            "attend",
            (c.num_kv_heads, self.split_k),
            32 * (c.num_heads // c.num_kv_heads),
            0,
            Pointer(self.qkv),
            Rope(*norms, c.rms_norm_eps, cos_sin),
            Pointer(self.keys[layer]),
            Pointer(self.values[layer]),
            Pointer(past),
            Int(self.capacity),
            Pointer(self.partial),
            Pointer(self.arrived),
            Pointer(self.attended),
            *map(Float, self.scales[layer]),
        )
        self.gemv({f"{name}.o_proj.weight": c.hidden_size}, queries, self.attended, x, add=True)

    def feed_forward(self, name: str, x: int, norm: str) -> None:
        c = self.config
        args = FeedForwardArgs(
            experts=c.num_experts,
            top_k=c.top_k,
            normalize=c.normalize_top_k,
            logits=self.logits,
            ids=self.ids,
            weights=self.routed,
            hidden=c.hidden_size,
        )
        if c.num_experts:
            names = (f"{name}.experts.{p}_proj" for p in ("gate", "up", "down"))
            args.expert = self.weights.swiglu(names, c.hidden_size, c.moe_intermediate_size, c.num_experts)
            gates = router(self.weights, name, c)
            args.gated = len(gates) - 1
            self.gemv(gates, c.hidden_size, x, self.logits, norm)
        if c.shared_intermediate_size:
            dense = f"{name}.shared_expert" if c.num_experts else name
            names = (f"{dense}.{p}_proj.weight" for p in ("gate", "up", "down"))
            args.shared = self.weights.swiglu(names, c.hidden_size, c.shared_intermediate_size)
        width = max(args.expert.inner, args.shared.inner)
        blocks = min(math.ceil(width / (THREADS // 32)), max(1, BLOCKS_PER_SM * self.sms // self.slots))
        self.kernels.launch(
            "gate_up",
            (blocks, self.slots),
            THREADS,
            padded(c.hidden_size),
            args,
            Pointer(x),
            Pointer(self.weights.address(norm, c.hidden_size)),
            Float(c.rms_norm_eps),
            Pointer(self.inner),
            Int(self.pitch),
        )
        warps = min(16, math.ceil(c.hidden_size / self.sms))  # a row each, on as many SMs as there are
        self.kernels.launch(
            "down",
            (math.ceil(c.hidden_size / warps), 1),
            32 * warps,
            padded(c.top_k * args.expert.inner) + padded(args.shared.inner),
            args,
            Pointer(self.inner),
            Int(self.pitch),
            Pointer(x),
        )

    def gemv(
        self, rows: dict[str, int], width: int, x: int, out: int, norm: str = "", add: bool = False, normed: int | None = None
    ) -> None:
        """out = (add ? out : 0) + the matrices, by name with their rows, times x [width] or its RMSNorm; `normed` gets that."""
        blocks = min(math.ceil(sum(rows.values()) / (THREADS // 32)), BLOCKS_PER_SM * self.sms)
        gamma = self.weights.address(norm, width) if norm else None
        self.kernels.launch(
            "gemv",
            (blocks, 1),
            THREADS,
            padded(width),
            self.weights.stacked(rows, width),
            GemvArgs(x, gamma, self.config.rms_norm_eps, width, out, add, normed),
        )


def router(weights: DeviceWeights, name: str, config: DecoderConfig) -> dict[str, int]:
    """What is multiplied together to route a row: the experts' logits, then the shared expert's gate where there is one."""
    gate = f"{name}.shared_expert_gate.weight"
    return {f"{name}.gate.weight": config.num_experts, **({gate: 1} if gate in weights else {})}


def padded(floats: int) -> int:
    """Bytes of shared memory for a vector; see PITCH in decode/rows.cu."""
    return floats // BLOCK * PITCH * 4
