"""Lower an exported encoder or Code2Wav to the operators that are fast in ONNX Runtime on an NVIDIA GPU.

  Add -> RMSNormalization   SkipSimplifiedLayerNormalization
  gate, up                  one matrix product, split afterwards

Decoders need no graph there: see cuda_weights.py.
"""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from offline.external_data import NUMPY_TYPE, ExternalData, StoredGraph

OPSET = 23
MICROSOFT = "com.microsoft"


class CudaLowering:
    """One graph on its way from `source` to `target`."""

    def __init__(self, source: Path, target: Path):
        self.stored, self.target = StoredGraph(source), target
        self.graph = self.stored.model.graph
        self.producer = {o: n for n in self.graph.node for o in n.output}
        self.initializers: dict[str, TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.done: set[str] = set()  # outputs whose nodes a fusion has replaced
        self.data = ExternalData(target)

    # ---- weights ----------------------------------------------------------------------------------------------------
    def add(self, name: str, value: np.ndarray) -> str:
        if name not in self.initializers:
            self.initializers[name] = self.data.add(name, value.dtype, value.shape, [value])
        return name

    def node(self, op_type: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, outputs, outputs[0], domain=domain, **attributes))
        return outputs[0]

    # ---- fusions ----------------------------------------------------------------------------------------------------
    def norm(self, node: onnx.NodeProto) -> None:
        """RMSNormalization, together with the residual Add before it where there is one."""
        x, gamma = node.input[0], self.add(node.input[1], self.stored.raw(node.input[1]))
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        add = self.producer.get(x)
        pending = add is not None and add.op_type == "Add" and self.pending_add == x
        if pending:
            self.nodes.pop()
            self.node("SkipSimplifiedLayerNormalization", [*add.input, gamma], [node.output[0], "", "", x], MICROSOFT,
                      epsilon=epsilon)
        else:
            self.node("SimplifiedLayerNormalization", [x, gamma], [node.output[0]], axis=-1, epsilon=epsilon, stash_type=1)

    def swiglu(self, node: onnx.NodeProto) -> None:
        """Mul(Swish(gate x), up x)."""
        gate = self.producer[self.producer[node.input[0]].input[0]]
        up = self.producer[node.input[1]]
        weight = self.add(f"{gate.input[1]}|{up.input[1]}", np.concatenate([self.stored.raw(n.input[1]) for n in (gate, up)]))
        both = self.node("Gemm", [gate.input[0], weight], [f"{node.output[0]}.gate_up"], transB=1)
        halves = [f"{node.output[0]}.gate", f"{node.output[0]}.up"]
        self.node("Split", [both], halves, axis=-1, num_outputs=2)
        silu = self.node("QuickGelu", [halves[0]], [f"{node.output[0]}.silu"], MICROSOFT, alpha=1.0)
        self.node("Mul", [silu, halves[1]], list(node.output))

    def is_swiglu(self, node: onnx.NodeProto) -> bool:
        before = self.producer.get(node.input[0])
        return node.op_type == "Mul" and before is not None and before.op_type == "Swish"

    def fused_away(self) -> None:
        """Mark what swiglu() recomputes from the layer's input."""
        for node in self.graph.node:
            if self.is_swiglu(node):
                swish, up = self.producer[node.input[0]], self.producer[node.input[1]]
                self.done.update([swish.output[0], swish.input[0], up.output[0]])

    # ---- graph ------------------------------------------------------------------------------------------------------
    def run(self, dimensions: dict[str, int]) -> None:
        self.pending_add = ""
        self.fused_away()
        for node in self.graph.node:
            output = node.output[0]
            if output in self.done:
                continue
            if node.op_type == "RMSNormalization":
                self.norm(node)
            elif self.is_swiglu(node):
                self.swiglu(node)
            elif node.op_type == "Swish":
                self.node("QuickGelu", list(node.input), list(node.output), MICROSOFT, alpha=1.0)
            else:
                self.nodes.append(node)
            self.pending_add = output if self.nodes[-1].op_type == "Add" else ""
        self.finish(dimensions)

    def finish(self, dimensions: dict[str, int]) -> None:
        needed, kept = {o.name for o in self.graph.output}, []
        for node in reversed(self.nodes):
            if any(o in needed for o in node.output):
                kept.append(node)
                needed.update(node.input)
        nodes = kept[::-1]
        for name in dict.fromkeys(i for n in nodes for i in n.input):
            tensor = self.stored.tensors.get(name)
            if name in self.initializers or tensor is None:
                continue
            self.initializers[name] = (
                tensor if tensor.data_location != TensorProto.EXTERNAL else
                self.data.add(name, NUMPY_TYPE[tensor.data_type], tensor.dims, [self.stored.raw(name)]))
        self.data.close()
        for value in [*self.graph.input, *self.graph.output]:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in dimensions:
                    dim.dim_value = dimensions[dim.dim_param]
        model = self.stored.model
        del self.graph.node[:], self.graph.initializer[:], model.functions[:], model.opset_import[:]
        used = {i for n in nodes for i in n.input}
        self.graph.node.extend(nodes)
        self.graph.initializer.extend(t for name, t in self.initializers.items() if name in used)
        model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)])
        onnx.save(model, self.target / "model.onnx")
