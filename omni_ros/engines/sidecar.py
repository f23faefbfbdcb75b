"""Weights that live beside a graph (.safetensors): embeddings and projections that the pipeline applies itself.

Files are read, never mapped: a file that shrinks under a running process ends a process that has it mapped (SIGBUS).
"""

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from omni_ros.engines.config import SidecarTensor
from omni_ros.errors import EngineError

SAFETENSORS_DTYPES = {"F32": "float32", "F16": "float16", "F8_E4M3": "uint8"}  # of the last, the codes: see FP8_E4M3
IN_MEMORY = 256 << 20  # bytes up to which an embedding is kept in memory; of a larger one rows are read when they are needed
BLOCK = 1 << 20  # bytes that are looked at together
# What each of the 256 FP8 E4M3 codes is worth (OFP8 "fn": no infinity, 0x7f is NaN)
_code = np.arange(128)
_exponent, _mantissa = _code >> 3, _code & 7
_positive = np.where(_exponent == 0, _mantissa / 8 * 2.0**-6, (1 + _mantissa / 8) * 2.0 ** (_exponent - 7.0))
_positive[127] = np.nan
FP8_E4M3 = np.concatenate([_positive, -_positive]).astype(np.float32)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in an open file."""

    path: Path
    file: BinaryIO
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes of the tensor from `start` on."""
        data = os.pread(self.file.fileno(), size, self.offset + start)
        if len(data) < size:
            raise EngineError(f"{self.path}: shorter than when it was opened; replace engines by rename, and build them again")
        return data

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self) -> np.ndarray:
        """All of it, in memory."""
        data = bytearray(self.nbytes)
        for start in range(0, len(data), BLOCK):
            data[start : start + BLOCK] = self.read(start, min(BLOCK, len(data) - start))
        return np.frombuffer(data, self.dtype).reshape(self.shape)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Rows `ids` [n] of a matrix, in memory [n, width]."""
        count, width = self.shape
        if len(ids) and not 0 <= ids.min() <= ids.max() < count:
            raise IndexError(f"{self.path}: rows from {ids.min()} to {ids.max()} of {count}")
        size = width * self.dtype.itemsize
        data = b"".join(self.read(i * size, size) for i in ids.tolist())
        return np.frombuffer(data, self.dtype).reshape(len(ids), width)


class Sidecar:
    """An open .safetensors file: `tensors` by name. Raises EngineError when its header is damaged or the file too short."""

    def __init__(self, path: Path):
        self.path = path
        self.tensors: dict[str, Stored] = {}
        try:
            file = path.open("rb")
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                (begin, end), shape = entry["data_offsets"], tuple(entry["shape"])
                if not all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
                    raise ValueError(f"{name} has no such shape")
                tensor = Stored(path, file, np.dtype(SAFETENSORS_DTYPES[entry["dtype"]]), shape, 8 + length + begin)
                if end > size - 8 - length or end - begin != tensor.nbytes:
                    raise ValueError(f"{name} lies outside the file")
                self.tensors[name] = tensor
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as e:
            raise EngineError(f"{path}: missing or damaged ({e}); export and build the engine again") from e

    def tensor(self, name: str, *shape: int | None) -> Stored:
        """Raises EngineError when it is not there, or of another shape; None is any size."""
        if name not in self.tensors:
            raise EngineError(f"{self.path}: tensor {name} is missing; export the engine again")
        found = self.tensors[name]
        if len(found.shape) != len(shape) or any(n is not None and n != m for n, m in zip(shape, found.shape)):
            raise EngineError(f"{self.path}: {name} is {list(found.shape)}, not {list(shape)}; export the engine again")
        return found


def check_sidecar(path: Path, expected: dict[str, SidecarTensor]) -> None:
    """The file has the tensors that config.json lists, and nothing but a bias is all zero."""
    sidecar = Sidecar(path)
    for name, entry in expected.items():
        tensor, dtype = sidecar.tensor(name, *entry.shape), "uint8" if entry.dtype.startswith("float8") else entry.dtype
        if tensor.dtype != dtype:
            raise EngineError(f"{path}: {name} is {tensor.dtype}, config.json says {dtype}; export the engine again")
        blocks = (tensor.read(i, min(BLOCK, tensor.nbytes - i)) for i in range(0, tensor.nbytes, BLOCK))
        if not name.endswith("bias") and not any(block.strip(b"\0") for block in blocks):  # the first nearly always decides
            raise EngineError(f"{path}: {name} is all zero; export the engine again from a complete checkpoint")


class Embedding:
    """A token table [vocab, hidden]; `embedding[ids]` is float32 [len(ids), hidden]."""

    def __init__(self, path: Path):
        sidecar = Sidecar(path)
        stored = sidecar.tensor("weight", None, None)
        self.weight: np.ndarray | Stored = stored.array() if stored.nbytes <= IN_MEMORY else stored
        self.scale = sidecar.tensor("scale", stored.shape[0]).array() if "scale" in sidecar.tensors else None

    def __getitem__(self, ids: np.ndarray | list[int]) -> np.ndarray:
        ids = np.asarray(ids)
        rows = self.weight[ids] if isinstance(self.weight, np.ndarray) else self.weight.rows(ids)
        if self.scale is not None:
            return FP8_E4M3[rows] * self.scale[ids, None]
        return rows.astype(np.float32)


class Projection:
    """Qwen3OmniMoeTalkerResizeMLP: linear, SiLU, linear; [n, thinker hidden] -> [n, talker hidden], float32."""

    def __init__(self, path: Path):
        (w1, b1), (w2, b2) = open_projection_weights(path)
        self.weights = [np.ascontiguousarray(w.astype(np.float32).T) for w in (w1, w2)]  # [in, out]
        self.biases = [b.astype(np.float32) for b in (b1, b2)]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = x @ self.weights[0] + self.biases[0]
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and a number divided by that 0, as it should be
            y = y / (1 + np.exp(-y))
        return y @ self.weights[1] + self.biases[1]


def open_projection_weights(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of both layers: weight [out, in], bias [out]. Raises EngineError when they do not fit each other."""
    sidecar, layers, width = Sidecar(path), [], None
    for name in ("linear_fc1", "linear_fc2"):
        weight = sidecar.tensor(f"{name}.weight", None, width)
        width = weight.shape[0]
        layers.append((weight.array(), sidecar.tensor(f"{name}.bias", width).array()))
    return layers
