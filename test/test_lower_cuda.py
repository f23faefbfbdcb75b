"""`--device cuda`: what can be said about these engines without a GPU."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from conftest import run
from nvfp4_reference import split

from offline import build_engines
from offline.checkpoints.checkpoint import Checkpoint, write_safetensors
from offline.cuda.lower_encoder import lower_encoder
from offline.graphs.external_data import StoredGraph
from offline.make_checkpoint import make_checkpoint
from omni_ros.engines.cuda_device import gpu_target
from omni_ros.engines.open import open_engine
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


@pytest.mark.parametrize("name, folder", [("thinker", "thinker/llm"), ("code_predictor", "multimodal/code_predictor")])
def test_weights_are_the_exported_bytes(built, name, folder):
    exported, directory = StoredGraph(built / "onnx" / folder), built / "engines" / name
    table, data = json.loads((directory / "weights.json").read_text()), (directory / "weights.data").read_bytes()
    assert table.keys() == {t for t in exported.tensors if not t.startswith("const_")}
    for tensor, entry in table.items():
        raw = exported.raw(tensor)
        assert data[entry["offset"] : entry["offset"] + raw.nbytes] == raw.tobytes(), tensor
        assert entry["offset"] % 16 == 0, tensor  # kernels read 16 bytes at a time


@pytest.mark.parametrize("name", ["thinker", "talker", "code_predictor"])
def test_decoders_are_weights_alone(built, name):
    config = json.loads((built / "engines" / name / "config.json").read_text())
    assert config["backend"] == "cuda" and "device" not in config and {"weights.data", "weights.json"} <= set(config["files"])
    assert not [file for file in config["files"] if "onnx" in file]
    assert {e["dtype"] for e in config["inputs"] + config["outputs"]} <= {"float32", "int64"}


def test_the_visual_encoder_computes_what_the_cpu_engine_does(engine_dirs, tmp_path):
    """From a float32 export, whose lowered graph a CPU can run, too. The audio encoder: test_lower_audio.py."""
    exported = engine_dirs["plain"].with_name("plain-onnx") / "multimodal" / "visual"
    engine = engine_dirs["plain"] / "multimodal" / "visual"
    shutil.copy(exported / "model.onnx.data", tmp_path)
    assert not lower_encoder(exported, tmp_path)
    assert (tmp_path / "model.onnx.data").read_bytes() == (exported / "model.onnx.data").read_bytes()
    sessions = [ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"]) for folder in (tmp_path, engine)]
    sizes, config = {"frames": 2, "n": 24}, json.loads((engine / "config.json").read_text())
    random, inputs = np.random.default_rng(0), {}
    for entry in config["inputs"]:
        shape = [sizes.get(d, 3) if isinstance(d, str) else d for d in entry["shape"]]
        number = entry["dtype"].startswith("float")
        inputs[entry["name"]] = (random.standard_normal(shape) if number else random.integers(0, 2, shape)).astype(entry["dtype"])
    for expected, got in zip(*(session.run(None, inputs) for session in sessions), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.skipif(gpu_target() is not None, reason="this machine could load it")
@pytest.mark.parametrize("name", ["thinker", "code_predictor", "multimodal/audio"])
def test_without_a_gpu_the_error_names_the_fix(built, name):
    with pytest.raises(EngineError, match="--device cpu"):
        open_engine(built / "engines" / name)


def test_a_float32_export_is_refused(engine_dirs, tmp_path, capfd):
    onnx_dir = next(engine_dirs["plain"].parent.glob("plain-onnx"))
    assert build_engines.main([str(onnx_dir), str(tmp_path / "out"), "--device", "cuda"]) == 1
    assert "--dtype float16" in capfd.readouterr().err


@pytest.mark.parametrize(
    "text_config, message",
    [
        ({"head_dim": 48}, "multiple of 32"),
        ({"num_experts": 300}, "experts 300; GPU kernels take at most 256"),
        ({"num_attention_heads": 6}, "3 query heads share a key head of 32 channels"),
    ],
    ids=["head", "experts", "group"],
)
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


def test_matrices_of_two_kinds_in_one_product_are_refused(checkpoints, tmp_path, capfd):
    """Keys in 16 bit between NVFP4 queries and values: the kernel would take the one for the other."""
    root = Checkpoint(checkpoints["plain"])
    thinker, key = split(root, tmp_path)["thinker"], "thinker.model.layers.1.self_attn.k_proj"
    tensors = {n: thinker.read(n) for n in thinker.tensors if not n.startswith(key)}
    tensors[f"{key}.weight"] = root.read(f"{key}.weight")
    write_safetensors(
        thinker.directory / "model.safetensors", {k.removeprefix("thinker."): (v.dtype, v.shape, [v]) for k, v in tensors.items()}
    )
    run("offline.export_onnx", thinker.directory, tmp_path / "onnx", "--components", "thinker", "--dtype", "float16")
    assert build_engines.main([str(tmp_path / "onnx"), str(tmp_path / "out"), "--device", "cuda"]) == 1
    error = capfd.readouterr().err
    assert "layers.1.self_attn.k_proj.weight" in error and "one kind" in error
    assert not (tmp_path / "out" / "thinker").exists()
