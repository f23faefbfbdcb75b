"""The engines of `offline.build_engines --device cuda`, one after the other: loading, steps, share of the bandwidth."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from bench import gpu_turns
from bench.report import Part, Row
from offline.graphs.bandwidth import Traffic
from omni_ros.engines.cuda_device import CudaDevice, import_cuda
from omni_ros.engines.engine import Engine
from omni_ros.engines.open import open_engine
from omni_ros.pipeline.audio_encoder import AudioEncoder
from omni_ros.pipeline.code2wav import Code2Wav
from omni_ros.pipeline.code_predictor import CodePredictor
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.visual_encoder import VisualEncoder

PREFILL_ROWS, STEPS = (64, 512), 64  # decode steps follow the last prefill
CODE2WAV_FRAMES = (1, 25)
MEL_FRAMES, PATCHES = 400, 28  # 4 s of sound, a side of a picture of 448 x 448
COPIED = 4 << 30  # bytes, read once and written once
LOADING = "Opening each engine folder, its files in the page cache. GPU memory as the driver counts it, of all programs."
METHOD = f"""\
`engine.run` in a loop with nothing beside it, copies from and to the host included; medians. Decode steps follow
{PREFILL_ROWS[-1]} cached rows. Encoders as the pipeline calls them, 4 s of sound and a picture of 448 x 448. Share of the
bandwidth limit: bytes that a step must read (weights and caches, `offline.bandwidth`) / bandwidth of a {COPIED >> 30} GiB copy
inside the GPU, its reads and writes counted / time of a step."""


def stages(engine_dir: Path, traffic: dict[str, Traffic], repetitions: int) -> Iterator[tuple[str, Callable[[], Part]]]:
    """What to measure, in order, as (name, function). An engine that fails costs only what needs it."""
    threadpool_limits(4, user_api="blas")  # as Pipeline.open does beside a GPU
    bandwidth: list[float] = []  # bytes/s, once it is measured
    engines: dict[str, Engine] = {}
    yield "copy bandwidth", lambda: copy(bandwidth)
    for name in ENGINES:
        yield f"open {name}", functools.partial(load, name, engine_dir, engines)
    yield "GPU memory", lambda: memory("after loading")
    for name, engine in engines.items():
        yield f"{name} alone", functools.partial(alone, name, engine, repetitions, traffic.get(name), *bandwidth)
    yield "turns", lambda: gpu_turns.measure(Pipeline({name: engines[name] for name in ENGINES}), repetitions)
    yield "GPU memory", lambda: memory("after all turns")


def copy(bandwidth: list[float]) -> Part:
    device = CudaDevice("benchmark")
    try:
        source, target = device.memory(COPIED), device.memory(COPIED)

        def run() -> None:
            device.copy(target, source, COPIED)
            device.wait()

        bandwidth.append(2 * COPIED / median_s(run, 10))
    finally:
        device.close()
    return Part("Engines alone", METHOD, [Row("copy inside the GPU", bandwidth[0] / 1e9, "GB/s")], {"bytes_per_s": bandwidth[0]})


def load(name: str, engine_dir: Path, engines: dict[str, Engine]) -> Part:
    """Adds one to `engines`."""
    before, started = memory_used(), time.perf_counter()
    engines[name] = open_engine(engine_dir / name)
    seconds, size = time.perf_counter() - started, memory_used() - before
    rows = [Row(f"{name}, time", seconds, "s"), Row(f"{name}, GPU memory", size / 1e9, "GB")]
    return Part("Loading", LOADING, rows, {name: {"seconds": seconds, "bytes": size}})


def memory(when: str) -> Part:
    return Part("Loading", LOADING, [Row(f"GPU memory in use {when}", memory_used() / 1e9, "GB")], {})


def memory_used() -> int:
    """Bytes in use on the GPU, by all programs."""
    _, free, total = import_cuda().cudaMemGetInfo()
    return total - free


def alone(name: str, engine: Engine, repetitions: int, traffic: Traffic | None = None, bandwidth: float | None = None) -> Part:
    """`traffic` is what a step of this engine reads, `bandwidth` bytes/s; without both, no share of the limit."""
    random, seconds, cached, step = np.random.default_rng(0), {}, 0, None
    state = engine.new_state()
    if name in ("thinker", "talker"):
        for count in PREFILL_ROWS:
            inputs = decoder_rows(engine, 0, count)
            prefill = lambda inputs=inputs: (state.reset(), engine.run(inputs, state))  # noqa: E731
            seconds[f"prefill, {count} rows"] = median_s(prefill, repetitions)
        cached, step = PREFILL_ROWS[-1] + STEPS // 2, "decode step"
        inputs = decoder_rows(engine, cached, 1)
        seconds[step] = median_s(lambda: engine.run(inputs, state), STEPS)
    elif name == "code_predictor":
        predict, step = CodePredictor(engine), "codec frame"
        hidden, code0 = random.standard_normal((2, 1, predict.hidden_size), np.float32)
        seconds[step] = median_s(lambda: predict(hidden, code0, None), STEPS)
    elif name == "code2wav":
        vocoder = Code2Wav(engine)
        for frames in CODE2WAV_FRAMES:
            state.reset()
            codes = random.integers(0, vocoder.codebook_size, (vocoder.num_quantizers, frames))
            seconds[f"{frames} codec frame(s)"] = median_s(lambda codes=codes: vocoder.decode(state, codes), repetitions)
    elif name == "multimodal/audio":
        encode, mel = AudioEncoder(engine), random.standard_normal((engine.config.model.mel_bins, MEL_FRAMES), np.float32)
        seconds["4 s of sound"] = median_s(lambda: [encode(*window) for window in encode.windows(mel)], repetitions)
    else:
        see, grid = VisualEncoder(engine), np.array([[1, PATCHES, PATCHES]])
        patches = random.standard_normal((PATCHES**2, see.patch_width), np.float32)
        seconds[f"picture of {PATCHES} x {PATCHES} patches"] = median_s(lambda: see(patches, grid), repetitions)
    state.close()
    rows = [Row(f"{name}, {what}", 1e3 * value, "ms") for what, value in seconds.items()]
    if step and traffic and bandwidth:
        read = traffic.read + traffic.kv_row * cached
        rows += [
            Row(f"{name}, read in a {step}", read / 1e9, "GB"),
            Row(f"{name}, share of the bandwidth limit", read / bandwidth / seconds[step]),
        ]
    return Part("Engines alone", METHOD, rows, {name: seconds})


def decoder_rows(engine: Engine, cached: int, rows: int) -> dict[str, np.ndarray]:
    """Random inputs of a Thinker's or Talker's `rows` rows after `cached` ones."""
    shapes = {i.name: i.shape for i in engine.config.inputs}
    embeds = np.random.default_rng(rows).standard_normal((rows, shapes["inputs_embeds"][-1]), np.float32)
    inputs = {"inputs_embeds": embeds, "position_ids": np.tile(np.arange(cached, cached + rows, dtype=np.float32), (3, 1))}
    if "deepstack" in shapes:
        inputs["deepstack"] = np.zeros((engine.config.model.num_deepstack, *embeds.shape), np.float32)
    return inputs


def median_s(run: Callable[[], object], repetitions: int) -> float:
    """Seconds of `run`, after two runs that warm up."""
    times = []
    for _ in range(repetitions + 2):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times[2:]))
