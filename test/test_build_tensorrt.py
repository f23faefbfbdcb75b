"""TensorRT: lowered graphs mean what the exported ones mean, TensorRT-RTX parses and builds them without a GPU, and the
form for Jetson Thor has the MoE layers that it should."""

import json
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tensorrt_on_cpu
from nvfp4_reference import quantised_code_predictor
from onnx import TensorProto, helper, numpy_helper

from offline import build_engines, export_onnx
from offline.checkpoints.checkpoint import Checkpoint, write_safetensors
from offline.graphs import bandwidth
from offline.graphs.builder import GraphBuilder
from offline.graphs.decoder import Decoder, DecoderConfig
from offline.graphs.external_data import StoredGraph
from offline.outputs.engine_folder import EngineFolder
from offline.outputs.graph_folder import seal
from offline.quantization import nvfp4
from offline.tensorrt import build as build_tensorrt
from offline.tensorrt import known_faults
from offline.tensorrt.lower import Lowering
from omni_ros.engines.tensorrt import package as tensorrt_package
from omni_ros.engines.tensorrt.package import import_tensorrt, make_logger, package_name
from omni_ros.errors import EngineError

ORT_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
NVFP4 = re.compile(
    r"(thinker\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.experts\.\d+\.\w+)"
    r"|talker\.model\.layers\.\d+\.mlp\.experts\.\d+\.\w+)\.weight"
)
OLD_PARSER = lambda op: op not in ("Attention", "RotaryEmbedding", "RMSNormalization", "Swish", "TensorScatter")  # noqa: E731


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    try:
        return import_tensorrt()
    except EngineError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def rtx(trt: ModuleType) -> ModuleType:
    if package_name(trt) != "tensorrt_rtx":
        pytest.skip("only TensorRT-RTX builds for a GPU that is not here")
    return trt


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """dtype -> ONNX tree of the tiny checkpoint; "nvfp4" and "w4a4" (activations too) are float16 with quantised experts."""
    root = tmp_path_factory.mktemp("onnx")
    quantize(checkpoints["plain"], root / "checkpoint")
    for dtype in ("float32", "float16"):
        export_onnx.export(checkpoints["plain"], root / dtype, list(export_onnx.COMPONENTS), np.dtype(dtype))
    export_onnx.export(checkpoints["odd"], root / "odd", list(export_onnx.COMPONENTS), np.dtype(np.float32))
    export_onnx.export(root / "checkpoint", root / "nvfp4", ["thinker", "talker"], np.dtype(np.float16))
    shutil.copytree(root / "nvfp4", root / "w4a4")
    for name in ("thinker", "talker"):
        quantize_activations(root / "w4a4" / name / "llm" / "model.onnx")
    return {name: root / name for name in ("float32", "float16", "odd", "nvfp4", "w4a4")}


def quantize(source: Path, target: Path) -> None:
    """A copy of the checkpoint in which the layers that offline.quantize would choose are NVFP4."""
    checkpoint, tensors = Checkpoint(source), {}
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    for name in checkpoint.tensors:
        value = checkpoint.read(name)
        if NVFP4.fullmatch(name):
            value, scale, scale_2 = nvfp4.encode(value.astype(np.float32))
            tensors[f"{name}_scale"], tensors[f"{name}_scale_2"] = scale, np.array(scale_2)
        tensors[name] = value
    write_safetensors(target / "model.safetensors", {k: (v.dtype, v.shape, [v]) for k, v in tensors.items()})


def quantize_activations(path: Path) -> None:
    """Put NVFP4Quantize before every quantised linear layer, and the two scales on every MoE."""
    model = onnx.load(path, load_external_data=False)
    weights, nodes = StoredGraph(path.parent).packed, []
    model.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "input_scale"))
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in weights:
            nodes.append(
                helper.make_node("NVFP4Quantize", [node.input[0], "input_scale"], [f"{node.output[0]}_in"], domain="omni_ros")
            )
            node.input[0] = nodes[-1].output[0]
        if node.op_type == "MoE":
            node.input.extend(["input_scale", "input_scale"])
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    reseal(path)


def reseal(path: Path) -> None:
    """Make config.json agree with a graph that a test has changed."""
    config = json.loads((path.parent / "config.json").read_text())
    config["graph_sha256"] = config["checksums"]["model.onnx"] = sha256(path.read_bytes()).hexdigest()
    config["files"]["model.onnx"] = path.stat().st_size
    (path.parent / "config.json").write_text(json.dumps(config))


# ---- what the lowered graphs compute ---------------------------------------------------------------------------------
def session(path: Path) -> ort.InferenceSession:
    for link in [f for f in path.parent.iterdir() if f.is_symlink()]:  # ONNX Runtime does not follow them
        target = link.resolve()
        link.unlink()
        shutil.copy(target, link)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_both(source: Path, work: Path, sizes: list[dict[str, int]], supports=lambda op: True) -> float:
    """Largest difference between the exported and the lowered graph, relative to the largest value, over several runs
    that hand on their state."""
    shutil.copytree(source, work / "exported")
    (work / "lowered").mkdir()
    Lowering(source, work / "lowered", capacity=32, supports=supports).run()
    reference, lowered = session(work / "exported" / "model.onnx"), session(work / "lowered" / "model.onnx")
    names = [o.name for o in reference.get_outputs()]
    rng, state, past, worst = np.random.default_rng(0), {}, 0, 0.0
    for size in sizes:
        inputs = {}
        for i in reference.get_inputs():
            shape = [d if isinstance(d, int) else {"capacity": 32, **size}[d] for d in i.shape]
            if i.name == "past_length":
                inputs[i.name] = np.array([past])
            elif i.name.startswith("past_"):
                inputs[i.name] = state.get(i.name, np.zeros(shape, ORT_TYPES[i.type]))
            elif i.type == "tensor(int64)":
                inputs[i.name] = rng.integers(0, 13, shape)
            else:
                inputs[i.name] = rng.standard_normal(shape).astype(np.float32)
        expected, got = (s.run(names, inputs) for s in (reference, lowered))
        worst = max(worst, *(float(np.abs(e - g).max() / (1 + np.abs(e).max())) for e, g in zip(expected, got)))
        assert all(e.shape == g.shape and np.isfinite(g).all() for e, g in zip(expected, got))
        state = {name.replace("present_", "past_"): value for name, value in zip(names, expected)}
        past += size.get("S", size.get("frames", 0))
    return worst


@pytest.mark.parametrize("supports", [lambda op: True, OLD_PARSER], ids=["parser-11", "parser-10.13"])
@pytest.mark.parametrize(
    "folder, sizes",
    [
        ("thinker/llm", [{"S": 7}, {"S": 1}, {"S": 1}, {"S": 5}]),
        ("talker/llm", [{"S": 7}, {"S": 1}, {"S": 1}, {"S": 5}]),
        ("multimodal/code_predictor", [{}]),
        ("multimodal/code2wav", [{"frames": 1}, {"frames": 3}]),
        ("multimodal/audio", [{"windows": 2, "chunks": 2, "frames": 100, "tokens": 20}]),
        ("multimodal/visual", [{"frames": 2, "n": 16, "tokens": 8}]),
    ],
)
@pytest.mark.parametrize("model", ["float32", "odd"])
def test_lowered_graph_computes_the_same(exported, tmp_path, model, folder, sizes, supports) -> None:
    assert run_both(exported[model] / folder, tmp_path, sizes, supports) < 1e-4


def test_experts_that_overflow_do_not_matter(exported, tmp_path) -> None:
    """Of the experts that a row is not routed to, even infinite results must not reach it."""
    source = tmp_path / "source"
    shutil.copytree(exported["float32"] / "talker" / "llm", source)
    graph = StoredGraph(source)
    tensor = graph.tensors["layers.0.mlp.experts.up_proj"]
    values = graph.raw(tensor.name).copy()
    values[:4] *= 1e38  # with gate and down, past the float32 range
    with (source / "model.onnx.data").open("r+b") as f:
        f.seek(int(next(e.value for e in tensor.external_data if e.key == "offset")))
        f.write(values.tobytes())
    (tmp_path / "lowered").mkdir()
    Lowering(source, tmp_path / "lowered", capacity=32).run()
    model = onnx.load(tmp_path / "lowered" / "model.onnx", load_external_data=False)
    moe = next(n.output[0] for n in model.graph.node if n.op_type == "TopK").split(".")[0]  # of the first layer
    model.graph.output.append(helper.make_tensor_value_info(f"{moe}.expert", TensorProto.INT64, None))
    model.graph.output.append(helper.make_tensor_value_info(moe, TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "lowered" / "model.onnx")
    lowered = session(tmp_path / "lowered" / "model.onnx")
    inputs = {
        i.name: np.zeros([d if isinstance(d, int) else 24 for d in i.shape], ORT_TYPES[i.type]) for i in lowered.get_inputs()
    }
    inputs["inputs_embeds"] = np.random.default_rng(1).standard_normal((24, 64)).astype(np.float32)
    expert, y = lowered.run([f"{moe}.expert", moe], inputs)
    safe = (expert >= 4).all(axis=1)
    assert safe.any() and not np.isfinite(y[~safe]).all()
    assert np.isfinite(y[safe]).all()


# ---- parsed and built by TensorRT ------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", ["sm89", "sm120"])
def test_every_float16_graph_builds(rtx, exported, tmp_path, target) -> None:
    arguments = ["--backend", "tensorrt", "--target", target, "--maxInputLen", "200", "--maxKVCacheCapacity", "600"]
    assert build_engines.main([str(exported["float16"]), str(tmp_path), *arguments]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["code2wav", "code_predictor", "multimodal", "talker", "thinker"]
    for name, folder in build_engines.ENGINES.items():
        directory, source = tmp_path / name, exported["float16"] / folder
        config, before = (json.loads((d / "config.json").read_text()) for d in (directory, source))
        assert config["backend"] == "tensorrt" and config["tensorrt"]["target"] == target
        assert config["tensorrt"]["version"] == rtx.__version__ and config["tensorrt"]["package"] == "tensorrt_rtx"
        assert config["provenance"]["onnx_sha256"] == before["graph_sha256"] != config["graph_sha256"]
        assert config["files"] == {p.name: p.stat().st_size for p in directory.iterdir() if p.name != "config.json"}
        built = {*config["files"]} - {"model.engine", "self_check.safetensors"}
        assert built == {*before["files"]} - {"model.onnx", "model.onnx.data"}
        assert config["files"]["model.engine"] > 100_000
        assert all(isinstance(d, int) for s in config["state"] for d in s["shape"])
    thinker = json.loads((tmp_path / "thinker" / "config.json").read_text())
    assert thinker["limits"] == {"max_input_len": 200, "capacity": 600}
    assert thinker["tensorrt"]["profiles"]["decode"]["inputs_embeds"] == [[1, 64]] * 3
    assert thinker["tensorrt"]["profiles"]["prefill"]["inputs_embeds"] == [[1, 64], [50, 64], [200, 64]]
    assert thinker["tensorrt"]["moe"] == "generic" and all(s["in_place"] for s in thinker["state"])
    code2wav = json.loads((tmp_path / "code2wav" / "config.json").read_text())
    assert code2wav["tensorrt"]["host_inputs"] == ["past_length"]


@pytest.mark.parametrize("weights", ["nvfp4", "w4a4"])
def test_nvfp4_builds(rtx, exported, tmp_path, weights) -> None:
    assert build_engines.main([str(exported[weights]), str(tmp_path), "--backend", "tensorrt", "--target", "sm120"]) == 0
    for name in ("thinker", "talker"):
        assert json.loads((tmp_path / name / "config.json").read_text())["weights"] == "nvfp4"


# NVFP4 without rounded activations is left out: compiling it, TensorRT-RTX 1.7 fails inside (docs/jetson.md)
@pytest.mark.parametrize(
    "form, target, activations",
    [("fp8", "sm89", False), ("fp8", "sm89", True), ("fp8", "sm120", False), ("fp8", "sm120", True), ("nvfp4", "sm120", True)],
)
def test_a_quantised_code_predictor_builds(rtx, checkpoints, tmp_path, form, target, activations) -> None:
    part = quantised_code_predictor(Checkpoint(checkpoints["plain"]), tmp_path / "checkpoint", form)
    export_onnx.export(
        part.directory, tmp_path / "onnx", ["code_predictor"], np.dtype(np.float16), quantize_activations=activations
    )
    assert build_engines.main([str(tmp_path / "onnx"), str(tmp_path / "out"), "--backend", "tensorrt", "--target", target]) == 0


def test_nvfp4_needs_a_gpu_that_has_it(rtx, exported, tmp_path, capsys) -> None:
    assert build_engines.main([str(exported["nvfp4"]), str(tmp_path), "--backend", "tensorrt", "--target", "sm89"]) == 1
    assert "sm89 cannot compute with them" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_graphs_for_a_parser_of_10_13_build(rtx, exported, tmp_path, monkeypatch) -> None:
    """Without KVCacheUpdate the caches are not in place, and config.json says so."""

    class OldParser(rtx.OnnxParser):
        def supports_operator(self, name: str) -> bool:
            return OLD_PARSER(name) and super().supports_operator(name)

    monkeypatch.setattr(rtx, "OnnxParser", OldParser)
    source = exported["nvfp4"] / "talker" / "llm"
    folder = EngineFolder(source, tmp_path)
    folder.config["limits"] = {"max_input_len": 128, "capacity": 256}
    build_tensorrt.build(folder, "sm120")
    state = json.loads((tmp_path / "config.json").read_text())["state"]
    assert state and not any(s["in_place"] for s in state)


def test_float32_is_not_rounded_to_tf32(rtx, exported, tmp_path, monkeypatch) -> None:
    """Of weights and activations a GPU's TF32 keeps 10 bits; the reference on a CPU keeps 23."""
    allowed = []

    class Builder(rtx.Builder):
        def build_serialized_network(self, network, options):
            allowed.append(options.get_flag(rtx.BuilderFlag.TF32))

    monkeypatch.setattr(rtx, "Builder", Builder)
    source = exported["float32"] / "multimodal" / "audio"
    with pytest.raises(EngineError, match="no reason given"):
        build_tensorrt.build(EngineFolder(source, tmp_path), "sm120")
    assert allowed == [False]


REAL = DecoderConfig(  # Qwen3-Omni-30B-A3B's Thinker, one layer of it
    vocab_size=8,
    hidden_size=2048,
    num_layers=1,
    num_heads=32,
    num_kv_heads=4,
    head_dim=128,
    num_experts=128,
    top_k=8,
    moe_intermediate_size=768,
    normalize_top_k=True,
    shared_intermediate_size=0,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    mrope_section=(24, 20, 20),
)


@pytest.mark.parametrize("weights, target, most_mib", [("float16", "sm120", 2100), ("nvfp4", "sm120", 360)])
def test_one_layer_of_the_real_size_builds(rtx, tmp_path, weights, target, most_mib) -> None:
    source = export_layer(tmp_path, REAL, weights)
    folder = EngineFolder(source, tmp_path)
    folder.config["limits"] = {"max_input_len": 1024, "capacity": 2048}
    folder.add_self_check = lambda graph=None: None  # one layer has no embedding to take rows of
    build_tensorrt.build(folder, target)
    # NVFP4 weights stay 4 bit and are there once: 340 MiB. In float16 TensorRT also keeps gate and up joined.
    assert (tmp_path / "model.engine").stat().st_size < most_mib << 20
    shutil.rmtree(tmp_path)


def export_layer(root: Path, c: DecoderConfig, weights: str) -> Path:
    """One decoder layer with random weights (all experts alike) as an exported graph."""
    rng, tensors = np.random.default_rng(0), {}

    def linear(out: int, inner: int) -> dict[str, np.ndarray]:
        weight = rng.standard_normal((out, inner), np.float32) * 0.02
        if weights != "nvfp4":
            return {"weight": weight.astype(np.float16)}
        packed, scale, scale_2 = nvfp4.encode(weight)
        return {"weight": packed, "weight_scale": scale, "weight_scale_2": np.array(scale_2)}

    h, q, kv, inner = c.hidden_size, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim, c.moe_intermediate_size
    for name, shape in {"q": (q, h), "k": (kv, h), "v": (kv, h), "o": (h, q)}.items():
        tensors |= {f"self_attn.{name}_proj.{k}": v for k, v in linear(*shape).items()}
    for name, shape in {"gate": (inner, h), "up": (inner, h), "down": (h, inner)}.items():
        matrix = linear(*shape)
        tensors |= {f"mlp.experts.{e}.{name}_proj.{k}": v for e in range(c.num_experts) for k, v in matrix.items()}
    tensors["mlp.gate.weight"] = rng.standard_normal((c.num_experts, h), np.float32)
    for name, size in {
        "self_attn.q_norm": c.head_dim,
        "self_attn.k_norm": c.head_dim,
        "input_layernorm": h,
        "post_attention_layernorm": h,
    }.items():
        tensors[f"{name}.weight"] = np.ones(size, np.float32)
    write_safetensors(root / "model.safetensors", {f"layers.0.{k}": (v.dtype, v.shape, [v]) for k, v in tensors.items()})
    (root / "config.json").write_text("{}")
    g = GraphBuilder(root / "onnx", Checkpoint(root), "", np.dtype(np.float16))
    x, position_ids = g.input("inputs_embeds", ["S", h]), g.input("position_ids", [3, "S"], np.float32)
    g.input("past_length", [1], np.int64)
    decoder = Decoder(g, c)
    (cos, sin), mask = decoder.rope(position_ids), decoder.mask(x)
    g.output("y", decoder.layer(x, 0, cos, sin, mask), ["S", h])
    g.save({"engine": "thinker", "model": {}})
    seal(root / "onnx", root)
    (root / "model.safetensors").unlink()
    return root / "onnx"


# ---- the form for Jetson Thor ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", ["layer", "splice"])
@pytest.mark.parametrize("weights", ["float16", "nvfp4", "w4a4"])
@pytest.mark.parametrize("engine", ["thinker", "talker"])
def test_thor_gets_moe_layers(trt, exported, tmp_path, engine, weights, form, monkeypatch) -> None:
    if not hasattr(trt.INetworkDefinition, "add_moe"):
        pytest.skip(f"TensorRT {trt.__version__} has no IMoELayer")
    if form == "splice":

        class Parser(trt.OnnxParser):
            def supports_operator(self, name: str) -> bool:
                return name != "TRT_MoE" and super().supports_operator(name)

        monkeypatch.setattr(trt, "OnnxParser", Parser)
    source = exported[weights] / engine / "llm"
    lowering = build_tensorrt.lower(trt, source, tmp_path, "sm110", capacity=600)
    assert lowering.moe_form == form
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network, parser = build_tensorrt.parse(trt, builder, logger, lowering)
    layers = list(map(network.get_layer, range(network.num_layers)))
    made_by = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    moe = [layer for layer in layers if layer.type == trt.LayerType.MOE]
    exported_moe = [n for n in StoredGraph(source).model.graph.node if n.op_type == "MoE"]
    experts, hidden, inner, k = 8, 64, 32, 2
    assert len(moe) == len(exported_moe) == {"thinker": 4, "talker": 3}[engine]
    for layer in moe:
        layer.__class__ = trt.IMoELayer
        assert layer.activation_type == trt.MoEActType.SILU
        assert layer.num_inputs == (10 if weights == "w4a4" else 6)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        assert [tuple(t.shape) for t in inputs[:6]] == [
            (1, -1, hidden),
            (1, -1, k),
            (1, -1, k),
            *[(experts, hidden, inner)] * 2,
            (experts, inner, hidden),
        ]
        assert [t.dtype for t in inputs[:3]] == [trt.DataType.HALF, trt.DataType.INT32, trt.DataType.HALF]
        assert tuple(layer.get_output(0).shape) == (1, -1, hidden)
        if weights != "float16":
            for tensor, shape in zip(inputs[3:6], [(experts, hidden, inner)] * 2 + [(experts, inner, hidden)]):
                codes, scale = double_quantised(trt, made_by, tensor)
                assert codes.dtype == trt.DataType.FP4 and tuple(codes.shape) == shape
                assert scale.dtype == trt.DataType.FP8 and tuple(scale.shape) == (experts, shape[1] // 16, shape[2])
        if weights == "w4a4":
            assert layer.quantization_to_type == trt.DataType.FP8 and tuple(inputs[9].shape) == ()
            assert made_by[inputs[0].name].type == trt.LayerType.DEQUANTIZE
    outputs = {network.get_output(i).name for i in range(network.num_outputs)}
    config = json.loads((source / "config.json").read_text())
    assert outputs == {o["name"] for o in config["outputs"]} | {s["output"] for s in config["state"]}
    del parser


def double_quantised(trt: ModuleType, made_by: dict, tensor: "trt.ITensor") -> tuple:
    """(codes, scales) behind Cast <- Dequantize(codes, Dequantize(scales, last scale))."""
    cast = made_by[tensor.name]
    assert cast.type == trt.LayerType.CAST
    outer = made_by[cast.get_input(0).name]
    inner = made_by[outer.get_input(1).name]
    assert outer.type == inner.type == trt.LayerType.DEQUANTIZE
    return outer.get_input(0), inner.get_input(0)


def test_transposed_experts_are_the_same_bits(exported, tmp_path) -> None:
    source = StoredGraph(exported["nvfp4"] / "talker" / "llm")
    Lowering(source.directory, tmp_path, capacity=32, moe_form="layer").run()
    lowered = StoredGraph(tmp_path)

    def codes(packed: np.ndarray) -> np.ndarray:
        return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)

    name = "layers.1.mlp.experts.down_proj"
    for e in range(8):
        assert (codes(lowered.raw(f"{name}.t", e)) == codes(source.raw(name, e)).T).all()
        assert (lowered.raw(f"{name}_scale.t", e).view(np.uint8) == source.raw(f"{name}_scale", e).view(np.uint8).T).all()


# ---- errors ----------------------------------------------------------------------------------------------------------
def test_errors_say_what_to_do(rtx, exported, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build_tensorrt, "gpu_target", lambda: None)
    with pytest.raises(EngineError, match="--target sm80"):
        build_tensorrt.check_target(rtx, None)
    with pytest.raises(EngineError, match="cannot build for sm110 .*on the sm110 machine"):
        build_tensorrt.check_target(rtx, "sm110")
    with monkeypatch.context() as patch, pytest.raises(EngineError, match="JetPack"):
        patch.setattr(tensorrt_package, "PACKAGES", ("no_such_tensorrt",))
        import_tensorrt()
    source = tmp_path / "source"
    shutil.copytree(exported["float16"] / "multimodal" / "audio", source)
    model = onnx.load(source / "model.onnx", load_external_data=False)
    node = next(n for n in model.graph.node if n.op_type == "Gelu")
    node.op_type = "Bernoulli"
    onnx.save(model, source / "model.onnx")
    reseal(source / "model.onnx")
    with pytest.raises(EngineError, match=rf"source: .*node {node.name} \(Bernoulli\).*--backend onnxruntime"):
        build_tensorrt.build(EngineFolder(source, tmp_path / "engine"), "sm120")


# ---- what bandwidth allows -------------------------------------------------------------------------------------------
def test_bandwidth_counts_what_a_step_reads(checkpoints, exported) -> None:
    sizes = {k: int(np.prod(i.shape)) * 2 for k, i in Checkpoint(checkpoints["plain"]).tensors.items()}  # as float16

    def total(pattern: str) -> int:
        return sum(size for name, size in sizes.items() if re.fullmatch(pattern, name))

    thinker = bandwidth.traffic(StoredGraph(exported["float16"] / "thinker" / "llm"))
    experts = total(r"thinker\.model\.layers\..*\.experts\..*")
    rest = total(r"thinker\.(model\.(layers|norm)\.(?!.*experts).*|model\.norm\.weight|lm_head\.weight)")
    assert abs(thinker.read - (experts * 2 // 8 + rest)) < 2000  # constants such as the rotary frequencies
    assert thinker.kv_row == 4 * 2 * 2 * 32 * 2  # layers, keys and values, heads, head_dim, bytes
    nvfp4_thinker = bandwidth.traffic(StoredGraph(exported["nvfp4"] / "thinker" / "llm"))
    assert (
        abs(
            (thinker.weights - nvfp4_thinker.weights) / (experts + total(r"thinker\.model\..*[qkvo]_proj\.weight"))
            - (1 - 4.5 / 16)
        )
        < 0.01
    )  # 16 bits became 4 and an eighth of a block scale
    predictor = bandwidth.traffic(StoredGraph(exported["float16"] / "multimodal" / "code_predictor"))
    layers, heads = total(r"talker\.code_predictor\.model\.(layers|norm)\..*"), total(r"talker\.code_predictor\.lm_head\..*")
    assert abs(predictor.read - (15 * layers + heads)) < 60_000  # 15 passes, one head each; rotary tables


def test_dry_run_needs_no_tensorrt(exported, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(tensorrt_package, "PACKAGES", ())
    assert build_engines.main([str(exported["float16"]), str(tmp_path / "none"), "--backend", "tensorrt", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    step = {name: bandwidth.traffic(StoredGraph(exported["float16"] / folder)) for name, folder in build_engines.ENGINES.items()}
    token = 273e9 / (step["thinker"].read + 1024 * step["thinker"].kv_row)
    assert re.search(rf"T5000.*273 GB/s +{token:,.1f} tokens/s", printed)
    assert all(name in printed for name in build_engines.ENGINES) and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "package, version, target, nvfp4, flags",
    [
        ("tensorrt", "10.13.3.9", "sm110", True, "fc_h_fusion=off match_dual_gemm=off max_num_epilogues=1"),
        ("tensorrt", "10.13.3.9", "sm87", False, "fc_h_fusion=off match_dual_gemm=off"),
        ("tensorrt", "10.16.1.4", "sm110", True, "fc_h_fusion=off fp4=off async_policy=1 num_threads=1"),
        ("tensorrt", "11.0.0.1", "sm110", False, "fc_h_fusion=off match_dual_gemm=off"),
        ("tensorrt", "11.0.0.1", "sm89", False, "fc_h_fusion=off"),
        ("tensorrt", "10.3.0.30", "sm87", False, ""),
        ("tensorrt_rtx", "1.7.1.116", "sm120", True, ""),
    ],
)
def test_known_good_flags(package, version, target, nvfp4, flags):
    found = known_faults.known_good_flags(package, version, target, nvfp4)
    assert [flag.split(":")[-1].split("=")[0] for flag in found] == [flag.split("=")[0] for flag in flags.split()]


def test_flags_are_there_while_it_builds_and_recorded(exported, tmp_path, monkeypatch):
    """A TensorRT of the simulation that says it is 10.13; what the user has set wins."""
    seen = []
    build = tensorrt_on_cpu.Builder.build_serialized_network
    monkeypatch.setattr(
        tensorrt_on_cpu.Builder,
        "build_serialized_network",
        lambda *arguments: seen.append(os.environ.get(known_faults.VARIABLE)) or build(*arguments),
    )
    monkeypatch.setattr(build_tensorrt, "known_good_flags", lambda *_: ["-peep:fc_h_fusion=off"])
    monkeypatch.delenv(known_faults.VARIABLE, raising=False)
    for users, expected in ((None, "-peep:fc_h_fusion=off"), ("-mine=1 -yours=2", "-mine=1 -yours=2")):
        if users:
            monkeypatch.setenv(known_faults.VARIABLE, users)
        folder = tmp_path / str(users)
        with tensorrt_on_cpu.simulated_gpu():
            source = exported["float16"] / "multimodal" / "code_predictor"
            assert build_engines.main(["--onnxDir", str(source), "--engineDir", str(folder), "--backend", "tensorrt"]) == 0
        assert json.loads((folder / "config.json").read_text())["tensorrt"]["compiler_flags"] == expected.split()
        assert seen.pop() == expected and os.environ.get(known_faults.VARIABLE) == users
