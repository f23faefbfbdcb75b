"""Graphs for TensorRT 8.6: lowered to opset 17, they compute what they did."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from opset_17 import load, to_opset_17

from offline.build_engines import ENGINES
from offline.tensorrt.lower import Lowering
from omni_ros.engines.config import read_config

# What opset_17.py was written for: the operators that TensorRT 8.6's parser does not have, of those that we export.
UNKNOWN = ("TensorScatter", "Attention", "RMSNormalization", "RotaryEmbedding", "Swish", "Gelu")
SIZES = {"S": 5, "frames": 3, "windows": 1, "chunks": 2, "tokens": 20, "n": 16}


@pytest.mark.parametrize("folder", ENGINES)
def test_computes_the_same(engine_dirs: dict[str, Path], tmp_path: Path, name: str, folder: str):
    exported = engine_dirs[name].with_name(f"{name}-onnx") / ENGINES[folder]
    Lowering(exported, tmp_path, 16, "generic", lambda op: op not in UNKNOWN).run()
    newer = load(tmp_path / "model.onnx")
    model = to_opset_17(newer)
    onnx.checker.check_model(model, full_check=True)
    assert all(schema_version(node.op_type) <= 17 for node in model.graph.node)
    assert not any(a.name in ("start", "end", "num_outputs") for node in model.graph.node for a in node.attribute)
    feed = inputs(newer, read_config(engine_dirs[name] / folder).engine)
    for past in (0, 3) if "past_length" in feed else (0,):
        if "past_length" in feed:
            feed["past_length"] = np.full_like(feed["past_length"], past)
        first, second = (run(graph, feed) for graph in (newer, model))
        for output, expected in first.items():
            np.testing.assert_allclose(second[output], expected, atol=1e-4, err_msg=output)


def schema_version(op_type: str) -> int:
    return onnx.defs.get_schema(op_type, 17).since_version


def inputs(model: onnx.ModelProto, engine: str) -> dict[str, np.ndarray]:
    rng, feed = np.random.default_rng(0), {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        sizes = SIZES | ({"frames": 1} if engine == "visual" else {"frames": 100} if engine == "audio" else {})
        shape = [d.dim_value or sizes[d.dim_param] for d in kind.shape.dim]
        whole = kind.elem_type == onnx.TensorProto.INT64
        feed[value.name] = rng.integers(0, 5, shape) if whole else rng.standard_normal(shape).astype(np.float32)
    return feed


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feed)))
