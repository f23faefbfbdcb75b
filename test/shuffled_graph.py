"""An exported graph with its nodes in another order that computes the same: a lowering must not mind."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx


def shuffle(source: Path, target: Path, seed: int = 0) -> Path:
    """Copy an exported graph; every node comes at some random place after those that it reads from."""
    shutil.copytree(source, target)
    model = onnx.load(target / "model.onnx", load_external_data=False)
    random, waiting = np.random.default_rng(seed), list(model.graph.node)
    made = {v.name for v in [*model.graph.input, *model.graph.initializer]} | {""}
    ordered = []
    while waiting:
        ready = [n for n in waiting if set(n.input) <= made]
        node = ready[random.integers(len(ready))]
        waiting.remove(node)
        ordered.append(node)
        made.update(node.output)
    assert [n.name for n in ordered] != [n.name for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    onnx.save(model, target / "model.onnx")
    config = json.loads((target / "config.json").read_text())
    config["graph_sha256"] = config["checksums"]["model.onnx"] = hashlib.sha256((target / "model.onnx").read_bytes()).hexdigest()
    config["files"]["model.onnx"] = (target / "model.onnx").stat().st_size
    (target / "config.json").write_text(json.dumps(config))
    return target
