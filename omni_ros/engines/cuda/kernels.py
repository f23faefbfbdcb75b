"""Launching the compiled kernels on a device's stream, through CUDA's driver API."""

import ctypes
import importlib
from pathlib import Path
from typing import Any

from omni_ros.engines.config import DecoderConfig
from omni_ros.engines.cuda.compiler import DECODE, PREFILL, load_kernels
from omni_ros.engines.cuda_device import CudaDevice
from omni_ros.errors import EngineError

NAMES = {
    DECODE: ("gemv", "attend", "gate_up", "down", "sample"),
    PREFILL: (
        "gemm",
        "norm_rows",
        "to_halves",
        "last_row",
        "route_rows",
        "scatter",
        "grouped_gate_up",
        "grouped_down",
        "rope_rows",
        "attend_rows",
    ),
}


class Kernels:
    """The kernels of some folders for one model's head size. They are unloaded with the device."""

    def __init__(self, device: CudaDevice, directory: Path, config: DecoderConfig, *folders: str, fp8_cache: bool = False):
        """`directory` is the engine's, beside which compiled kernels are kept; `fp8_cache`: of a KV cache in E4M3."""
        self.device = device
        try:
            self.driver = importlib.import_module("cuda.bindings.driver")
            target = self._target()
            group = config.num_heads // config.num_kv_heads
            image = load_kernels(directory, target, config.head_dim, group, *folders, fp8_cache=fp8_cache)
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

    def launch(self, name: str, grid: tuple[int, int], block: int, shared: int, *arguments: Any) -> None:
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

    def _call(self, function: Any, *arguments: object) -> Any:
        error, *values = function(*arguments)
        if error != self.driver.CUresult.CUDA_SUCCESS:
            text = self.driver.cuGetErrorString(error)[1]
            raise EngineError(f"{self.device.name}: CUDA failed ({text.decode()}); {self.device.outlook()}")
        return values[0] if values else None
