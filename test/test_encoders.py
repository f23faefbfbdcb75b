"""Audio and vision encoders against transformers' classes, for several dims, seeds and shapes."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision_shim  # noqa: F401  (before transformers)
from safetensors.torch import save_file
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoderConfig,
    Qwen3OmniMoeVisionEncoderConfig,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoder,
    Qwen3OmniMoeVisionEncoder,
)

from offline import export_onnx
from offline.build_engines import build_tree
from offline.checkpoints.checkpoint import Checkpoint
from offline.graphs import audio_encoder, visual_encoder
from omni_ros.engines.engine import Engine
from omni_ros.engines.open import open_engine
from omni_ros.errors import CheckpointError, InputError
from omni_ros.pipeline.audio_encoder import AudioEncoder
from omni_ros.pipeline.visual_encoder import VisualEncoder

TOLERANCE = 1e-5
AUDIO = [
    {
        "d_model": 32,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "encoder_layers": 2,
        "output_dim": 48,
        "downsample_hidden_size": 8,
        "num_mel_bins": 128,
        "n_window_infer": 800,
    },
    {
        "d_model": 48,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 40,
        "encoder_layers": 3,
        "output_dim": 32,
        "downsample_hidden_size": 6,
        "num_mel_bins": 80,
        "n_window_infer": 300,
    },
]
VISION = [
    {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 40,
        "num_position_embeddings": 49,
        "deepstack_visual_indexes": [0, 1],
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
    },
    {
        "depth": 4,
        "hidden_size": 72,
        "num_heads": 3,
        "intermediate_size": 30,
        "out_hidden_size": 24,
        "num_position_embeddings": 256,
        "deepstack_visual_indexes": [0, 2, 3],
        "patch_size": 4,
        "hidden_act": "gelu",
    },
]


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """No parameter stays at a value (0, 1) that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            scale = 0.3 if p.ndim == 1 else (p.shape[1:].numel()) ** -0.5
            offset = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
            p.copy_(torch.randn(p.shape, generator=generator) * scale + offset)
    return module.eval()


def write_checkpoint(directory: Path, module: torch.nn.Module, prefix: str, section: str, config: dict) -> Checkpoint:
    """A checkpoint that holds only this module, with the processor config of the published repositories."""
    save_file({prefix + k: v for k, v in module.state_dict().items()}, directory / "model.safetensors")
    config_file = {"model_type": "qwen3_omni_moe", "thinker_config": {section: config}}
    (directory / "config.json").write_text(json.dumps(config_file))
    (directory / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "patch_size": config.get("patch_size", 16),
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
                "min_pixels": 3136,
                "max_pixels": 12845056,
            }
        )
    )
    return Checkpoint(directory)


def build(directory: Path, component: str, dtype: str) -> Engine:
    export_onnx.export(directory, directory / "onnx", [component], np.dtype(dtype))
    build_tree(directory / "onnx", directory / "engines")
    return open_engine(directory / "engines" / "multimodal" / component, threads=1)


def export_audio(directory: Path, config: dict, seed: int, dtype="float32"):
    oracle = randomize(Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**config)), seed)
    write_checkpoint(directory, oracle, "thinker.audio_tower.", "audio_config", config)
    return oracle, AudioEncoder(build(directory, "audio", dtype))


def export_vision(directory: Path, config: dict, seed: int, dtype="float32"):
    oracle = randomize(Qwen3OmniMoeVisionEncoder(Qwen3OmniMoeVisionEncoderConfig(**config)), seed)
    write_checkpoint(directory, oracle, "thinker.visual.", "vision_config", config)
    return oracle, VisualEncoder(build(directory, "visual", dtype))


@pytest.fixture(scope="module", params=range(len(AUDIO)))
def audio(request, tmp_path_factory):
    return export_audio(tmp_path_factory.mktemp("audio"), AUDIO[request.param], seed=request.param)


@pytest.fixture(scope="module", params=range(len(VISION)))
def vision(request, tmp_path_factory):
    return export_vision(tmp_path_factory.mktemp("vision"), VISION[request.param], seed=request.param)


def mel_noise(bins: int, lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.standard_normal((bins, n)).astype(np.float32) for n in lengths]


@torch.no_grad()
def expected_audio(oracle, mels: list[np.ndarray]) -> np.ndarray:
    """One clip at a time: transformers pads the clips of a request to the longest, ours are the same whatever is beside them."""
    clips = [oracle(input_features=torch.from_numpy(m), feature_lens=torch.tensor([m.shape[1]])) for m in mels]
    return np.concatenate([clip.last_hidden_state.numpy() for clip in clips])


def embed(encoder: AudioEncoder, mel: np.ndarray) -> np.ndarray:
    """float32 [mel_bins, frames] -> [tokens, hidden]: a whole clip."""
    return np.concatenate([encoder(window, tokens) for window, tokens in encoder.windows(mel)])


@pytest.mark.parametrize(
    "lengths",
    [
        [1],
        [2],
        [7],
        [60],
        [99],
        [100],
        [101],
        [230],
        [799],
        [800],
        [801],
        [1730],
        [3000],  # one clip, up to 30 s
        [30, 60],
        [1, 99],
        [60, 800],
        [100, 900, 33],
        [800, 800, 1601],
        [5, 5],  # several clips in one request
    ],
)
def test_audio_equals_transformers(audio, lengths):
    oracle, encoder = audio
    mels = mel_noise(encoder.mel_bins, lengths)
    got = [embed(encoder, mel) for mel in mels]
    assert [len(e) for e in got] == [encoder.token_count(n) for n in lengths]
    np.testing.assert_allclose(np.concatenate(got), expected_audio(oracle, mels), atol=TOLERANCE, rtol=0)


def test_audio_token_count_equals_transformers(audio):
    from transformers.models.qwen3_omni_moe.processing_qwen3_omni_moe import _get_feat_extract_output_lengths

    _, encoder = audio
    for frames in range(1, 1000):
        assert encoder.token_count(frames) == _get_feat_extract_output_lengths(frames), frames


def test_windows_are_the_same_in_a_longer_clip(audio):
    """To the last bit: those of a person who is still speaking are kept."""
    _, encoder = audio
    span = encoder.window_chunks * encoder.chunk_frames
    (mel,) = mel_noise(encoder.mel_bins, [3 * span + 130])
    whole = embed(encoder, mel)
    for count in (1, 2, 3):
        part = embed(encoder, mel[:, : count * span])
        assert len(part) == count * encoder.window_chunks * encoder.chunk_tokens
        np.testing.assert_array_equal(part, whole[: len(part)])


def test_audio_half_precision(tmp_path):
    oracle, encoder = export_audio(tmp_path, AUDIO[0], seed=3, dtype="float16")
    mels = mel_noise(encoder.mel_bins, [930])
    np.testing.assert_allclose(embed(encoder, mels[0]), expected_audio(oracle, mels), atol=3e-2, rtol=0)


@pytest.mark.parametrize("shape", [(128, 0), (64, 10), (128,)])
def test_audio_refuses_wrong_features(tmp_path, shape):
    _, encoder = export_audio(tmp_path, AUDIO[0], seed=0)
    with pytest.raises(InputError, match="mel features must be"):
        encoder.windows(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"activation_function": "relu"},
        {"scale_embedding": True},
        {"n_window": 40},
        {"n_window_infer": 250},
    ],
)
def test_audio_export_refuses(tmp_path, change):
    with pytest.raises(CheckpointError, match=next(iter(change))):
        config = {**AUDIO[0], **change}
        (tmp_path / "config.json").write_text(json.dumps({"thinker_config": {"audio_config": config}}))
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        audio_encoder.export(Checkpoint(tmp_path), tmp_path / "out", np.dtype(np.float32))


def patches_of(encoder: VisualEncoder, grids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    grids = np.array(grids, np.int64)
    rng = np.random.default_rng(int(grids.sum()))
    return rng.standard_normal((grids.prod(axis=1).sum(), encoder.patch_width)).astype(np.float32), grids


@torch.no_grad()
def expected_vision(oracle, patches: np.ndarray, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    out = oracle(torch.from_numpy(patches), grid_thw=torch.from_numpy(grids))
    return out.pooler_output.numpy(), torch.stack(list(out.deepstack_features)).numpy()


def assert_vision_equal(oracle, encoder: VisualEncoder, patches: np.ndarray, grids: np.ndarray, atol=TOLERANCE):
    embeds, deepstack = encoder(patches, grids)
    assert [len(e) for e in embeds] == (grids.prod(axis=1) // 4).tolist()
    want_embeds, want_deepstack = expected_vision(oracle, patches, grids)
    np.testing.assert_allclose(np.concatenate(embeds), want_embeds, atol=atol, rtol=0)
    np.testing.assert_allclose(np.concatenate(deepstack, axis=1), want_deepstack, atol=atol, rtol=0)


@pytest.mark.parametrize(
    "grids",
    [
        [[1, 2, 2]],
        [[1, 6, 8]],
        [[1, 22, 14]],
        [[1, 2, 40]],
        [[1, 34, 2]],  # one image
        [[1, 6, 8], [1, 10, 4], [1, 6, 8]],  # several, two of one size
        [[5, 4, 6]],
        [[2, 8, 8], [1, 4, 4], [3, 6, 10]],  # videos, and videos beside an image
    ],
)
def test_vision_equals_transformers(vision, grids):
    oracle, encoder = vision
    assert_vision_equal(oracle, encoder, *patches_of(encoder, grids))


def test_vision_frames_beyond_one_run(vision):
    oracle, encoder = vision
    limited = VisualEncoder(encoder.engine)
    limited.max_patches = 70  # two frames of 24 patches a run
    assert_vision_equal(oracle, limited, *patches_of(encoder, [[5, 4, 6], [1, 6, 6]]))


@pytest.mark.parametrize(
    ("limits", "most"), [({"max_frames": 1}, 1), ({"max_frames": 3}, 3), ({"max_frames": 3, "max_patches": 50}, 2)]
)
def test_vision_engine_of_few_frames_a_run(vision, tmp_path, limits, most):
    """`max_frames` in config.json, as TensorRT engines have it."""
    oracle, encoder = vision
    directory = tmp_path / "engine"
    shutil.copytree(encoder.engine.directory, directory)
    config = json.loads((directory / "config.json").read_text())
    config["limits"].update(limits)
    (directory / "config.json").write_text(json.dumps(config))
    engine = open_engine(directory, threads=1)
    frames, run = [], engine.run
    engine.run = lambda inputs, state=None: frames.append(len(inputs["patches"])) or run(inputs)
    assert_vision_equal(oracle, VisualEncoder(engine), *patches_of(encoder, [[1, 6, 8], [7, 4, 6], [2, 2, 2]]))
    split = lambda t: [most] * (t // most) + [t % most] * (t % most > 0)  # noqa: E731
    assert frames == [1, *split(7), *split(2)]


def test_vision_half_precision(tmp_path):
    oracle, encoder = export_vision(tmp_path, VISION[0], seed=3, dtype="float16")
    assert_vision_equal(oracle, encoder, *patches_of(encoder, [[1, 12, 10]]), atol=3e-2)


def test_vision_refuses_what_the_engine_cannot_take(vision):
    _, encoder = vision
    patches, grids = patches_of(encoder, [[1, 4, 4]])
    with pytest.raises(InputError, match="needs"):
        encoder(patches[:-1], grids)
    with pytest.raises(InputError, match="multiples of 2"):
        encoder(patches[:12], np.array([[1, 3, 4]]))
    limited = VisualEncoder(encoder.engine)
    limited.max_patches = 15
    with pytest.raises(InputError, match="16 patches"):
        limited(patches, grids)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "relu"},
        {"num_position_embeddings": 50},
        {"deepstack_visual_indexes": [0, 3]},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"patch_size": 14},
        {"num_heads": 3},
    ],
)
def test_vision_export_refuses(tmp_path, change):
    config = {**VISION[0], **change}
    module = torch.nn.Linear(1, 1)
    checkpoint = write_checkpoint(tmp_path, module, "", "vision_config", VISION[0])
    checkpoint.config["thinker_config"]["vision_config"] = config
    with pytest.raises(CheckpointError, match="not supported"):
        visual_encoder.export(checkpoint, tmp_path / "out", np.dtype(np.float32))


def test_defaults_are_those_of_transformers():
    """A config.json that omits a field means transformers' default."""
    for ours, theirs in (
        (audio_encoder.AudioEncoderConfig(), Qwen3OmniMoeAudioEncoderConfig()),
        (visual_encoder.VisualEncoderConfig(), Qwen3OmniMoeVisionEncoderConfig()),
    ):
        for field in dataclasses.fields(ours):
            if field.name != "rope_theta":
                assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
