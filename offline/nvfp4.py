"""NVFP4 tensors: 4-bit E2M1 codes, one FP8 (E4M3) scale per 16 neighbours of a row, one float32 scale per tensor.

The layout and the rounding are those of NVIDIA ModelOpt's NVFP4QTensor, which writes the quantised checkpoints.
"""
import ml_dtypes
import numpy as np

BLOCK = 16  # input channels that share a scale
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # value of each code
E2M1_MAX, E4M3_MAX, E4M3_MIN = np.float32(6), np.float32(448), np.float32(2**-9)
MIDPOINTS = (E2M1[1:8] + E2M1[:7]) / 2


def decode(packed: np.ndarray, scale: np.ndarray, scale_2: np.ndarray | float) -> np.ndarray:
    """packed uint8 [..., K/2], even channels in the low nibble; scale float8_e4m3fn [..., K/16]; scale_2 one number.

    Returns float32 [..., K].
    """
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return E2M1[codes] * np.repeat(scale.astype(np.float32) * np.float32(scale_2), BLOCK, axis=-1)


def encode(weight: np.ndarray, scale_2: float | None = None) -> tuple[np.ndarray, np.ndarray, np.float32]:
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
