"""What is stored with an engine to check it by: it is the exported graph's answer, and engines that are right give it."""

import itertools
import json
import pickle
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import run
from nvfp4_reference import split
from tensorrt_on_cpu import simulated_gpu

from offline import build_engines, export_onnx
from offline.checkpoints.checkpoint import Checkpoint
from offline.graphs.external_data import StoredGraph
from offline.graphs.reference import Reference, ReferenceUnavailable
from offline.outputs import self_check
from offline.outputs.self_check import COSINE, FILE
from omni_ros.engines.open import open_engine
from omni_ros.engines.sidecar import Sidecar
from omni_ros.errors import EngineError
from omni_ros.pipeline.pipeline import ENGINES


def check(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["self_check"]


def answers(folder: Path) -> dict[str, float]:
    """Output -> the least cosine of all calls between stored and the engine's answer; of codes, the share of equal first ones."""
    engine, stored = open_engine(folder, 1, verify="sizes"), Sidecar(folder / FILE).tensors
    state = engine.new_state() if engine.config.state else None
    found: dict[str, list[float]] = {}
    for call in range(check(folder)["calls"]):
        given = {i.name: stored[f"{call}.in.{i.name}"].array().astype(i.dtype) for i in engine.config.fed}
        for name, got in engine.run(given, state).items():
            wanted, got = stored[f"{call}.out.{name}"].array().ravel().astype(float), got.ravel().astype(float)
            assert len(wanted) == len(got)
            cosine = wanted @ got / (np.linalg.norm(wanted) * np.linalg.norm(got))
            found.setdefault(name, []).append(float(wanted[0] == got[0] if name == "codes" else cosine))
    engine.close()
    if "codes" in found:
        return {"codes": float(np.mean(found["codes"]))}  # embed_sum follows from all 15
    return {name: min(cosines) for name, cosines in found.items()}


@pytest.mark.parametrize("model", ["plain", "odd", "published"])
@pytest.mark.parametrize("name", ENGINES)
def test_engines_give_the_stored_answers(engine_dirs, tensorrt_dirs, model, name):
    folders = engine_dirs[model] / name, tensorrt_dirs[model] / name
    bound = {"first_code": 0.75} if name == "code_predictor" else {"cosine": 0.9999}
    assert check(folders[0]) == check(folders[1]) and check(folders[0]).items() >= bound.items()
    outputs = {o["name"] for o in json.loads((folders[0] / "config.json").read_text())["outputs"]}
    with simulated_gpu():
        for folder in folders:
            found = answers(folder)
            assert set(found) == ({"codes"} if name == "code_predictor" else outputs)
            assert min(found.values()) > 0.999999, found


@pytest.fixture(scope="module")
def quantised(checkpoints, tmp_path_factory) -> dict[str, Path]:
    """Form of the weights -> engines of Thinker and Talker."""
    root = tmp_path_factory.mktemp("forms")
    parts = split(Checkpoint(checkpoints["plain"]), root)
    for name, part in parts.items():
        for form, options in (("float", []), ("nvfp4", ["--activations", "nvfp4"])):
            run("offline.export_onnx", part.directory, root / form / name, *options)
    for form in ("float", "nvfp4"):
        run("offline.build_engines", root / form, root / f"{form}-engines")
    run("offline.export_onnx", checkpoints["plain"], root / "plain", "--skip-visual", "--skip-audio", "--skip-code2wav")
    run("offline.build_engines", root / "plain", root / "int4-engines", "--weights", "int4")
    run("offline.build_engines", root / "plain", root / "cuda-engines", "--device", "cuda")
    return {form: root / f"{form}-engines" for form in ("float", "nvfp4", "int4", "cuda")}


@pytest.mark.parametrize("name", ["thinker", "talker"])
@pytest.mark.parametrize(
    "form, bound",
    [("float", COSINE["float32"]), ("nvfp4", COSINE["activations"]), ("int4", COSINE["int4"]), ("cuda", COSINE["float16"])],
)
def test_bounds_by_what_the_weights_became(quantised, name, form, bound):
    """NVFP4 weights are decoded exactly; rounded activations and 4-bit integers are further away, and within their bounds."""
    folder = quantised[form] / name
    assert check(folder) == {"file": FILE, "calls": 2, "cosine": bound}
    if form != "cuda":  # nothing here runs that
        found = answers(folder)
        assert bound < min(found.values()) <= 1.000001, found


def test_codes_of_an_int4_engine(quantised):
    assert answers(quantised["int4"] / "code_predictor")["codes"] >= check(quantised["int4"] / "code_predictor")["first_code"]


@pytest.mark.parametrize("name", ENGINES)
def test_scrambled_weights_are_found(engine_dirs, tmp_path, name):
    """The largest matrix multiplied by another: every size, and model.onnx, as before."""
    folder = shutil.copytree(engine_dirs["plain"] / name, tmp_path / "engine")
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    largest = max((t for t in graph.initializer if t.external_data and len(t.dims) > 1), key=lambda t: int(np.prod(t.dims)))
    where = {e.key: e.value for e in largest.external_data}
    weights = np.memmap(folder / "model.onnx.data", np.float32, "r+", int(where["offset"]), (int(where["length"]) // 4,))
    weights[:] = np.random.default_rng(0).permutation(weights)
    weights.flush()
    with pytest.raises(EngineError, match="computes wrongly on this machine") as caught:
        open_engine(folder, 1, verify="sizes")
    assert str(folder) in str(caught.value) and "build the engine again" in str(caught.value)


@pytest.mark.parametrize("name", ["thinker", "talker", "code_predictor"])
def test_a_wrong_fusion_is_found(tensorrt_dirs, tmp_path, name):
    """What TensorRT 10.13 does to a Thor's graphs, simulated: of two products of the same rows each gets the other's answer."""
    folder = shutil.copytree(tensorrt_dirs["plain"] / name, tmp_path / "engine")
    serialised, *rest = pickle.loads((folder / "model.engine").read_bytes())
    model = onnx.load_from_string(serialised)
    weights = {t.name: t for t in model.graph.initializer}
    by_input: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1] in weights:
            by_input.setdefault(node.input[0], []).append(node)
    pairs = ((a, b) for nodes in by_input.values() for a, b in itertools.combinations(nodes, 2))
    a, b = next((a, b) for a, b in pairs if list(weights[a.input[1]].dims) == list(weights[b.input[1]].dims))
    a.input[1], b.input[1] = b.input[1], a.input[1]
    plan = pickle.dumps((model.SerializeToString(), *rest))
    (folder / "model.engine").write_bytes(plan)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"engine_sha256": sha256(plan).hexdigest()}))
    with simulated_gpu(), pytest.raises(EngineError, match="computes wrongly on this machine.*JetPack 7.2") as caught:
        open_engine(folder, 1, verify="sizes")
    assert str(folder) in str(caught.value)


def test_a_graph_that_cannot_be_run_here_is_built_and_says_so(engine_dirs, tmp_path, monkeypatch, capfd):
    onnx_tree = engine_dirs["plain"].with_name("plain-onnx")

    def unavailable(*arguments):
        raise ReferenceUnavailable("no such operator")

    monkeypatch.setattr(self_check, "run_calls", unavailable)
    arguments = ["--onnxDir", str(onnx_tree / "talker" / "llm"), "--engineDir", str(tmp_path / "talker")]
    assert build_engines.main(arguments) == 0 and "no self-check is stored (no such operator)" in capfd.readouterr().err
    assert check(tmp_path / "talker") == {"skipped": "no such operator"} and not (tmp_path / "talker" / FILE).exists()
    open_engine(tmp_path / "talker", 1)


def test_weights_are_read_one_at_a_time_and_experts_only_if_asked(checkpoints, tmp_path, monkeypatch):
    assert export_onnx.main([str(checkpoints["published"]), str(tmp_path), "--components", "thinker", "--dtype", "float32"]) == 0
    source = tmp_path / "thinker" / "llm"
    config, graph = json.loads((source / "config.json").read_text()), StoredGraph(source)
    asked: list[tuple[str, int | None]] = []
    read = StoredGraph.read
    monkeypatch.setattr(
        StoredGraph, "read", lambda self, name, index=None: asked.append((name, index)) or read(self, name, index)
    )
    held: list[int] = []
    node = Reference._node
    monkeypatch.setattr(Reference, "_node", lambda self, n, values: held.append(len(values)) or node(self, n, values))
    self_check.run_calls(graph, config, self_check.example_calls(config, source), self_check.CAPACITY)
    experts = {(name, index) for name, index in asked if ".experts." in name}
    every = 3 * 3 * 16  # layers, matrices, experts
    assert 0 < len(experts) < every / 2 and all(index is not None for _, index in experts)
    assert max(held) < 25  # inputs, state and what is still to be read
