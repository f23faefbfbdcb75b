"""The model that hears whether somebody has finished: its features against transformers, and what it says about real sound."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torchvision_shim  # noqa: F401  (before transformers)
from transformers import WhisperFeatureExtractor

from omni_ros.dialogue.smart_turn import MODEL, SmartTurn, features
from omni_ros.errors import InputError
from omni_ros.preprocess.audio import load_audio

QUESTIONS = Path(__file__).parents[1] / "demo/questions"
SECOND = 16000


@pytest.mark.parametrize("level", [1e-4, 0.1, 1.0])
@pytest.mark.parametrize("seconds", [0.05, 1.0, 7.99, 8.0, 12.5])
def test_features_equal_transformers(seconds, level):
    rng = np.random.default_rng(0)
    pcm = (level * rng.standard_normal(int(seconds * SECOND))).astype(np.float32)
    pcm[: pcm.size // 2] *= 0.01  # a mean and a variance that normalising has to get right
    pcm += 0.02 * level
    padded = np.pad(pcm, (max(0, 8 * SECOND - pcm.size), 0))[-8 * SECOND :]
    want = WhisperFeatureExtractor(chunk_length=8)(
        padded, sampling_rate=SECOND, padding="max_length", max_length=8 * SECOND, do_normalize=True, return_tensors="np"
    ).input_features[0]
    got = features(pcm)
    assert got.dtype == np.float32 and got.shape == (80, 800)
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


def test_digital_silence_is_no_number_to_divide_by():
    assert np.isfinite(features(np.zeros(SECOND, np.float32))).all()


def without_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without its QuantizeLinear nodes, and the DequantizeLinear behind each: what flows is float32."""
    rounded = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    gone = {node.output[0]: rounded[node.input[0]] for node in model.graph.node if node.input[0] in rounded}
    assert len(rounded) == len(gone) > 50
    kept = [node for node in model.graph.node if node.output[0] not in rounded and node.output[0] not in gone]
    for node in kept:
        for i, name in enumerate(node.input):
            node.input[i] = gone.get(name, name)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def test_little_is_rounded_between_the_layers():
    """Of the pairs that round, ONNX Runtime keeps a few. With all of them, some of these probabilities are 0.1 and more away."""
    model = without_rounding(onnx.load(MODEL)).SerializeToString()
    plain = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    model, found = SmartTurn(), []
    for path in sorted(QUESTIONS.glob("*.flac")):
        question = load_audio(path)
        for share in (0.4, 0.6, 0.8):
            pcm = np.concatenate([question[: int(share * question.size)], np.zeros(SECOND // 5, np.float32)])
            want = plain.run(None, {"input_features": features(pcm)[None]})[0].item()
            found.append((model(pcm), want))
    got, want = np.array(found).T
    np.testing.assert_allclose(got, want, atol=0.06, rtol=0)


def test_a_whole_question_is_complete_and_half_of_one_less_so():
    model = SmartTurn()
    question = load_audio(QUESTIONS / "is_there_a_yellow_triangle.flac")[: -SECOND // 20]  # 0.05 s of its silence
    silence = np.zeros(SECOND // 5, np.float32)
    assert model(np.concatenate([question, silence])) > 0.9
    assert model(np.concatenate([question[: int(1.6 * SECOND)], silence])) < 0.5  # "is there a yellow trian"


@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_a_damaged_model_is_named_with_what_to_do(tmp_path, damage):
    path = tmp_path / "model.onnx"
    if damage != "missing":
        path.write_bytes(MODEL.read_bytes()[: 4_000_000 if damage == "half" else 0])
    with pytest.raises(InputError, match="model.onnx.*turn_detector: silence"):
        SmartTurn(path)
