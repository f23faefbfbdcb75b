"""Weights written part by part from several threads, and read back in the dtype that was asked for."""

import os
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from offline.graphs.external_data import ExternalData, StoredGraph, in_parallel
from offline.quantization.nvfp4 import encode


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})


# ---- in_parallel ----------------------------------------------------------------------------------------------------
def test_parts_come_in_order_from_several_threads():
    together = threading.Barrier(4)

    def part(i: int) -> np.ndarray:
        together.wait(timeout=10)  # passes only if four parts are computed at once
        time.sleep(0.005 * (3 - i % 4))  # later parts are ready first
        return np.array(i)

    assert [int(p) for p in in_parallel(part, 12)] == list(range(12))


def test_a_slow_writer_stops_the_workers():
    begun = []
    parts = in_parallel(lambda i: begun.append(i) or np.array(i), 100)
    for taken in range(1, 101):
        next(parts)
        time.sleep(0.002)  # long enough to run ahead, if they could
        assert len(begun) <= taken + 2 * 4 - 1
    assert sorted(begun) == list(range(100))


def test_an_error_is_raised_and_ends_the_work():
    begun = []

    def part(i: int) -> np.ndarray:
        begun.append(i)
        if i == 5:
            raise OSError("disk is gone")
        if i > 5:
            time.sleep(0.2)  # keeps the workers from the parts behind it
        return np.array(i)

    taken = []
    with pytest.raises(OSError, match="disk is gone"):
        for p in in_parallel(part, 100):
            taken.append(int(p))
    assert taken == [0, 1, 2, 3, 4] and max(begun) < 5 + 2 * 4 - 1  # the last one asked for was never begun


def test_no_parts():
    assert list(in_parallel(np.zeros, 0)) == []


# ---- StoredGraph ----------------------------------------------------------------------------------------------------
@pytest.fixture
def stored(tmp_path: Path) -> tuple[StoredGraph, dict[str, np.ndarray]]:
    """A matrix and a stack in NVFP4, a float16, a float32 and an int64 tensor; and the float32 values by name."""
    rng = np.random.default_rng(0)
    data = ExternalData(tmp_path)
    initializers, nodes, expected = [], [], {}
    for name, count in (("matrix", None), ("stack", 9)):
        weights = rng.standard_normal((count or 1, 6, 32)) * np.logspace(-4, 2, count or 1)[:, None, None]
        codes, scales, scales_2 = ([np.asarray(a) for a in column] for column in zip(*map(encode, weights)))
        lead = [count] if count else []
        stored_codes = data.add(name, np.uint8, [*lead, 6, 16], in_parallel(lambda e, codes=codes: codes[e], count or 1))
        stored_codes.data_type, stored_codes.dims[-1] = TensorProto.FLOAT4E2M1, 32
        initializers += [
            stored_codes,
            data.add(f"{name}_scale", ml_dtypes.float8_e4m3fn, [*lead, 6, 2], scales),
            data.add(f"{name}_scale_2", np.float32, lead, scales_2),
        ]
        nodes += [
            helper.make_node("DequantizeLinear", [f"{name}_scale", f"{name}_scale_2"], [f"{name}_s"], axis=0),
            helper.make_node("DequantizeLinear", [name, f"{name}_s"], [f"{name}_f"], axis=len(lead) + 1, block_size=16),
            helper.make_node("Cast", [f"{name}_f"], [f"{name}_weight"], to=TensorProto.FLOAT16),
        ]
        values = [
            np.stack([c & 15, c >> 4], -1).reshape(6, 32).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
            * np.repeat(s.astype(np.float32) * s2, 16, axis=-1)
            for c, s, s2 in zip(codes, scales, scales_2)
        ]
        expected[f"{name}_weight"] = np.stack(values) if count else values[0]
    for name, dtype in (("half", np.float16), ("single", np.float32), ("ids", np.int64)):
        value = (rng.standard_normal((4, 3)) * 1e3).astype(dtype)
        initializers.append(data.add(name, dtype, value.shape, in_parallel(lambda i, value=value: value[i], 4)))
        expected[name] = value if name == "ids" else value.astype(np.float32)
    data.close()
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], initializer=initializers)), tmp_path / "model.onnx")
    return StoredGraph(tmp_path), expected


@pytest.mark.parametrize("dtype", [None, np.float32, np.float16])
def test_values_are_read_in_the_dtype_asked_for(stored, dtype):
    graph, expected = stored
    for name, value in expected.items():
        value = value if name == "ids" else value.astype(dtype or np.float32)
        options = {} if dtype is None else {"dtype": dtype}
        found = graph.read(name, **options)
        assert found.dtype == value.dtype and found.tobytes() == value.tobytes() and found.shape == value.shape
        if name != "matrix_weight":
            for i in range(len(value)):
                np.testing.assert_array_equal(graph.read(name, i, **options), value[i])
