"""NVFP4 tensors: 4-bit E2M1 codes, one FP8 (E4M3) scale per 16 neighbours of a row, one float32 scale per tensor.

The layout and the rounding are those of NVIDIA ModelOpt's NVFP4QTensor, which writes the quantised checkpoints.
"""

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

BLOCK = 16  # input channels that share a scale
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # value of each code
E2M1_MAX, E4M3_MAX, E4M3_MIN = np.float32(6), np.float32(448), np.float32(2**-9)
MIDPOINTS = (E2M1[1:8] + E2M1[:7]) / 2
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)  # value of each scale's byte
NIBBLES = np.arange(256)[:, None] >> [0, 4] & 15  # [256, 2]: the two codes in each byte


def decode(
    packed: np.ndarray, scale: np.ndarray, scale_2: np.ndarray | np.float32 | float, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """packed uint8 [..., K/2], even channels in the low nibble; scale float8_e4m3fn [..., K/16]; scale_2 one number.

    Returns `dtype` [..., K], float32 or float16: the float32 products, rounded once.
    """
    # 256 scales x 16 codes make 4096 values at most. Those are computed and rounded, then looked up two at a time, by
    # (scale, byte): 0.6 ns per float16 value of an expert (768 x 2048), against 4 ns when every product is rounded.
    values = (E2M1 * (E4M3 * np.float32(scale_2))[:, None]).astype(dtype)  # [scale, code]
    pairs = values[:, NIBBLES].reshape(-1, 2)  # [scale * 256 + byte, 2]
    rows = np.repeat(scale.view(np.uint8).astype(np.uint16) << 8, BLOCK // 2, axis=-1)
    rows |= packed
    return pairs.take(rows, axis=0).reshape(*packed.shape[:-1], -1)


def encode(weight: np.ndarray, scale_2: np.float32 | float | None = None) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """weight [..., K], K a multiple of 16 -> (packed, scale, scale_2) as `decode` takes them.

    `scale_2` is given where tensors share one (q, k, v; gate, up); else it follows from the largest weight.
    """
    weight = weight.astype(np.float32)
    if scale_2 is None:
        scale_2 = np.abs(weight).max() / (E2M1_MAX * E4M3_MAX) or 1  # 1: all weights are zero
    scale_2 = np.float32(scale_2)
    blocks = weight.reshape(*weight.shape[:-1], -1, BLOCK)
    exact = np.abs(blocks).max(axis=-1) / (E2M1_MAX * scale_2)
    scale = np.clip(np.where(exact == 0, 1, exact), E4M3_MIN, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn)
    scaled = blocks / (scale.astype(np.float32) * scale_2)[..., None]
    size = np.abs(scaled)
    codes = np.searchsorted(MIDPOINTS, size).astype(np.uint8)
    codes += np.isin(size, MIDPOINTS[1::2])  # a tie goes to the even code
    codes |= np.where(scaled < 0, 8, 0).astype(np.uint8)
    codes = codes.reshape(weight.shape)
    return codes[..., 0::2] | codes[..., 1::2] << 4, scale, scale_2
