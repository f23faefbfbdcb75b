"""offline.quantization.nvfp4 against the number formats of ml_dtypes; test_quantize.py compares with ModelOpt."""

import ml_dtypes
import numpy as np
import pytest

from offline.quantization.nvfp4 import BLOCK, decode, encode


def reference(packed: np.ndarray, scale: np.ndarray, scale_2: np.float32) -> np.ndarray:
    """float32 [..., K], value by value as the format defines it."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    return values * np.repeat(scale.astype(np.float32) * scale_2, BLOCK, axis=-1)


@pytest.mark.parametrize("scale_2", [1.0, 1.1e-4, 3.3e-8])  # the last two make float16 values that are subnormal or zero
def test_every_byte_under_every_scale(scale_2):
    packed = np.tile(np.arange(256, dtype=np.uint8), (256, 1))
    scale = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 2 * 256 // BLOCK, axis=1).view(ml_dtypes.float8_e4m3fn)
    expected = reference(packed, scale, np.float32(scale_2))
    for dtype in (np.float32, np.float16):
        found = decode(packed, scale, scale_2, dtype)
        assert found.dtype == dtype
        bits = np.dtype(f"u{found.itemsize}")  # -0.0 is not 0.0
        np.testing.assert_array_equal(found.view(bits), expected.astype(dtype).view(bits))


@pytest.mark.parametrize("shape", [(16,), (3, 32), (5, 7, 48)])
def test_scales_belong_to_their_blocks(shape):
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal(shape) * 10.0 ** rng.integers(-2, 2, shape)).astype(np.float32)
    packed, scale, scale_2 = encode(weight)
    np.testing.assert_array_equal(decode(packed, scale, scale_2), reference(packed, scale, scale_2))
    transposed = np.asfortranarray(packed), np.asfortranarray(scale)
    np.testing.assert_array_equal(decode(*transposed, scale_2, np.float16), decode(packed, scale, scale_2).astype(np.float16))
