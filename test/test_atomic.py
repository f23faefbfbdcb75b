"""Outputs that appear whole or not at all, whatever lies in their way and however many make them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.outputs.atomic import OutputBusyError, atomic_directory, atomic_file

ROOT = Path(__file__).parent.parent
HOLD = """
import sys, time
from pathlib import Path
from offline.outputs import atomic
with getattr(atomic, sys.argv[1])(Path(sys.argv[2])) as place:
    (place / "half" if place.is_dir() else place).write_text("half")
    print("made", flush=True)
    time.sleep(600)
"""


def holder(kind: str, target: Path) -> subprocess.Popen:
    """Another process that is making `target`, and never done."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(target)], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "made\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def make(target: Path, content: str = "new") -> None:
    with atomic_directory(target) as folder:
        (folder / "file").write_text(content)


def test_a_directory_replaces_the_old_one(tmp_path):
    make(tmp_path / "out", "old")
    (tmp_path / "out" / "more").mkdir()
    make(tmp_path / "out")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["file"]
    assert (tmp_path / "out" / "file").read_text() == "new"
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_leaves_the_old_one(tmp_path):
    make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "text") as path:
        path.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "deep" / "deeper" / "out"):
        raise RuntimeError
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "file").read_text() == "old"


def test_a_file_has_the_usual_mode(tmp_path):
    with atomic_file(tmp_path / "a" / "text") as path:
        path.write_text("new")
    (tmp_path / "plain").write_text("")
    assert names(tmp_path / "a") == ["text"] and (tmp_path / "a" / "text").read_text() == "new"
    assert (tmp_path / "a" / "text").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("planted", [".out.partial", ".out.abcdefgh.partial", ".out.old"])
def test_planted_links_are_not_followed(tmp_path, planted):
    """Not by writing, not by clearing up."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    place = tmp_path / "shared"
    place.mkdir()
    (place / planted).symlink_to(precious)
    make(place / "out")
    with atomic_file(place / "out.txt") as path:
        path.write_text("new")
    assert (precious / "file").read_text() == "mine" and names(precious) == ["file"]
    assert (place / planted).is_symlink() and names(place) == sorted([planted, "out", "out.txt"])


def test_names_cannot_be_guessed(tmp_path):
    seen = set()
    for _ in range(8):
        with atomic_directory(tmp_path / "out") as folder:
            seen.add(folder.parent.name)
            assert folder.parent.stat().st_mode & 0o077 == 0  # nor can others look inside
    assert len(seen) == 8


def test_a_target_that_is_a_link_is_replaced_not_followed(tmp_path):
    make(tmp_path / "elsewhere", "old")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    make(tmp_path / "out")
    assert (tmp_path / "elsewhere" / "file").read_text() == "old" and not (tmp_path / "out").is_symlink()
    assert (tmp_path / "out" / "file").read_text() == "new"


def test_a_second_builder_is_refused_while_the_first_lives(tmp_path):
    process = holder("atomic_directory", tmp_path / "out")
    try:
        with pytest.raises(OutputBusyError, match="another process is making it now"):
            make(tmp_path / "out")
        make(tmp_path / "out.other")  # another output in the same folder
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(names(tmp_path)) == 2  # what the killed one left
    make(tmp_path / "out")
    assert names(tmp_path) == ["out", "out.other"] and (tmp_path / "out" / "file").read_text() == "new"


def test_files_of_one_name_do_not_meet(tmp_path):
    process = holder("atomic_file", tmp_path / "text")
    try:
        with atomic_file(tmp_path / "text") as path:
            path.write_text("new")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "text").read_text() == "new"
    with atomic_file(tmp_path / "text") as path:
        path.write_text("newer")
    assert names(tmp_path) == ["text"]
