"""`make bench-gpu` without a GPU: everything but the GPU itself, at tiny dimensions."""

import itertools
import json
import os
import time

import numpy as np
import pytest

from bench import full_size, gpu, gpu_build, gpu_engines, gpu_transformers, gpu_turns
from bench.report import Part, Row, to_markdown
from offline.graphs.bandwidth import Traffic
from offline.make_checkpoint import SIZES
from omni_ros.errors import CheckpointError, EngineError
from omni_ros.pipeline.pipeline import ENGINES, Pipeline

TINY = {key: value for key, value in SIZES["tiny"].items() if key != "max_pixels"}
LAYERS = {"thinker": 2, "talker": 2}


@pytest.fixture
def tiny(monkeypatch):
    """full_size's checkpoint becomes a tiny one, and turns short."""
    monkeypatch.setattr(full_size, "DIMENSIONS", TINY)
    monkeypatch.setattr(full_size, "POOL", 1 << 16)
    for module, (tokens, frames, reply) in ((gpu_turns, (8, 9, 5)), (gpu_transformers, (4, 5, 4))):
        monkeypatch.setattr(module, "THINKER_TOKENS", tokens)
        monkeypatch.setattr(module, "FRAMES", frames)
        monkeypatch.setattr(module, "TOKENS", reply)


def values(part: Part) -> dict[str, float]:
    assert len({row.name for row in part.rows}) == len(part.rows)
    return {row.name: row.value for row in part.rows}


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        gpu.main(["--help"])
    assert "--reuse" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "engines,tensorrt"], "unknown part tensorrt"),
        (["--reuse"], "--reuse needs --work"),
        (["--talker-layers", "0"], "at least 2"),
        (["--repetitions", "0"], "at least 1"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu.main(arguments)
    assert message in capsys.readouterr().err


def test_without_a_gpu_it_stops_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu, "gpu_target", lambda: None)
    assert gpu.main(["--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: no NVIDIA GPU answers here") and not (tmp_path / "out").exists()


def test_an_onnx_runtime_for_the_cpu_is_named_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(gpu, "gpu_target", lambda: "sm90")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    gpu.check_machine({"transformers"})
    with pytest.raises(EngineError, match="pip install onnxruntime-gpu"):
        gpu.check_machine({"engines", "transformers"})


def test_making_engines_leaves_engines_and_a_record(tiny, tmp_path):
    config, ids = gpu_build.model(LAYERS)
    logged, failed = [], []
    gpu_build.make(tmp_path, config, LAYERS, logged.append, failed.append)
    assert not failed and len(logged) == 7  # the checkpoint, three exports, three builds
    assert {p.name for p in tmp_path.iterdir()} == {"engines", "made.json"}
    stored = json.loads((tmp_path / "engines" / "thinker" / "config.json").read_text())
    assert stored["decoder"]["num_layers"] == LAYERS["thinker"] == config["thinker_config"]["text_config"]["num_hidden_layers"]
    assert stored["backend"] == "cuda" and stored["model"]["im_end_token_id"] == config["im_end_token_id"]
    assert json.loads((tmp_path / "engines" / "code2wav" / "config.json").read_text())["dtype"] == "float32"
    traffic, part = gpu_build.read_made(tmp_path)
    assert set(traffic) == set(ENGINES) and traffic["thinker"].nvfp4 and traffic["thinker"].read > 0
    assert values(part)["build thinker, written"] > 0
    assert ids.ndim == 1 and ids[0] == config["im_start_token_id"]
    with pytest.raises(CheckpointError, match="is not empty.*--reuse"):
        gpu_build.make(tmp_path, config, LAYERS, logged.append, failed.append)


def test_a_part_that_cannot_be_made_is_left_out(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_build.EXPORTS, "talker", "voice")
    config, _ = gpu_build.model(LAYERS)
    failed = []
    gpu_build.make(tmp_path, config, LAYERS, lambda message: None, failed.append)
    assert len(failed) == 1 and failed[0].startswith("talker: ")
    assert set(gpu_build.read_made(tmp_path)[0]) == set(ENGINES) - {"talker"}


def test_too_small_a_disk_is_an_error_before_work_begins(tmp_path, monkeypatch):
    config, _ = gpu_build.model({})
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 40e9}))
    with pytest.raises(CheckpointError, match="40 GB are free, 54 GB are needed"):
        gpu_build.make(tmp_path, config, {}, lambda message: None, lambda message: None)
    assert not any(tmp_path.iterdir())


def test_reuse_needs_an_earlier_run(tmp_path):
    with pytest.raises(EngineError, match="made.json: missing or damaged.*without --reuse"):
        gpu_build.read_made(tmp_path)


@pytest.fixture(scope="module")
def pipeline(engine_dirs):
    opened = Pipeline.open(engine_dirs["plain"], threads=1)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("thinker", {"prefill, 64 rows", "prefill, 512 rows", "decode step"}),
        ("talker", {"decode step"}),
        ("code_predictor", {"codec frame"}),
        ("code2wav", {"1 codec frame(s)", "25 codec frame(s)"}),
        ("multimodal/audio", {"4 s of sound"}),
        ("multimodal/visual", {"picture of 28 x 28 patches"}),
    ],
)
def test_every_engine_alone(pipeline, name, measured):
    part = gpu_engines.alone(name, pipeline.engines[name], 1, Traffic(0, 10**6, 10**3, nvfp4=True), 1e9)
    found = values(part)
    assert {f"{name}, {what}" for what in measured} <= found.keys()
    assert all(np.isfinite(v) and v > 0 for v in found.values())
    if name == "thinker":  # one step reads 1 MB of weights and 544 cached rows
        assert found["thinker, read in a decode step"] == pytest.approx(1.544e-3)
        assert found["thinker, share of the bandwidth limit"] == pytest.approx(1.544 / found["thinker, decode step"])


@pytest.mark.parametrize(("missing", "failing"), [(None, []), ("talker", ["open talker", "turns"])])
def test_engines_are_loaded_measured_alone_and_put_together(missing, failing, tiny, engine_dirs, tmp_path, monkeypatch):
    """On a CPU, with the two functions that ask the GPU replaced. A missing engine costs only what needs it."""
    used = itertools.count(0, 10**9)
    monkeypatch.setattr(gpu_engines, "memory_used", lambda: next(used))
    monkeypatch.setattr(gpu_engines, "copy", lambda bandwidth: bandwidth.append(1e9))
    (tmp_path / "multimodal").mkdir()
    present = [name for name in ENGINES if name != missing]
    for name in present:
        (tmp_path / name).symlink_to(engine_dirs["plain"] / name)
    done, failed = {}, []
    for name, stage in gpu_engines.stages(tmp_path, {"thinker": Traffic(0, 10**6, 0, nvfp4=True)}, 1):
        try:
            done[name] = stage()
        except (EngineError, KeyError):
            failed.append(name)
    assert failed == failing and {f"{name} alone" for name in present} <= done.keys()
    assert "thinker, share of the bandwidth limit" in values(done["thinker alone"])
    assert values(done["open code2wav"])["code2wav, GPU memory"] == 1


def test_turns_end_at_their_length_and_every_row_is_a_number(tiny, pipeline):
    pipeline.models.thinker.config.im_end_token_id = 5
    part = gpu_turns.measure(pipeline, 1)
    found = values(part)
    assert all(np.isfinite(v) and v >= 0 for v in found.values())
    assert sum("first PCM" in name for name in found) == sum("real-time factor" in name for name in found) == 3
    for name, metrics in part.details["runs"].items():
        assert metrics[0]["reply_tokens"] == (8 if "Thinker" in name else 5)
        assert metrics[0]["frames"] == (0 if "Thinker" in name else 9)


def test_gaps_in_the_speech():
    """100 samples a second. The second chunk is 0.5 s late, the third in time, the fourth 1 s late."""
    assert gpu_turns.gaps([(1.0, 100), (2.5, 100), (3.0, 50), (5.0, 10)], 100) == (2, pytest.approx(1.5))
    assert gpu_turns.gaps([(1.0, 100), (1.5, 100), (2.9, 100)], 100) == (0, 0.0)


def test_transformers_makes_the_reply_that_was_asked_for(tiny):
    import torchvision_shim  # noqa: F401  (before transformers; loads torch, which the other tests do without)

    config, ids = gpu_build.model(LAYERS)
    ((_, stage),) = gpu_transformers.stages(config, ids, "cpu")
    part = stage()
    assert part.details["samples"] == 5 * 1920 - 555  # the frames of the reply, decoded at once
    assert all(np.isfinite(v) and v > 0 for v in values(part).values())


def test_beside_transformers():
    ours = Part("Turns", "", [], {"tokens_per_s": 400.0, "rtf": 0.05, "ms_per_frame": 4.0, "first_pcm_s": 0.1})
    theirs = Part("transformers", "", [], {"tokens_per_s": 8.0, "rtf": 3.0, "ms_per_frame": 200.0, "first_pcm_s": 9.0})
    assert gpu.beside([theirs]) == []
    assert [row.value for row in gpu.beside([ours, theirs])[0].rows] == pytest.approx([50, 50, 60, 90])


def dying_stages(how: str):
    """Run in a process of their own."""
    yield "first", lambda: Part("A", "how", [Row("one", 1)], {"a": 1})
    yield "second", {"raises": lambda: 1 / 0, "dies": lambda: os._exit(3), "hangs": lambda: time.sleep(60)}[how]
    yield "third", lambda: Part("A", "how", [Row("two", 2)], {"b": 2})


@pytest.mark.parametrize(
    ("how", "message", "rows"),
    [
        ("raises", "second: ZeroDivisionError", ["one", "two"]),
        ("dies", "its process ended with 3", ["one"]),
        ("hangs", "nothing came", ["one"]),
    ],
)
def test_what_fails_costs_only_itself(how, message, rows, monkeypatch):
    monkeypatch.setattr(gpu, "failures", [])
    monkeypatch.setattr(gpu, "SILENT_S", 5)
    (part,) = gpu.merged(list(gpu.in_process(dying_stages, how)))
    assert [row.name for row in part.rows] == rows
    assert len(gpu.failures) == 1 and message in gpu.failures[0]


def test_the_whole_command_with_the_gpu_taken_out(tiny, monkeypatch, tmp_path, capsys):
    """Parts are merged, written as JSON and as a page, and a failure is in both and in the exit status."""
    monkeypatch.setattr(gpu, "failures", [])
    monkeypatch.setattr(gpu, "check_machine", lambda names: None)
    monkeypatch.setattr(
        gpu,
        "measure",
        lambda *arguments: iter(
            [Part("A", "how", [Row("one", 1, "s")], {}), Part("A", "how", [Row("two", 2, "s", ("<=", 1))], {})]
        ),
    )
    page = tmp_path / "page.md"
    assert gpu.main(["--output", str(tmp_path), "--markdown", str(page), "--talker-layers", "4"]) == 0
    written = json.loads((tmp_path / "bench_gpu.json").read_text())
    assert [r["name"] for r in written["parts"][0]["rows"]] == ["one", "two"] and "4 talker layers" in written["machine"]["model"]
    assert page.read_text().startswith("# Benchmarks on a GPU") and "| two | 2.00 s | ≤ 1 | MISS |" in page.read_text()
    assert "MISS" in capsys.readouterr().out
    gpu.failures.append("thinker: broken")
    assert gpu.main(["--output", str(tmp_path), "--markdown", str(page)]) == 1
    assert "not measured: thinker: broken" in page.read_text()


def test_the_other_page_keeps_its_title():
    assert to_markdown([], {}, "python -m bench.run").startswith("# Benchmarks\n\nWritten by `python -m bench.run`")
