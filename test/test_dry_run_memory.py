"""`--dry-run`'s memory at run time: weights against what engines hold, caches by hand, activations on a graph that is small
enough to count."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import run
from onnx import TensorProto, helper, numpy_helper

from offline.graphs.external_data import StoredGraph
from offline.graphs.memory import memory

LIMITS = {name: {"max_input_len": 64, "capacity": 128} for name in ("thinker", "talker")} | {"code2wav": {"capacity": 40}}
FOLDERS = {"thinker": "thinker/llm", "talker": "talker/llm"} | {
    name: f"multimodal/{name}" for name in ("code_predictor", "code2wav", "audio", "visual")
}


@pytest.fixture(scope="module")
def exported(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dry_run") / "onnx"
    run("offline.export_onnx", checkpoints["plain"], out, "--dtype", "float16")
    return out


@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_weights_are_what_a_cpu_build_writes(exported: Path, tmp_path: Path, weights: str) -> None:
    """But for the pages that tensors begin on, and graphs' constants."""
    run("offline.build_engines", exported, tmp_path, "--weights", weights, "--maxInputLen", 64, "--maxKVCacheCapacity", 128)
    for engine, folder in FOLDERS.items():
        built = tmp_path / (f"multimodal/{engine}" if engine in ("audio", "visual") else engine)
        model = onnx.load(built / "model.onnx", load_external_data=False)
        lengths = [int(e.value) for t in model.graph.initializer for e in t.external_data if e.key == "length"]
        inline = [numpy_helper.to_array(t).nbytes for t in model.graph.initializer if not t.external_data]
        found = memory(exported / folder, LIMITS, "onnxruntime", weights).weights
        assert found == pytest.approx(sum(lengths) + sum(inline), rel=0.03), engine


def test_caches_are_rows_times_heads(exported: Path) -> None:
    layers, heads, width = 4, 2, 32
    rows = 2 * layers * heads * width * 128  # keys and values of 128 rows
    assert memory(exported / "thinker/llm", LIMITS, "cuda", "float32").caches == 2 * rows
    assert memory(exported / "thinker/llm", LIMITS, "onnxruntime", "float32").caches == 4 * rows
    assert memory(exported / "multimodal/audio", LIMITS, "tensorrt", "float32").caches == 0


def test_activations_are_what_is_alive_at_once(tmp_path: Path) -> None:
    """x [n, 4] -> a = x w [n, 8] -> b = relu a -> y = a + b: x and a; a and b; then y with them."""
    weight = numpy_helper.from_array(np.zeros((4, 8), np.float32), "w")
    nodes = [helper.make_node(*n) for n in (("MatMul", ["x", "w"], ["a"]), ("Relu", ["a"], ["b"]), ("Add", ["a", "b"], ["y"]))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["n", 8])], [weight]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), tmp_path / "model.onnx")
    config = {"engine": "visual", "model": {}, "limits": {"max_patches": 100}, "state": []}
    config["inputs"] = [{"name": "x", "shape": ["n", 4]}]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = memory(tmp_path, {}, "tensorrt", "float32")
    assert (found.weights, found.caches, found.activations) == (4 * 8 * 4, 0, 3 * 100 * 8 * 4)


def test_every_value_of_an_export_has_a_size(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from offline.graphs import memory as module

    sizes = module._value_bytes
    folded = module._fold
    models = []

    def remembered(graph: StoredGraph, config: dict, wide: bool) -> dict[str, int]:
        models.clear()
        found = sizes(graph, config, wide)
        assert not [o for node in models[-1].graph.node for o in node.output if o and not found.get(o)], config["engine"]
        return found

    monkeypatch.setattr(module, "_value_bytes", remembered)
    monkeypatch.setattr(module, "_fold", lambda model, inferred: models.append(model) or folded(model, inferred))
    for folder in FOLDERS.values():
        memory(exported / folder, LIMITS, "tensorrt", "float32")
