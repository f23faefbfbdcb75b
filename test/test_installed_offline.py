"""`offline` under the name that it is installed by, omni_ros_offline: in a checkout both are the same files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = ("quantize", "export_onnx", "build_engines", "preprocess_audio", "infer", "compare", "make_checkpoint")


@pytest.fixture
def python(tmp_path):
    """Runs Python where `omni_ros_offline` is importable and `offline` is not."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "omni_ros_offline").symlink_to(ROOT / "offline")
    (site / "omni_ros").symlink_to(ROOT / "omni_ros")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-P" if sys.version_info >= (3, 11) else "-s", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"},
            text=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_no_module_names_the_folder():
    for path in (ROOT / "offline").rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("from offline", "import offline")), f"{path}: {line}"


def test_the_commands_work_by_that_name(python, tmp_path):
    python("-m", "omni_ros_offline.make_checkpoint", "--output", tmp_path / "checkpoint")
    python("-m", "omni_ros_offline.export_onnx", tmp_path / "checkpoint", tmp_path / "onnx", "--components", "audio,talker")
    for device in ("cpu", "cuda"):
        python("-m", "omni_ros_offline.build_engines", tmp_path / "onnx", tmp_path / device, "--device", device)
    assert (tmp_path / "cuda" / "multimodal" / "audio" / "config.json").is_file()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_the_name(python, command):
    said = python("-m", f"omni_ros_offline.{command}", "--help")
    assert f"python -m omni_ros_offline.{command} " in said and "python -m offline" not in said


def test_nothing_is_imported_by_the_other_name(python):
    rooms = "cuda.build, onnxruntime.build, tensorrt.build, graphs.decoder, quantization.nvfp4, infer, compare"
    imports = "; ".join(f"import omni_ros_offline.{room}" for room in rooms.split(", "))
    listing = python("-c", f"import sys; {imports}; print([m for m in sys.modules if m.split('.')[0] == 'offline'])")
    # the editable install of a checkout may make `offline` importable; nothing may ask for it
    assert listing.strip() == "[]"
