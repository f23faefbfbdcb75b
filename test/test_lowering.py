"""What `offline.build_engines` makes of a graph for ONNX Runtime: which operators, which state, and int4 weights."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.gpu_turns import never_end
from offline import build_engines
from offline.export_onnx import COMPONENTS, export
from offline.onnxruntime.lower import INT4_BLOCK, quantize_int4
from omni_ros.engines.engine import Engine
from omni_ros.engines.open import open_engine
from omni_ros.pipeline.pipeline import ENGINES, Pipeline
from omni_ros.pipeline.request import Request

MICROSOFT = "com.microsoft"
LLM = ("thinker", "talker")
LAYERS = {"thinker": 4, "talker": 3}


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lowering") / "onnx"
    export(checkpoints["plain"], root, list(COMPONENTS), np.dtype(np.float32))
    return root


def build(exported: Path, engines: Path, *options: str) -> Path:
    assert build_engines.main([str(exported), str(engines), "--backend", "onnxruntime", *options]) == 0
    return engines


@pytest.fixture(scope="module")
def full(exported: Path) -> Path:
    return build(exported, exported.parent / "float32")


@pytest.fixture(scope="module")
def int4(exported: Path) -> Path:
    return build(exported, exported.parent / "int4", "--weights", "int4")


def graph(engines: Path, name: str) -> onnx.GraphProto:
    return onnx.load(engines / name / "model.onnx", load_external_data=False).graph


def operators(engines: Path, name: str) -> Counter:
    return Counter(n.op_type for n in graph(engines, name).node)


# ---- operators ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ENGINES)
def test_only_what_onnx_runtime_knows(full, name):
    model = onnx.load(full / name / "model.onnx", load_external_data=False)
    assert not model.functions and {o.domain for o in model.opset_import} == {"", MICROSOFT}
    assert {n.domain for n in model.graph.node} <= {"", MICROSOFT}
    assert TensorProto.FLOAT16 not in {t.data_type for t in model.graph.initializer}
    used = {i for n in model.graph.node for i in n.input}
    assert {t.name for t in model.graph.initializer} <= used  # nothing on disk that no node reads


@pytest.mark.parametrize("name", LLM)
def test_cost_does_not_grow_with_capacity(full, name):
    """Attention is GroupQueryAttention with past and present in one buffer: it reads the rows in use and no others. No
    node has an input or output as long as the cache, such as the mask of the standard form."""
    g = graph(full, name)
    attention = [n for n in g.node if n.op_type == "GroupQueryAttention"]
    assert len(attention) == LAYERS[name] and not {"Attention", "TensorScatter"} & set(operators(full, name))
    for i, node in enumerate(attention):
        assert node.domain == MICROSOFT
        assert list(node.input)[3:5] == [f"past_key_{i}", f"past_value_{i}"]
        assert list(node.output)[1:] == [f"present_key_{i}", f"present_value_{i}"]
    engine = open_engine(full / name, threads=1)
    states, state = engine.config.state, engine.new_state()
    assert len(states) == 2 * LAYERS[name] and all(s.in_place and s.shape[2] == 2048 for s in states)
    readers = Counter(i for n in g.node for i in n.input)
    assert all(readers[s.input] == 1 for s in states)  # by its attention node alone
    rows = {"inputs_embeds": np.ones((5, 64), np.float32), "position_ids": np.tile(np.arange(5, dtype=np.float32), (3, 1))}
    if name == "thinker":
        rows["deepstack"] = np.zeros((2, 5, 64), np.float32)
    before = [buffer.data_ptr() for buffer in state.buffers]
    engine.run(rows, state)
    assert [buffer.data_ptr() for buffer in state.buffers] == before
    cache = state.buffers[0].numpy()  # [1, kv_heads, capacity, head_dim]
    assert cache[:, :, :5].any(axis=(1, 3)).all() and not cache[:, :, 5:].any()


@pytest.mark.parametrize("capacity", [8, 512])
def test_results_do_not_depend_on_capacity(exported, full, tmp_path, capacity):
    engines = build(exported, tmp_path / "engines", "--maxInputLen", "8", "--maxKVCacheCapacity", str(capacity))
    rng = np.random.default_rng(0)
    small, large = (open_engine(path / "talker", threads=1) for path in (engines, full))
    states = small.new_state(), large.new_state()
    for start, rows in ((0, 6), (6, 1), (7, 1)):
        position = np.tile(np.arange(start, start + rows, dtype=np.float32), (3, 1))
        inputs = {"inputs_embeds": rng.standard_normal((rows, 64)).astype(np.float32), "position_ids": position}
        a, b = small.run(inputs, states[0]), large.run(inputs, states[1])
        for key in a:
            np.testing.assert_allclose(a[key], b[key], atol=1e-5)


@pytest.mark.parametrize("name", LLM)
def test_only_the_routed_experts_are_computed(full, name):
    nodes = [n for n in graph(full, name).node if n.op_type == "MoE"]
    assert len(nodes) == LAYERS[name]
    for node in nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert node.domain == MICROSOFT and attributes["k"] == 2 and attributes["normalize_routing_weights"] == 1
        assert attributes["activation_type"] == b"swiglu" and attributes["swiglu_fusion"] == 1
    assert not {"TopK", "QMoE"} & set(operators(full, name))


def test_code_predictor_is_one_graph(full):
    found = operators(full, "code_predictor")
    assert found["TopK"] == 15 and not any(op in found for op in ("Loop", "Scan", "If"))
    assert open_engine(full / "code_predictor", threads=1).config.state == []


# ---- int4 operators -------------------------------------------------------------------------------------------------
def dequantize(packed: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """uint8 [..., K/2], float32 [..., K/32] -> float32 [..., K]."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1).astype(np.float32) - 8
    return (codes.reshape(*codes.shape[:-1], -1, INT4_BLOCK) * scale[..., None]).reshape(codes.shape)


def run_node(node: onnx.NodeProto, inputs: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> np.ndarray:
    """`node`, whose output is y, in ONNX Runtime."""
    g = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(g, opset_imports=opsets, ir_version=11)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_quantize_int4_keeps_every_block_within_half_a_step():
    weight = np.random.default_rng(0).standard_normal((6, 5, 96)).astype(np.float32)
    weight[0, 0, :32] = 0
    packed, scale = quantize_int4(weight)
    assert packed.shape == (6, 5, 48) and scale.shape == (6, 5, 3) and packed.dtype == np.uint8
    error = np.abs(dequantize(packed, scale) - weight).reshape(6, 5, 3, 32)
    largest = np.abs(weight).reshape(6, 5, 3, 32).max(axis=-1)
    assert (error.max(axis=-1) <= np.abs(scale) * 1.0001).all()  # one step at the far end, +8 being out of range
    assert (np.median(error, axis=-1) <= np.abs(scale) * 0.5).all() and error[0, 0, 0].max() == 0
    np.testing.assert_allclose(np.abs(scale)[largest > 0] * 8, largest[largest > 0], rtol=1e-6)


@pytest.mark.parametrize("accuracy_level, tolerance", [(0, 2e-6), (4, 2e-2)])
def test_matmul_nbits_multiplies_by_the_quantised_weight(accuracy_level, tolerance):
    rng = np.random.default_rng(1)
    x, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 128), (96, 128)))
    packed, scale = quantize_int4(weight)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w", "s"],
        ["y"],
        domain=MICROSOFT,
        K=128,
        N=96,
        bits=4,
        block_size=INT4_BLOCK,
        accuracy_level=accuracy_level,
    )
    found = run_node(node, {"x": x}, {"w": packed.reshape(96, 128 // INT4_BLOCK, INT4_BLOCK // 2), "s": scale.reshape(-1)})
    assert relative(found, x @ dequantize(packed, scale).T) < tolerance


@pytest.mark.parametrize("accuracy_level, tolerance", [(0, 5e-6), (4, 4e-2)])
def test_qmoe_multiplies_by_the_quantised_experts(accuracy_level, tolerance):
    rng = np.random.default_rng(2)
    experts, inner, hidden, k = 6, 64, 96, 2
    x, router = rng.standard_normal((4, hidden)).astype(np.float32), rng.standard_normal((4, experts)).astype(np.float32)
    gate, up = (rng.standard_normal((experts, inner, hidden)).astype(np.float32) / hidden**0.5 for _ in range(2))
    down = rng.standard_normal((experts, hidden, inner)).astype(np.float32) / inner**0.5
    gate_up = np.stack([gate, up], axis=2).reshape(experts, 2 * inner, hidden)  # rows alternate
    (packed1, scale1), (packed2, scale2) = quantize_int4(gate_up), quantize_int4(down)
    node = helper.make_node(
        "QMoE",
        ["x", "r", "w1", "s1", "", "w2", "s2"],
        ["y"],
        domain=MICROSOFT,
        k=k,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        expert_weight_bits=4,
        block_size=INT4_BLOCK,
        accuracy_level=accuracy_level,
    )
    found = run_node(node, {"x": x, "r": router}, {"w1": packed1, "s1": scale1, "w2": packed2, "s2": scale2})

    gate_up, down = dequantize(packed1, scale1), dequantize(packed2, scale2)
    probability = np.exp(router) / np.exp(router).sum(axis=1, keepdims=True)
    expected = np.zeros_like(x)
    for row in range(len(x)):
        chosen = np.argsort(-probability[row])[:k]
        for e, weight in zip(chosen, probability[row, chosen] / probability[row, chosen].sum()):
            gated, linear = gate_up[e, 0::2] @ x[row], gate_up[e, 1::2] @ x[row]
            expected[row] += weight * (down[e] @ (gated / (1 + np.exp(-gated)) * linear))
    assert relative(found, expected) < tolerance


# ---- int4 engines ---------------------------------------------------------------------------------------------------
def test_int4_lowers_three_engines(full, int4):
    for name in ENGINES:
        config, found = json.loads((int4 / name / "config.json").read_text()), operators(int4, name)
        quantised = name in ("thinker", "talker", "code_predictor")
        assert config["weights"] == ("int4" if quantised else "float32")
        assert bool(found["MatMulNBits"]) == quantised and found["MoE"] == 0
        assert found["QMoE"] == LAYERS.get(name, 0)
        sizes = [weight_bytes(graph(engines, name)) for engines in (full, int4)]
        assert sizes[1] < 0.45 * sizes[0] if quantised else sizes[1] == sizes[0]  # embeddings and routers stay float32
    routers = [n for n in graph(int4, "thinker").node if n.op_type == "Gemm"]
    assert {n.input[1] for n in routers} == {f"layers.{i}.mlp.gate.weight" for i in range(4)}  # discrete choices stay exact


def weight_bytes(g: onnx.GraphProto) -> int:
    return sum(int(e.value) for t in g.initializer for e in t.external_data if e.key == "length")


def logits(engine: Engine, rows: np.ndarray) -> np.ndarray:
    """The last row's logits after feeding `rows` [n, S, 64], one sequence each: [n, V]."""
    found, state = [], engine.new_state()
    for sequence in rows:
        state.reset()
        position = np.tile(np.arange(len(sequence), dtype=np.float32), (3, 1))
        found.append(engine.run({"inputs_embeds": sequence, "position_ids": position}, state)["logits"][0])
    return np.stack(found)


def test_int4_engine_is_close_to_float32(full, int4):
    rows = np.random.default_rng(3).standard_normal((12, 9, 64)).astype(np.float32)
    exact, quantised = (logits(open_engine(engines / "talker", threads=1), rows) for engines in (full, int4))
    assert not np.array_equal(exact, quantised)
    assert np.corrcoef(exact.ravel(), quantised.ravel())[0, 1] > 0.9
    other = logits(open_engine(full / "talker", threads=1), rows[::-1])  # what chance would give
    assert np.corrcoef(exact.ravel(), other.ravel())[0, 1] < 0.5


def test_int4_pipeline_answers(int4):
    pipeline = Pipeline.open(int4, threads=1)
    request = Request(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)},
                    {"type": "audio", "audio": np.sin(np.arange(8000, dtype=np.float32))},
                ],
            }
        ],
        8,
        max_audio_length=6,
        temperature=0,
        talker_temperature=0,
    )
    first, again = (list(pipeline.generate(request))[-1] for _ in range(2))
    pipeline.close()
    assert len(first.token_ids) == 8 and first.codes.shape == (16, 6) and first.token_ids == again.token_ids
    np.testing.assert_array_equal(first.codes, again.codes)


def test_int4_of_widths_that_blocks_do_not_divide(checkpoints, tmp_path):
    """`odd` has 40 columns in its experts: those layers stay float32, the rest is quantised."""
    export(checkpoints["odd"], tmp_path / "onnx", list(COMPONENTS), np.dtype(np.float32))
    engines = build(tmp_path / "onnx", tmp_path / "engines", "--weights", "int4")
    found = operators(engines, "thinker")
    assert found["MoE"] == 5 and found["QMoE"] == 0 and found["MatMulNBits"] > 0
    pipeline = Pipeline.open(engines, threads=1)
    never_end(pipeline)
    finished = list(pipeline.generate(Request([{"role": "user", "content": "hello"}], 4, max_audio_length=3)))[-1]
    pipeline.close()
    assert len(finished.token_ids) == 4 and finished.codes.shape == (16, 3)


# ---- what the build refuses -----------------------------------------------------------------------------------------
@pytest.fixture
def broken(exported: Path, tmp_path: Path) -> Path:
    """A copy of the Talker's ONNX folder, in its tree, that a test may break."""
    shutil.copytree(exported / "talker", tmp_path / "onnx" / "talker")
    return tmp_path / "onnx" / "talker" / "llm"


def refused(capfd: pytest.CaptureFixture, tree: Path, engines: Path) -> str:
    """The error's line; engines that were there stay as they were."""
    (engines / "talker").mkdir(parents=True)
    (engines / "talker" / "config.json").write_text("earlier")
    assert build_engines.main([str(tree), str(engines)]) == 1
    out, err = capfd.readouterr()
    assert out == "" and "Traceback" not in err
    assert [p.name for p in engines.rglob("*") if p.is_file()] == ["config.json"] and not list(engines.glob(".*"))
    assert (engines / "talker" / "config.json").read_text() == "earlier"
    line = err[err.index("error: ") :]
    assert line.count("\n") == 1 and "export" in line
    return line


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data", "text_projection.safetensors"])
def test_truncated_export(broken, file, tmp_path, capfd):
    path = broken / file
    path.write_bytes(path.read_bytes()[:-10])
    assert str(path) in refused(capfd, tmp_path / "onnx", tmp_path / "engines")


def test_flipped_byte_in_an_export(broken, tmp_path, capfd):
    content = bytearray((broken / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "model.onnx").write_bytes(content)
    assert "model.onnx" in refused(capfd, tmp_path / "onnx", tmp_path / "engines")


@pytest.mark.parametrize("file", ["model.onnx.data", "embedding.safetensors", "config.json"])
def test_missing_file_of_an_export(broken, file, tmp_path, capfd):
    (broken / file).unlink()
    assert str(broken / file) in refused(capfd, tmp_path / "onnx", tmp_path / "engines")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": {}}'])
def test_damaged_config_of_an_export(broken, content, tmp_path, capfd):
    (broken / "config.json").write_text(content)
    assert "config.json" in refused(capfd, tmp_path / "onnx", tmp_path / "engines")


def test_nothing_to_build(tmp_path, capfd):
    assert "offline.export_onnx" in refused(capfd, tmp_path, tmp_path / "engines")


@pytest.mark.parametrize(
    "options",
    [
        ["--maxInputLen", "0"],
        ["--maxInputLen", "3000"],
        ["--maxCodeLen", "0"],
        ["--maxBatchSize", "2"],
        ["--backend", "none"],
        ["--weights", "int2"],
    ],
)
def test_wrong_build_options(exported, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as caught:
        build_engines.main([str(exported), str(tmp_path / "engines"), *options])
    assert caught.value.code == 2 and not (tmp_path / "engines").exists()


def test_limits_and_provenance_are_recorded(exported, tmp_path):
    engines = build(exported, tmp_path / "engines", "--maxInputLen", "11", "--maxKVCacheCapacity", "13", "--maxCodeLen", "17")
    configs = {name: json.loads((engines / name / "config.json").read_text()) for name in ENGINES}
    for name in LLM:
        assert configs[name]["limits"] == {"max_input_len": 11, "capacity": 13}
        assert all(s["shape"][2] == 13 for s in configs[name]["state"])
    assert configs["code2wav"]["limits"]["capacity"] == 17
    for name, config in configs.items():
        source = exported / build_engines.ENGINES[name]
        assert config["provenance"]["onnx_sha256"] == json.loads((source / "config.json").read_text())["graph_sha256"]
        assert config["provenance"]["checkpoint"] == "plain" and config["files"].keys() == {
            p.name for p in (engines / name).iterdir()
        } - {"config.json"}
