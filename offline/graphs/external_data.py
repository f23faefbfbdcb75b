"""Weights of an ONNX graph in one file beside it: written one part at a time, read back one tensor or slice at a time."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, numpy_helper

from ..quantization import nvfp4

ALIGN = 4096  # external tensors start on a page, so that runtimes can map them
ONNX_TYPE: dict[np.dtype, int] = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.bool_): TensorProto.BOOL,
    np.dtype(ml_dtypes.float8_e4m3fn): TensorProto.FLOAT8E4M3FN,
}
NUMPY_TYPE = {v: k for k, v in ONNX_TYPE.items()}


def in_parallel(part: Callable[[int], np.ndarray], count: int) -> Iterator[np.ndarray]:
    """part(0), part(1), ... part(count - 1) in this order, computed on all cores: parts for `ExternalData.add`.

    At most two parts per core are under way or waiting, so memory stays bounded however slow the disk is. Threads are
    enough, as numpy releases the interpreter's lock while it computes, reads and writes. What `part` raises is raised
    here; parts that have not begun by then never do.
    """
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(cores) as pool:
        ahead: deque[Future[np.ndarray]] = deque()
        try:
            for i in range(count):
                ahead.append(pool.submit(part, i))
                if len(ahead) == 2 * cores:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


class ExternalData:
    """The weight file of a graph that is being written; its checksum is taken on the way, beside the disk's work."""

    def __init__(self, directory: Path, name: str = "model.onnx.data"):
        self.name, self.file, self.hash = name, (directory / name).open("wb"), hashlib.sha256()
        self.hasher = ThreadPoolExecutor(1)

    def add(
        self, name: str, dtype: DTypeLike, shape: Iterable[int], parts: Iterable[np.ndarray], onnx_type: int | None = None
    ) -> TensorProto:
        """Append the parts, which together make one tensor, and return the initializer that points at them.

        `onnx_type` is for what numpy has no type for: FLOAT4E2M1, two codes in a uint8.
        """
        start = -(-self.file.tell() // ALIGN) * ALIGN
        gap = bytes(start - self.file.tell())
        self.file.write(gap)
        self.hash.update(gap)
        for part in parts:
            array = np.ascontiguousarray(part, dtype)
            hashed = self.hasher.submit(self.hash.update, array.reshape(-1).view(np.uint8).data)
            array.tofile(self.file)
            hashed.result()
        tensor = TensorProto(name=name, data_type=onnx_type or ONNX_TYPE[np.dtype(dtype)], dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self.name), ("offset", start), ("length", self.file.tell() - start)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def close(self) -> str:
        """Finish the file; returns its SHA-256."""
        self.file.close()
        self.hasher.shutdown()
        return self.hash.hexdigest()


class StoredGraph:
    """An exported model.onnx and its weights.

    `packed` maps the output of the DequantizeLinear nodes of a weight (and of the Cast behind them) to the initializers in
    front of it, of NVFP4 (codes, scale, scale_2) and of FP8 (codes, scale_2): whoever lowers the graph may take those as they
    are, or `read` the decoded value.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.model = onnx.load(directory / "model.onnx", load_external_data=False)
        self.tensors = {t.name: t for t in self.model.graph.initializer}
        producer = {o: n for n in self.model.graph.node for o in n.output}
        self.packed: dict[str, tuple[str, ...]] = {}
        for node in self.model.graph.node:
            codes = self.tensors.get(node.input[0]) if node.input else None
            if codes is not None and codes.data_type == TensorProto.FLOAT4E2M1:
                self.packed[node.output[0]] = (codes.name, *producer[node.input[1]].input[:2])
            elif codes is not None and node.op_type == "DequantizeLinear" and node.input[1] == f"{codes.name}_scale_2":
                self.packed[node.output[0]] = (codes.name, node.input[1])
            elif node.op_type == "Cast" and node.input[0] in self.packed:
                self.packed[node.output[0]] = self.packed[node.input[0]]
        self.nvfp4 = any(t.data_type == TensorProto.FLOAT4E2M1 for t in self.tensors.values())

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.packed

    def shape(self, name: str) -> list[int]:
        return list(self.tensors[self.packed[name][0] if name in self.packed else name].dims)

    def raw(self, name: str, index: int | None = None) -> np.ndarray:
        """Initializer `name`, or its slice `index` of the first axis, as stored; FP4 codes come packed, uint8 [..., K/2]."""
        t = self.tensors[name]
        if t.data_location != TensorProto.EXTERNAL:
            array = numpy_helper.to_array(t)
            return array if index is None else array[index]
        where, shape = {e.key: e.value for e in t.external_data}, list(t.dims)
        if t.data_type == TensorProto.FLOAT4E2M1:
            dtype, shape = np.dtype(np.uint8), [*shape[:-1], shape[-1] // 2]
        else:
            dtype = NUMPY_TYPE[t.data_type]
        offset = int(where["offset"])
        if index is not None:
            shape = shape[1:]
            offset += index * int(np.prod(shape)) * dtype.itemsize
        return np.fromfile(self.directory / where["location"], dtype, int(np.prod(shape)), offset=offset).reshape(shape)

    def read(self, name: str, index: int | None = None, dtype: DTypeLike = np.float32) -> np.ndarray:
        """`name`, or its slice `index` of the first axis: NVFP4 and FP8 decoded to `dtype`, float16 and float32 converted to it,
        all else as stored. `dtype` is float32 or float16; float16 is the float32 value, rounded once.
        """
        if name not in self.packed:
            array = self.raw(name, index)
            return array.astype(dtype, copy=False) if array.dtype in (np.float16, np.float32) else array
        if len(self.packed[name]) == 2:
            codes, scale_2 = self.packed[name]
            return (self.raw(codes).astype(np.float32) * self.raw(scale_2)).astype(dtype, copy=False)
        codes, scale, scale_2 = self.packed[name]
        last = self.raw(scale_2)  # [] for a matrix, [E] for a stack
        if last.ndim and index is None:
            return np.stack([self.read(name, e, dtype) for e in range(len(last))])
        return nvfp4.decode(self.raw(codes, index), self.raw(scale, index), last if index is None else last[index], dtype)
