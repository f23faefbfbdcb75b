"""A decoder's weights in GPU memory, under the checkpoint's names and as the checkpoint stores them: NVFP4, FP8 or float16."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path

from omni_ros.engines.cuda.arguments import Matrix, Stacked, SwiGLU
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.errors import EngineError

CHUNK = 1 << 26  # bytes of weights.data that are read and sent at a time
BLOCK = 16  # weights that share an NVFP4 scale


@dataclass(frozen=True)
class Tensor:
    offset: int  # in weights.data
    shape: tuple[int, ...]
    nbytes: int


class DeviceWeights:
    """The tensors of weights.json, whose bytes are in weights.data.

    Whoever asks for one says its shape, as the kernels will read it: another one in the table is an EngineError.
    """

    def __init__(self, device: CudaDevice, directory: Path):
        self.table, path = directory / "weights.json", directory / "weights.data"
        try:
            self.tensors = read_table(self.table, path.stat().st_size)
            with path.open("rb", buffering=0) as file:
                self.base = self._send(device, file, path.stat().st_size)
        except OSError as e:
            raise EngineError(f"{path}: missing or damaged ({e}); build the engine again") from e

    def _send(self, device: CudaDevice, file: RawIOBase, size: int) -> int:
        base, buffer = device.memory(size), device.pinned(min(CHUNK, size))
        for start in range(0, size, CHUNK):
            part = buffer[: min(CHUNK, size - start)]
            if file.readinto(part.data) != len(part):
                raise OSError("it became shorter while it was read")
            device.upload(base + start, part)
            device.wait()
        return base

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def address(self, name: str, *shape: int) -> int:
        if name not in self.tensors:
            raise EngineError(f"{self.table} lacks {name}; build the engine again")
        if self.tensors[name].shape != shape:
            found = list(self.tensors[name].shape)
            raise EngineError(f"{self.table}: {name} is {found}, config.json needs {list(shape)}; build the engine again")
        return self.base + self.tensors[name].offset

    def matrix(self, name: str, *shape: int) -> Matrix:
        """[rows, K], or a stack of as many as there are experts, [experts, rows, K]."""
        data = self.address(name, *shape)
        if f"{name}_scale_2" not in self:
            return Matrix(data)
        if f"{name}_scale" not in self:  # FP8
            return Matrix(data, None, self.address(f"{name}_scale_2", *shape[:-2]))
        scale = self.address(f"{name}_scale", *shape[:-1], shape[-1] // BLOCK)
        return Matrix(data, scale, self.address(f"{name}_scale_2", *shape[:-2]))

    def stacked(self, rows: dict[str, int], width: int) -> Stacked:
        """Up to three matrices, by name, of so many rows each."""
        return Stacked.of(*((self.matrix(name, n, width), n) for name, n in rows.items()))

    def swiglu(self, names: Iterable[str], hidden: int, inner: int, *experts: int) -> SwiGLU:
        """The matrices `names`: gate, up, down; stacks of them where `experts` says how many there are."""
        gate, up, down = names
        first = [self.matrix(name, *experts, inner, hidden) for name in (gate, up)]
        return SwiGLU(*first, self.matrix(down, *experts, hidden, inner), inner)


def _bits(name: str, entries: dict) -> int:
    if name.endswith("_scale_2"):
        return 32
    if name.endswith("_scale"):
        return 8
    return 4 if f"{name}_scale" in entries else 8 if f"{name}_scale_2" in entries else 16


def read_table(path: Path, size: int) -> dict[str, Tensor]:
    """weights.json, every tensor of which lies inside the `size` bytes of weights.data."""
    try:
        entries, tensors = json.loads(path.read_text()), {}
        for name, entry in entries.items():
            offset, shape = entry["offset"], tuple(entry["shape"])
            if not all(type(n) is int and n >= 0 for n in (offset, *shape)) or offset % 16:
                raise ValueError(f"{name} has no such place")
            tensors[name] = Tensor(offset, shape, math.prod(shape) * _bits(name, entries) // 8)
            if offset + tensors[name].nbytes > size:
                raise ValueError(f"{name} lies outside weights.data")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise EngineError(f"{path}: missing or damaged ({e}); build the engine again") from e
    return tensors
