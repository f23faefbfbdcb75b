"""A graph that was lowered for TensorRT, in the operators of ONNX opset 17: what the parser of TensorRT 8.6 reads.

That version is the last whose wheel brings its libraries, and the only TensorRT that has run engines of ours (tensorrt_8.py).
Its parser ignores attributes that it does not know: a `Shape` with `start` and `end` would silently give the whole shape.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


def load(path: Path) -> onnx.ModelProto:
    """A lowered graph with its weights, which it reaches through a link that onnx does not follow."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            where = {e.key: e.value for e in tensor.external_data}
            with (path.parent / where["location"]).open("rb") as f:
                f.seek(int(where["offset"]))
                tensor.raw_data = f.read(int(where["length"]))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


def to_opset_17(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of offline/tensorrt/lower.py that computes the same in older operators.

    Of the two ways through an MoE layer one gets no rows, for which TensorRT 8.6 "could not find any implementation": here all
    rows go the way of many.
    """
    return _Rewriting(model).run()


class _Rewriting:
    def __init__(self, model: onnx.ModelProto):
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.constants = {t.name: t for t in self.graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self.values = {v.name: v.type.tensor_type for v in [*inferred.value_info, *inferred.input, *inferred.output]}

    def run(self) -> onnx.ModelProto:
        rewrite = {
            "Shape": self.shape,
            "ReduceMean": self.reduce_mean,
            "Split": self.split,
            "Gelu": self.gelu,
            "CumSum": self.cumulative_sum,
            "ArgMax": self.arg_max,
            "Equal": self.equal,
        }
        for node in self.graph.node:
            if self.one_way(node):
                continue
            rewrite.get(node.op_type, self.nodes.append)(node)
        del self.graph.node[:], self.graph.initializer[:], self.model.opset_import[:], self.graph.value_info[:]
        self.drop_unused()
        self.graph.node.extend(self.nodes)
        used = {i for n in self.nodes for i in n.input}
        self.graph.initializer.extend(t for name, t in self.constants.items() if name in used)
        self.model.opset_import.append(helper.make_opsetid("", OPSET))
        self.model.ir_version = IR_VERSION
        return self.model

    def op(self, op_type: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def const(self, array: np.ndarray, name: str) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(array, name))
        return name

    def one_way(self, node: onnx.NodeProto) -> bool:
        """Whether `node` splits the rows of an MoE layer by number, or joins them again: replaced."""
        y = node.output[0]
        if node.op_type == "Slice" and ".many." in y:
            self.op("Identity", [node.input[0]], y)
        elif node.op_type == "Concat" and len(node.input) == 2 and f"{y}.many.y" in node.input[1]:
            self.op("Identity", [node.input[1]], y)
        else:
            return False
        return True

    def drop_unused(self) -> None:
        wanted, kept = {o.name for o in self.graph.output}, []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                wanted |= set(node.input)
                kept.append(node)
        self.nodes = kept[::-1]

    def shape(self, node: onnx.NodeProto) -> None:
        """`start` and `end` are of opset 15, and ignored by the parser."""
        a, y = _attributes(node), node.output[0]
        if not a:
            return self.nodes.append(node)
        start, end = a.get("start", 0), a.get("end", 2**31 - 1)
        whole = self.op("Shape", [node.input[0]], f"{y}.whole")
        bounds = [self.const(np.array([n], np.int64), f"opset_17.{n}") for n in (start, end, 0)]
        self.op("Slice", [whole, *bounds], y)

    def reduce_mean(self, node: onnx.NodeProto) -> None:
        """Axes are an attribute until opset 18."""
        axes = numpy_helper.to_array(self.constants[node.input[1]])
        self.op("ReduceMean", [node.input[0]], node.output[0], axes=axes.tolist(), keepdims=_attributes(node)["keepdims"])

    def split(self, node: onnx.NodeProto) -> None:
        """Without `num_outputs` of opset 18: as many equal parts as there are outputs."""
        for attribute in [a for a in node.attribute if a.name == "num_outputs"]:
            node.attribute.remove(attribute)
        self.nodes.append(node)

    def gelu(self, node: onnx.NodeProto) -> None:
        """x / 2 * (1 + erf(x / sqrt(2))), or with `approximate` x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))."""
        x, y = node.input[0], node.output[0]
        dtype = helper.tensor_dtype_to_np_dtype(self.values[x].elem_type)

        def times(name: str, factor: float, output: str) -> str:
            return self.op("Mul", [name, self.const(np.array(factor, dtype), f"opset_17.{factor:.6f}_{dtype}")], f"{y}.{output}")

        if _attributes(node).get("approximate", b"none") == b"tanh":
            square = self.op("Mul", [x, x], f"{y}.square")
            cube = self.op("Mul", [times(square, 0.044715, "small_square"), x], f"{y}.small_cube")
            inner = times(self.op("Add", [x, cube], f"{y}.sum"), (2 / np.pi) ** 0.5, "inner")
            curve = self.op("Tanh", [inner], f"{y}.curve")
        else:
            curve = self.op("Erf", [times(x, 0.5**0.5, "inner")], f"{y}.curve")
        self.op("Add", [self.op("Mul", [curve, x], f"{y}.turned"), x], f"{y}.twice")
        times(f"{y}.twice", 0.5, "half")
        self.nodes[-1].output[0] = y

    def cumulative_sum(self, node: onnx.NodeProto) -> None:
        """Over the last axis, as a product with a triangle of ones: the parser would make a loop of it, a step a code."""
        a, x, y = _attributes(node), node.input[0], node.output[0]
        sizes, axis = self.values[x].shape.dim, int(numpy_helper.to_array(self.constants[node.input[1]]).item())
        width = sizes[-1].dim_value
        assert axis % len(sizes) == len(sizes) - 1 and width > 0 and not a.get("reverse", 0)
        exclusive = a.get("exclusive", 0)
        ones = np.triu(np.ones((width, width), np.float32), exclusive)
        triangle = self.const(ones, f"opset_17.triangle_{width}_{exclusive}")
        self.op("MatMul", [x, triangle], y)

    def arg_max(self, node: onnx.NodeProto) -> None:
        """Of a vector: the parser makes a TopK of it, which wants a matrix."""
        x, y = node.input[0], node.output[0]
        if len(self.values[x].shape.dim) > 1:
            return self.nodes.append(node)
        first = self.const(np.array([0], np.int64), "opset_17.first_axis")
        row = self.op("Unsqueeze", [x, first], f"{y}.row")
        found = self.op("ArgMax", [row], f"{y}.in_row", axis=1, keepdims=_attributes(node).get("keepdims", 1))
        self.op("Squeeze", [found, first], y)

    def equal(self, node: onnx.NodeProto) -> None:
        """`past_length == 0`, which says where a Slice begins: with truth values in that, 8.6 "could not find any
        implementation" for Code2Wav. The result is a number, 1 - min(past_length, 1)."""
        if node.input[0] != "past_length":
            return self.nodes.append(node)
        one = self.const(np.array([1], np.int64), "opset_17.1")
        self.op("Sub", [one, self.op("Min", [node.input[0], one], f"{node.output[0]}.least")], node.output[0])


def _attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
