"""Code2Wav, streamed in any chunking, against transformers' decode of all frames at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision_shim  # noqa: F401  (before transformers)
from safetensors.torch import save_file
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeCode2WavConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeCode2Wav

from offline.build_engines import build_tree
from offline.checkpoints.checkpoint import Checkpoint
from offline.export_onnx import export
from offline.graphs import code2wav
from omni_ros.engines.open import open_engine
from omni_ros.errors import CheckpointError, InputError, KVCacheFullError
from omni_ros.pipeline.code2wav import Code2Wav

TOLERANCE = 3e-5  # on a waveform of standard deviation 0.2
CAPACITY = 210
CONFIGS = {  # name: (seed, frames, config)
    "real_rates": (
        0,
        200,
        dict(
            codebook_size=64,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            sliding_window=72,
            decoder_dim=64,
        ),
    ),
    "short_window": (
        1,
        60,
        dict(
            codebook_size=30,
            hidden_size=48,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            sliding_window=5,
            decoder_dim=32,
            attention_bias=True,
            rope_parameters=dict(rope_type="default", rope_theta=500.0),
        ),
    ),
    "other_rates": (
        2,
        90,
        dict(
            codebook_size=17,
            num_quantizers=5,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=2,
            upsample_rates=(2, 6),
            upsampling_ratios=(3,),
            decoder_dim=48,
        ),
    ),
}


def randomize(module: Qwen3OmniMoeCode2Wav, seed: int) -> Qwen3OmniMoeCode2Wav:
    """No parameter stays where it would hide a mistake (snake 0, layer scale and gamma near 0), and the samples have a
    standard deviation of 0.2, so that the clamp hides none either."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith((".scale", "gamma")):
                p.copy_(0.3 + 0.1 * noise)
            elif name.endswith(("alpha", "beta")):
                p.copy_(0.2 * noise)
            elif p.ndim == 1:
                p.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))  # norms, biases
            elif "embedding" in name:
                p.copy_(noise)
            else:  # 0.3: a residual branch that outgrows its input makes sin() of large numbers, which is chaos
                p.copy_(noise * (0.3 if "conv2" in name else 1.0) * p[0].numel() ** -0.5)
        unclamped = []
        hook = module.decoder[-1].register_forward_hook(lambda _, __, out: unclamped.append(out))
        module(random_codes(module.config, 50)[None])
        hook.remove()
        for p in module.decoder[-1].parameters():
            p.mul_(0.2 / unclamped[0].std())
    return module


def random_codes(config: Qwen3OmniMoeCode2WavConfig, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(config.codebook_size, (config.num_quantizers, frames), generator=generator)


def write_checkpoint(directory: Path, seed: int, values: dict) -> Qwen3OmniMoeCode2Wav:
    config = Qwen3OmniMoeCode2WavConfig(**values)
    module = randomize(Qwen3OmniMoeCode2Wav(config).eval(), seed)
    directory.mkdir()
    save_file({f"code2wav.{k}": v for k, v in module.state_dict().items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3_omni_moe", "code2wav_config": config.to_dict()}))
    return module


class Waveform:
    """A Code2Wav and the waveform that it is making."""

    def __init__(self, model: Code2Wav):
        self.model, self.state = model, model.engine.new_state()
        self.reset = self.state.reset

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return self.model.decode(self.state, codes)


def build(root: Path, dtype: str) -> Waveform:
    export(root / "checkpoint", root / dtype, ["code2wav"], np.dtype(dtype))
    build_tree(root / dtype, root / dtype / "engines", limits={"code2wav": {"capacity": CAPACITY}})
    return Waveform(Code2Wav(open_engine(root / dtype / "engines" / "code2wav", threads=1)))


class Case:
    """One random checkpoint, its engine, codes, and transformers' waveform of them."""

    def __init__(self, root: Path, seed: int, frames: int, values: dict):
        self.root = root
        module = write_checkpoint(root / "checkpoint", seed, values)
        codes = random_codes(module.config, frames)
        with torch.no_grad():
            self.wave = module(codes[None])[0, 0].numpy()
        self.codes, self.vocoder = codes.numpy(), build(root, "float32")
        assert (np.abs(self.wave) >= 1).mean() < 0.01 and self.wave.std() > 0.1

    def stream(self, codes: np.ndarray, chunks: list[int]) -> list[np.ndarray]:
        assert sum(chunks) == codes.shape[1]
        self.vocoder.reset()
        return [self.vocoder.decode(c) for c in np.split(codes, np.cumsum(chunks)[:-1], axis=1)]


@pytest.fixture(scope="module", params=CONFIGS)
def case(request, tmp_path_factory) -> Case:
    return Case(tmp_path_factory.mktemp(request.param), *CONFIGS[request.param])


@pytest.fixture(scope="module")
def real_rates(tmp_path_factory) -> Case:
    return Case(tmp_path_factory.mktemp("real_rates"), *CONFIGS["real_rates"])


def chunkings(frames: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.choice(np.arange(1, frames), 12, replace=False))
    mixed = np.diff([0, *cuts, frames]).tolist()
    equal = {str(n): [n] * (frames // n) + ([frames % n] if frames % n else []) for n in (1, 3, 10)}
    return {**equal, "mixed": mixed, "whole": [frames], "1 then rest": [1, frames - 1]}


def test_any_chunking_is_the_full_decode(case):
    spf, lookahead = case.vocoder.samples_per_frame, case.vocoder.lookahead_samples
    for name, chunks in chunkings(case.codes.shape[1]).items():
        parts = case.stream(case.codes, chunks)
        assert [len(p) for p in parts] == [n * spf - (lookahead if i == 0 else 0) for i, n in enumerate(chunks)], name
        wave = np.concatenate(parts)
        assert wave.dtype == np.float32 and wave.shape == case.wave.shape, name
        np.testing.assert_allclose(wave, case.wave, rtol=0, atol=TOLERANCE, err_msg=name)


def test_a_frame_changes_nothing_before_its_lookahead(case):
    frame = case.codes.shape[1] // 2
    changed = case.codes.copy()
    changed[:, frame] = (changed[:, frame] + 1) % case.vocoder.codebook_size
    before, after = (case.stream(c, [c.shape[1]])[0] for c in (case.codes, changed))
    first = np.flatnonzero(before != after)[0]
    assert first == frame * case.vocoder.samples_per_frame - case.vocoder.lookahead_samples


def test_reset_forgets_the_last_waveform(case):
    frames = case.codes.shape[1] // 2
    alone = case.stream(case.codes[:, :frames], [frames])[0]
    case.vocoder.decode(case.codes[:, frames:])
    case.vocoder.reset()
    np.testing.assert_array_equal(case.vocoder.decode(case.codes[:, :frames]), alone)


def test_real_model_rates(real_rates):
    v = real_rates.vocoder
    assert (v.sample_rate, v.samples_per_frame, v.lookahead_samples) == (24000, 1920, 555)


def test_errors_name_the_fault_and_leave_the_waveform_intact(real_rates):
    v, codes = real_rates.vocoder, real_rates.codes
    v.reset()
    parts = [v.decode(codes[:, :4])]
    bad = codes[:, 4:8].copy()
    bad[3, 2] = v.codebook_size
    with pytest.raises(InputError, match="frame 6, quantizer 3: code 64 "):
        v.decode(bad)
    bad[3, 2] = -1
    with pytest.raises(InputError, match="frame 6, quantizer 3: code -1 "):
        v.decode(bad)
    for wrong in (codes[:15], codes[:, :0], codes[0], codes.astype(np.float32)):
        with pytest.raises(InputError, match=r"codes must be integers \[16, frames >= 1\]"):
            v.decode(wrong)
    with pytest.raises(KVCacheFullError):
        v.decode(np.tile(codes, 2))
    parts.append(v.decode(codes[:, 4:]))
    np.testing.assert_allclose(np.concatenate(parts), real_rates.wave, rtol=0, atol=TOLERANCE)
    with pytest.raises(KVCacheFullError, match=str(CAPACITY)):
        v.decode(codes[:, : CAPACITY - codes.shape[1] + 1])


def limited(case: Case, directory: Path, frames: int) -> tuple[Waveform, list[int]]:
    """Its engine with `max_run_frames` in config.json, as TensorRT engines have it, and the frames of each run so far."""
    shutil.copytree(case.vocoder.engine.directory, directory)
    config = json.loads((directory / "config.json").read_text())
    config["limits"]["max_run_frames"] = frames
    (directory / "config.json").write_text(json.dumps(config))
    engine = open_engine(directory, threads=1)
    runs, run = [], engine.run
    engine.run = lambda inputs, state: runs.append(inputs["codes"].shape[1]) or run(inputs, state)
    return Waveform(Code2Wav(engine)), runs


@pytest.mark.parametrize("most", [1, 7])
def test_an_engine_of_short_runs_makes_the_same_waveform(case, tmp_path, most):
    vocoder, runs = limited(case, tmp_path / "engine", most)
    frames = case.codes.shape[1]
    for chunks in ([frames], [1, frames - 1], [most + 1, most, frames - 2 * most - 1]):
        vocoder.reset()
        runs.clear()
        wave = np.concatenate([vocoder.decode(c) for c in np.split(case.codes, np.cumsum(chunks)[:-1], axis=1)])
        assert wave.dtype == np.float32 and wave.shape == case.wave.shape
        np.testing.assert_allclose(wave, case.wave, rtol=0, atol=TOLERANCE)
        assert runs == [n for chunk in chunks for n in [most] * (chunk // most) + [chunk % most] * (chunk % most > 0)]


def test_speech_too_long_for_several_runs_is_refused_before_the_first(real_rates, tmp_path):
    vocoder, runs = limited(real_rates, tmp_path / "engine", 100)
    codes = real_rates.codes
    parts = [vocoder.decode(codes[:, :4])]
    with pytest.raises(KVCacheFullError, match=rf"4 \+ 207 .*\({CAPACITY}\).*--maxCodeLen"):
        vocoder.decode(np.tile(codes, 2)[:, : CAPACITY - 3])  # two runs of 100 would fit, the last one not
    assert runs == [4]
    parts.append(vocoder.decode(codes[:, 4:]))
    np.testing.assert_allclose(np.concatenate(parts), real_rates.wave, rtol=0, atol=TOLERANCE)


def test_float16_graph_is_well_typed_and_close(case):
    vocoder = build(case.root, "float16")
    graph = case.root / "float16" / "multimodal" / "code2wav" / "model.onnx"
    onnx.checker.check_model(str(graph), full_check=True)  # strict type inference: a missing Cast fails here
    stored = {t.data_type for t in onnx.load(graph, load_external_data=False).graph.initializer if t.external_data}
    assert stored == {onnx.TensorProto.FLOAT16}
    wave = vocoder.decode(case.codes)
    assert np.abs(wave - case.wave).max() < 0.1 and (wave - case.wave).std() < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4)), "rope_type yarn"),
        (dict(hidden_act="gelu"), "hidden_act gelu"),
        (dict(sliding_window=1), "sliding_window 1"),
        (dict(upsampling_ratios=[]), "one frame leaves no samples"),
        (dict(upsample_rates=[8, 5, 4, 2]), r"decoder\.4\.block\.1\.conv\.weight has shape"),
        (dict(num_hidden_layers=3), r"pre_transformer\.layers\.2\.input_layernorm\.weight is missing"),
    ],
)
def test_unsupported_checkpoints_are_refused(real_rates, tmp_path, change, message):
    source = real_rates.root / "checkpoint"
    config = json.loads((source / "config.json").read_text())
    config["code2wav_config"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        code2wav.export(Checkpoint(tmp_path), tmp_path / "onnx", np.dtype(np.float32))


def test_checkpoint_without_speech_is_refused(real_rates, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_omni_moe"}))
    (tmp_path / "model.safetensors").symlink_to(real_rates.root / "checkpoint" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no code2wav_config"):
        code2wav.export(Checkpoint(tmp_path), tmp_path / "onnx", np.dtype(np.float32))
