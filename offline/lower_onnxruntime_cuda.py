"""Lower an exported encoder for ONNX Runtime on an NVIDIA GPU, in the export's own dtype.

  Attention -> com.microsoft MultiHeadAttention, which has fused kernels for more head sizes

Code2Wav: lower_code2wav_cuda.py. Decoders need no graph there: cuda_weights.py.
"""
import shutil
from pathlib import Path

import onnx
from onnx import helper

from offline.lower_onnxruntime import MICROSOFT, OPSET, encoder_attention, is_encoder_attention


def lower_encoder(source: Path, target: Path) -> None:
    """`source`'s model.onnx and model.onnx.data -> `target`'s; weights stay as they are."""
    model = onnx.load(source / "model.onnx", load_external_data=False)
    nodes = [encoder_attention(n) if is_encoder_attention(n) else n for n in model.graph.node]
    del model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(nodes)
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
    onnx.save(model, target / "model.onnx")
    shutil.copy(source / "model.onnx.data", target)
