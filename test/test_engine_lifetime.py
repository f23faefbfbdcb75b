"""close() frees engines although somebody keeps an error of theirs, and a failed load leaves nothing."""

import gc
import itertools
import os
import shutil
import weakref
from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
import pytest
from broken_files import edit_config
from cuda_on_cpu import Cuda
from tensorrt_on_cpu import simulated_gpu

from omni_ros.engines.open import open_engine
from omni_ros.errors import EngineError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request

REQUEST = Request([{"role": "user", "content": "hello there"}], max_generate_length=6, max_audio_length=6)


@pytest.fixture
def gpu() -> Iterator[Cuda]:
    with simulated_gpu() as cuda:
        yield cuda


class Failing:
    """`fail(name)`: the next run of the engine of that name ends in an error of ONNX Runtime's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.session, self.kept = None, []
        run = ort.InferenceSession.run_with_iobinding

        def run_with_iobinding(session, binding, run_options=None):
            if session is self.session:
                self.session = None
                raise RuntimeError("it did not feel like it")
            return run(session, binding, run_options)

        monkeypatch.setattr(ort.InferenceSession, "run_with_iobinding", run_with_iobinding)


@pytest.mark.parametrize("name", ["thinker", "talker", "code_predictor", "code2wav"])
def test_a_closed_pipeline_frees_its_engines_after_a_failed_turn(engine_dirs, monkeypatch, name):
    """All six, whichever failed; nothing has to be collected, though the error is kept with its traceback."""
    failing, pipeline = Failing(monkeypatch), Pipeline.open(engine_dirs["plain"], threads=1)
    sessions = [weakref.ref(engine.session) for engine in pipeline.engines.values()]
    assert len(sessions) == 6 and len([*pipeline.generate(REQUEST)]) > 2
    failing.session = pipeline.engines[name].session
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(EngineError, match=f"{name}: ONNX Runtime failed on inputs .*did not feel like it") as kept:
            [*pipeline.generate(REQUEST)]
        assert len([*pipeline.generate(REQUEST)]) > 2  # the next turn works
        pipeline.close()
        assert [session() for session in sessions] == [None] * 6 and kept.value.__traceback__
    finally:
        gc.enable()


@pytest.mark.parametrize("function", ["cudaGraphLaunch", "cudaMemcpyAsync", "cudaEventSynchronize"])
def test_a_closed_pipeline_frees_the_gpu_after_a_failed_turn(gpu, tensorrt_dirs, function):
    pipeline = Pipeline.open(tensorrt_dirs["plain"])
    assert gpu.alive()["stream"] == 6
    gpu.fail(function, nth=4)
    with pytest.raises(EngineError, match="CUDA failed") as kept:
        [*pipeline.generate(REQUEST)]
    assert len([*pipeline.generate(REQUEST)]) > 2
    pipeline.close()
    assert not gpu.alive() and kept


def test_an_engine_on_the_cpu_after_close(engine_dirs):
    engine = open_engine(engine_dirs["plain"] / "talker", threads=1)
    state, session = engine.new_state(), weakref.ref(engine.session)
    inputs = {"inputs_embeds": np.zeros((1, 64), np.float32), "position_ids": np.zeros((3, 1), np.float32)}
    engine.run(inputs, state)
    engine.close()
    engine.close()
    state.reset()
    for use in (lambda: engine.run(inputs, state), engine.new_state):
        with pytest.raises(EngineError, match="talker: was closed; open .*talker again"):
            use()
    state.close()
    state.close()
    assert session() is None


def test_conversations_on_the_cpu_do_not_hear_each_other(engine_dirs):
    engine, random = open_engine(engine_dirs["plain"] / "talker", threads=1), np.random.default_rng(0)
    prompts = random.standard_normal((2, 6, 64)).astype(np.float32)

    def logits(which: int, row: int, state: object) -> np.ndarray:
        position = np.full((3, 1), row, np.float32)
        return engine.run({"inputs_embeds": prompts[which, row : row + 1], "position_ids": position}, state)["logits"]

    def alone(which: int) -> list[np.ndarray]:
        state = engine.new_state()
        return [logits(which, row, state) for row in range(6)]

    states = [engine.new_state(), engine.new_state()]
    together = [[logits(which, row, states[which]) for which in (0, 1)] for row in range(6)]
    for which in (0, 1):
        np.testing.assert_array_equal([both[which] for both in together], alone(which))
    states[0].close()
    with pytest.raises(EngineError, match="talker: this conversation's state was closed"):
        logits(0, 0, states[0])
    logits(1, 0, states[1])


def test_a_failed_load_leaves_no_session(engine_dirs, tmp_path, monkeypatch):
    """The graph is loaded before config.json turns out to be another's."""
    folder = shutil.copytree(engine_dirs["plain"] / "talker", tmp_path / "talker", copy_function=os.link)
    edit_config(folder, lambda c: c["outputs"][0].update(dtype="float16"))
    made, load = [], ort.InferenceSession.__init__

    def loading(session, *arguments, **options):
        made.append(weakref.ref(session))
        load(session, *arguments, **options)

    monkeypatch.setattr(ort.InferenceSession, "__init__", loading)
    with pytest.raises(EngineError, match="config.json: says") as kept:
        open_engine(folder)
    assert [session() for session in made] == [None] and kept


def test_a_pipeline_that_cannot_be_opened_leaves_nothing_on_the_gpu(gpu, tensorrt_dirs):
    """Whichever allocation fails, of six engines."""
    for nth in itertools.count(1, 29):
        gpu.fail("cudaMalloc", nth)
        try:
            pipeline = Pipeline.open(tensorrt_dirs["plain"])
        except EngineError as e:
            assert not gpu.alive() and "CUDA failed" in str(e)
            continue
        pipeline.close()
        break
    assert nth > 30 and not gpu.alive()
