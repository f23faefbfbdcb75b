"""An NVIDIA GPU, `--device cuda`: our kernels for Thinker, Talker and CodePredictor, ONNX Runtime for encoders and Code2Wav."""

from pathlib import Path

from omni_ros.engines import cuda_device
from omni_ros.engines.config import DecoderConfig, EngineConfig
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
    if config.engine in ("thinker", "talker", "code_predictor"):
        check_decoder(directory / "config.json", config.decoder)
    if config.engine == "code_predictor":
        return CudaCodePredictor(directory, config)
    if config.engine in ("thinker", "talker"):
        return CudaDecoder(directory, config)
    from omni_ros.engines.cuda.onnxruntime_engine import OnnxRuntimeCudaEngine  # onnxruntime-gpu, only when used

    return OnnxRuntimeCudaEngine(directory, config, threads)


def open_projection(talker: CudaDecoder, path: Path) -> CudaProjection:
    projection = CudaProjection(path, talker.config.decoder)
    talker.closing.append(projection.close)
    return projection


def check_decoder(path: Path, config: DecoderConfig | None) -> None:
    """Sizes that the kernels can divide by; that the weights have them is checked as they are used."""
    if config is None:
        raise EngineError(f"{path}: lacks decoder; build the engine again")
    c = config
    for wrong, what in (
        (not all((c.vocab_size, c.hidden_size, c.num_layers, c.num_heads, c.num_kv_heads)), "a size of 0"),
        (c.head_dim % 32 or not 32 <= c.head_dim <= 256, f"head_dim {c.head_dim}"),
        (c.num_kv_heads and c.num_heads % c.num_kv_heads, f"num_heads {c.num_heads} for {c.num_kv_heads} key heads"),
        (c.top_k > min(c.num_experts, 15), f"top_k {c.top_k} of {c.num_experts} experts"),
        (len(c.mrope_section) != 3 or sum(c.mrope_section) > c.head_dim // 2, f"mrope_section {c.mrope_section}"),
        (c.accept_hidden_layer > c.num_layers, f"accept_hidden_layer {c.accept_hidden_layer} of {c.num_layers}"),
    ):
        if wrong:
            raise EngineError(f"{path}: decoder has {what}; build the engine again")
