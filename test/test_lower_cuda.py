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

from offline import build_engines
from offline.checkpoint import Checkpoint
from offline.external_data import StoredGraph
from offline.make_checkpoint import make_checkpoint
from omni_ros.engines.engine import open_engine
from omni_ros.errors import EngineError


@pytest.fixture(scope="module")
def built(checkpoints, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cuda")
    root = Checkpoint(checkpoints["plain"])
    for name, part in split(root, out).items():
        run("offline.export_onnx", part.directory, out / "onnx", "--components", name, "--dtype", "float16")
    run("offline.export_onnx", root.directory, out / "onnx", "--skip-llm", "--dtype", "float16")
    run("offline.build_engines", out / "onnx", out / "engines", "--device", "cuda")
    return out


def graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path / "model.onnx", load_external_data=False).graph


@pytest.mark.parametrize("name, layers, nvfp4", [("thinker", 4, 2), ("talker", 3, 0)])
def test_decoder_graphs_have_fused_operators(built, name, layers, nvfp4):
    """Nothing is left to be computed twice, and NVFP4 linears (of the Thinker's attention here) stay as they are."""
    ops = Counter(n.op_type for n in graph(built / "engines" / name).node)
    assert ops["GroupQueryAttention"] == ops["MoE"] == layers
    assert ops["MatMulBlockQuantizedFp4Weight"] == nvfp4 * layers  # q|k|v and o
    assert not {"RotaryEmbedding", "RMSNormalization", "Attention", "DequantizeLinear"} & ops.keys()


def test_prefill_weights_are_the_decoded_ones(built):
    """The graph's 16-bit experts are the NVFP4 values, gate and up rows in turn."""
    exported = StoredGraph(built / "onnx" / "thinker" / "llm")
    lowered = onnx.load(built / "engines" / "thinker" / "model.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in lowered.graph.initializer}
    moe = next(n for n in exported.model.graph.node if n.op_type == "MoE")
    gate, up, down = moe.input[2:5]
    node = next(n for n in lowered.graph.node if n.op_type == "MoE")
    np.testing.assert_array_equal(stored[node.input[2]][:, 0::2], exported.read(gate).astype(np.float16))
    np.testing.assert_array_equal(stored[node.input[2]][:, 1::2], exported.read(up).astype(np.float16))
    np.testing.assert_array_equal(stored[node.input[4]], exported.read(down).astype(np.float16))


@pytest.mark.parametrize("name, folder", [("thinker", "thinker/llm"), ("code_predictor", "multimodal/code_predictor")])
def test_decode_weights_are_the_exported_bytes(built, name, folder):
    exported, directory = StoredGraph(built / "onnx" / folder), built / "engines" / name
    table, data = json.loads((directory / "decode.json").read_text()), (directory / "decode.data").read_bytes()
    assert table.keys() == {t for t in exported.tensors if not t.startswith("const_")}
    for tensor, entry in table.items():
        raw = exported.raw(tensor)
        assert data[entry["offset"]:entry["offset"] + raw.nbytes] == raw.tobytes(), tensor
        assert entry["offset"] % 16 == 0, tensor  # kernels read 16 bytes at a time


def test_the_code_predictor_needs_no_graph(built):
    config = json.loads((built / "engines" / "code_predictor" / "config.json").read_text())
    assert config["device"] == "cuda" and set(config["files"]) == {"decode.data", "decode.json"}


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="this machine could load it")
def test_without_a_gpu_the_error_names_the_fix(built):
    with pytest.raises(EngineError, match="--device cpu"):
        open_engine(built / "engines" / "thinker")


def test_a_float32_export_is_refused(engine_dirs, tmp_path, capfd):
    onnx_dir = next(engine_dirs["plain"].parent.glob("plain-onnx"))
    assert build_engines.main([str(onnx_dir), str(tmp_path / "out"), "--device", "cuda"]) == 1
    assert "--dtype float16" in capfd.readouterr().err


@pytest.mark.parametrize("text_config, message", [
    ({"head_dim": 48}, "multiple of 32"),
    ({"num_experts": 300}, "experts 300; GPU kernels take at most 256"),
    ({"num_attention_heads": 6}, "3 query heads share a key head of 32 channels"),
], ids=["head", "experts", "group"])
def test_a_model_that_the_kernels_cannot_take_is_refused(tmp_path, capfd, text_config, message):
    make_checkpoint(tmp_path / "checkpoint", overrides={"thinker_config": {"text_config": text_config}})
    run("offline.export_onnx", tmp_path / "checkpoint", tmp_path / "onnx", "--components", "thinker", "--dtype", "float16")
    assert build_engines.main([str(tmp_path / "onnx"), str(tmp_path / "out"), "--device", "cuda"]) == 1
    assert message in capfd.readouterr().err


def test_a_w4a4_export_is_refused(checkpoints, tmp_path, capfd):
    root = Checkpoint(checkpoints["plain"])
    thinker = split(root, tmp_path)["thinker"].directory
    options = ["--components", "thinker", "--dtype", "float16", "--activations", "nvfp4"]
    run("offline.export_onnx", thinker, tmp_path / "onnx", *options)
    assert build_engines.main([str(tmp_path / "onnx"), str(tmp_path / "out"), "--device", "cuda"]) == 1
    assert "--activations float" in capfd.readouterr().err
