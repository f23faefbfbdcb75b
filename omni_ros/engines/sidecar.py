"""Weights that live beside a graph (.safetensors): embeddings and projections that the pipeline applies itself."""

import json
import struct
from pathlib import Path

import numpy as np

from omni_ros.errors import EngineError

SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "F8_E4M3": "float8_e4m3fn"}
# What each of the 256 FP8 E4M3 codes is worth (OFP8 "fn": no infinity, 0x7f is NaN)
_code = np.arange(128)
_exponent, _mantissa = _code >> 3, _code & 7
_positive = np.where(_exponent == 0, _mantissa / 8 * 2.0**-6, (1 + _mantissa / 8) * 2.0 ** (_exponent - 7.0))
_positive[127] = np.nan
FP8_E4M3 = np.concatenate([_positive, -_positive]).astype(np.float32)


def open_sidecar(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a .safetensors file as read-only memory maps: nothing is read until it is used.

    float8 tensors come as their uint8 codes (see FP8_E4M3). Raises EngineError when the file is damaged.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            length = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(length)) if length <= size - 8 else None
        header.pop("__metadata__", None)
        data = np.memmap(path, np.uint8, mode="r", offset=8 + length)
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data):
                raise ValueError(f"{name} lies outside the file")
            dtype = np.dtype(np.uint8 if entry["dtype"] == "F8_E4M3" else SAFETENSORS_DTYPES[entry["dtype"]])
            tensors[name] = data[begin:end].view(dtype).reshape(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as e:
        raise EngineError(f"{path}: missing or damaged ({e}); export and build the engine again") from e
    return tensors


def check_sidecar(path: Path, expected: dict[str, dict]) -> None:
    """The file has the tensors that config.json lists, and nothing but a bias is all zero."""
    tensors = open_sidecar(path)
    for name, entry in expected.items():
        if name not in tensors:
            raise EngineError(f"{path}: tensor {name} is missing; export the engine again")
        if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str) or not isinstance(entry.get("shape"), list):
            raise EngineError(f"{path.parent / 'config.json'}: does not say dtype and shape of {name}; build the engine again")
        tensor, dtype = tensors[name], "uint8" if entry["dtype"].startswith("float8") else entry["dtype"]
        if list(tensor.shape) != entry["shape"] or str(tensor.dtype) != dtype:
            raise EngineError(
                f"{path}: {name} is {tensor.dtype}{list(tensor.shape)}, config.json says "
                f"{dtype}{entry['shape']}; export the engine again"
            )
        blocks = np.array_split(tensor, max(1, len(tensor) // 4096))  # the first block nearly always decides
        if not name.endswith("bias") and not any(block.any() for block in blocks):
            raise EngineError(f"{path}: {name} is all zero; export the engine again from a complete checkpoint")


class Embedding:
    """A token table [vocab, hidden] on disk; `embedding[ids]` reads only the rows it needs, as float32."""

    def __init__(self, path: Path):
        tensors = open_sidecar(path)
        self.weight, self.scale = tensors["weight"], tensors.get("scale")

    def __getitem__(self, ids: np.ndarray | list[int]) -> np.ndarray:
        rows = self.weight[np.asarray(ids)]
        if self.scale is not None:
            return FP8_E4M3[rows] * self.scale[np.asarray(ids), None]
        return rows.astype(np.float32)


class Projection:
    """Qwen3OmniMoeTalkerResizeMLP: linear, SiLU, linear; [n, thinker hidden] -> [n, talker hidden], float32."""

    def __init__(self, path: Path):
        t = {k: np.asarray(v, np.float32) for k, v in open_sidecar(path).items()}
        self.weights = [np.ascontiguousarray(t[f"linear_fc{i}.weight"].T) for i in (1, 2)]  # [in, out]
        self.biases = [t[f"linear_fc{i}.bias"] for i in (1, 2)]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weights[0] + self.biases[0]
        return (y / (1 + np.exp(-y))) @ self.weights[1] + self.biases[1]
