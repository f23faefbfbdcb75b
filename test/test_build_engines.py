"""One engine at a time, checksums, and what a build leaves alone. What the engines compute: test_lowering.py and others."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run

from offline import build_engines
from offline.outputs.atomic import atomic_directory
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.request import Finished, Request

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def onnx(engine_dirs) -> Path:
    return engine_dirs["plain"].with_name("plain-onnx")


@pytest.fixture(scope="module")
def cuda(checkpoints, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cuda")
    run("offline.export_onnx", checkpoints["plain"], out / "onnx", "--dtype", "float16")
    run("offline.build_engines", out / "onnx", out / "engines", "--device", "cuda")
    return out / "engines"


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def one(onnx: Path, name: str, place: Path, *options: str) -> int:
    source = onnx / build_engines.ENGINES[name]
    return build_engines.main(["--onnxDir", str(source), "--engineDir", str(place), *options])


def snapshot(folder: Path) -> dict[Path, tuple]:
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


# ---- config.json --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ENGINES)
def test_checksums_of_every_file(engine_dirs, tensorrt_dirs, cuda, name):
    for backend, engines in (("onnxruntime", engine_dirs["plain"]), ("tensorrt", tensorrt_dirs["plain"]), ("cuda", cuda)):
        folder = engines / name
        files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "config.json"}
        built = config(folder)
        assert built["backend"] == backend and "device" not in built
        assert built["files"] == {n: len(content) for n, content in files.items()}
        assert built["checksums"] == {n: hashlib.sha256(content).hexdigest() for n, content in files.items()}, backend
        if "model.onnx" in files:
            assert built["graph_sha256"] == built["checksums"]["model.onnx"]


def test_checksums_of_an_export(onnx):
    for folder in build_engines.ENGINES.values():
        for name, checksum in config(onnx / folder)["checksums"].items():
            assert hashlib.sha256((onnx / folder / name).read_bytes()).hexdigest() == checksum


@pytest.mark.parametrize(
    "name, file, options",
    [
        ("thinker", "embedding.safetensors", []),
        ("thinker", "tokenizer.json", []),
        ("multimodal/visual", "model.onnx.data", ["cuda"]),
    ],
)
def test_a_file_that_is_copied_is_what_was_exported(onnx, tmp_path, capfd, name, file, options):
    """One bit, of the same size: seen while it is copied."""
    source = shutil.copytree(onnx / build_engines.ENGINES[name], tmp_path / "graph")
    content = bytearray((source / file).read_bytes())
    content[len(content) // 2] ^= 1
    (source / file).write_bytes(content)
    options = [f"--backend={o}" for o in options]
    assert build_engines.main(["--onnxDir", str(source), "--engineDir", str(tmp_path / "engine"), *options]) == 1
    assert str(source / file) in capfd.readouterr().err and sorted(p.name for p in tmp_path.iterdir()) == ["graph"]


# ---- one engine -----------------------------------------------------------------------------------------------------------
def test_one_after_another_is_all_at_once(onnx, engine_dirs, tmp_path):
    for name in ENGINES:
        assert one(onnx, name, tmp_path / name) == 0
    for path in engine_dirs["plain"].rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(engine_dirs["plain"])).read_bytes() == path.read_bytes(), path


def test_limits_of_its_own_and_the_rest_untouched(onnx, engine_dirs, tmp_path):
    engines = shutil.copytree(engine_dirs["plain"], tmp_path / "engines")
    before = snapshot(engines)
    assert one(onnx, "thinker", engines / "thinker", "--maxInputLen", "64", "--maxKVCacheCapacity", "96") == 0
    assert one(onnx, "code_predictor", engines / "code_predictor", "--maxInputLen", "256", "--maxKVCacheCapacity", "256") == 0
    after = snapshot(engines)
    changed = {p.relative_to(engines).parts[0] for p in after if before[p] != after[p]}
    assert before.keys() == after.keys() and changed == {"thinker", "code_predictor"}
    assert config(engines / "thinker")["limits"] == {"max_input_len": 64, "capacity": 96}
    assert config(engines / "talker")["limits"] == {"max_input_len": 1024, "capacity": 2048}
    pipeline = Pipeline.open(engines, threads=1)
    *_, finished = pipeline.generate(Request([{"role": "user", "content": "hello"}], 4, max_audio_length=3))
    pipeline.close()
    assert isinstance(finished, Finished) and finished.codes.shape == (16, 3)


def test_a_folder_that_is_no_engine_is_not_replaced(onnx, engine_dirs, tmp_path, capfd):
    """--engineDir ENGINES where ENGINES/thinker was meant would be the end of five engines."""
    engines = shutil.copytree(engine_dirs["plain"], tmp_path / "engines", copy_function=os.link)
    before = snapshot(engines)
    assert one(onnx, "thinker", engines) == 1 and "is no engine's folder" in capfd.readouterr().err
    assert one(onnx, "thinker", engines / "talker") == 1 and "holds the talker engine" in capfd.readouterr().err
    assert snapshot(engines) == before
    (engines / "talker" / "config.json").unlink()
    (engines / "talker" / "config.json").write_text("{")  # damaged: to be built again
    assert one(onnx, "talker", engines / "talker") == 0


def test_a_tree_by_its_options(onnx, engine_dirs, tmp_path):
    small = tmp_path / "onnx" / "multimodal"
    shutil.copytree(onnx / "multimodal" / "audio", small / "audio")
    assert build_engines.main(["--onnxDir", str(small.parent), "--engineDir", str(tmp_path / "engines")]) == 0
    assert [p.name for p in (tmp_path / "engines").iterdir()] == ["multimodal"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["onnx"],
        ["--onnxDir", "onnx"],
        ["onnx", "engines", "--onnxDir", "onnx"],
        ["onnx", "engines", "--device", "cuda", "--weights", "int4"],
        ["onnx", "engines", "--backend", "cuda", "--target", "sm89"],
        ["onnx", "engines", "--backend", "openvino"],
    ],
)
def test_wrong_options(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        build_engines.main(arguments)
    assert caught.value.code == 2


def test_dry_run_of_one_graph(onnx, tmp_path, capsys):
    assert one(onnx, "talker", tmp_path / "talker", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "talker" in printed and "thinker  " not in printed and not (tmp_path / "talker").exists()


# ---- two builders ---------------------------------------------------------------------------------------------------------
def test_a_second_build_into_the_same_folder_is_refused(onnx, tmp_path):
    with atomic_directory(tmp_path / "talker"):  # a build that goes on
        command = [sys.executable, "-m", "offline.build_engines", "--onnxDir", str(onnx / "talker" / "llm")]
        done = subprocess.run(
            [*command, "--engineDir", str(tmp_path / "talker")],
            cwd=ROOT,
            text=True,
            capture_output=True,
        )
        assert done.returncode == 1 and "another process is making it now" in done.stderr and "Traceback" not in done.stderr
        assert one(onnx, "code_predictor", tmp_path / "code_predictor") == 0  # beside it
    assert one(onnx, "talker", tmp_path / "talker") == 0 and sorted(p.name for p in tmp_path.iterdir()) == [
        "code_predictor",
        "talker",
    ]
