"""Nothing leaves the robot: a whole turn touches no address and leaves nothing in the user's folders."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What makes ONNX Runtime keep quiet by itself: on a robot none of it is set.
CI = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "BUILD_ID", "JENKINS_URL", "TRAVIS", "GITLAB_CI", "ORT_RUNNING_UNIT_TESTS")
TURN = """
import sys, time
import numpy as np
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Finished, Request

pipeline = Pipeline.open(sys.argv[1], threads=1)
parts = [{"type": "audio", "audio": np.sin(np.arange(8000, dtype=np.float32))},
         {"type": "image", "image": np.full((64, 64, 3), 90, np.uint8)}, {"type": "text", "text": "so"}]
*_, end = pipeline.generate(Request([{"role": "user", "content": parts}], max_generate_length=4, max_audio_length=4))
assert isinstance(end, Finished) and end.codes.shape[1]
pipeline.close()
assert not {"huggingface_hub", "httpx", "httpx2", "requests", "torch", "transformers"} & set(sys.modules)
time.sleep(8)  # the first look-up of an address came after 6 s
"""


def run(code: str, home: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> list[str]:
    """Names of the files that `python -c code` leaves in an empty home."""
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if k not in (*CI, "ORT_DISABLE_TELEMETRY") and not k.startswith("XDG_")}
    environment = {**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONPATH": str(ROOT)}
    command = [*prefix, sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_a_turn_leaves_no_file_and_calls_nobody(engine_dirs, tmp_path):
    strace = shutil.which("strace")
    log = tmp_path / "calls"
    prefix = (strace, "-f", "-qq", "-e", "trace=network", "-o", str(log)) if strace else ()
    assert run(TURN, tmp_path / "home", str(engine_dirs["plain"]), prefix=prefix) == []
    if strace:
        assert "AF_INET" not in log.read_text()


def test_onnxruntime_by_itself_would(tmp_path):
    """The test above can fail: this is what it looks for."""
    if tuple(map(int, version("onnxruntime").split(".")[:2])) < (1, 29):
        pytest.skip("this ONNX Runtime has no telemetry")
    files = run("import onnxruntime, time; time.sleep(3)", tmp_path / "home")
    assert any("onnxruntime" in name for name in files)


@pytest.mark.parametrize("setting", ["", "0", "false"])
def test_a_setting_from_outside_does_not_turn_it_on(tmp_path, setting):
    code = f"import os; os.environ['ORT_DISABLE_TELEMETRY'] = {setting!r}; import omni_ros, onnxruntime, time; time.sleep(2)"
    assert run(code, tmp_path / "home") == []


def test_tests_do_not_report_either():
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    conftest = (ROOT / "test/conftest.py").read_text()
    assert conftest.index("import omni_ros") < conftest.index("tensorrt_on_cpu")  # which imports onnxruntime
