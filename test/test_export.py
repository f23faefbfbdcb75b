"""`python -m offline.export_onnx`: what is written, what is refused, and that nothing is ever left half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from broken_files import edit_config, write
from onnx import TensorProto

from offline import build_engines, export_onnx
from offline.checkpoints.checkpoint import Checkpoint, write_safetensors
from offline.export_onnx import COMPONENTS
from offline.make_checkpoint import make_checkpoint
from omni_ros.engines.engine import Engine, State
from omni_ros.engines.open import open_engine
from omni_ros.engines.sidecar import Embedding, Sidecar
from omni_ros.errors import CheckpointError, EngineError
from omni_ros.pipeline.pipeline import Pipeline
from omni_ros.pipeline.request import Request

ROOT = Path(__file__).parent.parent
FOLDERS = {name: component.folder for name, component in COMPONENTS.items()}
CAPACITY = 24


@pytest.fixture(scope="module")
def plain(checkpoints: dict[str, Path]) -> Path:
    return checkpoints["plain"]


@pytest.fixture(scope="module")
def exported(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """dtype -> ONNX tree of the plain checkpoint."""
    root = tmp_path_factory.mktemp("exported")
    for dtype in ("float32", "float16"):
        assert export_onnx.main([str(plain), str(root / dtype), "--dtype", dtype]) == 0
    return {dtype: root / dtype for dtype in ("float32", "float16")}


@pytest.fixture(scope="module")
def built(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """dtype of the export -> engines made from it."""
    root = tmp_path_factory.mktemp("built")
    for dtype, tree in exported.items():
        assert (
            build_engines.main(
                [str(tree), str(root / dtype), "--maxInputLen", str(CAPACITY), "--maxKVCacheCapacity", str(CAPACITY)]
            )
            == 0
        )
    return {dtype: root / dtype for dtype in exported}


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    """A copy of the plain checkpoint that a test may break; unbroken files are links."""
    return shutil.copytree(plain, tmp_path / "checkpoint", copy_function=os.link)


def keep_tensors(checkpoint: Path, keep: Callable[[str], bool], change: dict[str, np.ndarray] | None = None) -> None:
    """Rewrite the one shard with those tensors only, and with some of them changed."""
    read = Checkpoint(checkpoint)
    tensors = {k: (change or {}).get(k, read[k]) for k in read.tensors if keep(k)}
    (checkpoint / "model.safetensors").unlink()
    write_safetensors(checkpoint / "model.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})


def digest(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def fails(capfd: pytest.CaptureFixture, *arguments: str | Path) -> str:
    """The one line that a refused export says, after the progress bars."""
    assert export_onnx.main([str(a) for a in arguments]) == 1
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err and err.count("error: ") == 1
    line = err[err.index("error: ") :]
    assert line.count("\n") == 1 and line.endswith("\n")
    return line


# ---- what is written ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options, expected",
    [
        ([], set(COMPONENTS)),
        (["--skip-llm"], set(COMPONENTS) - {"thinker", "talker"}),
        (["--skip-visual", "--skip-audio", "--skip-code2wav"], {"thinker", "talker", "code_predictor"}),
        (["--components", "code2wav"], {"code2wav"}),
        (["--components", "talker, audio"], {"talker", "audio"}),
        (["--components", "thinker,audio", "--skip-llm"], {"audio"}),
    ],
)
def test_component_filters(plain, tmp_path, options, expected):
    assert export_onnx.main([str(plain), str(tmp_path / "out"), *options]) == 0
    found = {name for name, folder in FOLDERS.items() if (tmp_path / "out" / folder / "model.onnx").is_file()}
    assert found == expected
    assert {str(p.parent.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("config.json")} == {
        FOLDERS[name] for name in expected
    }


@pytest.mark.parametrize(
    "options",
    [["--components", "thinker,voice"], ["--components", ""], ["--components", "audio", "--skip-audio"], ["--dtype", "int8"]],
)
def test_wrong_options(plain, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as caught:
        export_onnx.main([str(plain), str(tmp_path / "out"), *options])
    assert caught.value.code == 2 and not (tmp_path / "out").exists()


def test_layout_of_the_contract(exported, plain):
    tree = exported["float32"]
    graph = {"model.onnx", "model.onnx.data", "config.json"}
    files = {name: {p.name for p in (tree / folder).iterdir()} for name, folder in FOLDERS.items()}
    assert files["talker"] == graph | {"embedding.safetensors", "text_projection.safetensors", "hidden_projection.safetensors"}
    assert files["thinker"] == graph | {
        "embedding.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "processor_config.json",
        "generation_config.json",
    }
    for name in ("code_predictor", "visual", "audio", "code2wav"):
        assert files[name] == graph
    checkpoint = Checkpoint(plain)
    for path, key in (
        ("thinker/llm/embedding", "thinker.model.embed_tokens.weight"),
        ("talker/llm/embedding", "talker.model.codec_embedding.weight"),
    ):
        stored = Sidecar(tree / f"{path}.safetensors").tensors["weight"]
        np.testing.assert_array_equal(stored.array(), checkpoint[key].astype(np.float32))
    for projection in ("text_projection", "hidden_projection"):
        for name, stored in Sidecar(tree / f"talker/llm/{projection}.safetensors").tensors.items():
            np.testing.assert_array_equal(stored.array(), checkpoint[f"talker.{projection}.{name}"].astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_graph_is_standard_onnx(exported, component, dtype):
    path = exported[dtype] / FOLDERS[component] / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert {(o.domain, o.version) for o in model.opset_import} <= {("", 24), ("omni_ros", 1)}
    assert {n.domain for f in model.functions for n in f.node} <= {""}  # local functions of standard operators
    own = {n.op_type for n in model.graph.node if n.domain == "omni_ros"}
    assert own == ({"CachedAttention", "MoE"} if component in ("thinker", "talker") else set())
    large = {t.data_type for t in model.graph.initializer if np.prod(t.dims) >= 64 and t.data_type in FLOATS}
    assert large == {FLOATS_OF[dtype]}
    assert path.stat().st_size < 200_000  # the weights are beside it


FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
FLOATS_OF = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


class StandardGraph:
    """Runs an exported graph as it is, local functions and all, on the `Engine` protocol."""

    def __init__(self, directory: Path):
        self.config = json.loads((directory / "config.json").read_text())
        self.session = ort.InferenceSession(str(directory / "model.onnx"), providers=["CPUExecutionProvider"])

    def new_state(self) -> State:
        state = State(self.config["engine"])
        state.tensors = {
            s["input"]: np.zeros([CAPACITY if d == "capacity" else d for d in s["shape"]], s["dtype"])
            for s in self.config["state"]
        }
        return state

    def run(self, inputs: dict[str, np.ndarray], state: State) -> dict[str, np.ndarray]:
        position = self.config.get("position")
        past = {position["input"]: np.array([state.length], np.int64)} if position else {}
        names = [o["name"] for o in self.config["outputs"]] + [s["output"] for s in self.config["state"]]
        dtypes = {i["name"]: i["dtype"] for i in self.config["inputs"]}
        inputs = {k: v.astype(dtypes[k]) for k, v in inputs.items()}
        found = dict(zip(names, self.session.run(names, {**inputs, **past, **state.tensors})))
        state.tensors = {s["input"]: found.pop(s["output"]) for s in self.config["state"]}
        if position:
            state.length += inputs[position["counts"]].shape[position["axis"]]
        return found


def calls(component: str) -> list[dict[str, np.ndarray]]:
    """Inputs of a few runs in a row: a prompt, then steps; or one batch."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    if component in ("thinker", "talker"):
        runs, start = [], 0
        for rows in (7, 1, 1, 3):
            run = {"inputs_embeds": normal(rows, 64), "position_ids": np.tile(start + np.arange(rows, dtype=np.float32), (3, 1))}
            runs.append(run | ({"deepstack": normal(2, rows, 64)} if component == "thinker" else {}))
            start += rows
        return runs
    if component == "code_predictor":
        return [{"last_hidden": normal(1, 64), "code0_embed": normal(1, 64), "noise": normal(15, 50)} for _ in range(2)]
    if component == "code2wav":
        return [{"codes": rng.integers(0, 64, (16, frames))} for frames in (3, 1, 2)]
    if component == "audio":
        return [{"mel": normal(2, 3, 128, 100), "valid_indices": np.arange(30), "positions": np.arange(30) % 13}]
    return [
        {
            "patches": normal(2, 8, 1536),
            "pos_indices": rng.integers(0, 2304, (8, 4)),
            "pos_weights": normal(8, 4) ** 2,
            "cos": np.cos(normal(2, 8, 16)),
            "sin": np.sin(normal(2, 8, 16)),
        }
    ]


def engine_folder(engines: Path, component: str) -> Path:
    return engines / (f"multimodal/{component}" if component in ("audio", "visual") else component)


def largest_difference(a: Engine, b: Engine, component: str) -> float:
    """Over all outputs of all runs, relative to the output's own size; int64 outputs must agree."""
    worst, states = 0.0, (a.new_state(), b.new_state())
    for inputs in calls(component):
        x, y = a.run(inputs, states[0]), b.run(inputs, states[1])
        assert x.keys() == y.keys()
        for name in x:
            assert x[name].shape == y[name].shape
            if x[name].dtype == np.int64:
                np.testing.assert_array_equal(x[name], y[name])
            else:
                first, second = x[name].astype(np.float32), y[name].astype(np.float32)
                worst = max(worst, float(np.abs(first - second).max() / np.abs(first).max()))
    return worst


@pytest.mark.parametrize("component", COMPONENTS)
def test_lowered_engine_equals_the_standard_graph(exported, built, component):
    standard = StandardGraph(exported["float32"] / FOLDERS[component])
    assert largest_difference(standard, open_engine(engine_folder(built["float32"], component), threads=1), component) < 2e-5


@pytest.mark.parametrize("component", [c for c in COMPONENTS if c != "code_predictor"])  # its codes may tip over
def test_float16_export_is_close(built, component):
    a, b = (open_engine(engine_folder(built[dtype], component), threads=1) for dtype in ("float32", "float16"))
    assert 0 < largest_difference(a, b, component) < 2e-2


def test_float16_export_speaks(built):
    pipeline = Pipeline.open(built["float16"], threads=1)
    finished = list(pipeline.generate(Request([{"role": "user", "content": "hi"}], 5, max_audio_length=4)))[-1]
    assert len(finished.token_ids) == 5 and finished.codes.shape == (16, 4)


def test_default_dtype_follows_the_checkpoint(plain, copy, tmp_path):
    """bfloat16 becomes float16; a float32 checkpoint stays float32."""
    assert export_onnx.main([str(plain), str(tmp_path / "half"), "--components", "code_predictor"]) == 0
    keep_tensors(copy, lambda k: True, {"code2wav.decoder.0.conv.bias": np.ones(64, np.float32)})
    assert export_onnx.main([str(copy), str(tmp_path / "full"), "--components", "code_predictor"]) == 0
    dtypes = [
        json.loads((tmp_path / name / FOLDERS["code_predictor"] / "config.json").read_text())["dtype"]
        for name in ("half", "full")
    ]
    assert dtypes == ["float16", "float32"]


def test_fp8_embedding(plain, exported, built, tmp_path):
    tree, engines = tmp_path / "onnx", tmp_path / "engines"
    assert export_onnx.main([str(plain), str(tree), "--components", "thinker", "--fp8-embedding", "--dtype", "float32"]) == 0
    path = tree / "thinker/llm/embedding.safetensors"
    assert path.stat().st_size < 0.3 * (exported["float32"] / "thinker/llm/embedding.safetensors").stat().st_size
    exact = Checkpoint(plain)["thinker.model.embed_tokens.weight"].astype(np.float32)
    found = Embedding(path)[np.arange(len(exact))]
    step = np.maximum(np.abs(exact) / 16, np.abs(exact).max(axis=1, keepdims=True) / 448 / 512)  # half of FP8's spacing
    assert (np.abs(found - exact) <= step * 1.001).all() and not np.array_equal(found, exact)
    shutil.copytree(built["float32"], engines)
    assert build_engines.main([str(tree), str(engines)]) == 0
    finished = list(Pipeline.open(engines, threads=1).generate(Request([{"role": "user", "content": "hi"}], 4, False)))[-1]
    assert len(finished.token_ids) == 4
    sidecar = engines / "thinker" / "embedding.safetensors"
    content = sidecar.read_bytes()
    sidecar.write_bytes(content[: -4 * len(exact)] + bytes(4 * len(exact)))  # the scales come last
    with pytest.raises(EngineError, match="all zero"):
        open_engine(engines / "thinker")


def test_talker_sidecars_from_another_checkpoint(plain, exported, tmp_path):
    """As after quantisation, which leaves the projections out of the Talker's own checkpoint."""
    other = make_checkpoint(tmp_path / "other", seed=9)
    assert (
        export_onnx.main(
            [
                str(plain),
                str(tmp_path / "out"),
                "--components",
                "talker",
                "--dtype",
                "float32",
                "--talker-sidecar-from",
                str(other),
            ]
        )
        == 0
    )
    found, own = tmp_path / "out/talker/llm", exported["float32"] / "talker/llm"
    for name in ("model.onnx", "model.onnx.data"):
        assert (found / name).read_bytes() == (own / name).read_bytes()
    key = "talker.text_projection.linear_fc1.weight"
    weight = Sidecar(found / "text_projection.safetensors").tensors["linear_fc1.weight"].array()
    np.testing.assert_array_equal(weight, Checkpoint(other)[key].astype(np.float32))
    assert not np.array_equal(weight, Checkpoint(plain)[key].astype(np.float32))


def test_talker_sidecars_of_another_size(plain, checkpoints, tmp_path, capfd):
    line = fails(capfd, plain, tmp_path / "out", "--components", "talker", "--talker-sidecar-from", checkpoints["odd"])
    assert "talker.model.codec_embedding.weight has shape" in line


def test_sharded_checkpoint_gives_the_same_bytes(tmp_path):
    whole = make_checkpoint(tmp_path / "whole" / "model", seed=3)
    sharded = make_checkpoint(tmp_path / "sharded" / "model", seed=3, shard_bytes=300_000)
    assert len(list(sharded.glob("*.safetensors"))) > 5 and len(list(whole.glob("*.safetensors"))) == 1
    for checkpoint in (whole, sharded):
        assert export_onnx.main([str(checkpoint), str(checkpoint.parent / "onnx")]) == 0
    assert digest(whole.parent / "onnx") == digest(sharded.parent / "onnx")


# ---- what is refused ------------------------------------------------------------------------------------------------
def assert_refused(capfd: pytest.CaptureFixture, checkpoint: Path, good: Path, component: str, *named: str) -> str:
    """Refused with a line that names things; a new output stays empty, an old output stays as it was."""
    folder, options = FOLDERS[component], ("--components", component, "--dtype", "float32")
    new, old = checkpoint.parent / "new", checkpoint.parent / "old"
    shutil.copytree(good / folder, old / folder, dirs_exist_ok=True)
    before = digest(old)
    for out in (new, old):
        line = fails(capfd, checkpoint, out, *options)
        assert all(name in line for name in named), line
    assert digest(old) == before and digest(new) == {}
    assert not [p for p in checkpoint.parent.rglob(".*")]
    return line


@pytest.mark.parametrize(
    "component, tensor",
    [
        ("thinker", "thinker.model.layers.2.mlp.experts.5.up_proj.weight"),
        ("thinker", "thinker.model.embed_tokens.weight"),
        ("thinker", "thinker.lm_head.weight"),
        ("talker", "talker.model.layers.1.mlp.shared_expert_gate.weight"),
        ("talker", "talker.text_projection.linear_fc2.bias"),
        ("talker", "talker.hidden_projection.linear_fc1.weight"),
        ("talker", "talker.model.codec_embedding.weight"),
        ("code_predictor", "talker.code_predictor.lm_head.14.weight"),
        ("visual", "thinker.visual.merger_list.1.mlp.2.bias"),
        ("audio", "thinker.audio_tower.proj2.bias"),
        ("code2wav", "code2wav.decoder.6.conv.weight"),
    ],
)
def test_missing_tensor(copy, exported, component, tensor, capfd):
    keep_tensors(copy, lambda k: k != tensor)
    assert_refused(capfd, copy, exported["float32"], component, tensor, "missing", str(copy))


@pytest.mark.parametrize(
    "component, tensor",
    [
        ("thinker", "thinker.model.embed_tokens.weight"),
        ("talker", "talker.model.codec_embedding.weight"),
        ("talker", "talker.text_projection.linear_fc1.weight"),
        ("talker", "talker.hidden_projection.linear_fc2.weight"),
    ],
)
def test_all_zero_tensor(copy, exported, component, tensor, capfd):
    keep_tensors(copy, lambda k: True, {tensor: np.zeros_like(Checkpoint(copy)[tensor])})
    assert_refused(capfd, copy, exported["float32"], component, "all zero", tensor.split(".", 2)[-1].split(".")[-1])


@pytest.mark.parametrize(
    "component, tensor",
    [
        ("thinker", "thinker.lm_head.weight"),
        ("thinker", "thinker.model.embed_tokens.weight"),
        ("talker", "talker.hidden_projection.linear_fc2.weight"),
        ("talker", "talker.text_projection.linear_fc1.bias"),
        ("audio", "thinker.audio_tower.conv_out.weight"),
        ("visual", "thinker.visual.pos_embed.weight"),
        ("code2wav", "code2wav.code_embedding.weight"),
    ],
)
def test_tensor_of_another_shape(copy, exported, component, tensor, capfd):
    keep_tensors(copy, lambda k: True, {tensor: Checkpoint(copy)[tensor][1:]})
    assert_refused(capfd, copy, exported["float32"], component, tensor, "shape")


def put(path: str, value: Any) -> Callable[[dict], None]:
    """Sets config["a"]["b"] = value for the path a.b."""

    def change(config: dict) -> None:
        *sections, key = path.split(".")
        for section in sections:
            config = config[section]
        config[key] = value

    change.__name__ = f"{path}={value}"
    return change


DECODER = [
    ("hidden_act", "gelu"),
    ("attention_bias", True),
    ("mlp_only_layers", [0]),
    ("sliding_window", 128),
    ("decoder_sparse_step", 2),
    ("rope_parameters.rope_type", "yarn"),
    ("rope_parameters.mrope_section", [1, 1, 1]),
]
UNSUPPORTED = [
    *(("thinker", put(f"thinker_config.text_config.{key}", value)) for key, value in DECODER),
    *(("talker", put(f"talker_config.text_config.{key}", value)) for key, value in DECODER),
    *(("thinker", put("talker_config.accept_hidden_layer", value)) for value in (0, 4, 99)),
    *(
        ("code_predictor", put(f"talker_config.code_predictor_config.{key}", value))
        for key, value in (
            ("hidden_act", "gelu"),
            ("attention_bias", True),
            ("sliding_window", 8),
            ("rope_parameters.rope_type", "linear"),
        )
    ),
    *(
        ("visual", put(f"thinker_config.vision_config.{key}", value))
        for key, value in (
            ("hidden_act", "relu"),
            ("rope_parameters", {"rope_type": "yarn"}),
            ("num_position_embeddings", 2303),
            ("hidden_size", 66),
            ("deepstack_visual_indexes", [9]),
            ("deepstack_visual_indexes", []),
            ("patch_size", 14),
        )
    ),
    *(
        ("audio", put(f"thinker_config.audio_config.{key}", value))
        for key, value in (
            ("activation_function", "relu"),
            ("scale_embedding", True),
            ("n_window", 25),
            ("n_window_infer", 150),
            ("n_window_infer", 0),
            ("encoder_attention_heads", 5),
        )
    ),
    *(
        ("code2wav", put(f"code2wav_config.{key}", value))
        for key, value in (
            ("hidden_act", "gelu"),
            ("rope_parameters.rope_type", "yarn"),
            ("sliding_window", 1),
            ("head_dim", 17),
            ("num_hidden_layers", 1),
            ("upsample_rates", [2, 2, 2, 2]),
        )
    ),
    ("thinker", put("thinker_config.text_config.num_experts", 7)),
    ("talker", put("talker_config.text_config.num_hidden_layers", 2)),
    ("talker", put("talker_config.text_config.shared_expert_intermediate_size", 0)),
    ("audio", put("thinker_config.audio_config.encoder_layers", 1)),
    ("visual", put("thinker_config.vision_config.depth", 3)),
]


@pytest.mark.parametrize("component, change", UNSUPPORTED, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_unsupported_setting(copy, exported, component, change, capfd):
    edit_config(copy, change)
    line = assert_refused(capfd, copy, exported["float32"], component, "config.json")
    path = change.__name__.split("=")[0].split(".")
    assert path[-1] in line or path[-2] in line or "does not account for" in line or "has shape" in line


@pytest.mark.parametrize("component", COMPONENTS)
def test_any_missing_setting_is_a_clear_error(plain, exported, component, tmp_path):
    """Without any one of its keys a config is refused, by the key's name or (where transformers has a default) by that
    of the tensor that does not fit or is left over; or nothing changes."""
    config = json.loads((plain / "config.json").read_text())
    checkpoint = shutil.copytree(plain, tmp_path / "checkpoint", copy_function=os.link)
    section = {
        "thinker": "text_config",
        "visual": "vision_config",
        "audio": "audio_config",
        "talker": "text_config",
        "code_predictor": "code_predictor_config",
    }.get(component)
    top = {"code2wav": "code2wav_config", "talker": "talker_config", "code_predictor": "talker_config"}.get(
        component, "thinker_config"
    )
    paths = [(top,), *((top, key) for key in config[top])]
    paths += [(top, section, key) for key in config[top][section]] if section else []
    folder, refused = FOLDERS[component], 0
    good = (exported["float32"] / folder / "model.onnx.data").read_bytes()
    for path in paths:
        write(checkpoint / "config.json", json.dumps(without(config, path)).encode())
        try:
            export_onnx.export(checkpoint, tmp_path / "out", [component], np.dtype(np.float32))
            assert (tmp_path / "out" / folder / "model.onnx.data").read_bytes() == good, path
        except CheckpointError as e:
            refused += 1
            text = str(e)
            assert (
                path[-1] in text
                or path[-2:][0] in text
                or any(problem in text for problem in ("has shape", "is missing", "does not account for"))
            ), path
    assert refused > 1


def without(config: dict, path: tuple[str, ...]) -> dict:
    key, *rest = path
    return {k: without(v, rest) if rest and k == key else v for k, v in config.items() if rest or k != key}


@pytest.mark.parametrize("model_type", ["qwen2_5_omni", "qwen3_omni_moe_text", None])
def test_another_model(copy, exported, model_type, capfd):
    edit_config(copy, put("model_type", model_type))
    assert_refused(capfd, copy, exported["float32"], "audio", repr(model_type), "qwen3_omni_moe", "config.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_config_that_is_no_config(copy, exported, content, capfd):
    write(copy / "config.json", content)
    assert_refused(capfd, copy, exported["float32"], "audio", str(copy / "config.json"))


def test_no_checkpoint(tmp_path, capfd):
    assert "config.json" in fails(capfd, tmp_path, tmp_path / "out")
    (tmp_path / "config.json").write_text("{}")
    assert "safetensors" in fails(capfd, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_no_tokenizer(copy, exported, file, capfd):
    (copy / file).unlink()
    assert_refused(capfd, copy, exported["float32"], "thinker", file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 64,
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
        b"\x0c\x00\x00\x00\x00\x00\x00\x00" + b'{"a": {}   }',
    ],
)
def test_file_that_is_no_safetensors(copy, exported, content, capfd):
    write(copy / "model.safetensors", content)
    assert_refused(capfd, copy, exported["float32"], "audio", str(copy / "model.safetensors"))


@pytest.mark.parametrize("keep", [0.99, 0.3, 0.0001])
def test_truncated_shard(copy, exported, keep, capfd):
    content = (copy / "model.safetensors").read_bytes()
    write(copy / "model.safetensors", content[: int(len(content) * keep)])
    assert_refused(capfd, copy, exported["float32"], "audio", str(copy / "model.safetensors"), "download")


def test_missing_shard_and_damaged_index(tmp_path, capfd):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", shard_bytes=1_000_000)
    shard = sorted(checkpoint.glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in fails(capfd, checkpoint, tmp_path / "out")
    for content in ("{", "[]", "{}", '{"weight_map": 3}'):
        (checkpoint / "model.safetensors.index.json").write_text(content)
        assert "model.safetensors.index.json" in fails(capfd, checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_cannot_be_written(plain, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    assert "file" in fails(capfd, plain, tmp_path / "file", "--components", "audio")


def test_command_line_exit_code(copy, tmp_path):
    keep_tensors(copy, lambda k: k != "code2wav.decoder.0.conv.bias")
    done = subprocess.run(
        [sys.executable, "-m", "offline.export_onnx", str(copy), str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "code2wav.decoder.0.conv.bias" in done.stderr
    assert not (tmp_path / "out").exists()  # of the parts that were complete, neither


# ---- killed exports -------------------------------------------------------------------------------------------------
KILLED = """
import os, signal, sys
from offline import export_onnx
from offline.checkpoints.checkpoint import Checkpoint

def deadly(call):  # the process dies just before its n-th disk operation
    def wrapper(*args, **kwargs):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapper

left = int(sys.argv[1])
for owner, name in ((Checkpoint, "read"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
    setattr(owner, name, deadly(getattr(owner, name)))
export_onnx.main(sys.argv[2:])
print("operations left:", left)
"""


def export_killed_at(operation: int, *arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(operation), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


def test_killed_export_leaves_no_broken_folder(plain, tmp_path):
    """Whenever SIGKILL comes, the folder is the old one, the new one, or not there; the next run clears the rest."""
    old = make_checkpoint(tmp_path / "old", seed=5)
    folder, options = FOLDERS["code_predictor"], ("--components", "code_predictor", "--dtype", "float32")
    trees = {}
    for name, checkpoint in (("old", old), ("new", plain)):
        assert export_onnx.main([str(checkpoint), str(tmp_path / f"{name}-onnx"), *options]) == 0
        trees[name] = digest(tmp_path / f"{name}-onnx" / folder)
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "old-onnx", out)
    done = export_killed_at(10**6, plain, out, *options)
    operations = 10**6 - int(done.stdout.split()[-1])
    assert operations > 60 and digest(out / folder) == trees["new"]
    found = set()
    for operation in (3, operations // 2, *range(operations - 5, operations + 1)):
        shutil.rmtree(out)
        shutil.copytree(tmp_path / "old-onnx", out)
        assert export_killed_at(operation, plain, out, *options).returncode == -signal.SIGKILL
        state = (
            "gone"
            if not (out / folder).exists()
            else next((name for name, tree in trees.items() if digest(out / folder) == tree), "broken")
        )
        assert state != "broken", operation
        found.add(state)
    assert {"old", "new"} <= found
    assert export_onnx.main([str(plain), str(out), *options]) == 0
    assert digest(out) == {f"{folder}/{k}": v for k, v in trees["new"].items()}


# ---- memory ---------------------------------------------------------------------------------------------------------
PEAK = """
import sys
from pathlib import Path
from offline import export_onnx
peak = lambda: next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
before = peak()
assert export_onnx.main(sys.argv[1:]) == 0
print(1024 * (peak() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak of this process from Linux")
def test_peak_memory_is_that_of_the_largest_tensor(tmp_path):
    """A model of 14 layers needs no more memory than one of 4, though each layer adds 9 MB."""
    vocab, hidden, growth = 32768, 256, {}
    for layers in (4, 14):
        text = {
            "vocab_size": vocab,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_experts": 8,
            "moe_intermediate_size": 384,
        }
        checkpoint = make_checkpoint(tmp_path / f"{layers}", overrides={"thinker_config": {"text_config": text}})
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                PEAK,
                str(checkpoint),
                str(tmp_path / f"onnx{layers}"),
                "--components",
                "thinker",
                "--dtype",
                "float32",
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        growth[layers] = int(done.stdout.split()[-1])
        assert (tmp_path / f"onnx{layers}/thinker/llm/model.onnx.data").stat().st_size > layers * 9e6 + 4 * vocab * hidden
    largest = 4 * vocab * hidden  # as written, float32: 34 MB; read as bfloat16 beside it
    assert largest < growth[4] < 1.5 * largest + 20e6
    assert growth[14] < growth[4] + 8e6
