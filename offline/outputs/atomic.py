"""Outputs appear whole or not at all: they are made in a hidden folder beside their place, then renamed into it.

That folder has a name that nobody can guess, is made by this process alone and readable by its user alone, so no link
planted in advance is ever followed. A lock on it says that its maker is alive: it goes with the process, however that
ends. So a second builder of the same output is told so, and what a killed one left behind is removed by the next.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from omni_ros.errors import OmniError


class OutputBusyError(OmniError):
    """Another process is making the same output now."""


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yields an empty directory that replaces `target` when the block ends well, and vanishes when it fails.

    Raises OutputBusyError while another process is making `target`.
    """
    with _workshop(target) as (workshop, others):
        if others:
            raise OutputBusyError(
                f"{target}: another process is making it now; wait until it has ended, or choose another folder"
            )
        new = workshop / "new"
        new.mkdir()
        yield new
        if target.exists() or target.is_symlink():
            os.replace(target, workshop / "old")  # goes with the workshop: a run killed now must not leave half a `target`
        os.replace(new, target)


@contextlib.contextmanager
def resumable_directory(target: Path, key: str) -> Iterator[Path]:
    """Yields a hidden directory beside `target` for work that takes long. It vanishes when the block ends well or raises
    OmniError; a run that is stopped leaves it to the next one with the same `key`. What other keys have left is removed.

    Raises OutputBusyError while another process has it.
    """
    prefix, suffix = f".{target.name}.", ".resume"
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.parent / f"{prefix}{key}{suffix}"
    for entry in list(os.scandir(target.parent)):
        if entry.name.startswith(prefix) and entry.name.endswith(suffix) and entry.name != folder.name:
            if entry.is_dir(follow_symlinks=False):
                _remove_leftover(Path(entry.path))
    folder.mkdir(mode=0o700, exist_ok=True)
    lock = _lock(folder)
    if lock is None:
        raise OutputBusyError(f"{target}: another process is making it now; wait until it has ended, or choose another folder")
    try:
        yield folder
    except OmniError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yields a path to write; it replaces `target` when the block ends well, and vanishes when it fails."""
    with _workshop(target) as (workshop, _):
        yield workshop / target.name
        os.replace(workshop / target.name, target)


@contextlib.contextmanager
def _workshop(target: Path) -> Iterator[tuple[Path, bool]]:
    """A locked, empty, hidden folder beside `target`, and whether another process has one there for the same target."""
    made = [folder for folder in (target.parent, *target.parent.parents) if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f".{target.name}.", ".partial"
    workshop = Path(tempfile.mkdtemp(suffix, prefix, target.parent))
    lock = _lock(workshop)
    try:
        if lock is None:  # between the two lines above another process took it for a leftover
            raise OutputBusyError(f"{target}: another process began to make it at the same moment; try again")
        others = False
        for entry in list(os.scandir(target.parent)):
            if entry.name.startswith(prefix) and entry.name.endswith(suffix) and entry.name != workshop.name:
                if entry.is_dir(follow_symlinks=False):
                    others |= not _remove_leftover(Path(entry.path))
        yield workshop, others
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        for folder in made:  # if it failed, they are empty
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(folder: Path) -> int | None:
    """A descriptor that locks `folder` as long as it is open, or None if another process has it or removed it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)  # still there
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_leftover(folder: Path) -> bool:
    """Remove the workshop of a process that is gone. False if its process lives."""
    lock = _lock(folder)
    if lock is None:
        return not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return True
