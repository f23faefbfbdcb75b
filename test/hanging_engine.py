"""An engine whose graph really hangs: once its cache holds more rows than `rows`, a loop in it has no end."""

import json
from pathlib import Path

import onnx
from broken_files import write
from onnx import TensorProto, helper, numpy_helper


def make_it_hang(directory: Path, rows: int) -> None:
    """Replace the model.onnx (a link) of a stateful engine."""
    import hashlib

    import numpy as np

    config = json.loads((directory / "config.json").read_text())
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    graph, position = model.graph, config["position"]["input"]
    (output,) = [value for value in graph.output if value.name == "logits"]
    for node in graph.node:
        node.output[:] = ["calm_logits" if name == "logits" else name for name in node.output]
    for name, value in {"hang_rows": [rows], "hang_trips": [np.iinfo(np.int64).max], "hang_no": [0]}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["turns", "turn"], ["more"])],
        "for_ever",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("turns", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.INT64, [1]),
        ],
    )
    graph.node.extend(
        [
            helper.make_node("Greater", [position, "hang_rows"], ["hang_now"]),
            helper.make_node("Where", ["hang_now", "hang_trips", "hang_no"], ["hang_count"]),
            helper.make_node("Loop", ["hang_count", "", "hang_no"], ["hung"], body=body),
            helper.make_node("Mul", ["hung", "hang_no"], ["hung_zero"]),
            helper.make_node("Cast", ["hung_zero"], ["hung_cast"], to=output.type.tensor_type.elem_type),
            helper.make_node("Add", ["calm_logits", "hung_cast"], ["logits"]),
        ]
    )
    write(directory / "model.onnx", model.SerializeToString())
    content = (directory / "model.onnx").read_bytes()
    config["files"]["model.onnx"] = len(content)
    config["graph_sha256"] = config["checksums"]["model.onnx"] = hashlib.sha256(content).hexdigest()
    write(directory / "config.json", json.dumps(config).encode())
