"""Checksums: damage inside a file is found, at load or behind the running engine, and neither keeps anything alive."""

import gc
import os
import shutil
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from broken_files import edit_config, write

from omni_ros.engines import sidecar, verify
from omni_ros.engines.open import open_engine
from omni_ros.engines.sidecar import Embedding
from omni_ros.errors import EngineError
from omni_ros.pipeline.pipeline import Pipeline


@pytest.fixture
def talker(engine_dirs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may break; unbroken files are links."""
    return shutil.copytree(engine_dirs["plain"] / "talker", tmp_path / "talker", copy_function=os.link)


@pytest.fixture
def damaged(talker: Path) -> Path:
    """Half of the weights are zeros; every size is as it was."""
    path = talker / "model.onnx.data"
    content = path.read_bytes()
    write(path, content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    return talker


def wait_for(engine: object) -> bool | str:
    """`engine.verified`, once it is known."""
    deadline = time.monotonic() + 20
    while engine.verified is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return engine.verified


@pytest.mark.parametrize("mode", [None, "full"])
def test_damage_is_found_at_load(damaged, mode):
    """By default, too, where reading everything is quick."""
    with pytest.raises(EngineError, match="model.onnx.data: damaged .its checksum differs.*copy or build the engine again"):
        open_engine(damaged, verify=mode)


def test_sizes_only(talker):
    """A bit of a weight, which changes no answer by much."""
    path = talker / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 // 4 * 4] ^= 1  # the last of a mantissa
    write(path, content)
    with pytest.raises(EngineError, match="model.onnx.data: damaged"):
        open_engine(talker)
    assert open_engine(talker, verify="sizes").verified is None


def test_sound_files(talker):
    assert open_engine(talker).verified is True and open_engine(talker, verify="full").verified is True


def test_a_large_engine_is_verified_behind_its_back(talker, monkeypatch):
    monkeypatch.setattr(verify, "QUICK_S", 0)
    assert wait_for(open_engine(talker)) is True
    path = talker / "embedding.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    write(path, content)
    engine = open_engine(talker)
    assert str(path) in wait_for(engine) and "damaged" in engine.verified


def test_a_pipeline_says_what_was_found(engine_dirs, tmp_path, monkeypatch):
    engines = shutil.copytree(engine_dirs["plain"], tmp_path / "engines", copy_function=os.link)
    path = engines / "multimodal" / "audio" / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 // 4 * 4] ^= 1
    write(path, content)
    with pytest.raises(EngineError, match="audio/model.onnx.data: damaged"):
        Pipeline.open(engines, threads=1, verify="full")
    monkeypatch.setattr(verify, "QUICK_S", 0)
    pipeline = Pipeline.open(engines, threads=1)
    for engine in pipeline.engines.values():
        wait_for(engine)
    assert len(pipeline.damage) == 1 and str(path) in pipeline.damage[0]
    pipeline.close()


def test_a_file_that_vanishes_meanwhile(talker, monkeypatch):
    monkeypatch.setattr(verify, "QUICK_S", 0)
    with verify.one_at_a_time:
        engine = open_engine(talker)
        (talker / "embedding.safetensors").unlink()
    assert "embedding.safetensors: cannot be read" in wait_for(engine)


def test_verifying_does_not_keep_the_engine(talker, monkeypatch):
    monkeypatch.setattr(verify, "QUICK_S", 0)
    with verify.one_at_a_time:
        engine = open_engine(talker)
        held = weakref.ref(engine)
        del engine
        gc.collect()
        assert held() is None


def test_verifying_does_not_keep_the_process(talker):
    """It ends although a file has not been read."""
    code = (
        "import sys\nfrom omni_ros.engines import verify\nfrom omni_ros.engines.open import open_engine\n"
        "verify.QUICK_S = 0\nverify.one_at_a_time.acquire()\nengine = open_engine(sys.argv[1])\nprint(engine.verified)"
    )
    done = subprocess.run([sys.executable, "-c", code, talker], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "None\n", done.stderr


def test_engines_without_checksums(talker):
    """Of an older build: sizes are all there is."""
    edit_config(talker, lambda c: c.pop("checksums"))
    assert open_engine(talker).verified is None
    with pytest.raises(EngineError, match="config.json: has no checksums; build the engine again"):
        open_engine(talker, verify="full")


def test_rows_of_a_large_embedding_are_read_when_they_are_needed(talker, monkeypatch):
    """From the file that was opened: one that takes its place changes nothing, one that shrinks is an error, not the end."""
    path, ids = talker / "embedding.safetensors", [3, 0, 3, 1087]
    small = Embedding(path)
    monkeypatch.setattr(sidecar, "IN_MEMORY", 1000)
    large = Embedding(path)
    np.testing.assert_array_equal(large[ids], small[ids])
    assert large[[]].shape == (0, 64)
    with pytest.raises(IndexError, match="embedding.safetensors: rows from 0 to 1088 of 1088"):
        large[[0, 1088]]
    content = path.read_bytes()
    write(path, bytes(len(content)))
    np.testing.assert_array_equal(large[ids], small[ids])
    write(path, content)
    shrinks = Embedding(path)
    os.truncate(path, 5000)
    assert shrinks[[0]].any()
    with pytest.raises(EngineError, match="embedding.safetensors: shorter than when it was opened; replace engines by rename"):
        shrinks[ids]


def test_an_unknown_mode(talker):
    with pytest.raises(ValueError, match="verify is 'all'"):
        open_engine(talker, verify="all")
