"""The TensorRT backend on a simulated GPU (tensorrt_on_cpu.py): what it computes, records, allocates, and refuses."""

import inspect
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import broken_files
import numpy as np
import pytest
import tensorrt_on_cpu
from broken_files import edit_config, write
from cuda_on_cpu import Cuda, CudaError
from tensorrt_on_cpu import simulated_gpu

from offline import build_engines
from offline.tensorrt import build as build_tensorrt
from omni_ros.engines import cuda_device
from omni_ros.engines import open as open_module
from omni_ros.engines.config import read_config
from omni_ros.engines.engine import Engine, State
from omni_ros.engines.open import open_engine
from omni_ros.engines.tensorrt.package import check_plan, import_tensorrt, make_logger, package_name
from omni_ros.errors import EngineError, InputError, KVCacheFullError
from omni_ros.pipeline.pipeline import ENGINES

DECODER = [{"S": 7}, {"S": 1}, {"S": 1}, {"S": 5}, {"S": 1}, {"S": 1}, {"S": 1}]
RUNS = {  # engine folder -> sizes of symbolic dimensions, run after run
    "thinker": DECODER,
    "talker": DECODER,
    "code_predictor": [{}, {}, {}],
    "code2wav": [{"frames": 1}, {"frames": 3}, {"frames": 1}, {"frames": 100}],
    "multimodal/audio": [
        {"windows": 1, "chunks": 2, "frames": 100, "tokens": 20},
        {"windows": 1, "chunks": 1, "frames": 40, "tokens": 5},
    ],
    "multimodal/visual": [{"frames": 1, "n": 16}, {"frames": 1, "n": 64}, {"frames": 1, "n": 16}],
}


def inputs_for(engine: Engine, sizes: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    inputs = {}
    for entry in engine.config.fed:
        shape = [d if isinstance(d, int) else sizes[d] for d in entry.shape]
        ints = entry.dtype in ("int64", "int32")  # TensorRT 8.6 has no int64
        inputs[entry.name] = rng.integers(0, 5, shape) if ints else rng.standard_normal(shape).astype(np.float32)
    return inputs


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, atol=2e-4, err_msg=name)


@pytest.fixture
def gpu() -> Iterator[Cuda]:
    with simulated_gpu() as cuda:
        yield cuda


@pytest.fixture
def engines(tensorrt_dirs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the plain engines that a test may break; unbroken files are links."""
    return shutil.copytree(tensorrt_dirs["plain"], tmp_path / "engines", copy_function=os.link)


@pytest.fixture(scope="module")
def swapped_dirs(engine_dirs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Engines of a TensorRT whose parser does not know TensorScatter: KV caches cannot be written in place."""
    root = tmp_path_factory.mktemp("swapped")
    with simulated_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt_on_cpu.OnnxParser, "unknown", ("TensorScatter",))
        for name in ("plain", "odd"):
            onnx = engine_dirs[name].with_name(f"{name}-onnx")
            assert build_engines.main([str(onnx), str(root / name), "--backend", "tensorrt"]) == 0
    return {name: root / name for name in ("plain", "odd")}


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are not asked their self-check: what loading itself does can be counted."""
    monkeypatch.setattr(open_module, "check_answers", lambda engine: None)


def decoder(directory: Path) -> tuple[Engine, State, Iterator[dict[str, np.ndarray]]]:
    """The Talker, its state, and one row of input after another."""
    engine, rng = open_engine(directory / "talker"), np.random.default_rng(3)
    return engine, engine.new_state(), (inputs_for(engine, {"S": 1}, rng) for _ in itertools.count())


# ---- what it computes --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("model", ["plain", "odd", "published"])
@pytest.mark.parametrize("folder", ENGINES)
def test_runs_like_onnx_runtime(gpu, engine_dirs, tensorrt_dirs, model, folder):
    reference, engine = open_engine(engine_dirs[model] / folder, threads=1), open_engine(tensorrt_dirs[model] / folder)
    compare_runs(reference, engine, folder)


@pytest.mark.parametrize("model", ["plain", "odd"])
@pytest.mark.parametrize("folder", ["thinker", "talker"])
def test_state_that_alternates_between_two_buffers(gpu, engine_dirs, swapped_dirs, model, folder):
    reference, engine = open_engine(engine_dirs[model] / folder, threads=1), open_engine(swapped_dirs[model] / folder)
    assert not any(s.in_place for s in engine.config.state) and len(engine.profiles[0].graphs) == 2
    compare_runs(reference, engine, folder)


def compare_runs(reference: Engine, engine: Engine, folder: str) -> None:
    """Three turns; in the third a prefix is kept, where the engine can."""
    rng, states = np.random.default_rng(0), (reference.new_state(), engine.new_state())
    for turn in range(3):
        for sizes in RUNS[folder]:
            inputs = inputs_for(reference, sizes, rng)
            assert_same(engine.run(inputs, states[1]), reference.run(inputs, states[0]))
            assert states[0].length == states[1].length
        for state in states:
            if turn == 1 and folder in ("thinker", "talker") and states[1].truncates:
                state.truncate(4)
                with pytest.raises(ValueError, match="truncate"):
                    state.truncate(5)
            else:
                state.reset()
    engine.close()


@pytest.mark.parametrize("folder", ["code2wav", "talker"])
def test_alternating_state_cannot_be_truncated(gpu, swapped_dirs, folder):
    state = open_engine(swapped_dirs["plain"] / folder).new_state()
    with pytest.raises(EngineError, match=f"{folder}: this engine's state can be reset but not truncated"):
        state.truncate(0)


def test_a_step_of_one_shape_that_depends_on_the_host_is_not_captured(gpu, engine_dirs, tmp_path):
    """Speech of one frame: the first frame gives fewer samples than later ones would."""
    source = tmp_path / "onnx" / "multimodal"
    shutil.copytree(engine_dirs["plain"].with_name("plain-onnx") / "multimodal" / "code2wav", source / "code2wav")
    assert build_engines.main([str(source.parent), str(tmp_path), "--backend", "tensorrt", "--maxCodeLen", "1"]) == 0
    reference, engine = open_engine(engine_dirs["plain"] / "code2wav", threads=1), open_engine(tmp_path / "code2wav")
    inputs = inputs_for(reference, {"frames": 1}, np.random.default_rng(0))
    assert not engine.profiles[0].graphs
    state = engine.new_state()
    assert_same(engine.run(inputs, state), reference.run(inputs, reference.new_state()))
    with pytest.raises(KVCacheFullError):
        engine.run(inputs, state)


def test_outputs_belong_to_the_caller(gpu, tensorrt_dirs):
    """The Talker's thread reads what the prefill returned while the Thinker goes on."""
    rng = np.random.default_rng(1)
    for folder in ENGINES:
        engine = open_engine(tensorrt_dirs["plain"] / folder)
        state = engine.new_state()
        first = engine.run(inputs_for(engine, RUNS[folder][0], rng), state)
        kept = {name: value.copy() for name, value in first.items()}
        for sizes in RUNS[folder]:
            engine.run(inputs_for(engine, sizes, rng), state)
        for name in kept:
            np.testing.assert_array_equal(first[name], kept[name])


def test_state_of_a_turn_that_overflowed_does_not_reach_the_next(gpu, tensorrt_dirs):
    """Attention multiplies masked rows by zero, which leaves NaN what it is."""
    engine, state, rows = decoder(tensorrt_dirs["plain"])
    expected = engine.run(first := next(rows), state)
    for forget in (state.reset, state.close):
        for buffer in engine.buffers:
            gpu.view("device", buffer.addresses[0], buffer.nbytes)[:] = 0xFF
        forget()
        state = engine.new_state() if state.closed else state
        assert_same(engine.run(first, state), expected)


def test_one_conversation_at_a_time(gpu, swapped_dirs):
    """The next one begins with the first of two buffers, whichever the last one ended with."""
    engine, state, rows = decoder(swapped_dirs["plain"])
    expected = engine.run(first := next(rows), state)
    with pytest.raises(EngineError, match="talker: built for one conversation at a time; close the other one"):
        engine.new_state()
    state.close()
    with pytest.raises(EngineError, match="state was closed"):
        engine.run(first, state)
    assert_same(engine.run(first, engine.new_state()), expected)


def test_engines_run_in_threads_of_their_own(gpu, tensorrt_dirs):
    """Two streams, neither waiting for the other."""

    def play(folder: str) -> list[dict[str, np.ndarray]]:
        engine, rng = open_engine(tensorrt_dirs["plain"] / folder), np.random.default_rng(2)
        state = engine.new_state()
        return [engine.run(inputs_for(engine, sizes, rng), state) for sizes in RUNS[folder] * 3]

    alone = [play(folder) for folder in ("thinker", "talker")]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(play, ("thinker", "talker")))
    for a, b in zip(itertools.chain(*alone), itertools.chain(*together)):
        assert_same(b, a)


# ---- graphs and memory -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "folder, graphs",
    [("thinker", 1), ("talker", 1), ("code_predictor", 1), ("code2wav", 0), ("multimodal/audio", 0), ("multimodal/visual", 0)],
)
def test_steps_of_one_shape_are_captured_once(gpu, tensorrt_dirs, unasked, folder, graphs):
    engine = open_engine(tensorrt_dirs["plain"] / folder)
    assert gpu.calls["cudaStreamBeginCapture"] == gpu.calls["cudaGraphInstantiate"] == graphs
    assert gpu.alive()["executable"] == graphs and gpu.alive()["graph"] == 0 and gpu.calls["cudaGraphLaunch"] == 0
    rng, state = np.random.default_rng(0), engine.new_state()
    gpu.calls.clear()
    for sizes in RUNS[folder]:
        engine.run(inputs_for(engine, sizes, rng), state)
    replayed = sum(sizes in ({}, {"S": 1}) for sizes in RUNS[folder])
    copies = len(engine.tensors) - len(engine.config.tensorrt.host_inputs)
    expected = {
        "cudaEventRecord": len(RUNS[folder]),
        "cudaEventSynchronize": len(RUNS[folder]),
        "cudaGraphLaunch": replayed,
        "cudaMemcpyAsync": (len(RUNS[folder]) - replayed) * copies,
    }
    assert gpu.calls == {name: count for name, count in expected.items() if count}  # nothing allocated, nothing recorded


def test_one_graph_for_each_buffer_that_may_hold_the_state(gpu, swapped_dirs, unasked):
    engine, state, rows = decoder(swapped_dirs["plain"])
    assert gpu.calls["cudaStreamBeginCapture"] == gpu.alive()["executable"] == 2
    for _ in range(5):
        engine.run(next(rows), state)
    assert gpu.calls["cudaStreamBeginCapture"] == 2 and gpu.calls["cudaGraphLaunch"] == 5


def test_contexts_share_their_scratch_memory(gpu, tensorrt_dirs):
    engine = open_engine(tensorrt_dirs["plain"] / "thinker")
    assert len(engine.profiles) == 2 and len({p.context.scratch for p in engine.profiles}) == 1


def test_plain_tensorrt(engines, unasked):
    """Without TensorRT-RTX's ways to make a context."""
    with simulated_gpu("tensorrt") as gpu:
        edit_config(engines / "talker", lambda c: c["tensorrt"].update(package="tensorrt"))
        engine, state, rows = decoder(engines)
        assert engine.run(next(rows), state)["logits"].any() and gpu.calls["cudaGraphLaunch"] == 1


@pytest.mark.parametrize("folder", ENGINES)
def test_close_frees_everything(gpu, tensorrt_dirs, folder):
    engine = open_engine(tensorrt_dirs["plain"] / folder)
    assert gpu.alive()["device"] > 2 and gpu.alive()["stream"] == 1
    inputs, state = inputs_for(engine, RUNS[folder][0], np.random.default_rng(0)), engine.new_state()
    engine.run(inputs, state)
    gpu.fail("cudaEventRecord")
    with pytest.raises(EngineError, match="CUDA failed") as kept:
        engine.run(inputs, state)
    engine.close()
    assert not gpu.alive() and kept  # whoever keeps an error of a run keeps nothing of the engine
    engine.close()
    state.reset()
    for use in (lambda: engine.run({}, state), engine.new_state):
        with pytest.raises(EngineError, match="was closed; open"):
            use()


def test_an_engine_that_nobody_holds_frees_itself(gpu, tensorrt_dirs):
    engine = open_engine(tensorrt_dirs["plain"] / "code2wav")
    engine.new_state()  # leaves work on the stream
    del engine
    assert not gpu.alive()


# ---- bad input ---------------------------------------------------------------------------------------------------------
def test_full_cache_changes_nothing(gpu, engines, engine_dirs):
    engine, state, rows = decoder(engines)
    reference = open_engine(engine_dirs["plain"] / "talker", threads=1)
    reference_state = reference.new_state()
    for e, s in ((engine, state), (reference, reference_state)):
        e.run(inputs_for(e, {"S": 9}, np.random.default_rng(5)), s)
    for length in (2047, 2048):  # one row is left; none is
        state.length = length
        with pytest.raises(KVCacheFullError, match=r"talker: \d+ \+ \d+ rows do not fit its capacity of 2048"):
            engine.run(inputs_for(engine, {"S": 2049 - length}, np.random.default_rng(6)) if length < 2048 else next(rows), state)
    state.length = 9
    assert_same(engine.run(row := next(rows), state), reference.run(row, reference_state))


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.pop("position_ids"),
        lambda i: i.update(noise=np.zeros(3)),
        lambda i: i.update(inputs_embeds=np.zeros((1, 63), np.float32)),
        lambda i: i.update(inputs_embeds=np.zeros(64, np.float32)),
        lambda i: i.update(inputs_embeds=np.zeros((2, 64), np.float32)),
        lambda i: i.update(position_ids=np.zeros((3, 1), complex)),
    ],
)
def test_wrong_inputs(gpu, tensorrt_dirs, change):
    engine, state, rows = decoder(tensorrt_dirs["plain"])
    expected = engine.run(first := next(rows), state)
    state.reset()
    gpu.calls.clear()
    change(wrong := dict(first))
    with pytest.raises(InputError, match="talker"):
        engine.run(wrong, state)
    assert not gpu.calls and state.length == 0
    assert_same(engine.run(first, state), expected)


@pytest.mark.parametrize(
    "folder, sizes",
    [("talker", {"S": 1025}), ("talker", {"S": 0}), ("code2wav", {"frames": 101}), ("multimodal/visual", {"frames": 2, "n": 16})],
)
def test_shapes_that_no_profile_takes(gpu, tensorrt_dirs, folder, sizes):
    engine = open_engine(tensorrt_dirs["plain"] / folder)
    with pytest.raises(InputError, match="not among the shapes that it was built for"):
        engine.run(inputs_for(engine, sizes, np.random.default_rng(0)), engine.new_state())


def test_shapes_that_do_not_go_together(gpu, tensorrt_dirs):
    """Each fits its profile; that the images' patches are too few for their positions shows inside the graph only."""
    engine = open_engine(tensorrt_dirs["plain"] / "multimodal/audio")
    inputs = inputs_for(engine, RUNS["multimodal/audio"][0], np.random.default_rng(0))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(EngineError, match="audio: TensorRT cannot take inputs"):
        patch.setattr(tensorrt_on_cpu.ICudaEngine, "output_shapes", None)
        engine.run(inputs)
    assert engine.run(inputs)["embeds"].shape == (20, 64)


# ---- failing devices ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize"])
def test_a_failed_step_and_a_good_turn(gpu, tensorrt_dirs, function):
    engine, state, rows = decoder(tensorrt_dirs["plain"])
    steps = [next(rows) for _ in range(3)]
    expected = [engine.run(step, state) for step in steps]
    state.reset()
    engine.run(steps[0], state)
    gpu.fail(function)
    with pytest.raises(
        EngineError, match="talker: CUDA failed .cudaErrorInvalidValue: in words cudaErrorInvalidValue.*the next turn may work"
    ):
        engine.run(steps[1], state)
    state.reset()
    for step, output in zip(steps, expected):
        assert_same(engine.run(step, state), output)


@pytest.mark.parametrize("fault", ["enqueue", "copy"])
@pytest.mark.parametrize("folder", ["code2wav", "thinker"])
def test_a_failed_enqueue_and_a_good_turn(gpu, tensorrt_dirs, folder, fault):
    engine = open_engine(tensorrt_dirs["plain"] / folder)
    runs, state = [inputs_for(engine, sizes, np.random.default_rng(7)) for sizes in RUNS[folder]], engine.new_state()
    expected = [engine.run(inputs, state) for inputs in runs]
    state.reset()
    if fault == "enqueue":
        engine.engine.enqueues_until_failure = 1
        reason = "TensorRT failed .the network did not feel like it"
    else:
        gpu.fail("cudaMemcpyAsync", nth=2)
        reason = "CUDA failed .cudaErrorInvalidValue"
    with pytest.raises(EngineError, match=f"{folder}: {reason}.*the next turn may work"):
        engine.run(runs[0], state)
    state.reset()
    for inputs, output in zip(runs, expected):
        assert_same(engine.run(inputs, state), output)


def test_an_error_that_stays_says_to_restart(gpu, tensorrt_dirs):
    engine, state, rows = decoder(tensorrt_dirs["plain"])
    gpu.fail("kernel", error=CudaError.cudaErrorIllegalAddress)
    for _ in range(2):
        with pytest.raises(EngineError, match="cudaErrorIllegalAddress.*restart"):
            engine.run(next(rows), state)
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress.*restart"):
        open_engine(tensorrt_dirs["plain"] / "code2wav")
    engine.close()


# ---- failing to load ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "function",
    [
        "cudaMalloc",
        "cudaMallocHost",
        "cudaStreamCreateWithFlags",
        "cudaEventCreateWithFlags",
        "cudaMemGetInfo",
        "cudaMemcpyAsync",
        "cudaMemsetAsync",
        "cudaStreamBeginCapture",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaEventSynchronize",
    ],
)
def test_whatever_fails_while_loading_nothing_is_left(gpu, tensorrt_dirs, function):
    """The first, the second, ... call fails, until loading makes no more of them."""
    for nth in itertools.count(1):
        gpu.fail(function, nth, CudaError.cudaErrorMemoryAllocation)
        try:
            engine = open_engine(tensorrt_dirs["plain"] / "talker")
        except EngineError as e:
            assert "talker" in str(e) and "cudaErrorMemoryAllocation" in str(e)
            assert not gpu.alive(), nth  # although the error is still here
            continue
        engine.close()
        break
    assert nth > 1
    gpu.faults.clear()
    engine, state, rows = decoder(tensorrt_dirs["plain"])
    assert engine.run(next(rows), state)["logits"].any()


def test_tensorrt_that_makes_no_context(gpu, tensorrt_dirs, monkeypatch):
    monkeypatch.setattr(tensorrt_on_cpu.ICudaEngine, "contexts_to_refuse", 1)
    with pytest.raises(EngineError, match="cannot make an execution context .no such context"):
        open_engine(tensorrt_dirs["plain"] / "talker")
    assert not gpu.alive()


def test_outputs_of_unknown_size(gpu, tensorrt_dirs, monkeypatch):
    monkeypatch.setattr(tensorrt_on_cpu.IExecutionContext, "infer_shapes", lambda self: ["codes"])
    with pytest.raises(EngineError, match="cannot tell .'codes'. from inputs"):
        open_engine(tensorrt_dirs["plain"] / "code2wav")
    assert not gpu.alive()


# ---- engines that do not fit this machine ------------------------------------------------------------------------------
def refusal(engines: Path, gpu: Cuda | None = None) -> str:
    """The error's text; nothing was allocated for it."""
    with pytest.raises(EngineError) as caught:
        open_engine(engines / "talker")
    assert str(engines / "talker") in str(caught.value) and "\n" not in str(caught.value)
    assert gpu is None or not gpu.alive()
    return str(caught.value)


COMMAND = "python -m offline.build_engines ONNX ENGINES --backend tensorrt --target sm"


def test_another_gpu(engines):
    with simulated_gpu(capability=(12, 1)) as gpu:
        text = refusal(engines, gpu)
    assert "built for a sm89 GPU, the one here is sm121" in text and f"{COMMAND}121" in text


@pytest.mark.parametrize("missing", ["library", "device", "answer"])
def test_no_gpu(engines, missing):
    def no_library(name: str) -> None:
        raise OSError(name)

    with simulated_gpu(capability=None if missing == "device" else (8, 9)) as gpu, pytest.MonkeyPatch.context() as patch:
        if missing == "library":
            patch.setattr(cuda_device.ctypes, "CDLL", no_library)
        if missing == "answer":
            patch.setattr(tensorrt_on_cpu.Driver, "cuDeviceGetAttribute", lambda *arguments: 1)
        text = refusal(engines, gpu)
    assert "no GPU answers" in text and "--backend onnxruntime" in text


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt"])
def test_another_package(engines, name):
    other = "tensorrt" if name == "tensorrt_rtx" else "tensorrt_rtx"
    edit_config(engines / "talker", lambda c: c["tensorrt"].update(package=other))
    with simulated_gpu(name) as gpu:
        text = refusal(engines, gpu)
    assert "is not installed" in text and f"{COMMAND}89" in text


def test_another_version(gpu, engines):
    edit_config(engines / "talker", lambda c: c["tensorrt"].update(version="10.13.0"))
    text = refusal(engines, gpu)
    assert "built with tensorrt_rtx 10.13.0, here is 1.7.0-simulated" in text and f"{COMMAND}89" in text


def test_without_cuda_python(gpu, engines, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match="pip install cuda-bindings"):
        open_engine(engines / "talker")


def test_damaged_engine(gpu, engines):
    path = engines / "talker" / "model.engine"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    write(path, content)
    text = refusal(engines, gpu)
    assert str(path) in text and "checksum" in text and f"{COMMAND}89" in text


def test_engine_that_tensorrt_cannot_load(gpu, engines):
    path = engines / "talker" / "model.engine"
    write(path, b"x" * path.stat().st_size)
    edit_config(engines / "talker", lambda c: c.update(engine_sha256=sha256(path.read_bytes()).hexdigest()))
    text = refusal(engines, gpu)
    assert "cannot load it (the plan is no plan)" in text and f"{COMMAND}89" in text


def test_too_little_memory(engines):
    """For weights and state before TensorRT loads anything; for activations when it says how much they take."""
    config = json.loads((engines / "talker" / "config.json").read_text())
    weights = config["files"]["model.engine"]
    state = sum(int(np.prod(s["shape"])) * 4 for s in config["state"])
    activations = tensorrt_on_cpu.ICudaEngine.device_memory_size_v2
    for total, named in ((weights + state - 1, "weights"), (weights + state + activations - 1, "activations")):
        with simulated_gpu(total=total) as gpu:
            text = refusal(engines, gpu)
        assert named in text and "GiB are free" in text and "--maxKVCacheCapacity" in text and f"{COMMAND}89" in text
    with simulated_gpu(total=weights + state + activations + (2 << 20)) as gpu:
        open_engine(engines / "talker").close()


def test_memory_that_the_kernel_would_give_back(engines, tmp_path, monkeypatch):
    """On a Jetson, CUDA calls memory used that only caches files."""
    monkeypatch.setattr(cuda_device, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:       128000000 kB\nMemFree:         1000 kB\nMemAvailable:   1000 kB\n")
    config = json.loads((engines / "talker" / "config.json").read_text())
    with simulated_gpu(total=config["files"]["model.engine"], integrated=True) as gpu:
        assert "GiB are free" in refusal(engines, gpu)
        (tmp_path / "meminfo").write_text("MemFree:         1000 kB\nMemAvailable:   64000000 kB\n")
        assert "cudaErrorMemoryAllocation" in str(pytest.raises(EngineError, open_engine, engines / "talker").value)


def change_output_dtype(c: dict) -> None:
    c["outputs"][0]["dtype"] = "float16"


def widen_profile(c: dict) -> None:
    c["tensorrt"]["profiles"]["prefill"]["inputs_embeds"][2][0] *= 2


@pytest.mark.parametrize(
    "disagreement",
    [
        broken_files.rename_input,
        broken_files.change_input_shape,
        lambda c: c["inputs"][0]["shape"].append(1),
        change_output_dtype,
        broken_files.drop_state,
        broken_files.raise_capacity,
        broken_files.rename_position,
        broken_files.drop_position,
        lambda c: c["tensorrt"]["profiles"].pop("prefill"),
        widen_profile,
    ],
)
def test_config_that_disagrees_with_its_engine(gpu, engines, disagreement):
    edit_config(engines / "talker", disagreement)
    text = refusal(engines, gpu)
    assert "config.json" in text and "build" in text


# ---- the simulation against the real packages --------------------------------------------------------------------------
def test_cuda_python_has_what_is_simulated():
    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name, function in vars(Cuda).items():
        if name.startswith("cudaGetError") or hasattr(function, "simulates_cuda"):
            signature = getattr(real, name).__doc__.split("\n")[0]  # as in "cudaEventRecord(event, stream)"
            parameters = [p for p in signature[signature.index("(") + 1 : signature.rindex(")")].split(",") if p.strip()]
            assert len(parameters) == len(inspect.signature(function).parameters) - 1, signature
    for simulated in (Cuda.cudaError_t, Cuda.cudaMemcpyKind, Cuda.cudaStreamCaptureMode, Cuda.cudaDeviceAttr):
        enum = {CudaError: real.cudaError_t}.get(simulated) or next(
            e for n, e in vars(real).items() if isinstance(e, type) and getattr(Cuda, n, None) is simulated
        )
        assert all(int(getattr(enum, member.name)) == member for member in simulated)
    assert (Cuda.cudaStreamNonBlocking, Cuda.cudaEventDisableTiming) == (real.cudaStreamNonBlocking, real.cudaEventDisableTiming)


@pytest.fixture(scope="module")
def trt():
    try:
        return import_tensorrt()
    except EngineError as e:
        pytest.skip(str(e))


def test_tensorrt_has_what_is_simulated(trt):
    """Every class, and every attribute of it that the simulation offers to omni_ros."""
    module = tensorrt_on_cpu.simulated_tensorrt(Cuda(), package_name(trt))
    offered = {name: value for name, value in vars(tensorrt_on_cpu).items() if isinstance(value, type) and hasattr(trt, name)}
    assert {n for n in vars(module) if not n.startswith("__")} <= set(dir(trt))
    assert {"Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig", "OnnxParser", "Builder"} <= set(offered)
    for name, value in offered.items():
        used = {a for a in vars(value) if not a.startswith("_")} - TEST_CONTROLS
        assert used <= set(dir(getattr(trt, name))), f"{name} has no {used - set(dir(getattr(trt, name)))}"
        for method in used:
            documented, simulated = getattr(trt, name), getattr(value, method)
            text = getattr(documented, method).__doc__ or ""
            if inspect.isfunction(simulated) and "(self" in text and "Overloaded" not in text:
                parameters = list(inspect.signature(simulated).parameters)
                assert parameters == re.findall(r"[(,] ?(\w+): ", text[: text.index(" ->")]), text


# what a test sets, and what stands for an attribute of the real class's instances
TEST_CONTROLS = {
    "cuda",
    "unknown",
    "contexts_to_refuse",
    "enqueues_until_failure",
    "output_shapes",
    "host_values",
    "value",
    "strategy",
}


@pytest.mark.parametrize("folder", ENGINES)
def test_what_is_checked_at_load_is_what_tensorrt_makes_of_the_graph(trt, engine_dirs, tensorrt_dirs, tmp_path, folder):
    """A real engine needs a GPU to be loaded; its network shows the same names, shapes, types and host inputs without."""
    source = engine_dirs["odd"].with_name("odd-onnx") / build_engines.ENGINES[folder]
    config = read_config(tensorrt_dirs["odd"] / folder)
    lowering = build_tensorrt.lower(trt, source, tmp_path, "sm89", getattr(config.limits, "capacity", 0))
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network, parser = build_tensorrt.parse(trt, builder, logger, lowering)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    tensors = {t.name: t for t in inputs + [network.get_output(i) for i in range(network.num_outputs)]}
    profiles = list(config.tensorrt.profiles.values())

    class Engine:  # what a trt.ICudaEngine says of this network
        num_io_tensors, num_optimization_profiles = len(tensors), len(profiles)
        get_tensor_name = staticmethod(lambda i: list(tensors)[i])
        get_tensor_shape = staticmethod(lambda name: tensors[name].shape)
        get_tensor_dtype = staticmethod(lambda name: tensors[name].dtype)
        get_tensor_profile_shape = staticmethod(lambda name, i: profiles[i][name])

    check_plan(trt, Engine(), tensorrt_dirs["odd"] / folder, config, config.tensorrt)
    assert [t.name for t in inputs if t.is_shape_tensor] == config.tensorrt.host_inputs
    del parser


def test_a_size_that_no_profile_leaves_open_is_static(gpu, tensorrt_dirs):
    """As with TensorRT 8.6.0 on an H100; what config.json calls symbolic agrees with it."""
    with closing(open_engine(tensorrt_dirs["plain"] / "multimodal/visual")) as engine:
        assert engine.inputs["patches"].shape[:2] == ["frames", "n"]
        assert list(engine.engine.get_tensor_shape("patches"))[:2] == [1, -1]


def test_the_simulation_finds_missing_waits(gpu):
    """Work that nobody waits for has not happened; what is freed, too small or not pinned cannot be copied."""
    device = cuda_device.CudaDevice("test")
    address, pinned = device.memory(8), device.pinned(8)
    pinned[:] = 7
    device.zero(address, 8)
    device.download(pinned, address)
    assert (pinned == 7).all()
    device.wait()
    assert (pinned == 0).all()
    device.upload(address, np.zeros(8, np.uint8))
    with pytest.raises(EngineError, match="cudaErrorIllegalAddress.*restart"):
        device.wait()


@pytest.mark.parametrize("forbidden", [lambda d: d.memory(8), lambda d: d.pinned(8), lambda d: d.wait()])
def test_the_simulation_refuses_what_capture_refuses(gpu, forbidden):
    device = cuda_device.CudaDevice("test")
    with pytest.raises(EngineError, match="cudaErrorStreamCaptureUnsupported"):
        device.capture(forbidden, device)
    assert gpu.alive() == {"stream": 1, "event": 1}
    device.close()
