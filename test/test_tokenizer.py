"""Prompts and replies are cut into the tokens that transformers' own tokenizer gives."""

import json
import shutil

import oracle
import pytest

from offline.checkpoints.qwen_tokenizer import from_vocab_and_merges
from omni_ros.errors import CheckpointError
from omni_ros.pipeline.tokenizer import ChatTokenizer

TEXTS = [
    "hello world",
    "  two  spaces\n\n and\tlines \r\n",
    "Don't you'LL we've 12345 3.14",
    "naïve café ﬁ ½ é",
    "日本語とemoji 🤖👍🏽!",
    "<|im_start|>user\nhi<|im_end|>",
    "x<|audio_pad|>y <tts_pad>",
    "",
    "�\x00\x7f",
]


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_equal_transformers(name, checkpoints, engine_dirs, text):
    """`published` has vocab.json and merges.txt only, from which the export makes its tokenizer.json."""
    ours = ChatTokenizer(engine_dirs[name] / "thinker").tokenizer
    theirs = oracle.load(checkpoints[name]).processor.tokenizer
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_decoded_text(engine_dirs, text):
    tokenizer = ChatTokenizer(engine_dirs["plain"] / "thinker")
    ids = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    for end in range(len(ids) + 1):  # also when the reply ends inside a character
        stream = tokenizer.stream()
        streamed = "".join(stream(i) for i in ids[:end])
        assert streamed + stream.rest() == tokenizer.tokenizer.decode(ids[:end], skip_special_tokens=True)


def test_files_that_do_not_belong_together(checkpoints, tmp_path):
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(checkpoints["published"] / file, tmp_path / file)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({**vocab, "intruder": len(vocab)}))
    with pytest.raises(CheckpointError, match="take both from one repository"):
        from_vocab_and_merges(tmp_path)
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="copy them from the checkpoint's repository"):
        from_vocab_and_merges(tmp_path)
