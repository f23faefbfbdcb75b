"""An NVIDIA GPU, `--device cuda`: our kernels for Thinker, Talker and CodePredictor, ONNX Runtime for encoders and Code2Wav."""

from pathlib import Path

from omni_ros.engines import cuda_device
from omni_ros.engines.config import EngineConfig
from omni_ros.engines.cuda.code_predictor import CudaCodePredictor
from omni_ros.engines.cuda.decoder import CudaDecoder
from omni_ros.engines.cuda.projection import CudaProjection
from omni_ros.engines.engine import Engine
from omni_ros.errors import EngineError


def open_engine(directory: Path, config: EngineConfig, threads: int) -> Engine:
    if cuda_device.gpu_target() is None:
        raise EngineError(
            f"{directory}: built for a GPU, and none answers here (nvidia-smi shows what the driver sees); or "
            "build the engines with --device cpu"
        )
    if config.engine == "code_predictor":
        return CudaCodePredictor(directory, config)
    if config.engine in ("thinker", "talker"):
        return CudaDecoder(directory, config)
    from omni_ros.engines.cuda.onnxruntime_engine import OnnxRuntimeCudaEngine  # onnxruntime-gpu, only when used

    return OnnxRuntimeCudaEngine(directory, config, threads)


def open_projection(talker: Engine, path: Path) -> CudaProjection:
    assert isinstance(talker, CudaDecoder)
    projection = CudaProjection(path, talker.decoder)
    talker.closing.append(projection.close)
    return projection
