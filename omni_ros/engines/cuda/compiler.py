"""The kernels of decode/ and prefill/ on the GPU: compiled by NVRTC when an engine is loaded, their arguments, their weights."""

import ctypes
import functools
import importlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.errors import EngineError

HERE = Path(__file__).parent / "kernels"
DECODE, PREFILL = "decode", "prefill"  # the folders; prefill/ needs decode/
SOURCES = {
    DECODE: ("rows", "project", "attend", "feed_forward", "sample"),
    PREFILL: ("tiles", "multiply", "norm", "experts", "attend_rows"),
}
NAMES = {
    DECODE: ("project", "attend", "gate_up", "down", "sample"),
    PREFILL: (
        "multiply",
        "norm_rows",
        "to_halves",
        "last_row",
        "route_rows",
        "place",
        "gate_up_tiles",
        "down_tiles",
        "rotate_rows",
        "attend_rows",
    ),
}
CHUNK = 1 << 26  # bytes of a weight file that are read and sent at a time


class Matrix(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("scale_2", ctypes.c_void_p)]


class Stacked(ctypes.Structure):
    _fields_ = [("matrix", Matrix * 3), ("rows", ctypes.c_int * 3)]


class Projection(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("eps", ctypes.c_float),
        ("K", ctypes.c_int),
        ("out", ctypes.c_void_p),
        ("add", ctypes.c_int),
        ("normed", ctypes.c_void_p),
    ]


class Rotary(ctypes.Structure):
    _fields_ = [("q_norm", ctypes.c_void_p), ("k_norm", ctypes.c_void_p), ("eps", ctypes.c_float), ("turn", ctypes.c_void_p)]


class SwiGLU(ctypes.Structure):
    _fields_ = [("gate", Matrix), ("up", Matrix), ("down", Matrix), ("inner", ctypes.c_int)]


class FeedForward(ctypes.Structure):
    _fields_ = [
        ("expert", SwiGLU),
        ("shared", SwiGLU),
        ("experts", ctypes.c_int),
        ("top_k", ctypes.c_int),
        ("normalize", ctypes.c_int),
        ("logits", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("gated", ctypes.c_int),
        ("hidden", ctypes.c_int),
    ]


class Product(ctypes.Structure):
    _fields_ = [
        ("x", ctypes.c_void_p),
        ("K", ctypes.c_int),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("add", ctypes.c_int),
        ("rows", ctypes.c_void_p),
    ]


class Pending(ctypes.Structure):
    _fields_ = [
        ("routed", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("position", ctypes.c_void_p),
        ("top_k", ctypes.c_int),
        ("shared", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("experts", ctypes.c_int),
        ("gated", ctypes.c_int),
        ("accepted", ctypes.c_void_p),
        ("features", ctypes.c_void_p),
        ("visual", ctypes.c_void_p),
    ]


class Group(ctypes.Structure):
    _fields_ = [("tiles", ctypes.c_void_p), ("experts", ctypes.c_int), ("top_k", ctypes.c_int), ("rows", ctypes.c_void_p)]


class Kernels:
    """The kernels of some folders for one model's head size, on one device's stream."""

    def __init__(self, device: CudaDevice, head_dim: int, group: int, *folders: str):
        self.device = device
        try:
            self.driver = importlib.import_module("cuda.bindings.driver")
            target = self._target()
            image = compile_kernels(target, head_dim, group, *folders)
        except (ImportError, RuntimeError) as e:  # cuda-bindings without the compiler's library raises the latter
            raise EngineError(
                f"{device.name}: CUDA's run-time compiler is missing ({e}): pip install nvidia-cuda-nvrtc, of the "
                "CUDA version (12 or 13) that nvidia-smi shows"
            ) from e
        module = self._call(self.driver.cuModuleLoadData, image)
        device.undo.callback(self.driver.cuModuleUnload, module)
        self.overlap = int(target[3:]) >= 90  # rows.cu: wait_for_previous
        self.functions = {
            name: self._call(self.driver.cuModuleGetFunction, module, name.encode())
            for folder in folders
            for name in NAMES[folder]
        }

    def launch(self, name: str, grid: tuple[int, int], block: int, shared: int, *arguments: object) -> None:
        """Put one kernel on the stream. `arguments` are ctypes values, as the kernel declares them."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        driver, config = self.driver, self.driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = *grid, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = block, 1, 1
        config.sharedMemBytes, config.hStream = shared, int(self.device.stream)
        if self.overlap:
            attribute = driver.CUlaunchAttribute()
            attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attribute.value.programmaticStreamSerializationAllowed = 1
            config.attrs, config.numAttrs = [attribute], 1
        self._call(driver.cuLaunchKernelEx, config, self.functions[name], ctypes.addressof(pointers), 0)

    def _target(self) -> str:
        kinds = self.device.cuda.cudaDeviceAttr
        return "sm_" + "".join(
            str(self.device.call(self.device.cuda.cudaDeviceGetAttribute, kind, 0))
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        )

    def _call(self, function: object, *arguments: object) -> object:
        error, *values = function(*arguments)
        if error != self.driver.CUresult.CUDA_SUCCESS:
            text = self.driver.cuGetErrorString(error)[1]
            raise EngineError(f"{self.device.name}: CUDA failed ({text.decode()}); {self.device.outlook()}")
        return values[0] if values else None


def source(*folders: str) -> str:
    """Their files as one text, in which compilers still name the file of a mistake."""
    paths = [HERE / folder / f"{name}.cu" for folder in folders for name in SOURCES[folder]]
    return "".join(f'#line 1 "{path.name}"\n{path.read_text()}' for path in paths)


@functools.cache
def compile_kernels(target: str, head_dim: int, group: int, *folders: str) -> bytes:
    """Those of `folders` as machine code for a GPU such as "sm_110"; `group` query heads share a key head. Needs no GPU.

    Takes seconds. Raises EngineError for a GPU before sm_80, which the kernels' instructions need.
    """
    if int(target[3:]) < 80:
        raise EngineError(f"the GPU here is {target}; --device cuda needs sm_80 (Ampere) or newer. Build with --device cpu")
    nvrtc = importlib.import_module("cuda.bindings.nvrtc")
    options = [o.encode() for o in (f"--gpu-architecture={target}", "--std=c++17", f"-DHEAD_DIM={head_dim}", f"-DGROUP={group}")]
    _, program = nvrtc.nvrtcCreateProgram(source(*folders).encode(), b"kernels.cu", 0, [], [])
    try:
        (error,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytes(nvrtc.nvrtcGetProgramLogSize(program)[1])
            nvrtc.nvrtcGetProgramLog(program, log)
            raise EngineError(f"{HERE}: does not compile for {target}: {log.decode(errors='replace').strip()}")
        image = bytes(nvrtc.nvrtcGetCUBINSize(program)[1])
        nvrtc.nvrtcGetCUBIN(program, image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return image


@dataclass(frozen=True)
class Tensor:
    address: int
    shape: tuple[int, ...]


class DeviceWeights:
    """The tensors of weights.json, whose bytes are in weights.data, in GPU memory under the checkpoint's names."""

    def __init__(self, device: CudaDevice, directory: Path):
        table = directory / "weights.json"
        try:
            entries = json.loads(table.read_text())
            data = np.memmap(directory / "weights.data", np.uint8, mode="r")
            base = device.memory(len(data))
            self.tensors = {name: Tensor(base + e["offset"], tuple(e["shape"])) for name, e in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            raise EngineError(f"{table}: missing or damaged ({e}); build the engine again") from e
        buffer = device.pinned(min(CHUNK, len(data)))
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            buffer[: len(part)] = part
            device.upload(base + start, buffer[: len(part)])
            device.wait()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise EngineError(f"weights.json lacks {name}; build the engine again")
        return self.tensors[name]

    def address(self, name: str) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.tensor(name).address)

    def matrix(self, name: str) -> Matrix:
        scales = [f"{name}_scale", f"{name}_scale_2"] if f"{name}_scale" in self else []
        return Matrix(*(self.tensor(n).address for n in (name, *scales)))

    def stacked(self, *names: str) -> tuple[Stacked, int]:
        """Matrices of equal width, and how many rows they have together."""
        rows = [self.tensor(n).shape[0] for n in names]
        return Stacked((Matrix * 3)(*map(self.matrix, names)), (ctypes.c_int * 3)(*rows)), sum(rows)

    def swiglu(self, gate: str, up: str, down: str) -> SwiGLU:
        return SwiGLU(*map(self.matrix, (gate, up, down)), self.tensor(gate).shape[-2])


def float_bytes(*shape: int) -> int:
    return 4 * math.prod(shape)
