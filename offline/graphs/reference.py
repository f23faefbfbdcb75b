"""An exported graph run on a CPU in float32, node by node, a large one with one weight in memory at a time: slow, and sure.

Each node is a session of ONNX Runtime of its own (nodes alike share one), whose weights come in as inputs. Only MoE and the
rounding to NVFP4 are computed by numpy, so that of 128 experts none is read but those that are asked, on all cores. At the
dimensions of the 30B model, four NVFP4 layers of the Thinker and its head took 13 s of one core for a prompt of four rows
and a fifth, and the process 2 GB (measured; so a few minutes of one core for all 48).
"""

from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..quantization import nvfp4
from .builder import DOMAIN, IR_VERSION, OPSET
from .external_data import ONNX_TYPE, StoredGraph, in_parallel

KEEP_BYTES = 10**9  # a graph whose weights fit is read once: the CodePredictor uses each of its 15 times in a frame


class ReferenceUnavailable(Exception):
    """This machine cannot run the graph; the text says why."""


def run_calls(graph: StoredGraph, config: dict, calls: list[dict[str, np.ndarray]], capacity: int) -> list[dict[str, np.ndarray]]:
    """The outputs of each call of one sequence, without its state; `config` is the exported config.json, `capacity` the rows
    of the KV caches. Raises ReferenceUnavailable."""
    reference = Reference(graph)
    sizes = {"capacity": capacity}
    states = {
        s["input"]: np.zeros([sizes[d] if isinstance(d, str) else d for d in s["shape"]], np.float32) for s in config["state"]
    }
    position, length, answers = config.get("position"), 0, []
    for call in calls:
        inputs = {**call, **states}
        if position:
            inputs[position["input"]] = np.array([length], np.int64)
            length += call[position["counts"]].shape[position.get("axis", 0)]
        values = reference.run(inputs)
        states = {s["input"]: values[s["output"]] for s in config["state"]}
        answers.append({o["name"]: values[o["name"]] for o in config["outputs"]})
    return answers


class Reference:
    def __init__(self, graph: StoredGraph):
        try:
            import onnxruntime
        except ImportError as e:
            raise ReferenceUnavailable("ONNX Runtime is not installed") from e
        self.ort, self.graph = onnxruntime, graph
        self.sessions: dict[tuple, Any] = {}
        self.functions = {f.name: f for f in graph.model.functions}
        self.options = onnxruntime.SessionOptions()
        self.options.log_severity_level = 4
        self.options.intra_op_num_threads = 1  # starting threads takes longer than most nodes
        self.options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.outputs = {o.name for o in graph.model.graph.output}
        values = sum(int(np.prod(graph.shape(name))) for name in graph.tensors)
        self.kept: dict[str, np.ndarray] | None = {} if 4 * values <= KEEP_BYTES else None  # weights, to be read once

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The graph's outputs, state included."""
        values = {name: _wide(array) for name, array in inputs.items()}
        nodes = [n for n in self.graph.model.graph.node if n.output[0] not in self.graph.packed and not self._is_scale(n)]
        readers = Counter(i for n in nodes for i in n.input)
        for node in nodes:
            arrays = self._moe(node, values) if node.op_type == "MoE" else self._node(node, values)
            values.update(zip(node.output, arrays))
            for name in node.input:  # what nobody reads any more
                readers[name] -= 1
                if not readers[name] and name not in self.outputs:
                    values.pop(name, None)
        return values

    def _is_scale(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "DequantizeLinear" and node.input[0] in self.graph

    def _read(self, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
        if name in values:
            return values[name]
        if self.kept is None:
            return _wide(np.asarray(self.graph.read(name)))
        if name not in self.kept:
            self.kept[name] = _wide(np.asarray(self.graph.read(name)))
        return self.kept[name]

    def _node(self, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        arrays = {name: self._read(name, values) for name in node.input if name}
        if node.op_type == "NVFP4Quantize":
            x, scale = (arrays[name] for name in node.input)
            return [nvfp4.decode(*nvfp4.encode(x, float(scale)))]
        # Nodes that differ in names alone share a session: inputs are called 0, 1, ...
        names = {name: f"in{i}" for i, name in enumerate(node.input) if name}
        attributes = b"".join(sorted(a.SerializeToString() for a in node.attribute))
        kinds = tuple((names[n], arrays[n].dtype.str, arrays[n].ndim) for n in names)
        key = (node.op_type, node.domain, attributes, kinds, tuple(names.get(n, "") for n in node.input), len(node.output))
        if key not in self.sessions:
            self.sessions[key] = self._session(node, arrays, names)
        return self.sessions[key].run(None, {names[n]: np.asarray(a, order="C") for n, a in arrays.items()})

    def _session(self, node: onnx.NodeProto, arrays: dict[str, np.ndarray], names: dict[str, str]) -> Any:
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        del alone.input[:], alone.output[:]
        alone.input.extend(names.get(n, "") for n in node.input)
        alone.output.extend(f"out{i}" for i in range(len(node.output)))
        for attribute in alone.attribute:
            if alone.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
        inputs = [helper.make_tensor_value_info(names[n], ONNX_TYPE[a.dtype], [None] * a.ndim) for n, a in arrays.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in alone.output]
        functions = [self.functions[node.op_type]] if node.domain == DOMAIN else []
        model = helper.make_model(
            helper.make_graph([alone], node.op_type, inputs, outputs),
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)],
            functions=functions,
            ir_version=IR_VERSION,
        )
        try:
            return self.ort.InferenceSession(model.SerializeToString(), self.options, providers=["CPUExecutionProvider"])
        except Exception as e:  # noqa: BLE001 - of ONNX Runtime's own kinds
            raise ReferenceUnavailable(f"ONNX Runtime {self.ort.__version__} has no {node.op_type} of opset {OPSET}: {e}") from e

    def _moe(self, node: onnx.NodeProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The body of `functions.moe`: x [S, H], router_logits [S, E], gate, up, down, and the scales of W4A4."""
        x, logits = (values[name] for name in node.input[:2])
        gate, up, down, *scales = node.input[2:]
        a = {a.name: a.i for a in node.attribute}
        scales = [float(self._read(name, values)) for name in scales]
        rounded = lambda rows, i: nvfp4.decode(*nvfp4.encode(rows, scales[i])) if scales else rows  # noqa: E731
        probability = np.exp(logits - logits.max(axis=1, keepdims=True))
        probability /= probability.sum(axis=1, keepdims=True)
        chosen = np.argsort(-probability, axis=1, kind="stable")[:, : a["top_k"]]
        score = np.take_along_axis(probability, chosen, axis=1)
        if a["normalize"]:
            score /= score.sum(axis=1, keepdims=True)
        x, y = rounded(x, 0), np.zeros_like(x)
        experts = np.unique(chosen).tolist()
        asked = [np.nonzero(chosen == expert) for expert in experts]  # rows, and place among their k

        def answer(i: int) -> np.ndarray:
            gated, upped = (x[asked[i][0]] @ self.graph.read(w, experts[i]).T for w in (gate, up))
            inner = rounded(gated / (1 + np.exp(-gated)) * upped, 1)
            return inner @ self.graph.read(down, experts[i]).T

        for (rows, place), product in zip(asked, in_parallel(answer, len(experts))):
            y[rows] += score[rows, place, None] * product
        return [y]


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float16 else array
