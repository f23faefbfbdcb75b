"""`--device cuda` on a real GPU: the same decisions as the CPU engines, fed alike, and whole turns."""

import sys

import numpy as np
import pytest
from conftest import run
from decoder_rows import likeness, question_with_noise, random_rows
from test_code2wav import Waveform

from offline.compare import compare
from omni_ros.engines.cuda import compiler
from omni_ros.engines.cuda_device import gpu_target, import_cuda
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request

ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    gpu_target() is None or "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="needs an NVIDIA GPU and onnxruntime-gpu",
)
REQUESTS = [
    {"messages": messages, "max_generate_length": 24, "max_audio_length": 24, "temperature": 0, "talker_temperature": 0}
    for messages in ([{"role": "user", "content": "one two three four five"}], question_with_noise())
]


@pytest.fixture(scope="module")
def pipelines(checkpoints, tmp_path_factory) -> tuple[Pipeline, Pipeline]:
    """On the CPU and on the GPU, from one float16 export."""
    out = tmp_path_factory.mktemp("cuda")
    run("offline.export_onnx", checkpoints["plain"], out / "onnx", "--dtype", "float16")
    for device in ("cpu", "cuda"):
        run("offline.build_engines", out / "onnx", out / device, "--device", device)
    return Pipeline.open(out / "cpu"), Pipeline.open(out / "cuda")


@pytest.mark.parametrize("name", ["thinker", "talker"])
def test_prompts_of_any_length(pipelines, name):
    """One row or many, after others or not: the CPU's logits and hidden states. A near tie in a router may go the other way."""
    cpu, gpu = (pipeline.engines[name] for pipeline in pipelines)
    random, seen, states = np.random.default_rng(0), [], (cpu.new_state(), gpu.new_state())
    for rows in [1, 2, 40, 300, 1, 70, 1024, 1]:
        if rows == 1024:
            for state in states:
                state.reset()
        inputs = random_rows(gpu, rows, states[1].length, random)
        seen += likeness(cpu.run(inputs, states[0]), gpu.run(inputs, states[1]))
    for state in states:
        state.close()
    assert min(seen) > 0.95 and np.median(seen) > 0.9999 and np.mean(np.array(seen) > 0.9995) > 0.9, sorted(seen)[:20]


def test_decisions_are_those_of_the_cpu(pipelines):
    """Teacher-forced, so that one near tie does not change all that follows it."""
    loss = compare(*pipelines, [Request(**request, streaming=False) for request in REQUESTS])
    assert loss["thinker"]["top1"] > 0.95 and loss["talker"]["top1"] > 0.95
    assert loss["code_predictor"]["codes_1_to_15"] > 0.95


def test_the_waveform_is_that_of_the_cpu(pipelines):
    """Both in float32."""
    cpu, gpu = (Waveform(pipeline.models.speak().code2wav) for pipeline in pipelines)
    codes = np.random.default_rng(0).integers(0, cpu.codebook_size, (cpu.num_quantizers, 40))
    streamed = np.concatenate([gpu.decode(chunk) for chunk in np.split(codes, [1, 3, 6, 10, 18, 26], axis=1)])
    np.testing.assert_allclose(streamed, cpu.decode(codes), rtol=0, atol=1e-4)


def test_waveforms_side_by_side(pipelines):
    """Each conversation has its own, on one engine."""
    model = pipelines[1].models.speak().code2wav
    codes = np.random.default_rng(1).integers(0, model.codebook_size, (2, model.num_quantizers, 12))
    alone = [Waveform(model).decode(c) for c in codes]
    both = [Waveform(model) for _ in codes]
    parts = [[w.decode(c[:, i : i + 3]) for w, c in zip(both, codes)] for i in range(0, 12, 3)]
    for expected, got in zip(alone, zip(*parts)):
        np.testing.assert_allclose(np.concatenate(got), expected, rtol=0, atol=1e-4)


def test_a_second_start_does_not_compile(pipelines, monkeypatch):
    """Kernels are beside the engines; both decoders, the CodePredictor and the projections find theirs."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    compiler.compile_kernels.cache_clear()
    directory = pipelines[1].engines["talker"].directory.parent
    again = Pipeline.open(directory)
    again.close()
    for name in ("thinker", "talker", "code_predictor"):
        assert len([*(directory / name).glob("kernels-sm_*.cubin")]) == 1


def test_close_gives_the_memory_back(pipelines):
    """What CUDA itself and ONNX Runtime's arena keep for the process apart: opening again takes no more."""
    cuda, free = import_cuda(), []
    for _ in range(3):
        pipeline = Pipeline.open(pipelines[1].engines["talker"].directory.parent)
        [*pipeline.generate(Request(**REQUESTS[0]))]
        pipeline.close()
        free.append(cuda.cudaMemGetInfo()[1])
    assert free[2] > free[0] - (64 << 20), free


@pytest.mark.parametrize("request_of", REQUESTS, ids=["text", "picture and sound"])
def test_streaming_turns_equal_offline_ones(pipelines, request_of):
    _, gpu = pipelines
    offline, streamed = ([*gpu.generate(Request(**request_of, streaming=streaming))][-1] for streaming in (False, True))
    assert offline.token_ids == streamed.token_ids and offline.codes.shape[1] == 24
    np.testing.assert_array_equal(offline.codes, streamed.codes)
