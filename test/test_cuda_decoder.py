"""engines/decode/ and prefill/: the kernels of an NVIDIA GPU, run here on the CPU, against ONNX Runtime on the same export."""
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import run
from cpu_kernels import CpuKernels
from cuda_on_cpu import Cuda
from nvfp4_reference import split

from offline.checkpoint import Checkpoint
from omni_ros.engines import cuda_code_predictor, cuda_decoder, cuda_device, cuda_projection
from omni_ros.engines.cuda_kernels import compile_kernels, source
from omni_ros.engines.engine import Engine, open_engine, read_config
from omni_ros.engines.sidecar import Projection
from omni_ros.errors import EngineError, InputError, KVCacheFullError

ROWS = 70  # more than two tiles of attention
MOST = 72  # rows of a prompt


class SimulatedKernels:
    """Puts the kernels, compiled for the CPU, on the simulated stream."""

    def __init__(self, device, head_dim: int, group: int):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "kernels.cu").write_text(source())
            self.cpu = CpuKernels(Path(folder) / "kernels.cu", {"HEAD_DIM": head_dim, "GROUP": group})
        self.device = device

    def launch(self, name, grid, block, shared, *arguments):
        copies = [type(a).from_buffer_copy(a) for a in arguments]
        self.device.cuda.put(self.device.stream, lambda: self.cpu.launch(name, (*grid, 1), (block, 1, 1), shared, copies))


@pytest.fixture
def gpu(monkeypatch) -> Cuda:
    gpu = Cuda()
    monkeypatch.setattr(cuda_device, "import_cuda", lambda: gpu)
    monkeypatch.setattr(cuda_device, "gpu_target", lambda: "sm90")
    for module in (cuda_decoder, cuda_code_predictor, cuda_projection):
        monkeypatch.setattr(module, "Kernels", SimulatedKernels)
    return gpu


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


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.fixture(params=["thinker", "talker"])
def engines(request, built, gpu) -> tuple[Engine, Engine]:
    """The same decoder in ONNX Runtime and in our kernels."""
    return tuple(open_engine(built / device / request.param) for device in ("cpu", "cuda"))


def random_rows(engine: Engine, rows: int, past: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Inputs of so many rows, after `past` others; features of a picture for some of them."""
    hidden, levels = engine.config["model"]["hidden_size"], engine.config["model"].get("num_deepstack")
    index = past + np.arange(rows, dtype=np.float32)
    inputs = {"inputs_embeds": random.standard_normal((rows, hidden)).astype(np.float16).astype(np.float32),
              "position_ids": np.stack([index + 0.5, index // 2, 3 * index])}
    if levels:
        inputs["deepstack"] = np.zeros((levels, rows, hidden), np.float32)
        if rows > 1:
            inputs["deepstack"][:, rows // 3:rows // 2] = random.standard_normal((levels, rows // 2 - rows // 3, hidden))
    return inputs


def likeness(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> list[float]:
    """The cosine of each row of each output."""
    assert expected.keys() == got.keys()
    return [cosine(*rows) for name in expected for rows in zip(expected[name], got[name], strict=True)]


def test_decode_steps(engines, gpu):
    """Every row's logits and hidden state are ONNX Runtime's, whatever was decoded before it."""
    reference, engine = engines
    made, launched = gpu.calls["cudaMalloc"], gpu.calls["cudaGraphLaunch"]
    random, seen = np.random.default_rng(1), []
    for past in range(ROWS):
        inputs = random_rows(engine, 1, past, random)
        seen.append(min(likeness(reference.run(inputs), engine.run(inputs))))
    # a near tie in the router may go the other way, as the cache is float16
    assert min(seen) > 0.99 and np.median(seen) > 0.9999 and np.mean(np.array(seen) > 0.9995) > 0.9, seen
    assert gpu.calls["cudaMalloc"] == made and gpu.calls["cudaGraphLaunch"] - launched == ROWS
    with pytest.raises(InputError, match="takes.*inputs_embeds"):
        engine.run({**inputs, "inputs_embeds": inputs["inputs_embeds"][:, :-1]})


@pytest.mark.parametrize("prompts", [[1, 2], [9], [40, 1, 33, 8], [MOST, 3]], ids=str)
def test_prompts(engines, gpu, prompts):
    """Prompts of any length, one after another, and a step after them; a picture's features among the Thinker's."""
    reference, engine = engines
    made, random, seen = gpu.calls["cudaMalloc"], np.random.default_rng(sum(prompts)), []
    for rows in [*prompts, 1]:
        inputs = random_rows(engine, rows, engine.length, random)
        seen += likeness(reference.run(inputs), engine.run(inputs))
    assert engine.length == sum(prompts) + 1 and gpu.calls["cudaMalloc"] == made
    assert min(seen) > 0.99 and np.median(seen) > 0.9999 and np.mean(np.array(seen) > 0.9995) > 0.9, sorted(seen)


def test_a_prompt_in_parts(built, gpu, monkeypatch):
    """Longer than what one graph takes: the same numbers, from a cache that earlier rows are in."""
    whole = open_engine(built / "cuda" / "thinker")
    monkeypatch.setattr(cuda_decoder, "MOST_ROWS", 24)
    parts = open_engine(built / "cuda" / "thinker")
    random = np.random.default_rng(3)
    for rows in (61, 24, 1):
        inputs = random_rows(whole, rows, whole.length, random)
        for expected, got in zip(whole.run(inputs).values(), parts.run(inputs).values(), strict=True):
            np.testing.assert_allclose(got, expected, atol=2e-3)
    for engine in (whole, parts):
        engine.truncate(61)
    inputs = random_rows(whole, 2, 61, random)
    np.testing.assert_allclose(whole.run(inputs)["logits"], parts.run(inputs)["logits"], atol=2e-3)


def test_a_full_cache_is_refused_and_leaves_the_engine_usable(built, gpu):
    engine, random = open_engine(built / "cuda" / "talker"), np.random.default_rng(4)
    engine.run(random_rows(engine, MOST, 0, random))
    engine.length = engine.capacity - 1
    with pytest.raises(KVCacheFullError, match="talker"):
        engine.run(random_rows(engine, 2, 0, random))
    assert engine.length == engine.capacity - 1
    engine.reset()
    assert np.isfinite(engine.run(random_rows(engine, 2, 0, random))["logits"]).all()
    engine.__del__()
    assert not gpu.alive()


@pytest.mark.parametrize("name", ["text_projection", "hidden_projection"])
def test_projection(built, gpu, monkeypatch, name):
    """Equal to numpy's, and each row the same in whatever company it comes."""
    monkeypatch.setattr(cuda_projection, "MOST", 40)
    config = read_config(built / "cuda" / "talker")
    reference = Projection(built / "cuda" / "talker" / f"{name}.safetensors")
    projection = cuda_projection.CudaProjection(built / "cuda" / "talker" / f"{name}.safetensors", config["decoder"])
    x = np.random.default_rng(5).standard_normal((57, config["model"]["thinker_hidden_size"])).astype(np.float32)
    got = projection(x)
    assert min(cosine(*rows) for rows in zip(reference(x), got, strict=True)) > 0.99999
    np.testing.assert_array_equal(np.concatenate([projection(x[:1]), projection(x[1:6]), projection(x[6:])]), got)
    assert projection(x[:0]).shape == (0, config["model"]["hidden_size"])


def test_code_predictor(built, gpu):
    reference, engine = (open_engine(built / device / "code_predictor") for device in ("cpu", "cuda"))
    random = np.random.default_rng(2)
    equal = 0
    for frame in range(6):
        inputs = {n: random.standard_normal((1, engine.hidden)).astype(np.float16).astype(np.float32)
                  for n in ("last_hidden", "code0_embed")}
        noise = random.gumbel(size=(15, engine.noise_width)) if frame % 2 else np.zeros((15, engine.noise_width))
        inputs["noise"] = noise.astype(np.float32)
        expected, got = reference.run(inputs), engine.run(inputs)
        if np.array_equal(expected["codes"], got["codes"]):
            equal += 1
            np.testing.assert_allclose(got["embed_sum"], expected["embed_sum"], atol=0.02)
    assert equal >= 5  # float32 sums in another order may flip a near tie
    assert gpu.calls["cudaGraphLaunch"] == 6


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


@pytest.mark.parametrize("target", ["sm_80", "sm_87", "sm_90", "sm_110", "sm_120"])
def test_compiles_for(target):
    assert compile_kernels(target, 128, 8).startswith(b"\x7fELF")
