"""Random checkpoints: transformers loads them whole, every weight matters, the same seed gives the same bytes."""

import json
import subprocess
import sys

import numpy as np
import oracle
import pytest
import torch
from transformers import Qwen3OmniMoeForConditionalGeneration

from offline.checkpoints.checkpoint import Checkpoint
from offline.make_checkpoint import main, make_checkpoint
from omni_ros.errors import CheckpointError

RANDOM = np.random.default_rng(0)
AUDIO = {"type": "audio", "audio": RANDOM.normal(0, 0.1, 30_000).astype(np.float32)}
IMAGE = {"type": "image", "image": RANDOM.integers(0, 256, (101, 133, 3), dtype=np.uint8)}
VIDEO = {"type": "video", "video": RANDOM.integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)}
TEXT = {"type": "text", "text": "What do you see?"}


def messages(*parts: dict) -> list[dict]:
    return [{"role": "system", "content": "You are a robot."}, {"role": "user", "content": list(parts)}]


def digest(directory) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def test_transformers_finds_every_tensor_and_no_other(checkpoints, name):
    model, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        checkpoints[name], dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    stored = sum(int(np.prod(t.shape)) for t in Checkpoint(checkpoints[name]).tensors.values())
    assert stored == sum(p.numel() for p in model.parameters())


def test_no_tensor_is_idle(checkpoints, name):
    checkpoint = Checkpoint(checkpoints[name])
    seen = {}
    for key in checkpoint.tensors:
        value = checkpoint.read(key).astype(np.float32)
        assert np.isfinite(value).all() and (value == 0).mean() < 0.01, key
        assert value.size == 1 or np.ptp(value) > 1e-3, key
        assert seen.setdefault(value.tobytes(), key) == key, f"{key} equals {seen[value.tobytes()]}"


def test_config_agrees_with_the_tokenizer(checkpoints, name):
    reference = oracle.load(checkpoints[name])
    config, tokenizer = reference.model.config, reference.processor.tokenizer
    expected = {
        config.im_start_token_id: "<|im_start|>",
        config.im_end_token_id: "<|im_end|>",
        config.tts_pad_token_id: "<tts_pad>",
        config.tts_bos_token_id: "<tts_text_bos>",
        config.tts_eos_token_id: "<tts_text_eod>",
        config.thinker_config.audio_token_id: "<|audio_pad|>",
        config.thinker_config.image_token_id: "<|image_pad|>",
        config.thinker_config.video_token_id: "<|video_pad|>",
        config.talker_config.vision_start_token_id: "<|vision_start|>",
        config.talker_config.audio_start_token_id: "<|audio_start|>",
        config.system_token_id: "system",
        config.user_token_id: "user",
        config.assistant_token_id: "assistant",
    }
    assert [tokenizer.convert_ids_to_tokens(i) for i in expected] == list(expected.values())
    assert tokenizer.encode("<|im_start|>assistant\n")[:2] == [config.im_start_token_id, config.assistant_token_id]
    assert len(tokenizer.encode("<|im_start|>assistant\n")) == 3
    assert len(tokenizer) <= config.thinker_config.text_config.vocab_size
    talker = config.talker_config
    assert talker.text_config.vocab_size == talker.code_predictor_config.vocab_size + 1024
    assert set(talker.speaker_id) == {"chelsie", "ethan", "aiden"}
    text = "Zwölf Boxkämpfer: 你好, robot? 🤖\n  it's 42"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_processor_takes_all_four_kinds_of_input(checkpoints, name):
    reference = oracle.load(checkpoints[name])
    inputs = reference.inputs(messages(AUDIO, IMAGE, VIDEO, TEXT), fps=2.0)
    ids = inputs["input_ids"][0]
    config = reference.model.config.thinker_config
    assert (ids == config.audio_token_id).sum() == 24  # 187 mel frames: 13 tokens for the first 100, 11 for the rest
    assert (ids == config.image_token_id).sum() == inputs["image_grid_thw"].prod() // 4
    assert (ids == config.video_token_id).sum() == inputs["video_grid_thw"].prod() // 4
    text = reference.processor.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nYou are a robot.<|im_end|>\n<|im_start|>user\n<|audio_start|>")
    assert text.endswith("<|vision_end|>What do you see?<|im_end|>\n<|im_start|>assistant\n")


def test_greedy_replies_vary_and_depend_on_the_input(checkpoints, name):
    reference = oracle.load(checkpoints[name])
    turns = ([TEXT], [IMAGE, TEXT], [AUDIO, TEXT])
    replies = [reference.generate(messages(*parts), max_audio_length=20) for parts in turns]
    assert len({tuple(r.token_ids) for r in replies}) == 3
    assert len(set(sum((r.token_ids for r in replies), []))) > 12
    codes = np.concatenate([r.codes for r in replies], axis=1)
    assert min(len(set(group)) for group in codes) > 10
    waveform = np.concatenate([r.waveform for r in replies])
    assert 0.05 < waveform.std() < 0.3
    assert np.abs(waveform).max() < 1
    voices = {
        reference.generate(messages(IMAGE, TEXT), max_audio_length=20, speaker=s).codes.tobytes()
        for s in ("chelsie", "ethan", "aiden")
    }
    assert len(voices) == 3


def test_seed_decides_the_bytes(tmp_path):
    first, again, other = (make_checkpoint(tmp_path / str(i), seed=seed) for i, seed in enumerate((7, 7, 8)))
    assert digest(first) == digest(again)
    assert {f for f in digest(first) if digest(first)[f] != digest(other)[f]} == {"model.safetensors"}
    a, b = Checkpoint(first), Checkpoint(other)
    assert not any(np.array_equal(a.read(key), b.read(key)) for key in a.tensors)


def test_shards_hold_the_same_tensors(tmp_path):
    whole = make_checkpoint(tmp_path / "whole")
    sharded = make_checkpoint(tmp_path / "sharded", shard_bytes=1_000_000)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in sharded.glob("*.safetensors"))
    assert len(files) == 5 and files[0] == "model-00001-of-00005.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    a, b = Checkpoint(whole), Checkpoint(sharded)
    assert a.tensors.keys() == b.tensors.keys() == index["weight_map"].keys()
    assert all(np.array_equal(a.read(key), b.read(key)) for key in a.tensors)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in a.tensors.values())
    _, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(sharded, output_loading_info=True)
    assert not any(info.values()), info


def test_existing_files_are_kept_unless_forced(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    assert main(["--output", str(tmp_path / "out")]) == 1
    assert "not empty" in capsys.readouterr().err
    assert digest(tmp_path / "out") == {"precious.txt": b"mine"}
    assert main(["--output", str(tmp_path / "out"), "--force", "--layers", "3"]) == 0
    config = Checkpoint(tmp_path / "out").config["thinker_config"]["text_config"]
    assert config["num_hidden_layers"] == 3 and not (tmp_path / "out" / "precious.txt").exists()


def test_nothing_is_left_of_a_failed_run(tmp_path):
    with pytest.raises(CheckpointError, match="too small"):
        make_checkpoint(tmp_path / "out", overrides={"thinker_config": {"text_config": {"vocab_size": 280}}})
    with pytest.raises(TypeError):  # fails while the weights are written
        make_checkpoint(tmp_path / "out", overrides={"code2wav_config": {"decoder_dim": "wide"}})
    assert list(tmp_path.iterdir()) == []


def test_needs_neither_torch_nor_transformers():
    code = "import sys, offline.make_checkpoint; print({'torch', 'transformers', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
