"""Lower an exported encoder for ONNX Runtime on an NVIDIA GPU, in the export's own dtype.

  Attention -> com.microsoft MultiHeadAttention, which has fused kernels for more head sizes
  Conv      -> matrix products: lower_audio_cuda.py

Code2Wav: lower_code2wav_cuda.py. Decoders need no graph there: cuda_weights.py.
"""

import shutil
from pathlib import Path

import onnx
from onnx import helper

from offline.cuda.lower_audio import AudioLowering
from offline.graphs.external_data import StoredGraph
from offline.onnxruntime.lower import MICROSOFT, OPSET, encoder_attention, is_encoder_attention


def lower_encoder(source: Path, target: Path) -> None:
    """`source`'s model.onnx and model.onnx.data -> `target`'s; weights keep their dtype and, but for the convolutions' order,
    stay as they are."""
    shutil.copy(source / "model.onnx.data", target)
    stored = StoredGraph(source)
    model, nodes = stored.model, stored.model.graph.node
    if any(n.op_type == "Conv" for n in nodes):
        nodes = AudioLowering(stored, target).run()
    nodes = [encoder_attention(n) if is_encoder_attention(n) else n for n in nodes]
    del model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(nodes)
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
    onnx.save(model, target / "model.onnx")
