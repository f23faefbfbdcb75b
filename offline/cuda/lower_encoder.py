"""Lower an exported encoder for ONNX Runtime on an NVIDIA GPU, in the export's own dtype.

  Attention -> com.microsoft MultiHeadAttention, which has fused kernels for more head sizes
  Conv      -> matrix products: lower_audio.py

Code2Wav: lower_code2wav.py. Decoders need no graph there: weights.py.
"""

from pathlib import Path

import onnx
from onnx import helper

from ..graphs.external_data import StoredGraph
from ..onnxruntime.lower import MICROSOFT, OPSET, encoder_attention, is_encoder_attention
from .lower_audio import AudioLowering


def lower_encoder(source: Path, target: Path) -> bool:
    """`source`'s model.onnx -> `target`'s, which has a copy of model.onnx.data. Returns whether that was changed: weights keep
    their dtype, and those of convolutions get another order."""
    stored = StoredGraph(source)
    model, nodes = stored.model, stored.model.graph.node
    has_convolutions = any(n.op_type == "Conv" for n in nodes)
    if has_convolutions:
        nodes = AudioLowering(stored, target).run()
    nodes = [encoder_attention(n) if is_encoder_attention(n) else n for n in nodes]
    del model.graph.node[:], model.opset_import[:]
    model.graph.node.extend(nodes)
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
    onnx.save(model, target / "model.onnx")
    return has_convolutions
