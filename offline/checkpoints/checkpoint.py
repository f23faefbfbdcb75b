"""Read a Hugging Face checkpoint (config.json + one or many .safetensors) one tensor at a time.

Tensors are read with plain file reads, not a memory map, so that the resident memory of an export
stays near its largest tensor however large the model is. Nothing here needs torch.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from omni_ros.errors import CheckpointError

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


# Checkpoints that `offline.quantize` split off: their names lack the root's first component, their config.json keeps the
# root's whole config under "omni_config".
STANDALONE = {"qwen3_omni_moe_text": "thinker.", "qwen3_omni_moe_talker": "talker."}


@dataclass(frozen=True)
class TensorInfo:
    file: Path
    offset: int  # bytes from the start of the file
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class Checkpoint:
    """`config` is the parsed config.json of the whole model, `read(name)` one tensor; a part that was split off by
    `offline.quantize` reads as if its tensors still had their names in the whole."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        path = self.directory / "config.json"
        if not path.is_file():
            raise CheckpointError(f"{path}: not found; give the folder that holds config.json and *.safetensors")
        try:
            self.config: dict = json.loads(path.read_text())
        except ValueError as e:
            raise CheckpointError(f"{path}: not valid JSON ({e})") from e
        if not isinstance(self.config, dict):
            raise CheckpointError(f"{path}: must be a JSON object")
        self.on_read: Callable[[int], object] = lambda nbytes: None  # progress bars listen here
        self.tensors: dict[str, TensorInfo] = {}
        shards = sorted(self.directory.glob("*.safetensors"))
        if not shards:
            raise CheckpointError(f"{self.directory}: no *.safetensors file")
        for shard in shards:
            self.tensors.update(read_header(shard))
        self._check_index()
        prefix = STANDALONE.get(self.config.get("model_type", ""))
        self.part: str | None = None  # "thinker" or "talker", if it was split off for that
        if prefix and "omni_config" in self.config:
            self.part, self.config = prefix.removesuffix("."), self.config["omni_config"]
            self.tensors = {prefix + name: info for name, info in self.tensors.items()}
        self.unread = set(self.tensors)  # what no one has asked for yet

    def _check_index(self) -> None:
        """A sharded checkpoint whose index names a shard that is not here is an incomplete download."""
        index = self.directory / "model.safetensors.index.json"
        if index.is_file():
            try:
                names = set(json.loads(index.read_text())["weight_map"].values())
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                raise CheckpointError(f"{index}: not an index of shards ({e}); download it again") from e
            missing = sorted(n for n in names if not (self.directory / n).is_file())
            if missing:
                raise CheckpointError(f"{self.directory}: {index.name} names missing shards: {', '.join(missing)}")

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing")
        return self.tensors[name]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def nbytes(self, prefix: str) -> int:
        """Of all tensors whose names begin with `prefix`."""
        return sum(info.nbytes for name, info in self.tensors.items() if name.startswith(prefix))

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """One tensor, in its stored dtype; `shape`, when given, must be the stored shape."""
        info = self._asked_for(name, shape)
        count = int(np.prod(info.shape, dtype=np.int64))
        return np.fromfile(info.file, info.dtype, count, offset=info.offset).reshape(info.shape)

    def read_into(self, name: str, shape: tuple[int, ...], buffer: np.ndarray) -> None:
        """The bytes of one tensor, whose shape must be `shape`, into buffer uint8 [nbytes]."""
        info = self._asked_for(name, shape)
        with info.file.open("rb", buffering=0) as f:
            f.seek(info.offset)
            view, done = buffer.data, 0
            while done < info.nbytes:  # Linux reads 2 GB at most at once
                count = f.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{info.file}: truncated at {name}; download the file again")
                done += count

    def _asked_for(self, name: str, shape: tuple[int, ...] | None) -> TensorInfo:
        info = self.info(name)
        if shape is not None and info.shape != tuple(shape):
            raise CheckpointError(f"{info.file}: {name} has shape {list(info.shape)}, config.json asks for {list(shape)}")
        self.unread.discard(name)
        self.on_read(info.nbytes)
        return info


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensor table of one .safetensors file (8-byte length, JSON header, raw data)."""
    size, table = path.stat().st_size, {}
    try:
        with path.open("rb") as f:
            length = struct.unpack("<Q", f.read(8))[0]
            if length > size - 8:
                raise ValueError("header is longer than the file")
            header = json.loads(f.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise CheckpointError(f"{path}: {name} has unsupported dtype {entry['dtype']}")
            begin, end = entry["data_offsets"]
            info = TensorInfo(path, 8 + length + begin, np.dtype(DTYPES[entry["dtype"]]), tuple(entry["shape"]))
            if end - begin != info.nbytes or 8 + length + end > size:
                raise CheckpointError(f"{path}: truncated at {name}; download the file again")
            table[name] = info
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path}: not a safetensors file ({e}); download it again") from e
    return table


def write_safetensors(
    path: Path, tensors: dict[str, tuple[np.dtype, tuple[int, ...], Iterable[np.ndarray]]], metadata: dict[str, str] | None = None
) -> None:
    """Write name -> (dtype, shape, parts in order) without ever holding more than one part in memory."""
    names = {np.dtype(v): k for k, v in DTYPES.items()}
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for name, (dtype, shape, _) in tensors.items():
        end = offset + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {"dtype": names[np.dtype(dtype)], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(encoded)) + encoded)
        for dtype, _, parts in tensors.values():
            for part in parts:
                np.ascontiguousarray(part, dtype).tofile(f)
