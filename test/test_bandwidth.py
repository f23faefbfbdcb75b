"""`--dry-run`'s table of modules: floors by hand, and why a module is out. What a step reads: test_build_tensorrt.py."""

import re

import pytest

from offline.graphs import bandwidth
from offline.graphs.bandwidth import Traffic

GB = 10**9
# Qwen3-Omni-30B-A3B in round numbers; thinker, talker and code_predictor read 2, 0.5 and 2.5 GB a step
NVFP4 = {
    "thinker": Traffic(17 * GB, 2 * GB, 10**5, nvfp4=True),
    "talker": Traffic(2 * GB, GB // 2, 0, nvfp4=True),
    "code_predictor": Traffic(GB // 4, 5 * GB // 2, 0, nvfp4=False),
}
FLOAT16 = {**NVFP4, "thinker": Traffic(60 * GB, 6 * GB, 10**5, nvfp4=False), "talker": Traffic(6 * GB, GB, 0, nvfp4=False)}


def table(found: dict[str, Traffic], rows: int = 1000, backend: str = "tensorrt") -> dict[str, str]:
    """Module -> its line, when half a GB is needed beside the weights."""
    lines = bandwidth._module_table(found, rows, sum(t.weights for t in found.values()) + GB // 2, backend)
    return {name: line for name in bandwidth.MODULES for line in lines if line.startswith(f"{name},")}


def test_floors_are_bytes_over_bandwidth():
    line = table(NVFP4)["Jetson T5000 (AGX Thor)"]
    tokens, frame, share = re.search(r"([\d.]+) tokens/s +([\d.]+) ms +(\d+)%", line).groups()
    assert float(tokens) == pytest.approx(273 / 2.1, abs=0.05)  # 2 GB of weights and 1000 rows of 100 kB
    assert float(frame) == pytest.approx(1000 * 3 / 273, abs=0.005)
    assert int(share) == round(100 * (2.1 + 3) / 273 / 0.08)
    assert line.endswith("19.8 of 128 GB")


def test_nvfp4_is_for_thor():
    lines = table(NVFP4)
    for name, line in lines.items():
        assert ("tokens/s" in line) == bool(re.search("T5000|T4000|GB10|5090|6000", name)), line
    assert lines["Jetson AGX Orin 64GB"].endswith("sm87 cannot compute with NVFP4 (--backend cuda can)")
    assert lines["H100 80GB"].endswith("sm90 cannot compute with NVFP4 (--backend cuda can)")
    assert lines["Jetson Orin NX 16GB"].endswith("too small for 19.75 GB")


def test_cuda_takes_nvfp4_from_ampere_on_and_a_cpu_has_no_floor():
    lines = table(NVFP4, backend="cuda")
    small = {"Jetson Orin NX 16GB", "Jetson Orin Nano 8GB (Super)"}
    assert {name for name, line in lines.items() if "tokens/s" not in line} == small
    lines = table(NVFP4, backend="onnxruntime")
    assert all(name.startswith("Jetson") and "tokens/s" not in line for name, line in lines.items())
    assert lines["Jetson AGX Orin 32GB"].endswith("19.8 of 32 GB")


def test_weights_larger_than_the_module():
    lines = table(FLOAT16)
    fits = ["Jetson T5000 (AGX Thor)", "DGX Spark (GB10)", "RTX PRO 6000 Blackwell", "H100 80GB", "H200"]
    assert [name for name, line in lines.items() if "tokens/s" in line] == fits
    assert lines["Jetson AGX Orin 64GB"].endswith("too small for 66.75 GB")


@pytest.mark.parametrize(("missing", "kept"), [("thinker", "ms"), ("code_predictor", "tokens/s")])
def test_engines_that_were_not_exported_leave_their_columns_empty(missing, kept):
    line = table({name: t for name, t in NVFP4.items() if name != missing})["Jetson T4000"]
    assert kept in line and line.count(" - ") == 2 and "%" not in line
