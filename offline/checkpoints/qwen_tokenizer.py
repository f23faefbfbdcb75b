"""Qwen's byte-level BPE as transformers' Qwen2Tokenizer builds it, with the `tokenizers` library alone."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from omni_ros.errors import CheckpointError

# Contractions, words with at most one leading mark or space, single digits, marks, spaces.
PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_tokenizer(model: models.BPE) -> Tokenizer:
    """Qwen's way of cutting text, around any BPE model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PRETOKENIZE), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def from_vocab_and_merges(directory: Path) -> Tokenizer:
    """The tokenizer of a checkpoint that has vocab.json and merges.txt but no tokenizer.json, as published ones may.

    Special tokens and their ids come from tokenizer_config.json. Raises CheckpointError when a file is missing or damaged.
    """
    try:
        model = models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
        added = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
        tokens = {
            int(i): AddedToken(
                t["content"],
                special=t["special"],
                normalized=t.get("normalized", False),
                lstrip=t.get("lstrip", False),
                rstrip=t.get("rstrip", False),
                single_word=t.get("single_word", False),
            )
            for i, t in added.items()
        }
    except Exception as e:  # tokenizers raises bare Exceptions
        raise CheckpointError(
            f"{directory}: neither tokenizer.json nor usable vocab.json, merges.txt and "
            f"tokenizer_config.json ({e}); copy them from the checkpoint's repository"
        ) from e
    tokenizer = qwen_tokenizer(model)
    for i, token in sorted(tokens.items()):
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
        if tokenizer.token_to_id(token.content) != i:
            raise CheckpointError(
                f"{directory / 'tokenizer_config.json'}: {token.content} has id {i}, but vocab.json leaves "
                f"{tokenizer.token_to_id(token.content)} for it; take both from one repository"
            )
    return tokenizer
