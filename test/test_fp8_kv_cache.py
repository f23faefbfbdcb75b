"""A KV cache in FP8 (`build_engines --kv_cache_quantization fp8`): codes as ml_dtypes rounds them, answers as ONNX Runtime gives
them with QuantizeLinear before its cache, and rows that were read before as good as new ones."""

import ctypes
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import run
from cpu_kernels import CpuKernels
from cuda_on_cpu import Cuda
from decoder_rows import likeness, random_rows
from test_cuda_decoder import gpu, shared_gpu  # noqa: F401 - fixtures

from bench.kv_cache_bits import rounded
from offline import build_engines, export_onnx
from offline.checkpoints.checkpoint import write_safetensors
from offline.graphs.memory import memory
from offline.make_checkpoint import make_checkpoint
from omni_ros.engines.config import read_config
from omni_ros.engines.cuda.arguments import Float, Int, Pointer, Rope
from omni_ros.engines.cuda.compiler import DECODE, PREFILL, source
from omni_ros.engines.engine import Engine
from omni_ros.engines.open import open_engine
from omni_ros.errors import CheckpointError, EngineError

FP8 = ["--device", "cuda", "--kv_cache_quantization", "fp8"]
E4M3 = ml_dtypes.float8_e4m3fn
MOST = 96  # rows of a prompt
HEAD_DIM, GROUP, KV_HEADS, CAPACITY = 32, 2, 3, 80
SCALES = {"k_proj.k_scale": 0.03, "v_proj.v_scale": 0.007}  # of the first layer; the others have none
PROBE = """
extern "C" __global__ void probe(const float* x, int n, float scale, cached* codes, half_bits* halves) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) codes[i] = to_cache(x[i], scale);
  for (int i = threadIdx.x; blockIdx.x == 0 && i < 32; i += blockDim.x) {
    unsigned char all[8];
    for (int j = 0; j < 8; j++) all[j] = 8 * i + j;
    ((uint4*)halves)[i] = as_halves(*(const cached_8*)all);
    for (int j = 0; j < 8; j++) halves[256 + 8 * i + j] = as_half((cached)(8 * i + j));
  }
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> tuple[CpuKernels, CpuKernels]:
    """With a cache in float16, and in FP8."""
    texts = source(DECODE, PREFILL), source(DECODE, PREFILL) + PROBE
    compiled = []
    for text, more in zip(texts, ({}, {"FP8_CACHE": 1})):
        path = tmp_path_factory.mktemp("kernels") / "kernels.cu"
        path.write_text(text)
        compiled.append(CpuKernels(path, {"HEAD_DIM": HEAD_DIM, "GROUP": GROUP, **more}))
    return tuple(compiled)


def pointer(array: np.ndarray) -> Pointer:
    return Pointer(array.ctypes.data)


# ---- kernels --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scale", [1.0, 0.0073])
def test_codes_are_those_of_ml_dtypes(kernels, scale):
    """Every code, the middles between neighbours, what is just beside them, denormals, and what is too large."""
    values = np.unique(np.arange(128, dtype=np.uint8)[:-1].view(E4M3).astype(np.float32))
    middles = (values[1:] + values[:-1]) / 2
    near = np.concatenate([values, middles, *(np.nextafter(middles, np.float32(x)) for x in (0, np.inf))])
    random = np.random.default_rng(0)
    x = np.concatenate([near, random.standard_normal(4000) * 10 ** random.uniform(-6, 3, 4000), [449, 479, 1e9, 1e-30]])
    x = np.concatenate([x, -x]).astype(np.float32) * np.float32(scale)
    codes, halves = np.empty(len(x), np.uint8), np.empty(512, np.float16)
    kernels[1].launch("probe", (3, 1, 1), (64, 1, 1), 0, [pointer(x), Int(len(x)), Float(scale), pointer(codes), pointer(halves)])
    np.testing.assert_array_equal(codes, np.clip(x / np.float32(scale), -448, 448).astype(E4M3).view(np.uint8))
    number = np.arange(256) % 128 < 127  # the other two are NaN, which is never written
    for made in (halves[:256], halves[256:]):
        np.testing.assert_array_equal(made[number] * 256, np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float16)[number])


@pytest.mark.parametrize("past, rows", [(0, 5), (37, 20), (64, 1)])
def test_attention_over_codes_is_attention_over_their_values(kernels, past, rows):
    """Bit for bit: all that FP8 costs is lost when a row is written."""
    random = np.random.default_rng(past)
    codes = (random.standard_normal((2, KV_HEADS, CAPACITY, HEAD_DIM)) * 2).astype(E4M3)
    caches = codes.astype(np.float16), codes.view(np.uint8)
    heads = GROUP * KV_HEADS
    q = random.standard_normal((rows, heads, HEAD_DIM)).astype(np.float16)
    counts = np.array([past, rows], np.int32)
    made = []
    for kernel, (keys, values) in zip(kernels, caches):
        out = np.full(q.shape, np.nan, np.float16)
        arguments = [pointer(a) for a in (q, keys, values, counts)] + [Int(CAPACITY), pointer(out), pointer(counts[1:])]
        grid = (KV_HEADS, math.ceil(rows / 16), 1)
        kernel.launch("attend_rows", grid, (32 * GROUP, 1, 1), 0, [*arguments, Float(1), Float(1)])
        made.append(out)
    assert np.isfinite(made[0]).all() and np.ptp(made[0]) > 0.1
    np.testing.assert_array_equal(*made)


@pytest.mark.parametrize("split_k", [1, 2])
def test_a_step_over_codes_is_a_step_over_their_values(kernels, split_k):
    """The new row among them: its key is 0 (as its norm's weights are), its values are codes already."""
    random, past = np.random.default_rng(split_k), np.array([61], np.int32)
    codes = (random.standard_normal((2, KV_HEADS, CAPACITY, HEAD_DIM)) * 2).astype(E4M3)
    caches = codes.astype(np.float16), codes.view(np.uint8).copy()
    qkv = random.standard_normal(((GROUP + 2) * KV_HEADS, HEAD_DIM)).astype(np.float32)
    qkv[-KV_HEADS:] = qkv[-KV_HEADS:].astype(E4M3).astype(np.float32)
    norms, cos_sin = np.stack([np.ones(HEAD_DIM), np.zeros(HEAD_DIM)]).astype(np.float16), np.ones(HEAD_DIM, np.float32)
    made = []
    for kernel, cache in zip(kernels, caches):
        out = np.full((GROUP * KV_HEADS, HEAD_DIM), np.nan, np.float32)
        partial, arrived = np.zeros(out.size * split_k * 2, np.float32), np.zeros(KV_HEADS, np.int32)
        rope = Rope(norms[0].ctypes.data, norms[1].ctypes.data, 1e-6, cos_sin.ctypes.data)
        arguments = [pointer(qkv), rope, *map(pointer, (*cache, past)), Int(CAPACITY), *map(pointer, (partial, arrived, out))]
        kernel.launch("attend", (KV_HEADS, split_k, 1), (32 * GROUP, 1, 1), 0, [*arguments, Float(1), Float(1)])
        made.append(out)
    assert np.isfinite(made[0]).all() and np.ptp(made[0]) > 0.1
    np.testing.assert_array_equal(*made)
    written = caches[1][:, :, past[0]].view(E4M3).astype(np.float32)
    assert not written[0].any()
    np.testing.assert_array_equal(written[1], qkv[-KV_HEADS:])


# ---- engines --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """ENGINES cpu, cuda (16-bit cache) and fp8, of a model that asks every expert about every row: no near ties of the router
    hide what the cache does. The first layers have scales, as ModelOpt writes them."""
    out, text = tmp_path_factory.mktemp("fp8_kv"), {"num_experts": 3, "num_experts_per_tok": 3}
    overrides = {f"{part}_config": {"text_config": text} for part in ("thinker", "talker")}
    checkpoint = make_checkpoint(out / "checkpoint", seed=8, overrides=overrides)
    write_scales(checkpoint, SCALES)
    run("offline.export_onnx", checkpoint, out / "onnx", "--components", "thinker,talker", "--dtype", "float16")
    for name, options in {"cpu": [], "cuda": ["--device", "cuda"], "fp8": FP8}.items():
        run("offline.build_engines", out / "onnx", out / name, "--maxInputLen", str(MOST), *options)
    return out


def write_scales(checkpoint: Path, scales: dict[str, float]) -> None:
    names = {f"{part}.model.layers.0.self_attn.{name}": v for part in ("thinker", "talker") for name, v in scales.items()}
    tensors = {name: (np.dtype(np.float32), (), [np.array(value, np.float32)]) for name, value in names.items()}
    write_safetensors(checkpoint / "kv_scales.safetensors", tensors)


@pytest.fixture(scope="module", params=["thinker", "talker"])
def engines(request, built, shared_gpu, tmp_path_factory) -> Iterator[dict[str, Engine]]:  # noqa: F811
    """Of the CPU as it is and with codes in front of its cache; our kernels with both caches."""
    name, work = request.param, tmp_path_factory.mktemp("rounded")
    scales = {f"{key[0]}_attention_0": np.float32(value) for key, value in SCALES.items()}
    folders = {form: built / form / name for form in ("cpu", "cuda", "fp8")}
    folders["rounded"] = rounded(built / "cpu" / name, work / name, "kv", "fp8", scales)
    opened = {form: open_engine(folder) for form, folder in folders.items()}
    yield opened
    for engine in opened.values():
        engine.close()


def test_answers_are_those_of_rounded_keys_and_values(engines):
    """Prompts and steps. Where a number lies in the middle between two codes, float16 and float32 may choose otherwise."""
    states = {form: engine.new_state() for form, engine in engines.items()}
    random, seen, lost = np.random.default_rng(3), [], []
    for rows in (40, 1, 1, 33, 8, 1, 1):
        inputs = random_rows(engines["fp8"], rows, states["fp8"].length, random)
        answers = {form: engine.run(inputs, states[form]) for form, engine in engines.items()}
        seen += likeness(answers["rounded"], answers["fp8"])
        lost += likeness(answers["cpu"], answers["fp8"])
    loss, error = 1 - np.mean(lost), 1 - np.mean(seen)
    assert min(seen) > 0.995 and error < loss / 10, (error, loss, sorted(seen)[:5], sorted(lost)[:5])


def test_the_first_layers_codes(engines, built):
    """Read from the device, prompt rows and a step's: float16 numbers of the other engine, divided by the scale and rounded."""
    states = [engines[form].new_state() for form in ("cuda", "fp8")]
    random, decoder = np.random.default_rng(4), engines["fp8"].decoder
    for rows in (21, 1):
        inputs = random_rows(engines["fp8"], rows, states[0].length, random)
        for form, state in zip(("cuda", "fp8"), states):
            engines[form].run(inputs, state)
    shape = (decoder.num_kv_heads, engines["fp8"].config.limits.capacity, decoder.head_dim)
    for cache, scale in zip(("keys", "values"), SCALES.values()):
        halves, codes = (
            np.ctypeslib.as_array((kind * math.prod(shape)).from_address(getattr(engines[form].decode, cache)[0])).reshape(shape)
            for form, kind in (("cuda", ctypes.c_uint16), ("fp8", ctypes.c_uint8))
        )
        values = halves.view(np.float16)[:, :22]
        assert values.any(axis=-1).all()
        bounds = [np.nextafter(values, np.float16(end)).astype(np.float32) / np.float32(scale) for end in (-np.inf, np.inf)]
        low, high = (np.clip(b, -448, 448).astype(E4M3).astype(np.float32) for b in bounds)
        got = codes[:, :22].view(E4M3).astype(np.float32)
        assert ((low <= got) & (got <= high)).all()
        assert (low == high).mean() > 0.95


def test_rows_that_were_read_before_are_as_good_as_new(engines):
    """Truncated and extended, in prompts and steps: the bits of a fresh run."""
    engine, random = engines["fp8"], np.random.default_rng(5)
    state = engine.new_state()
    first = random_rows(engine, 40, 0, random)
    second, third = (random_rows(engine, rows, 40, random) for rows in (30, 30))
    step = random_rows(engine, 1, 70, random)

    def answers(*parts: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [a for inputs in parts for a in engine.run(inputs, state).values()]

    fresh = answers(first, third, step)
    state.truncate(40)
    answers(second, step)
    state.truncate(40)
    again = answers(third, step)
    for expected, got in zip(fresh[-len(again) :], again, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_half_the_memory(built, gpu: Cuda):  # noqa: F811
    taken = {}
    for form in ("cuda", "fp8"):
        engine = open_engine(built / form / "talker")
        taken[form] = sum(size for kind, size, _ in gpu.allocations.values() if kind == "device")
        c, capacity = engine.decoder, engine.config.limits.capacity
        engine.close()
    assert taken["cuda"] - taken["fp8"] == 2 * c.num_layers * c.num_kv_heads * capacity * c.head_dim


def test_scrambled_weights_are_found_when_it_is_opened(built, gpu, tmp_path):  # noqa: F811
    """By the stored answers of the exported graph, which rounds nothing: the bound leaves room for FP8, and no more."""
    folder = shutil.copytree(built / "fp8" / "talker", tmp_path / "talker")
    entry = json.loads((folder / "weights.json").read_text())["layers.0.self_attn.v_proj.weight"]
    weights = np.memmap(folder / "weights.data", np.float16, "r+", entry["offset"], (math.prod(entry["shape"]),))
    weights[:] = np.random.default_rng(0).permutation(weights)
    weights.flush()
    with pytest.raises(EngineError, match="computes wrongly on this machine"):
        open_engine(folder, verify="sizes")


# ---- config.json ----------------------------------------------------------------------------------------------------
def test_config_json_names_it(built):
    state = json.loads((built / "fp8" / "talker" / "config.json").read_text())["state"]
    assert {s["dtype"] for s in state} == {"float8_e4m3fn"} and all(s["in_place"] for s in state)
    assert [s.get("fp8_scale", 1) for s in state] == pytest.approx([*SCALES.values(), *[1] * (len(state) - 2)])
    assert {s.dtype for s in read_config(built / "cuda" / "talker").state} == {"float32"}


def changed(config: dict, **changes: object) -> dict:
    return {**config, "state": [{**config["state"][0], **changes}, *config["state"][1:]]}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: changed(c, dtype="float8_e5m2"), "dtype cannot be 'float8_e5m2'"),
        (lambda c: changed(c, dtype="float16"), "keeps some keys and values in float8_e4m3fn and some not"),
        (lambda c: changed(c, fp8_scale=0), "fp8_scale cannot be '0.0'"),
        (lambda c: changed(c, fp8_scale=-1.5), "state.fp8_scale cannot be '-1.5'"),
        (lambda c: {**c, "state": c["state"][2:]}, "lacks state past_key_0; build the engine again"),
        (lambda c: {**c, "backend": "onnxruntime"}, "dtype cannot be 'float8_e4m3fn'"),
        (lambda c: {**c, "backend": "tensorrt"}, "dtype cannot be 'float8_e4m3fn'"),
    ],
)
def test_what_is_not_known_is_refused(built, gpu, tmp_path, change, message):  # noqa: F811
    folder = shutil.copytree(built / "fp8" / "talker", tmp_path / "talker")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(change(config)))
    with pytest.raises(EngineError, match=message) as caught:
        open_engine(folder, 1, verify="sizes")
    assert "config.json" in str(caught.value) and not gpu.alive()


@pytest.mark.parametrize("backend, why", [("onnxruntime", "a CPU keeps"), ("tensorrt", "TensorRT updates no cache of 8 bits")])
def test_other_backends_refuse_it(tmp_path, capsys, backend, why):
    with pytest.raises(SystemExit):
        build_engines.main(["onnx", str(tmp_path / "out"), "--backend", backend, "--kv_cache_quantization", "fp8"])
    assert f"--kv_cache_quantization fp8 is for --device cuda; {why}" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0.0, -1.0, np.inf])
def test_a_scale_that_is_none_is_refused(tmp_path, value):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", seed=8)
    write_scales(checkpoint, {"k_proj.k_scale": value})
    with pytest.raises(CheckpointError, match=r"layers.0.self_attn.k_proj.k_scale is \S+; quantise again"):
        export_onnx.export(checkpoint, tmp_path / "onnx", ["talker"], np.dtype(np.float16))


def test_dry_run_counts_it(built, capsys):
    limits = {name: {"max_input_len": 64, "capacity": 128} for name in ("thinker", "talker")}
    full, half = (memory(built / "onnx" / "talker" / "llm", limits, "cuda", "float32", form) for form in (None, "fp8"))
    assert (half.weights, half.activations, 2 * half.caches) == (full.weights, full.activations, full.caches)
    read = []
    for options in (FP8[:2], FP8):
        assert build_engines.main([str(built / "onnx"), "nowhere", "--dry-run", "--maxInputLen", "500", *options]) == 0
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("thinker"))
        read.append(float(line.split()[5]))  # name, weights, read a step, KV: a number and its unit each
    assert read[0] == 2 * read[1] > 0
