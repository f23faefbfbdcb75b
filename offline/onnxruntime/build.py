"""Build an engine for ONNX Runtime on a CPU."""

from ..outputs.engine_folder import EngineFolder
from .int4 import Int4Graph
from .lower import Lowering

INT4_ENGINES = ("thinker", "talker", "code_predictor")  # the encoders and Code2Wav keep their precision


def build(folder: EngineFolder, weights: str = "float32") -> None:
    """`weights`: "float32" or "int4"."""
    int4 = weights == "int4" and folder.engine in INT4_ENGINES
    folder.add_self_check(Int4Graph(folder.source) if int4 else None)
    lowering = Lowering(folder.source, folder.directory, int4)
    lowering.run(folder.config["limits"])
    folder.checksums["model.onnx.data"] = lowering.weights_sha256
    folder.copy_sidecars()
    folder.write("onnxruntime", "int4" if int4 else "float32", "float32")
