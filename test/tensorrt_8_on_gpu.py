"""The six engines on a real GPU with TensorRT 8.6, beside the CPU's: what they compute, how they fail, how long they take.

    python test/tensorrt_8_on_gpu.py FOLDER MODEL ... [--self_checks ENGINES] [--level N]

MODEL: one of MODELS ("plain", "odd", "four_books", ...), "demo" (demo/model, trained), and the same with -float16 behind.
ENGINES/MODEL: CPU engines of it, made where ONNX Runtime is newer than Python 3.10 has it and could compute what an engine should
answer.
Needs an NVIDIA GPU, Python 3.10, the wheel tensorrt==8.6.0 and cuda-bindings (docs/verification.md says how it is made to
load). Makes everything in FOLDER. A part that fails is told, and the next one goes on; the exit status
says how many failed.
"""

import argparse
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from conftest import CHECKPOINTS, never_end  # noqa: E402
from tensorrt_8 import Config, tensorrt_8, use_int32  # noqa: E402
from test_tensorrt_engine import RUNS, inputs_for  # noqa: E402

from offline import export_onnx  # noqa: E402
from offline.build_engines import ENGINES, build_one, build_tree  # noqa: E402
from offline.make_checkpoint import make_checkpoint  # noqa: E402
from offline.outputs import engine_folder  # noqa: E402
from offline.outputs.self_check import FILE  # noqa: E402
from omni_ros.engines.open import open_engine  # noqa: E402
from omni_ros.errors import OmniError  # noqa: E402
from omni_ros.pipeline.pipeline import Pipeline  # noqa: E402
from omni_ros.pipeline.request import AudioChunk, Finished, Request, TextDelta  # noqa: E402

LIMITS = {  # small, so that a full cache is soon there
    name: {"max_input_len": 512, "capacity": 1024} for name in ("thinker", "talker")
} | {"code2wav": {"capacity": 250}}
MODELS = CHECKPOINTS | {
    "four_books": {  # "plain" with a CodePredictor of 3 steps instead of 15
        "seed": 0,
        "overrides": {
            "talker_config": {"num_code_groups": 4, "code_predictor_config": {"num_code_groups": 4}},
            "code2wav_config": {"num_quantizers": 4},
        },
    }
}
GREEDY = {"temperature": 0, "talker_temperature": 0}
failures: list[str] = []
begun = time.perf_counter()


def say(*words: object) -> None:
    print(f"[{time.perf_counter() - begun:7.2f}]", *words, flush=True)


@contextlib.contextmanager
def part(name: str) -> Iterator[None]:
    say("----", name)
    try:
        yield
    except Exception as e:  # noqa: BLE001 - the others go on
        failures.append(name)
        say("FAILED", name, type(e).__name__, e)
        traceback.print_exc(file=sys.stdout)


# ---- making ----------------------------------------------------------------------------------------------------------
def make(root: Path, model: str, self_checks: Path | None, level: int | None = None) -> None:
    """The exported graphs in root/MODEL-onnx, the CPU's engines in root/MODEL, TensorRT's in root/MODEL-trt."""
    name, _, dtype = model.partition("-")
    if name == "demo":
        checkpoint = ROOT / "demo" / "model"
    else:
        checkpoint = make_checkpoint(root / f"{model}-checkpoint", **MODELS[name])
        if name in ("plain", "four_books"):
            never_end(checkpoint)
    onnx = root / f"{model}-onnx"
    assert export_onnx.main([str(checkpoint), str(onnx), "--dtype", dtype or "float32"]) == 0
    if self_checks is not None:
        engine_folder.store = functools.partial(store_from, self_checks / model)
    build_tree(onnx, root / model, limits=LIMITS)
    options = ["--level", str(level)] if level is not None else []
    options += ["--self_checks", str(self_checks)] if self_checks else []
    children = {
        folder: subprocess.Popen([sys.executable, __file__, str(root), model, "--build", folder, *options]) for folder in ENGINES
    }
    failures.extend(f"build {model} {folder}" for folder, child in children.items() if child.wait())


def build(root: Path, model: str, folder: str, level: int | None, self_checks: Path | None) -> None:
    """One engine, in a process of its own, and what it computes."""
    onnx, place = root / f"{model}-onnx" / ENGINES[folder], root / f"{model}-trt" / folder
    if self_checks is not None:
        engine_folder.store = functools.partial(store_from, self_checks / model)
    Config.level = level
    with part(f"build {model} {folder}"):
        start = time.perf_counter()
        build_one(onnx, place, "tensorrt", LIMITS)
        use_int32(place)
        config = json.loads((place / "config.json").read_text())
        say(
            f"BUILT {model} {folder} in {time.perf_counter() - start:.1f} s, level {level}:",
            f"{config['files']['model.engine'] / 1e6:.1f} MB, host inputs {config['tensorrt']['host_inputs']},",
            f"self-check {config.get('self_check')}",
        )
        compare_engine(root, model, folder)


def store_from(engines: Path, graph: object, directory: Path, config: dict) -> None:
    """In place of offline.outputs.self_check.store: what was stored with these engines."""
    folder = engines / next(f for f in ENGINES if Path(f).name == config["engine"])
    made = json.loads((folder / "config.json").read_text())
    shutil.copy(folder / FILE, directory / FILE)
    config["self_check"] = {"file": FILE, "calls": made["self_check"]["calls"], "rounds_activations": False}
    config.setdefault("sidecars", {})[FILE] = made["sidecars"][FILE]


def present(root: Path, model: str) -> list[str]:
    return [f for f in ENGINES if (root / f"{model}-trt" / f / "config.json").is_file()]


def open_all(root: Path, model: str, kind: str) -> Pipeline:
    """`kind`: "cpu", or "trt": TensorRT's engines, the CPU's where one could not be built."""
    built = present(root, model) if kind == "trt" else []
    folders = {f: root / (f"{model}-trt" if f in built else model) / f for f in ENGINES}
    return Pipeline.open(root, folders=folders)


# ---- what they compute -------------------------------------------------------------------------------------------------
def compare_engine(root: Path, model: str, folder: str, directory: Path | None = None) -> None:
    """Three sequences of runs on both; `directory`: where TensorRT's engine is."""
    reference, engine = open_engine(root / model / folder), open_engine(directory or root / f"{model}-trt" / folder)
    say("graphs", [len(p.graphs) for p in engine.profiles], "in place", [s.in_place for s in engine.config.state][:1])
    rng, worst, cosine, same, all_codes = np.random.default_rng(0), {}, {}, 0, 0
    states = (reference.new_state(), engine.new_state()) if engine.config.state else (None, None)
    for _ in range(3):
        for sizes in RUNS[folder]:
            inputs = inputs_for(reference, sizes, rng)
            expected, found = reference.run(inputs, states[0]), engine.run(inputs, states[1])
            for name, y in expected.items():
                z = found[name]
                assert y.shape == z.shape, (name, y.shape, z.shape)
                if y.dtype.kind in "iu":
                    same, all_codes = same + int((y == z).sum()), all_codes + y.size
                else:
                    assert np.isfinite(z).all(), name
                    y, z = y.astype(np.float64), z.astype(np.float64)  # a norm in float16 may be infinite
                    worst[name] = max(worst.get(name, 0.0), float(np.abs(y - z).max(initial=0)))
                    norms = np.linalg.norm(y) * np.linalg.norm(z)
                    cosine[name] = min(cosine.get(name, 1.0), float((y * z).sum() / max(norms, 1e-30)))
        for state in states:
            if state is not None:
                state.reset()
    say(f"NUMBERS {model} {folder}: max error {worst}, least cosine {cosine}, codes {same}/{all_codes}")
    reference.close()
    engine.close()


def tone(seconds: float) -> np.ndarray:
    t = np.arange(int(16000 * seconds)) / 16000
    return (0.2 * np.sin(2 * np.pi * (200 + 150 * t) * t)).astype(np.float32)


def picture(height: int, width: int) -> np.ndarray:
    ramp = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 60, width)[None, :, None] * np.array([0.2, 0.9, 0.5])
    return ramp.clip(0, 255).astype(np.uint8)


def user(*parts: object) -> dict:
    kinds = {str: "text", np.ndarray: "audio"}
    content = [{"type": (k := "image" if getattr(p, "ndim", 0) == 3 else kinds[type(p)]), k: p} for p in parts]
    return {"role": "user", "content": content}


TURNS = {
    "text": [user("what do you see and hear")],
    "audio of 9.7 s": [user("listen", tone(9.7))],
    "picture": [user(picture(97, 131), "What do you see?")],
    "picture and audio": [user(picture(64, 96), tone(1.2), "so")],
    "three turns": [
        {"role": "system", "content": "hello world"},
        user(picture(64, 80), "what is this"),
        {"role": "assistant", "content": "hello"},
        user(tone(1.1), "and this"),
        {"role": "assistant", "content": "do you hear"},
        user("please describe"),
    ],
    "sum": [user("What is seven plus eight?")],
    "count": [user("count to five")],
}


def play(pipeline: Pipeline, messages: list, **options) -> tuple[Finished, np.ndarray, float, float]:
    """The turn's end, its samples, and after how many seconds the first of them and the end came."""
    start, first, pcm = time.perf_counter(), 0.0, []
    for event in pipeline.generate(Request(messages, **{**GREEDY, "max_audio_length": 100, **options})):
        if isinstance(event, AudioChunk):
            first = first or time.perf_counter() - start
            pcm.append(event.pcm)
    assert isinstance(event, Finished)
    return event, np.concatenate(pcm) if pcm else np.zeros(0), first, time.perf_counter() - start


def compare_turns(root: Path, model: str) -> None:
    longest = 60 if model.startswith("demo") else 12
    cpu, gpu = open_all(root, model, "cpu"), open_all(root, model, "trt")
    say("backends", {n: e.config.backend for n, e in gpu.engines.items()})
    for name, messages in TURNS.items():
        for streaming in (True, False):
            with part(f"turn {model} {name} streaming={streaming}"):
                a, heard, cpu_first, cpu_all = play(cpu, messages, streaming=streaming, max_generate_length=longest)
                play(gpu, messages, streaming=streaming, max_generate_length=longest)
                b, spoken, first, whole = play(gpu, messages, streaming=streaming, max_generate_length=longest)
                tokens = a.token_ids == b.token_ids
                codes = a.codes.shape == b.codes.shape and bool((a.codes == b.codes).all())
                wave = f"{np.abs(heard - spoken).max(initial=0):.2e}" if heard.shape == spoken.shape else "other length"
                say(
                    f"TURN {model} {name!r} streaming={streaming}: tokens {tokens} ({len(a.token_ids)}), codes {codes}",
                    f"{a.codes.shape}, wave error {wave}; first sound {first * 1e3:.1f} ms (CPU {cpu_first * 1e3:.1f}), whole",
                    f"{whole * 1e3:.1f} ms (CPU {cpu_all * 1e3:.1f}), speech {len(spoken) / 24:.0f} ms, {b.reason},",
                    f"{b.audio_reason}: {b.text!r}",
                )
                if not tokens:
                    say("tokens", a.token_ids, b.token_ids, repr(a.text))
                if not codes and a.codes.shape == b.codes.shape:
                    differ = np.argwhere((a.codes != b.codes).T)[0]
                    say("first different code: frame, codebook", differ.tolist(), "of", a.codes.shape)
                assert tokens and codes, "differs from the CPU"
    with part(f"cancel {model}"):
        request = Request(TURNS["text"], **GREEDY, max_generate_length=longest, max_audio_length=100)
        before = play(gpu, TURNS["text"], max_generate_length=longest)[0]
        events = gpu.generate(request)
        taken = [next(e for e in events if isinstance(e, TextDelta))]
        timer = threading.Timer(0.01, gpu.cancel)
        timer.start()
        taken += list(events)
        say("cancelled:", taken[-1].reason, taken[-1].audio_reason, "after", len(taken), "events")
        after = play(gpu, TURNS["text"], max_generate_length=longest)[0]
        assert before.token_ids == after.token_ids and (before.codes == after.codes).all()
    with part(f"KV cache full {model}"):
        end = play(gpu, TURNS["text"], max_generate_length=3000, max_audio_length=2, audio_output=model == "plain")[0]
        say("KV full:", end.reason, end.audio_reason, len(end.token_ids), "tokens")
        with contextlib.suppress(OmniError):
            play(gpu, [user("word " * 3000)], max_generate_length=3)
        after = play(gpu, TURNS["text"], max_generate_length=longest)[0]
        before = play(cpu, TURNS["text"], max_generate_length=longest)[0]
        assert before.token_ids == after.token_ids
    gpu.close()
    cpu.close()


# ---- how they fail -----------------------------------------------------------------------------------------------------
def refused(what: str, directory: Path, expected: type[Exception] = OmniError) -> None:
    try:
        open_engine(directory).close()
    except expected as e:
        say(f"REFUSED {what}:", type(e).__name__, e)
    else:
        failures.append(what)
        say("FAILED", what, "was opened")


def broken(root: Path, model: str, folder: str, change: Callable[[Path, dict], None]) -> Path:
    """A copy of an engine, after `change(directory, config.json)`."""
    copy = Path(tempfile.mkdtemp(dir=root)) / folder
    shutil.copytree(root / f"{model}-trt" / folder, copy)
    config = json.loads((copy / "config.json").read_text())
    change(copy, config)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def damage(keep_sums: bool, directory: Path, config: dict) -> None:
    import hashlib

    plan = bytearray((directory / "model.engine").read_bytes())
    plan[len(plan) // 2 : len(plan) // 2 + 4096] = os.urandom(4096)
    (directory / "model.engine").write_bytes(plan)
    if not keep_sums:
        config["checksums"]["model.engine"] = config["engine_sha256"] = hashlib.sha256(plan).hexdigest()


def cut(directory: Path, config: dict) -> None:
    import hashlib

    plan = (directory / "model.engine").read_bytes()[:-5000]
    (directory / "model.engine").write_bytes(plan)
    config["files"]["model.engine"] = len(plan)
    config["checksums"]["model.engine"] = config["engine_sha256"] = hashlib.sha256(plan).hexdigest()


def fail(root: Path, model: str) -> None:
    from cuda.bindings import runtime as cuda

    folder = "talker" if "talker" in present(root, model) else present(root, model)[0]
    whole = root / f"{model}-trt" / folder
    with part("wrong GPU, version"):
        refused("for sm110", broken(root, model, folder, lambda d, c: c["tensorrt"].update(target="sm110")))
        refused("of 10.13", broken(root, model, folder, lambda d, c: c["tensorrt"].update(version="10.13.3.9")))
    with part("damaged"):
        refused("damaged", broken(root, model, folder, functools.partial(damage, True)))
        for what, change in (("damaged, sums right", functools.partial(damage, False)), ("cut, sums right", cut)):
            alone(what, broken(root, model, folder, change))
    with part("short of memory"):
        free = cuda.cudaMemGetInfo()[1]
        for left in (1 << 20, 24 << 20):
            error, taken = cuda.cudaMalloc(cuda.cudaMemGetInfo()[1] - left)
            say("left", left >> 20, "MiB; taken:", error, "free now", cuda.cudaMemGetInfo()[1] >> 20, "MiB")
            try:
                open_engine(whole).close()
                say("opened")
            except OmniError as e:
                say("REFUSED short of memory:", type(e).__name__, e)
            finally:
                if int(error) == 0:
                    cuda.cudaFree(taken)
        open_engine(whole).close()
        say("opened again; free before", free >> 20, "after", cuda.cudaMemGetInfo()[1] >> 20, "MiB")
    with part("memory given back"):
        before = cuda.cudaMemGetInfo()[1]
        for _ in range(3):
            open_all(root, model, "trt").close()
            say("free after opening and closing all:", (cuda.cudaMemGetInfo()[1] - before) / 1e6, "MB more than before")
    with part("an address that is none"):
        alone("bad address", whole, "--bad-address")


def alone(what: str, directory: Path, *options: str) -> None:
    """Open in a process of its own, which this may end."""
    command = [sys.executable, __file__, str(directory), "--open", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    say(f"ALONE {what}: exit {done.returncode}\n", done.stdout[-1500:], done.stderr[-1500:])


def open_alone(directory: Path, bad_address: bool) -> None:
    try:
        engine = open_engine(directory)
    except OmniError as e:
        return say("REFUSED", type(e).__name__, e)
    say("opened")
    if bad_address:
        engine.tensors["inputs_embeds"].address = 1 << 40
        state = engine.new_state()
        for _ in range(2):
            try:
                engine.run(inputs_for(engine, {"S": 5}, np.random.default_rng(0)), state)
                say("ran")
            except OmniError as e:
                say("REFUSED", type(e).__name__, e)
    engine.close()


# ---- what TensorRT itself does -------------------------------------------------------------------------------------------
def probe(root: Path, model: str) -> None:
    """The rules that tensorrt_on_cpu.py enforces."""
    from cuda.bindings import runtime as cuda

    for folder in present(root, model):
        with part(f"probe {model} {folder}"):
            engine = open_engine(root / f"{model}-trt" / folder)
            plan = engine.engine
            say(folder, "device memory", plan.device_memory_size_v2, "profiles", plan.num_optimization_profiles)
            names = [plan.get_tensor_name(i) for i in range(plan.num_io_tensors)]
            config = {t.name: t.shape for t in engine.config.inputs + engine.config.outputs}
            config |= {s.input: s.shape for s in engine.config.state} | {s.output: s.shape for s in engine.config.state}
            say({n: (list(plan.get_tensor_shape(n)), config[n], str(plan.get_tensor_location(n))) for n in names[:14]})
            if folder == "talker":
                context = engine.profiles[1].context
                say("shape outside profile:", attempt(context.set_input_shape, "inputs_embeds", (99999, 1)), engine._errors())
                say("misaligned address:", attempt(context.set_tensor_address, "inputs_embeds", 257), engine._errors())
                say("unknown name:", attempt(context.set_tensor_address, "nobody", 256), engine._errors())
            engine.close()
    with part("state in place"):
        place = broken(root, model, "talker", lambda d, c: [s.update(in_place=True) for s in c["state"]])
        compare_engine(root, model, "talker", place)
    with part("an error that nobody cleared"):
        engine = open_engine(root / f"{model}-trt" / "talker")
        state = engine.new_state()
        rng = np.random.default_rng(0)
        say("too much memory:", cuda.cudaMalloc(1 << 50)[0])
        for rows in (5, 1):
            ran = attempt(lambda rows=rows: engine.run(inputs_for(engine, {"S": rows}, rng), state)["logits"].shape)
            say("run after it:", ran, cuda.cudaGetLastError())
        engine.close()
    with part("captured before it ran"):
        import omni_ros.engines.tensorrt.engine as module

        original = module.TensorRTEngine._capture

        def cold(self, profile, state):
            profile.inputs = {}
            outputs = self._infer(profile, profile.largest)
            views = {i.name: self.tensors[i.name].view(profile.largest.get(i.name) or tuple(i.shape)) for i in self.config.inputs}
            made = {n: self.tensors[n].view(s) for n, s in outputs.items()}
            say("capture without a run:", attempt(self.device.capture, self._enqueue, profile, views, made, 0), self._errors())
            original(self, profile, state)

        module.TensorRTEngine._capture = cold
        try:
            open_engine(root / f"{model}-trt" / "talker").close()
        finally:
            module.TensorRTEngine._capture = original


def attempt(function: Callable, *arguments: object) -> object:
    try:
        return function(*arguments)
    except Exception as e:  # noqa: BLE001 - told
        return f"{type(e).__name__}: {e}"


def times(root: Path, model: str) -> None:
    """Of one run, on both, after some to warm up."""
    for folder, sizes in (
        ("thinker", {"S": 1}),
        ("thinker", {"S": 64}),
        ("talker", {"S": 1}),
        ("code_predictor", {}),
        ("code2wav", {"frames": 8}),
        ("multimodal/visual", {"frames": 1, "n": 64}),
    ):
        with part(f"time {model} {folder} {sizes}"):
            took = {}
            for kind in (model, f"{model}-trt"):
                if not (root / kind / folder).is_dir():
                    continue
                engine, rng = open_engine(root / kind / folder), np.random.default_rng(0)
                state = engine.new_state() if engine.config.state else None
                inputs, runs = inputs_for(engine, sizes, rng), []
                for _ in range(25):
                    if state is not None and state.length + 128 > getattr(engine.config.limits, "capacity", 1 << 30):
                        state.reset()
                    start = time.perf_counter()
                    engine.run(inputs, state)
                    runs.append(time.perf_counter() - start)
                took[kind] = round(float(np.median(runs[5:])) * 1e6)
                engine.close()
            say(f"TIME {folder} {sizes}: us a run {took}")


def main(root: Path, models: list[str], self_checks: Path | None, level: int | None) -> None:
    root.mkdir(parents=True, exist_ok=True)
    say("TensorRT", sys.modules["tensorrt"].__version__, "Python", sys.version.split()[0])
    for model in models:
        with part(f"make {model}"):
            make(root, model, self_checks, level)
        with part(f"turns {model}"):
            compare_turns(root, model)
    with part("failures"):
        fail(root, models[0])
    with part("probes"):
        probe(root, models[0])
    for model in models:
        with part(f"times {model}"):
            times(root, model)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="FOLDER")
    parser.add_argument("models", metavar="MODEL", nargs="*")
    parser.add_argument("--self_checks", type=Path, metavar="ENGINES")
    parser.add_argument("--level", type=int, help="of TensorRT's effort, 0 to 5 (default: TensorRT's, 3)")
    parser.add_argument("--build", metavar="ENGINE", help="only this engine of one MODEL, whose graphs are there")
    parser.add_argument("--open", action="store_true", help="only open the engine in FOLDER")
    parser.add_argument("--bad-address", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    args = arguments()
    with tensorrt_8():
        if args.open:
            open_alone(args.root, args.bad_address)
        elif args.build:
            build(args.root, args.models[0], args.build, args.level, args.self_checks)
        else:
            main(args.root, args.models, args.self_checks, args.level)
    say(len(failures), "failed:", failures)
    sys.exit(bool(failures))
