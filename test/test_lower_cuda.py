"""`--device cuda`: what can be said about the graphs without a GPU. Their numbers are checked where there is one."""
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from conftest import run
from nvfp4_reference import split

from offline import build_engines, lower_onnxruntime_cuda
from offline.checkpoint import Checkpoint
from offline.external_data import StoredGraph
from offline.lower_onnxruntime_cuda import pack_along_outputs
from offline.nvfp4 import decode, encode
from omni_ros.engines.engine import open_engine
from omni_ros.errors import EngineError


@pytest.fixture(scope="module")
def built(checkpoints, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cuda")
    root = Checkpoint(checkpoints["plain"])
    for name, part in split(root, out).items():
        run("offline.export_onnx", part.directory, out / "onnx", "--components", name, "--dtype", "float16")
    run("offline.export_onnx", root.directory, out / "onnx", "--skip-llm", "--dtype", "float16")
    run("offline.build_engines", out / "onnx", out / "as_built", "--device", "cuda")
    with pytest.MonkeyPatch.context() as patch:  # these experts are as narrow as the Talker's: let them be QMoE all the same
        patch.setattr(lower_onnxruntime_cuda, "QMOE_MIN_INNER", 0)
        assert build_engines.main([str(out / "onnx"), str(out / "engines"), "--device", "cuda"]) == 0
    return out


def graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def test_decode_graphs_have_constant_sizes_and_fused_operators(built):
    """What a CUDA graph needs, and that nothing was left to be computed twice."""
    for name, layers, experts in (("thinker", 4, "QMoE"), ("talker", 3, "QMoE")):
        decode_graph = graph(built / "engines" / name / "model.onnx")
        dims = [d for v in [*decode_graph.input, *decode_graph.output] for d in v.type.tensor_type.shape.dim]
        assert dims and all(d.HasField("dim_value") for d in dims)
        ops = Counter(n.op_type for n in decode_graph.node)
        assert ops["GroupQueryAttention"] == ops[experts] == layers
        assert not {"RotaryEmbedding", "RMSNormalization", "Attention", "Range", "Shape"} & ops.keys()
        prefill = Counter(n.op_type for n in graph(built / "engines" / name / "prefill.onnx").node)
        assert prefill["GroupQueryAttention"] == prefill["MoE"] == layers and not prefill["QMoE"]
    predictor = Counter(n.op_type for n in graph(built / "engines" / "code_predictor" / "model.onnx").node)
    assert predictor["GroupQueryAttention"] == 15 * 2 and not predictor["Attention"]


def test_narrow_experts_stay_16_bit(built):
    ops = Counter(n.op_type for n in graph(built / "as_built" / "talker" / "model.onnx").node)
    assert ops["MoE"] == 3 and not ops["QMoE"]


def test_one_engine_two_graphs_one_cache(built):
    config = json.loads((built / "engines" / "thinker" / "config.json").read_text())
    assert config["device"] == "cuda" and config["cuda_graph"] and config["dtype"] == "float16"
    names = [{v.name for v in [*g.input, *g.output]} for g in (
        graph(built / "engines" / "thinker" / f"{n}.onnx") for n in ("model", "prefill"))]
    assert names[0] == names[1] >= {s[side] for s in config["state"] for side in ("input", "output")}


def test_prefill_weights_are_the_decoded_ones(built):
    """The 16-bit experts of the many-row graph are the NVFP4 values, gate and up rows in turn."""
    exported = StoredGraph(built / "onnx" / "thinker" / "llm")
    lowered = onnx.load(built / "engines" / "thinker" / "prefill.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in lowered.graph.initializer}
    moe = next(n for n in exported.model.graph.node if n.op_type == "MoE")
    gate, up, down = moe.input[2:5]
    node = next(n for n in lowered.graph.node if n.op_type == "MoE")
    np.testing.assert_array_equal(stored[node.input[2]][:, 0::2], exported.read(gate).astype(np.float16))
    np.testing.assert_array_equal(stored[node.input[2]][:, 1::2], exported.read(up).astype(np.float16))
    np.testing.assert_array_equal(stored[node.input[4]], exported.read(down).astype(np.float16))


def test_repacking_keeps_every_code():
    weight = np.random.default_rng(0).standard_normal((24, 64)).astype(np.float32)
    packed, scale, scale_2 = encode(weight)
    turned = pack_along_outputs(packed)  # [K, N/2]
    assert turned.shape == (64, 12)
    np.testing.assert_array_equal(pack_along_outputs(turned), packed)  # turning twice is turning back
    np.testing.assert_array_equal(decode(pack_along_outputs(turned), scale, scale_2), decode(packed, scale, scale_2))


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this machine could load it")
def test_without_a_gpu_the_error_names_the_fix(built):
    with pytest.raises(EngineError, match="onnxruntime-gpu.*--device cpu"):
        open_engine(built / "engines" / "thinker")


def test_a_float32_export_is_refused(engine_dirs, tmp_path, capfd):
    onnx_dir = next(engine_dirs["plain"].parent.glob("plain-onnx"))
    assert build_engines.main([str(onnx_dir), str(tmp_path / "out"), "--device", "cuda"]) == 1
    assert "--dtype float16" in capfd.readouterr().err
