"""Outputs appear whole or not at all: write to a hidden sibling, then rename."""
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory that replaces `target` when the block ends well, and vanishes when it fails."""
    temporary = target.parent / f".{target.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed run left behind
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a path to write; it replaces `target` when the block ends well, and vanishes when it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.partial"
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
