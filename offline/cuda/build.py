"""Build an engine for an NVIDIA GPU: weights alone where kernels of our own run it, a lowered graph where ONNX Runtime does."""

from omni_ros.engines.agreement import FP8
from omni_ros.errors import CheckpointError

from ..outputs.engine_folder import EngineFolder
from .lower_code2wav import Code2WavLowering
from .lower_encoder import lower_encoder
from .weights import write_weights


def build(folder: EngineFolder, kv_cache: str | None = None) -> None:
    """From a graph exported as float16 (encoders and Code2Wav: either; Code2Wav becomes float32). `kv_cache`: "fp8" for Thinker
    and Talker to keep keys and values in E4M3, with the scales that the checkpoint has for them, else 1.

    Raises CheckpointError for another dtype, and for a model that the GPU kernels cannot take.
    """
    config, weights, dtype = folder.config, "as exported", folder.config["dtype"]
    folder.add_self_check()
    if "decoder" in config:
        if dtype != "float16":
            raise CheckpointError(f"{folder.source}: exported as {dtype}; a GPU wants it exported with --dtype float16")
        folder.checksums["weights.data"] = write_weights(folder.source, folder.directory, config["decoder"])
        dtype = "float32"  # of what goes in and out
        for state in config["state"] if kv_cache == "fp8" else ():
            state["dtype"] = FP8
    elif folder.engine == "code2wav":
        lowering = Code2WavLowering(folder.source, folder.directory)
        lowering.run(config)
        folder.checksums["model.onnx.data"] = lowering.weights_sha256
        weights = dtype = "float32"
    else:
        folder.copy("model.onnx.data")
        if lower_encoder(folder.source, folder.directory):
            del folder.checksums["model.onnx.data"]  # it was changed in place
    folder.copy_sidecars()
    folder.write("cuda", weights, dtype)
