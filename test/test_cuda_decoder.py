"""engines/cuda/: the kernels of an NVIDIA GPU, run here on the CPU, against ONNX Runtime on the same export."""

import ctypes
import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from cpu_kernels import CpuKernels
from cuda_on_cpu import Cuda
from decoder_rows import cosine, likeness, question_with_noise, random_rows
from nvfp4_reference import quantised_code_predictor, split

from offline.checkpoints.checkpoint import Checkpoint
from offline.compare import compare
from offline.make_checkpoint import make_checkpoint
from omni_ros.engines import cuda_device
from omni_ros.engines.config import DecoderConfig, read_config
from omni_ros.engines.cuda import code_predictor as cuda_code_predictor
from omni_ros.engines.cuda import decoder as cuda_decoder
from omni_ros.engines.cuda import projection as cuda_projection
from omni_ros.engines.cuda.compiler import source
from omni_ros.engines.engine import Engine, State
from omni_ros.engines.open import open_engine, open_projection
from omni_ros.engines.sidecar import Projection
from omni_ros.errors import EngineError, InputError, KVCacheFullError
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.request import Request

ROWS = 70  # more than two tiles of attention
MOST = 96  # rows of a prompt


class SimulatedKernels:
    """Puts the kernels, compiled for the CPU, on the simulated stream."""

    def __init__(self, device, directory: Path, config: DecoderConfig, *folders: str, fp8_cache: bool = False):
        defines = {"HEAD_DIM": config.head_dim, "GROUP": config.num_heads // config.num_kv_heads}
        defines |= {"FP8_CACHE": 1} if fp8_cache else {}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "kernels.cu").write_text(source(*folders))
            self.cpu = CpuKernels(Path(folder) / "kernels.cu", defines)
        self.device = device

    def launch(self, name, grid, block, shared, *arguments):
        cpu, copies = self.cpu, [type(a).from_buffer_copy(a) for a in arguments]
        self.device.cuda.put(self.device.stream, lambda: cpu.launch(name, (*grid, 1), (block, 1, 1), shared, copies))


def simulated_gpu() -> Iterator[Cuda]:
    gpu = Cuda()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_device, "import_cuda", lambda: gpu)
        patch.setattr(cuda_device, "gpu_target", lambda: "sm90")
        for module in (cuda_decoder, cuda_code_predictor, cuda_projection):
            patch.setattr(module, "Kernels", SimulatedKernels)
        yield gpu


gpu = pytest.fixture(simulated_gpu)
shared_gpu = pytest.fixture(simulated_gpu, scope="module")


@pytest.fixture(scope="module", params=["float16", "nvfp4"])
def built(request, checkpoints, tmp_path_factory) -> Path:
    """ENGINES for the CPU and CUDA from one float16 export, with 16-bit or NVFP4 decoders."""
    out = tmp_path_factory.mktemp(request.param)
    root = Checkpoint(checkpoints["plain"])
    parts = split(root, out, heads=True).items() if request.param == "nvfp4" else [("thinker,talker", root)]
    for name, part in parts:
        run("offline.export_onnx", part.directory, out / "onnx", "--components", name, "--dtype", "float16")
    run("offline.export_onnx", root.directory, out / "onnx", "--components", "code_predictor", "--dtype", "float16")
    for device in ("cpu", "cuda"):
        run("offline.build_engines", out / "onnx", out / device, "--device", device, "--maxInputLen", str(MOST))
    return out


@pytest.fixture(scope="module", params=["thinker", "talker"])
def engines(request, built, shared_gpu) -> Iterator[tuple[Engine, Engine]]:
    """The same decoder in ONNX Runtime and in our kernels."""
    opened = tuple(open_engine(built / device / request.param) for device in ("cpu", "cuda"))
    yield opened
    for engine in opened:
        engine.close()


def new_states(*engines: Engine) -> list[State]:
    return [engine.new_state() for engine in engines]


def test_decode_steps(engines):
    """Every row's logits and hidden state are ONNX Runtime's, whatever was decoded before it."""
    reference, engine = engines
    states = new_states(*engines)
    gpu = engine.device.cuda
    made, launched = gpu.calls["cudaMalloc"], gpu.calls["cudaGraphLaunch"]
    random, seen = np.random.default_rng(1), []
    for past in range(ROWS):
        inputs = random_rows(engine, 1, past, random)
        seen.append(min(likeness(reference.run(inputs, states[0]), engine.run(inputs, states[1]))))
    # a near tie in the router may go the other way, as the cache is float16
    assert min(seen) > 0.99 and np.median(seen) > 0.9999 and np.mean(np.array(seen) > 0.9995) > 0.9, seen
    assert gpu.calls["cudaMalloc"] == made and gpu.calls["cudaGraphLaunch"] - launched == ROWS
    with pytest.raises(InputError, match="takes.*inputs_embeds"):
        engine.run({**inputs, "inputs_embeds": inputs["inputs_embeds"][:, :-1]}, states[1])


def answers(reference: Engine, engine: Engine, prompts: list[int]) -> list[float]:
    """How like they answer prompts of so many rows, one after another, and a step after them."""
    states = new_states(reference, engine)
    random, seen = np.random.default_rng(sum(prompts)), []
    for rows in [*prompts, 1]:
        inputs = random_rows(engine, rows, states[1].length, random)
        seen += likeness(reference.run(inputs, states[0]), engine.run(inputs, states[1]))
    assert [state.length for state in states] == [sum(prompts) + 1] * 2
    return seen


@pytest.mark.parametrize("name", ["thinker", "talker", "code_predictor"])
def test_scrambled_weights_are_found_when_it_is_opened(built, gpu, tmp_path, name):
    """One block of rows of a matrix in another order, as a wrong copy leaves them: sizes and table as before."""
    folder = shutil.copytree(built / "cuda" / name, tmp_path / "engine")
    table = json.loads((folder / "weights.json").read_text())
    entry = next(t for n, t in table.items() if "layers.0." in n and "self_attn.o_proj.weight" in n and "scale" not in n)
    size = math.prod(entry["shape"])
    weights = np.memmap(folder / "weights.data", np.uint8, "r+", entry["offset"], (size,))
    weights[:] = np.random.default_rng(0).permutation(weights.reshape(-1, 16)).ravel()
    weights.flush()
    with pytest.raises(EngineError, match="computes wrongly on this machine.*update the GPU's driver"):
        open_engine(folder, verify="sizes")


@pytest.mark.parametrize("prompts", [[40, 1, 33, 8], [MOST, 3]], ids=str)
def test_prompts(engines, prompts):
    made = engines[1].device.cuda.calls["cudaMalloc"]
    seen = np.array(answers(*engines, prompts))
    assert engines[1].device.cuda.calls["cudaMalloc"] == made
    # near ties in the router again, which later rows hear of; every_row below is stricter
    assert seen.min() > 0.5 and np.median(seen) > 0.9999 and np.mean(seen > 0.99) > 0.95, np.sort(seen)


@pytest.fixture(scope="module")
def without_ties(tmp_path_factory) -> Path:
    """ENGINES as `built` has them, of a model that asks every expert about every row."""
    out, text = tmp_path_factory.mktemp("without_ties"), {"num_experts": 3, "num_experts_per_tok": 3}
    overrides = {f"{part}_config": {"text_config": text} for part in ("thinker", "talker")}
    make_checkpoint(out / "checkpoint", seed=8, overrides=overrides)
    for name, part in split(Checkpoint(out / "checkpoint"), out, heads=True).items():
        run("offline.export_onnx", part.directory, out / "onnx", "--components", name, "--dtype", "float16")
    for device in ("cpu", "cuda"):
        run("offline.build_engines", out / "onnx", out / device, "--device", device, "--maxInputLen", str(MOST))
    return out


@pytest.mark.parametrize("name", ["thinker", "talker"])
def test_every_row_of_a_prompt(without_ties, shared_gpu, name):
    engines = [open_engine(without_ties / device / name) for device in ("cpu", "cuda")]
    for prompts in ([1, 2], [9], [40, 1, 33, 8], [MOST, 3]):
        seen = answers(*engines, prompts)
        assert min(seen) > 0.9999, (prompts, sorted(seen))


@pytest.mark.parametrize("rows", [2, 31, MOST])
def test_pairs_are_sorted_by_expert(engines, rows):
    """Exactly: after a prompt, what the last layer's kernels left of ids, positions, rows and tiles."""
    engine = engines[1]
    prefill, top_k, state = engine.prefill, engine.config.decoder.top_k, engine.new_state()
    for count in (MOST, rows):  # what is left of a longer prompt is not looked at
        inputs = random_rows(engine, count, 0, np.random.default_rng(rows))
        state.reset()
        engine.run(inputs, state)

    def read(address: int, *shape: int) -> np.ndarray:
        return np.array((ctypes.c_int * math.prod(shape)).from_address(address)).reshape(shape)

    ids, position, row = (read(a, rows * top_k) for a in (prefill.ids, prefill.position, prefill.row))
    order = np.argsort(ids, kind="stable")
    np.testing.assert_array_equal(order[position], np.arange(rows * top_k))
    np.testing.assert_array_equal(row, order // top_k)
    tiles = read(prefill.tiles, rows * top_k // 32 + engine.config.decoder.num_experts, 3)
    covered = [(expert, at) for expert, first, tokens in tiles for at in range(first, first + tokens)]
    assert covered == list(zip(ids[order], range(rows * top_k), strict=True)) and tiles[:, 2].max() <= 32


def test_a_prompt_in_parts(built, shared_gpu, monkeypatch):
    """Longer than what one graph takes: the same numbers, from a cache that earlier rows are in."""
    whole = open_engine(built / "cuda" / "thinker")
    monkeypatch.setattr(cuda_decoder, "MAX_ROWS", 24)
    parts = open_engine(built / "cuda" / "thinker")
    assert whole.max_rows == MOST and parts.max_rows == 24
    states = new_states(whole, parts)

    def compare_outputs(rows: int) -> None:
        inputs = random_rows(whole, rows, states[0].length, random)
        for expected, got in zip(whole.run(inputs, states[0]).values(), parts.run(inputs, states[1]).values(), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-3)

    random = np.random.default_rng(3)
    for rows in (61, 24, 1):
        compare_outputs(rows)
    for state in states:
        state.truncate(61)
    compare_outputs(2)


def test_a_full_cache_is_refused_and_leaves_the_engine_usable(built, gpu):
    engine, random = open_engine(built / "cuda" / "talker"), np.random.default_rng(4)
    state, capacity = engine.new_state(), engine.config.limits.capacity
    engine.run(random_rows(engine, MOST, 0, random), state)
    state.length = capacity - 1
    with pytest.raises(KVCacheFullError, match="talker"):
        engine.run(random_rows(engine, 2, 0, random), state)
    assert state.length == capacity - 1
    state.reset()
    assert np.isfinite(engine.run(random_rows(engine, 2, 0, random), state)["logits"]).all()


def test_one_conversation_at_a_time(built, gpu):
    """Recorded graphs know one cache. A state that was closed, or that nobody holds, makes room for the next."""
    engine, random = open_engine(built / "cuda" / "talker"), np.random.default_rng(4)
    state = engine.new_state()
    with pytest.raises(EngineError, match="talker: built for one conversation at a time; close the other one"):
        engine.new_state()
    first = engine.run(inputs := random_rows(engine, 3, 0, random), state)["logits"]
    state.close()
    state.close()
    with pytest.raises(EngineError, match="state was closed"):
        engine.run(inputs, state)
    del state
    np.testing.assert_array_equal(engine.run(inputs, other := engine.new_state())["logits"], first)
    del other
    np.testing.assert_array_equal(engine.run(inputs, engine.new_state())["logits"], first)


@pytest.mark.parametrize("name", ["thinker", "talker", "code_predictor"])
def test_close_frees_everything(built, gpu, name):
    """What belongs to the Talker, too; and after a run that failed, while somebody keeps the error."""
    engine = open_engine(built / "cuda" / name)
    state = engine.new_state()
    projection = open_projection(engine, "text_projection.safetensors") if name == "talker" else None
    shapes = {i.name: [3 if d == "S" else d for d in i.shape] for i in engine.config.fed}
    inputs = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    engine.run(inputs, state)
    gpu.fail("cudaGraphLaunch")
    with pytest.raises(EngineError, match=f"{name}: CUDA failed") as kept:
        engine.run(inputs, state)
    engine.run(inputs, state)
    engine.close()
    engine.close()
    assert not gpu.alive() and kept
    for use in (lambda: engine.run(inputs, state), *([engine.new_state] if name != "code_predictor" else [])):
        with pytest.raises(EngineError, match=f"{name}: was closed; open .*{name} again"):
            use()
    if projection:
        with pytest.raises(EngineError, match="text_projection.safetensors: was closed with its Talker"):
            projection(np.zeros((1, 64), np.float32))


def test_an_engine_that_nobody_holds_frees_itself(built, gpu):
    for name in ("talker", "code_predictor"):
        engine = open_engine(built / "cuda" / name)
        assert gpu.alive()["device"] > 2
        del engine
        assert not gpu.alive(), name


def test_runs_of_one_engine_do_not_overlap(built, gpu):
    """Frames of several threads, each as if it were alone: they share the engine's pinned memory."""
    engine, random = open_engine(built / "cuda" / "code_predictor"), np.random.default_rng(8)
    shapes = {i.name: i.shape for i in engine.config.fed}
    frames = [{name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(6)]
    alone = [engine.run(frame) for frame in frames]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(engine.run, frames))
    for expected, got in zip(alone, together):
        np.testing.assert_array_equal(got["codes"], expected["codes"])
        np.testing.assert_array_equal(got["embed_sum"], expected["embed_sum"])


@pytest.fixture
def pipelines(checkpoints, built, shared_gpu, tmp_path) -> tuple[Pipeline, Pipeline]:
    """All six engines of the CPU; and the same, but for the decoders in our kernels."""
    run("offline.export_onnx", checkpoints["plain"], tmp_path / "onnx", "--skip-llm", "--dtype", "float16")
    run("offline.build_engines", tmp_path / "onnx", tmp_path / "cpu", "--device", "cpu")
    folders = [
        {
            name: (tmp_path if name in ("code2wav", "multimodal/audio", "multimodal/visual") else built) / "cpu" / name
            for name in ENGINES
        }
    ]
    folders.append({**folders[0], **{name: built / "cuda" / name for name in ("thinker", "talker", "code_predictor")}})
    return tuple(Pipeline({name: open_engine(folder, 1) for name, folder in f.items()}) for f in folders)


def test_whole_turns(pipelines):
    """With sound and a picture: the decisions of ONNX Runtime's engines when fed alike, streaming or not the same turn."""
    request = {
        "messages": question_with_noise(),
        "temperature": 0,
        "talker_temperature": 0,
        "max_generate_length": 8,
        "max_audio_length": 8,
    }
    loss = compare(*pipelines, [Request(**request, streaming=False)])
    assert loss["thinker"]["top1"] >= 7 / 8 and loss["talker"]["top1"] >= 7 / 8 and loss["code_predictor"]["codes_1_to_15"] > 0.85
    assert min(loss[name]["cosine"] for name in ("thinker", "talker")) > 0.999
    offline, streamed = ([*pipelines[1].generate(Request(**request, streaming=streaming))][-1] for streaming in (False, True))
    assert offline.token_ids == streamed.token_ids
    np.testing.assert_array_equal(offline.codes, streamed.codes)


@pytest.mark.parametrize("name", ["text_projection", "hidden_projection"])
def test_projection(built, shared_gpu, monkeypatch, name):
    """Equal to numpy's, and each row the same in whatever company it comes."""
    monkeypatch.setattr(cuda_projection, "MAX_ROWS", 40)
    config = read_config(built / "cuda" / "talker")
    reference = Projection(built / "cuda" / "talker" / f"{name}.safetensors")
    projection = cuda_projection.CudaProjection(built / "cuda" / "talker" / f"{name}.safetensors", config.decoder)
    x = np.random.default_rng(5).standard_normal((57, config.model.thinker_hidden_size)).astype(np.float32)
    got = projection(x)
    assert min(cosine(*rows) for rows in zip(reference(x), got, strict=True)) > 0.99999
    np.testing.assert_array_equal(np.concatenate([projection(x[:1]), projection(x[1:6]), projection(x[6:])]), got)
    assert projection(x[:0]).shape == (0, config.model.hidden_size)


@pytest.mark.parametrize("form", ["float16", "fp8", "nvfp4"])
def test_code_predictor(checkpoints, gpu, tmp_path, form):
    """From one export, whatever form its weights have. The CPU decodes them."""
    root = Checkpoint(checkpoints["plain"])
    part = root if form == "float16" else quantised_code_predictor(root, tmp_path / "checkpoint", form)
    run("offline.export_onnx", part.directory, tmp_path / "onnx", "--components", "code_predictor", "--dtype", "float16")
    for device in ("cpu", "cuda"):
        run("offline.build_engines", tmp_path / "onnx", tmp_path / device, "--device", device)
    table = json.loads((tmp_path / "cuda/code_predictor/weights.json").read_text())
    scales = {name.partition("weight")[2] for name in table if name.startswith("model.layers.0.self_attn.q_proj")}
    assert scales == {"", *{"float16": [], "fp8": ["_scale_2"], "nvfp4": ["_scale", "_scale_2"]}[form]}
    reference, engine = (open_engine(tmp_path / device / "code_predictor") for device in ("cpu", "cuda"))
    launched = gpu.calls["cudaGraphLaunch"]
    random = np.random.default_rng(2)
    equal = 0
    for frame in range(6):
        inputs = {
            n: random.standard_normal((1, engine.hidden)).astype(np.float16).astype(np.float32)
            for n in ("last_hidden", "code0_embed")
        }
        noise = random.gumbel(size=(15, engine.noise_width)) if frame % 2 else np.zeros((15, engine.noise_width))
        inputs["noise"] = noise.astype(np.float32)
        expected, got = reference.run(inputs), engine.run(inputs)
        if np.array_equal(expected["codes"], got["codes"]):
            equal += 1
            np.testing.assert_allclose(got["embed_sum"], expected["embed_sum"], atol=0.02)
    assert equal >= 5  # float32 sums in another order may flip a near tie
    assert gpu.calls["cudaGraphLaunch"] - launched == 6


def test_a_damaged_weight_table_leaves_nothing_allocated(built, gpu, tmp_path):
    directory = tmp_path / "code_predictor"
    shutil.copytree(built / "cuda" / "code_predictor", directory)
    table = json.loads((directory / "weights.json").read_text())
    del table["model.norm.weight"]
    (directory / "weights.json").write_text(json.dumps(table))
    with pytest.raises(EngineError, match="lacks model.norm.weight; build"):
        cuda_code_predictor.CudaCodePredictor(directory, read_config(directory))
    assert not gpu.alive()
    (directory / "weights.json").write_text("{")
    with pytest.raises(EngineError, match="weights.json: missing or damaged"):
        cuda_code_predictor.CudaCodePredictor(directory, read_config(directory))
    assert not gpu.alive()


def test_a_gpu_that_is_too_small(built, gpu):
    gpu.total = 1 << 18
    with pytest.raises(EngineError, match="code_predictor: CUDA failed .*MemoryAllocation"):
        open_engine(built / "cuda" / "code_predictor")
    assert not gpu.alive()
