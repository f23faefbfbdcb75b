"""Checkpoints and engines that the whole test session shares."""

import omni_ros  # noqa: F401  (before onnxruntime, which tensorrt_on_cpu imports: telemetry is off from here on)

# isort: split
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import setuptools
from what_is_missing import absent, left_out, report

from omni_ros.engines import cuda_device
from omni_ros.engines.tensorrt import package as tensorrt_package
from omni_ros.errors import EngineError
from omni_ros.pipeline.conversation import Conversation
from omni_ros.pipeline.pipeline import Pipeline

os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")  # before rclpy: without it a typo in a message field passes
ROOT = Path(__file__).parent.parent
collect_ignore = sorted({file for files in left_out().values() for file in files})
BACKENDS = ("onnxruntime", "tensorrt_on_cpu", "tensorrt")  # the second on a simulated GPU, the third where there is a real one
# Three models that differ in every dimension a graph could have hard-wired. "plain" never ends by itself, so tests know
# how long it speaks; the seeds of the others were chosen so that some replies and some speech do, early and late.
CHECKPOINTS = {
    "plain": {"seed": 0},
    "odd": {
        "seed": 1,
        "overrides": {
            "thinker_config": {
                "text_config": {
                    "vocab_size": 384,
                    "hidden_size": 96,
                    "num_hidden_layers": 5,
                    "num_attention_heads": 6,
                    "num_key_value_heads": 3,
                    "head_dim": 16,
                    "moe_intermediate_size": 40,
                    "num_experts": 6,
                    "num_experts_per_tok": 3,
                },
                "audio_config": {
                    "d_model": 48,
                    "encoder_layers": 3,
                    "encoder_attention_heads": 3,
                    "encoder_ffn_dim": 72,
                    "downsample_hidden_size": 8,
                },
                "vision_config": {
                    "depth": 3,
                    "hidden_size": 48,
                    "num_heads": 3,
                    "intermediate_size": 80,
                    "deepstack_visual_indexes": [0, 1, 2],
                },
            },
            "talker_config": {
                "accept_hidden_layer": 2,
                "text_config": {
                    "hidden_size": 48,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 1,
                    "head_dim": 24,
                    "intermediate_size": 56,
                    "moe_intermediate_size": 24,
                    "shared_expert_intermediate_size": 64,
                    "num_experts": 5,
                    "num_experts_per_tok": 2,
                    "norm_topk_prob": False,
                },
                "code_predictor_config": {
                    "vocab_size": 96,
                    "hidden_size": 48,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 3,
                    "num_key_value_heads": 1,
                    "head_dim": 16,
                    "intermediate_size": 88,
                },
            },
            "code2wav_config": {
                "hidden_size": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 64,
                "decoder_dim": 32,
            },
        },
    },
    "published": {
        "seed": 4,
        "overrides": {  # config and processor files laid out as in the 30B checkpoint
            "thinker_config": {
                "text_config": {
                    "vocab_size": 640,
                    "hidden_size": 48,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 64,
                    "num_experts": 16,
                    "num_experts_per_tok": 1,
                    "norm_topk_prob": False,
                },
                "vision_config": {"depth": 5, "num_heads": 4, "num_position_embeddings": 256, "deepstack_visual_indexes": [2]},
            },
            "talker_config": {
                "accept_hidden_layer": 1,
                "text_config": {
                    "num_attention_heads": 8,
                    "num_key_value_heads": 4,
                    "head_dim": 16,
                    "num_experts": 12,
                    "num_experts_per_tok": 4,
                },
                "code_predictor_config": {
                    "vocab_size": 160,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 48,
                },
            },
            "code2wav_config": {
                "hidden_size": 96,
                "num_hidden_layers": 1,
                "num_attention_heads": 6,
                "decoder_dim": 48,
                "sliding_window": 12,
            },
        },
    },
}


def pytest_report_header() -> list[str]:
    return report()


def pytest_terminal_summary(terminalreporter) -> None:
    for line in report():  # again where the run is long, or has no head (-q)
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder of a tiny checkpoint, for every entry of CHECKPOINTS."""
    if missing := absent("offline"):
        pytest.skip(f"no checkpoints and engines without {', '.join(sorted(missing))}")
    from offline.make_checkpoint import make_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    made = {name: make_checkpoint(root / name, **options) for name, options in CHECKPOINTS.items()}
    never_end(made["plain"])
    lay_out_as_published(made["published"])
    return made


@pytest.fixture(scope="session")
def engine_dirs(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name -> folder of the six float32 engines for ONNX Runtime, made with the command lines of the README."""
    root = tmp_path_factory.mktemp("engines")
    for name, checkpoint in checkpoints.items():
        run("offline.export_onnx", checkpoint, root / f"{name}-onnx", "--dtype", "float32")
        run("offline.build_engines", root / f"{name}-onnx", root / name, "--backend", "onnxruntime")
    return {name: root / name for name in checkpoints}


@pytest.fixture(scope="session")
def demo_engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six float16 engines of the trained model in demo/model, for ONNX Runtime on the CPU."""
    root = tmp_path_factory.mktemp("demo_model")
    run("offline.export_onnx", ROOT / "demo" / "model", root / "onnx")
    run("offline.build_engines", root / "onnx", root / "engines")
    return root / "engines"


@pytest.fixture(scope="session")
def tensorrt_dirs(engine_dirs: dict[str, Path]) -> dict[str, Path]:
    """Name -> folder of the same six engines, built by the simulated TensorRT for the simulated GPU."""
    from tensorrt_on_cpu import simulated_gpu

    from offline import build_engines

    made = {name: directory.with_name(f"{name}-tensorrt") for name, directory in engine_dirs.items()}
    with simulated_gpu():
        for name, directory in made.items():
            onnx = engine_dirs[name].with_name(f"{name}-onnx")
            assert build_engines.main([str(onnx), str(directory), "--backend", "tensorrt"]) == 0
    return made


@pytest.fixture(scope="module")
def open_pipeline(engine_dirs: dict[str, Path], tensorrt_dirs: dict[str, Path]) -> Iterator[Callable[[str, str], Pipeline]]:
    """(name, one of BACKENDS) -> the pipeline of that checkpoint on that backend, open as long as the module's tests run."""
    from tensorrt_on_cpu import simulated_gpu

    opened: dict[tuple[str, str], Pipeline] = {}

    def open_it(name: str, backend: str) -> Pipeline:
        if (name, backend) not in opened:
            if backend == "tensorrt_on_cpu":
                with simulated_gpu():
                    opened[name, backend] = Pipeline.open(tensorrt_dirs[name])
            else:
                folder = engine_dirs[name] if backend == "onnxruntime" else build_for_this_gpu(engine_dirs[name])
                opened[name, backend] = Pipeline.open(folder, threads=1)
        return opened[name, backend]

    yield open_it
    for pipeline in opened.values():
        pipeline.close()


@pytest.fixture
def pipeline(name: str, open_pipeline: Callable[[str, str], Pipeline]) -> Pipeline:
    """The CPU engines of checkpoint `name`."""
    return open_pipeline(name, "onnxruntime")


@pytest.fixture
def conversation(pipeline: Pipeline) -> Iterator[Conversation]:
    """A new one on them."""
    opened = pipeline.conversation()
    yield opened
    opened.close()


def build_for_this_gpu(onnxruntime_engines: Path) -> Path:
    """The same six engines for TensorRT and the GPU here; skips the test that asks when something is missing."""
    target = cuda_device.gpu_target()
    if target is None:
        pytest.skip("TensorRT on a real GPU: there is no NVIDIA GPU here")
    try:
        tensorrt_package.import_tensorrt()
        cuda_device.import_cuda()
    except EngineError as e:
        pytest.skip(f"TensorRT on a real GPU: {e}")
    onnx, engines = (onnxruntime_engines.with_name(f"{onnxruntime_engines.name}-{kind}") for kind in ("onnx", target))
    if not engines.exists():
        run("offline.build_engines", onnx, engines, "--backend", "tensorrt", "--target", target)
    return engines


@pytest.fixture(scope="session", params=CHECKPOINTS)
def name(request: pytest.FixtureRequest) -> str:
    """A test that asks for this runs once per checkpoint: `checkpoints[name]`, `engine_dirs[name]`."""
    return request.param


@pytest.fixture(scope="session")
def setup_arguments() -> dict:
    """What setup.py gives to setuptools.setup."""
    recorded: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", recorded.update)
        patch.chdir(ROOT)
        runpy.run_path("setup.py")
    return recorded


def run(module: str, *arguments: str | Path) -> str:
    """`python -m module arguments`; what it printed, or an error with what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{module} exited with {done.returncode}:\n{done.stdout}"
    return done.stdout


def never_end(checkpoint: Path) -> None:
    """Make both end tokens unlikely: replies and speech end at the length that a request allows, and only there."""
    from offline.checkpoints.checkpoint import Checkpoint, write_safetensors

    stored = Checkpoint(checkpoint)
    tensors = {name: stored.read(name) for name in stored.tensors}
    tensors["thinker.lm_head.weight"][stored.config["im_end_token_id"]] *= 0.02
    tensors["talker.codec_head.weight"][stored.config["talker_config"]["codec_eos_token_id"]] *= 0.02
    write_safetensors(checkpoint / "model.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})


def lay_out_as_published(checkpoint: Path) -> None:
    """Rewrite the JSON files as in Qwen/Qwen3-Omni-30B-A3B-Instruct, which transformers 4 saved: rope_scaling and
    rope_theta for rope_parameters, num_experts, preprocessor_config.json, chat_template.json, vocab.json and merges.txt."""
    config = json.loads((checkpoint / "config.json").read_text())

    def old_names(node: dict) -> None:
        rope = node.pop("rope_parameters", None)
        if rope is not None:
            node["rope_theta"] = rope.pop("rope_theta")
            node["rope_scaling"] = {**rope, "type": "default"} if "mrope_section" in rope else None
        if "num_local_experts" in node:
            node["num_experts"] = node.pop("num_local_experts")
        for child in node.values():
            if isinstance(child, dict):
                old_names(child)

    old_names(config)
    (checkpoint / "config.json").write_text(json.dumps(config, indent=2))
    processor = json.loads((checkpoint / "processor_config.json").read_text())
    (checkpoint / "processor_config.json").unlink()
    pixels = processor["image_processor"]
    size = pixels["size"]
    (checkpoint / "preprocessor_config.json").write_text(
        json.dumps(
            {
                **processor["feature_extractor"],
                **pixels,
                "processor_class": "Qwen3OmniMoeProcessor",
                "min_pixels": size["shortest_edge"],
                "max_pixels": size["longest_edge"],
            },
            indent=2,
        )
    )
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"], ensure_ascii=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    (checkpoint / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {
        str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokenizer["added_tokens"]
    }
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    template = checkpoint / "chat_template.jinja"
    (checkpoint / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()
