"""The small files beside a checkpoint's weights that turn messages into tokens, patches and mel features."""

import shutil
from pathlib import Path

from omni_ros.errors import CheckpointError

from .qwen_tokenizer import from_vocab_and_merges

PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


def copy_processor_files(checkpoint: Path, target: Path) -> None:
    """Copy what is there, and make tokenizer.json where a checkpoint has only vocab.json and merges.txt."""
    for name in PROCESSOR_FILES:
        if (checkpoint / name).is_file():
            shutil.copy(checkpoint / name, target / name)
    if not (target / "tokenizer.json").is_file():
        from_vocab_and_merges(checkpoint).save(str(target / "tokenizer.json"))
    if not any((target / n).is_file() for n in ("chat_template.jinja", "chat_template.json")):
        raise CheckpointError(f"{checkpoint}: neither chat_template.jinja nor chat_template.json found")
