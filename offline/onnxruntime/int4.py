"""4-bit integer weights for ONNX Runtime's MatMulNBits and QMoE: which, how they are rounded, and what they are worth then."""

from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..graphs.external_data import StoredGraph

INT4_BLOCK = 32  # weights that share a scale


def int4_weights(stored: StoredGraph) -> set[str]:
    """The matrices and stacks of experts that become 4 bit: linear layers large enough to matter, in blocks that fit; routers
    (few rows) decide discretely and stay exact."""
    names: set[str] = set()
    for node in stored.model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in stored and not node.input[1].endswith("gate.weight"):
            out, inner = stored.shape(node.input[1])
            if inner % INT4_BLOCK == 0 and out >= INT4_BLOCK:
                names.add(node.input[1])
        elif node.op_type == "MoE" and len(node.input) == 5:
            _, inner, hidden = stored.shape(node.input[2])
            if hidden % INT4_BLOCK == inner % INT4_BLOCK == 0:
                names.update(node.input[2:])
    return names


class Int4Graph(StoredGraph):
    """An exported graph whose weights read as what they are worth in 4 bits: what an int4 engine should compute."""

    def __init__(self, directory: Path):
        super().__init__(directory)
        self.int4 = int4_weights(self)

    def read(self, name: str, index: int | None = None, dtype: DTypeLike = np.float32) -> np.ndarray:
        weight = super().read(name, index, dtype)
        if name not in self.int4:
            return weight
        packed, scale = quantize_int4(weight.astype(np.float32))
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(*scale.shape, INT4_BLOCK).astype(np.float32)
        return ((codes - 8) * scale[..., None]).reshape(weight.shape).astype(dtype)


def quantize_int4(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[..., K] float32 -> packed codes uint8 [..., K/2] (low nibble first, zero point 8) and scales [..., K/32].

    The scale maps the block's largest magnitude to -8, the one extra code of the signed range.
    """
    blocks = weight.reshape(*weight.shape[:-1], -1, INT4_BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    scale = np.where(largest == 0, 1.0, largest / -8).astype(np.float32)
    codes = (np.clip(np.round(blocks / scale), -8, 7) + 8).astype(np.uint8).reshape(weight.shape)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), scale[..., 0]
