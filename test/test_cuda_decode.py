"""engines/decode/: the kernels that decode on an NVIDIA GPU, run here on the CPU, against ONNX Runtime on the same export."""
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
from omni_ros.engines import cuda_code_predictor, cuda_decoder, cuda_device
from omni_ros.engines.cuda_kernels import compile_kernels, source
from omni_ros.engines.engine import open_engine, read_config
from omni_ros.errors import EngineError, InputError

ROWS = 70  # more than two tiles of attention


class SimulatedKernels:
    """Puts the kernels, compiled for the CPU, on the simulated stream."""

    def __init__(self, device, head_dim: int, group: int):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "decode.cu").write_text(source())
            self.cpu = CpuKernels(Path(folder) / "decode.cu", {"HEAD_DIM": head_dim, "GROUP": group})
        self.device = device

    def launch(self, name, grid, block, shared, *arguments):
        copies = [type(a).from_buffer_copy(a) for a in arguments]
        self.device.cuda.put(self.device.stream, lambda: self.cpu.launch(name, (*grid, 1), (block, 1, 1), shared, copies))


@pytest.fixture
def gpu(monkeypatch) -> Cuda:
    gpu = Cuda()
    monkeypatch.setattr(cuda_device, "import_cuda", lambda: gpu)
    for module in (cuda_decoder, cuda_code_predictor):
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
        run("offline.build_engines", out / "onnx", out / device, "--device", device)
    return out


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("name", ["thinker", "talker"])
def test_decode_step(built, gpu, name):
    """Every row's logits and hidden state are ONNX Runtime's, whatever was decoded before it."""
    reference, config = open_engine(built / "cpu" / name), read_config(built / "cuda" / name)
    caches = [[gpu.allocate("device", int(np.prod(s["shape"])) * 2) for s in config["state"] if kind in s["input"]]
              for kind in ("key", "value")]
    decoder = cuda_decoder.CudaDecoder(built / "cuda" / name, config, *caches)
    made = gpu.calls["cudaMalloc"]
    random = np.random.default_rng(1)
    hidden_name = "accept_hidden" if name == "thinker" else "last_hidden"
    likeness = []  # a near tie in the router may go the other way, as the cache is float16
    for past in range(ROWS):
        row = random.standard_normal((1, decoder.hidden)).astype(np.float16).astype(np.float32)
        position = np.array([[past + 0.5], [past // 2], [3 * past]], np.float32)
        inputs = {"inputs_embeds": row, "position_ids": position}
        if name == "thinker":
            inputs["deepstack"] = np.zeros((config["model"]["num_deepstack"], 1, decoder.hidden), np.float32)
        expected = reference.run(inputs)
        logits, hidden = decoder.run(row, position, past)
        likeness.append(min(cosine(logits, expected["logits"]), cosine(hidden, expected[hidden_name])))
    assert min(likeness) > 0.99 and np.median(likeness) > 0.9999 and np.mean(np.array(likeness) > 0.9995) > 0.9, likeness
    assert gpu.calls["cudaMalloc"] == made and gpu.calls["cudaGraphLaunch"] == ROWS
    with pytest.raises(InputError, match="one row"):
        decoder.run(row[:, :-1], position, ROWS)
    for cache in (a for addresses in caches for a in addresses):
        gpu.free("device", cache)
    decoder.close()
    assert not gpu.alive()


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
    table = json.loads((directory / "decode.json").read_text())
    del table["model.norm.weight"]
    (directory / "decode.json").write_text(json.dumps(table))
    with pytest.raises(EngineError, match="lacks model.norm.weight; build"):
        cuda_code_predictor.CudaCodePredictor(directory, read_config(directory))
    assert not gpu.alive()
    (directory / "decode.json").write_text("{")
    with pytest.raises(EngineError, match="decode.json: missing or damaged"):
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
