"""The audio encoder of `--device cuda`: no convolution is left, and the embeddings are the same. Its graph runs on a CPU, too."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from shuffled_graph import shuffle
from test_encoders import AUDIO, TOLERANCE, embed, export_audio, mel_noise

from offline.build_engines import build_tree
from omni_ros.engines.config import read_config
from omni_ros.engines.onnxruntime.engine import OnnxRuntimeEngine
from omni_ros.pipeline.audio_encoder import AudioEncoder

CONFIGS = [*AUDIO, {**AUDIO[1], "num_mel_bins": 100, "downsample_hidden_size": 5, "n_window_infer": 200}]  # 25 and 13 bins


@pytest.fixture(scope="module", params=range(len(CONFIGS)))
def encoders(request, tmp_path_factory) -> tuple[AudioEncoder, AudioEncoder]:
    """On the CPU; lowered. From one float32 export."""
    root = tmp_path_factory.mktemp("audio")
    _, on_cpu = export_audio(root, CONFIGS[request.param], seed=request.param)
    return on_cpu, lowered(root)


def lowered(root: Path) -> AudioEncoder:
    """The engine for CUDA from the export in `root`/onnx, on the CPU."""
    build_tree(root / "onnx", root / "cuda", "cuda")
    directory = root / "cuda" / "multimodal" / "audio"
    return AudioEncoder(OnnxRuntimeEngine(directory, read_config(directory), threads=1))


def folders(encoder: AudioEncoder) -> tuple[Path, Path]:
    """What was exported; what became of it."""
    return encoder.engine.directory.parents[2] / "onnx" / "multimodal" / "audio", encoder.engine.directory


def graphs(encoder: AudioEncoder) -> list[onnx.GraphProto]:
    return [onnx.load(folder / "model.onnx", load_external_data=False).graph for folder in folders(encoder)]


@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [2],
        [3],
        [7],
        [60],
        [97],
        [98],
        [99],
        [100],  # one piece, every remainder of eight and of two
        [101],
        [230],
        [799],
        [800],
        [1730],
        [3000],  # several pieces, several windows, several runs
        [30, 60],
        [1, 99],
        [100, 900, 33],
        [800, 800, 1601],
    ],
    ids=str,
)
def test_embeddings_are_those_of_the_cpu_engine(encoders, lengths):
    on_cpu, encoder = encoders
    mels = mel_noise(encoder.mel_bins, lengths)
    for expected, got in ((embed(on_cpu, mel), embed(encoder, mel)) for mel in mels):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("frames", [1, 2, 5, 50, 99])
def test_short_pieces_of_several_windows(encoders, frames):
    """The pipeline only ever has whole pieces there."""
    tokens = np.arange(3)
    mel = np.random.default_rng(frames).standard_normal((2, 3, encoders[0].mel_bins, frames), np.float32)
    expected, got = (e.engine.run({"mel": mel, "valid_indices": tokens, "positions": tokens})["embeds"] for e in encoders)
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)


def test_convolutions_are_matrix_products_without_much_around_them(encoders):
    exported, graph = graphs(encoders[1])
    before, after = (Counter(n.op_type for n in g.node) for g in (exported, graph))
    assert before["Conv"] == after["MatMul"] == after["BiasGelu"] == after["Pad"] == 3 and not after["Conv"]
    assert after["Gemm"] == before["Gemm"] and after["Transpose"] == before["Transpose"] == 1
    assert after["Gather"] == before["Gather"] + 3 and after["Shape"] == before["Shape"] + 3
    assert len(graph.node) == len(exported.node) + 3 * 8


def test_config_and_weights_are_the_exported_ones_but_for_their_order(encoders):
    exported, built = (json.loads((folder / "config.json").read_text()) for folder in folders(encoders[1]))
    for key in ("inputs", "outputs", "state", "model", "limits"):
        assert built[key] == exported[key]
    before, after = (np.sort(np.fromfile(folder / "model.onnx.data", np.float32)) for folder in folders(encoders[1]))
    np.testing.assert_array_equal(before, after)


def test_a_float16_export_stays_float16(tmp_path):
    made = {}
    for dtype in ("float32", "float16"):
        (tmp_path / dtype).mkdir()
        _, made[dtype] = export_audio(tmp_path / dtype, AUDIO[0], seed=3, dtype=dtype)
    encoder = lowered(tmp_path / "float16")
    _, graph = graphs(encoder)
    types = {t.data_type for t in graph.initializer} | {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}
    assert types == {TensorProto.FLOAT16, TensorProto.INT64} and encoder.engine.config.inputs[0].dtype == "float16"
    mels = mel_noise(encoder.mel_bins, [930])
    np.testing.assert_allclose(embed(encoder, mels[0]), embed(made["float32"], mels[0]), rtol=0, atol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_nodes_does_not_matter(encoders, tmp_path, seed):
    shuffle(folders(encoders[1])[0], tmp_path / "onnx" / "multimodal" / "audio", seed)
    encoder = lowered(tmp_path)
    mels = mel_noise(encoder.mel_bins, [100, 930])
    for expected, got in ((embed(encoders[0], mel), embed(encoder, mel)) for mel in mels):
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE)
