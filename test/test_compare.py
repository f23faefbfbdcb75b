"""offline.compare: equal engines are equal, quantised ones are measured, other models are refused."""

import json
import os
import shutil

import numpy as np
import oracle
import pytest
import torch
from broken_files import edit_config
from conftest import run
from tensorrt_on_cpu import simulated_gpu

import omni_ros.engines.cuda.open as cuda_open
from offline import compare
from omni_ros.engines.onnxruntime.engine import OnnxRuntimeEngine
from omni_ros.engines.sidecar import Projection


@pytest.fixture(scope="module")
def int4(engine_dirs, tmp_path_factory):
    out = tmp_path_factory.mktemp("int4")
    run("offline.build_engines", engine_dirs["plain"].parent / "plain-onnx", out, "--weights", "int4")
    return out


def test_engines_equal_themselves(engine_dirs, tmp_path):
    report = tmp_path / "report.json"
    printed = run(
        "offline.compare",
        engine_dirs["plain"],
        engine_dirs["plain"],
        "--tokens",
        "8",
        "--frames",
        "6",
        "--threads",
        "1",
        "--outputFile",
        report,
    )
    r = json.loads(report.read_text())
    assert r["thinker"]["steps"] == 8 and r["talker"]["steps"] == r["code_predictor"]["frames"] == 6
    for name, layers in (("thinker", 3), ("talker", 2)):
        assert r[name]["top1"] == 1 and r[name]["kl"] == pytest.approx(0, abs=1e-9)
        assert r[name]["layer_cosine"] == pytest.approx([1] * layers)
    assert r["code_predictor"]["codes_1_to_15"] == 1
    assert "thinker" in printed and "into layer 3" in printed


def test_int4_is_measured(engine_dirs, int4, capsys):
    assert compare.main([str(engine_dirs["plain"]), str(int4), "--tokens", "12", "--frames", "12", "--threads", "1"]) == 0
    with compare.open_probed(engine_dirs["plain"], 1) as exact, compare.open_probed(int4, 1) as other:
        request = compare.Request(
            compare.QUESTION, max_generate_length=12, max_audio_length=12, streaming=False, temperature=0, talker_temperature=0
        )
        r = compare.compare(exact, other, [request, request])  # two turns: the second starts a new sequence
    assert r["thinker"]["steps"] == 24
    for name in ("thinker", "talker"):
        assert 0 < r[name]["kl"] and 0.5 < r[name]["cosine"] < 0.9999
        layers = r[name]["layer_cosine"]
        assert all(0.5 < c < 0.99999 for c in layers) and layers[-1] < layers[0]  # errors add up on the way


def test_layers_are_transformers_hidden_states(engine_dirs, checkpoints, tmp_path):
    model = oracle.load(checkpoints["plain"]).model
    ids = torch.randint(0, 256, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = model.thinker.model.language_model(input_ids=ids, output_hidden_states=True).hidden_states
    with compare.open_probed(engine_dirs["plain"], 1) as pipeline:
        engine = pipeline.engines["thinker"]
        out = engine.run(
            {
                "inputs_embeds": hidden[0][0].numpy(),
                "position_ids": np.tile(np.arange(9, dtype=np.float32), (3, 1)),
                "deepstack": np.zeros((2, 9, 64), np.float32),
            },
            engine.new_state(),
        )
    for i in (1, 2, 3):
        np.testing.assert_allclose(out[f"layer_{i}"], hidden[i][0].numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def folders(engine_dirs, tensorrt_dirs, tmp_path_factory):
    """One model for three backends. Those of "cuda" are the CPU's: what counts is that config.json says otherwise."""
    cuda = shutil.copytree(engine_dirs["plain"], tmp_path_factory.mktemp("folders") / "cuda", copy_function=os.link)
    for name in compare.DECODERS:
        edit_config(cuda / name, lambda config: config.update(backend="cuda"))
    return {"cpu": engine_dirs["plain"], "tensorrt": tensorrt_dirs["plain"], "cuda": cuda}


@pytest.mark.parametrize(
    "reference, other",
    [("cpu", "tensorrt"), ("tensorrt", "cpu"), ("tensorrt", "tensorrt"), ("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "tensorrt")],
)
def test_engines_of_a_gpu_show_no_layers(folders, tmp_path, monkeypatch, reference, other):
    monkeypatch.setattr(cuda_open, "open_engine", lambda directory, config, _: OnnxRuntimeEngine(directory, config, 1))
    monkeypatch.setattr(cuda_open, "open_projection", lambda talker, path: Projection(path))
    report = tmp_path / "report.json"
    with simulated_gpu():
        assert (
            compare.main(
                [
                    str(folders[reference]),
                    str(folders[other]),
                    "--tokens",
                    "5",
                    "--frames",
                    "4",
                    "--threads",
                    "1",
                    "--outputFile",
                    str(report),
                ]
            )
            == 0
        )
    r = json.loads(report.read_text())
    for name, steps in (("thinker", 5), ("talker", 4)):
        assert r[name]["steps"] == steps and r[name]["top1"] == 1 and r[name]["kl"] == pytest.approx(0, abs=1e-6)
        assert r[name]["layer_cosine"] == []
    assert r["code_predictor"]["codes_1_to_15"] == 1


def test_another_model_is_refused(engine_dirs, capsys):
    assert compare.main([str(engine_dirs["plain"]), str(engine_dirs["odd"]), "--tokens", "3", "--frames", "2"]) == 1
    assert "error: the two builds are of different models: the thinker is 64 wide" in capsys.readouterr().err
