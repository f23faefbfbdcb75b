"""Lower an exported Code2Wav to matrix products, for ONNX Runtime on an NVIDIA GPU.

cuDNN plans its convolutions for one number of columns; speech comes in chunks of many sizes, and a plan takes longer than
the chunk. Matrix products need none. Every node left is a kernel launch or two, so there should be few.

  [1, channels, columns] -> [columns, channels], states too: no transposes
  Conv                   -> the rows of each window side by side (Gather), then one Gemm
  Conv, one per channel  -> the same rows times the weight, summed
  ConvTranspose          -> a Conv with `stride` times as many outputs, whose rows are then cut into `stride`
  Mul by layer scales    -> the weights of the Gemm before it
  RMSNormalization       -> SkipSimplifiedLayerNormalization, with the residual Add before it
  float16                -> float32, as sin(alpha x) needs it
"""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..onnxruntime.lower import MICROSOFT, Lowering

MAX_RUN_FRAMES = 25  # more at once take longer for each frame, and memory: the widest windows of 100 are half a gigabyte


class Code2WavLowering(Lowering):
    """Nodes are visited in the order of graphs/code2wav.py; comments give shapes after the lowering, T the columns."""

    def __init__(self, source: Path, target: Path):
        super().__init__(source, target, int4=False)
        self.states = {
            v.name: v for v in [*self.graph.input, *self.graph.output] if len(v.type.tensor_type.shape.dim) == 3
        }  # of convolutions; those of attention have four axes
        self.rows: dict[str, str] = {}  # exported value with axes (1,) channels, columns -> value [T, channels]
        self.length = ""  # int64 [1], on the host: T, as it is between two upsamplings
        self.made: set[str] = set()  # values that several nodes read
        self.place: dict[str, int] = {}  # value -> index in `nodes` of the node that makes it
        self.readers = Counter(i for n in self.graph.node for i in n.input)  # of each exported value

    def put(self, node: onnx.NodeProto, place: int | None = None) -> None:
        """Append `node`, or put it in the place of one that it makes unnecessary."""
        if place is None:
            place = len(self.nodes)
            self.nodes.append(node)
        else:
            self.nodes[place] = node
        self.place.update((output, place) for output in node.output if output)

    def op(self, op_type: str, inputs: list[str], output: str, domain: str = "", place: int | None = None, **attributes) -> str:
        self.put(helper.make_node(op_type, inputs, [output], output, domain=domain, **attributes), place)
        return output

    def maker(self, value: str, op_type: str) -> int | None:
        """Where the node is that makes `value`, if it is one of that type."""
        place = self.place.get(value)
        return place if place is not None and self.nodes[place].op_type == op_type else None

    def shared(self, op_type: str, inputs: list[str], output: str, **attributes) -> str:
        if output not in self.made:
            self.made.add(output)
            self.op(op_type, inputs, output, **attributes)
        return output

    def const(self, value: int | list) -> str:
        name = f"int64_{value}"
        if name not in self.made:
            self.made.add(name)
            self.initializers.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def weight(self, name: str, value: np.ndarray) -> str:
        return self.add(name, np.float32, value.shape, [value])

    # ---- convolutions -----------------------------------------------------------------------------------------------
    def first_call(self) -> str:
        """int64 [1]: 1 if no frames are past, else 0. As a Shape it is on the host, where Range wants it."""
        none_past = self.shared("Range", ["past_length", self.const([1]), self.const([1])], "none_past")
        return self.shared("Shape", [none_past], "first_call")

    def positions(self, start: str) -> str:
        """int64 [T - start]: start .. T - 1."""
        return self.shared("Range", [start, self.length, self.const([1])], f"{self.length}.from_{start}")

    def windows(self, x: str, out: str, channels: int, kernel: int, dilation: int, start: str) -> str:
        """x [T + (kernel - 1) * dilation, channels] -> [T - start, kernel * channels]."""
        first = self.positions(start)
        column = self.shared("Unsqueeze", [first, self.const([1])], f"{first}.column")
        offsets = self.const([j * dilation for j in range(kernel)])
        index = self.shared("Add", [column, offsets], f"{first}.{kernel}_by_{dilation}")
        gathered = self.op("Gather", [x, index], f"{out}.windows", axis=0)  # [T - start, kernel, channels]
        return self.op("Reshape", [gathered, self.const([-1, kernel * channels])], f"{out}.flat")

    def conv(self, node: onnx.NodeProto, x: str) -> None:
        """x is [T, channels] for kernel 1, else joined with its state."""
        weight, out = self.stored.read(node.input[1]), node.output[0]  # [outer, inner / groups, kernel]
        _, inner, kernel = weight.shape
        a = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        weight = weight.transpose(2, 1, 0)
        if a["group"] > 1:
            self.depthwise(node, x, weight)
            return
        if kernel > 1:
            x = self.windows(x, out, inner, kernel, a["dilations"][0], self.const([0]))
        self.op("Gemm", [x, self.weight(node.input[1], weight.reshape(kernel * inner, -1)), node.input[2]], out)

    def depthwise(self, node: onnx.NodeProto, x: str, weight: np.ndarray) -> None:
        """weight [kernel, 1, channels]. Sums over the first axis are the fast ones, so the windows' rows go there."""
        first, out = self.positions(self.const([0])), node.output[0]
        offsets = self.const([[j] for j in range(len(weight))])
        index = self.shared("Add", [first, offsets], f"{first}.{len(weight)}_rows")
        gathered = self.op("Gather", [x, index], f"{out}.windows", axis=0)  # [kernel, T, channels]
        products = self.op("Mul", [gathered, self.weight(node.input[1], weight)], f"{out}.products")
        summed = self.op("ReduceSum", [products, self.const([0])], f"{out}.sum", keepdims=0)
        self.op("Add", [summed, node.input[2]], out)

    def transposed_conv(self, node: onnx.NodeProto, x: str) -> None:
        """Of n = kernel / stride = 1 or 2 rows. Row t's block of `stride` outputs takes the weight's last block from the
        oldest row and the first from row t itself; with n = 2, x is joined with its state."""
        weight, bias, out = self.stored.read(node.input[1]), self.stored.read(node.input[2]), node.output[0]
        inner, outer, kernel = weight.shape
        stride = next(a.ints[0] for a in node.attribute if a.name == "strides")
        n = kernel // stride
        if n > 1:
            x = self.windows(x, out, inner, n, 1, self.first_call())
        weight = weight.reshape(inner, outer, n, stride)[:, :, ::-1].transpose(2, 0, 3, 1)  # [n, inner, stride, outer]
        blocks = self.op(
            "Gemm",
            [
                x,
                self.weight(node.input[1], weight.reshape(n * inner, stride * outer)),
                self.weight(node.input[2], np.tile(bias, stride)),
            ],
            f"{out}.blocks",
        )
        self.op("Reshape", [blocks, self.const([-1, outer])], out)
        self.length = self.op("Shape", [out], f"{out}.length", start=0, end=1)

    # ---- the rest ---------------------------------------------------------------------------------------------------
    def slice(self, node: onnx.NodeProto, joined: str) -> None:
        """The next state; or, before a transposed convolution, the first call's missing column, which it handles itself."""
        _, starts, ends, _ = node.input
        if starts in self.stored:
            self.op("Slice", [joined, starts, ends, self.const([0])], node.output[0])
        else:
            self.rows[node.output[0]] = joined

    def mul(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        x, factor = inputs
        axes = len(self.stored.shape(factor)) if factor in self.stored else 0
        gemm = self.maker(x, "Gemm")
        if axes == 1 and gemm is not None and self.readers[node.input[0]] == 1:  # nobody else reads the product
            if any(a.name == "transB" for a in self.nodes[gemm].attribute):  # of a layer: scale, or gamma
                self.scaled_gemm(gemm, node.output[0], self.stored.read(factor))
                return
        if axes == 2:  # of snake: [channels, 1]
            self.weight(factor, self.stored.read(factor)[:, 0])
        self.op("Mul", [x, factor], node.output[0])

    def scaled_gemm(self, place: int, out: str, scale: np.ndarray) -> None:
        """The Gemm there, with its outputs scaled."""
        x, weight, *bias = self.nodes[place].input
        operands = [x, self.weight(f"{weight}.scaled", scale[:, None] * self.stored.read(weight))]  # [out, in]
        operands += [self.weight(f"{b}.scaled", scale * self.stored.read(b)) for b in bias]
        self.op("Gemm", operands, out, place=place, transB=1)

    def norm(self, node: onnx.NodeProto) -> None:
        x, gamma = node.input
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        residual = self.maker(x, "Add")
        if residual is not None:
            joined = helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [*self.nodes[residual].input, gamma],
                [node.output[0], "", "", x],
                node.name,
                domain=MICROSOFT,
                epsilon=epsilon,
            )
            self.put(joined, residual)
        else:
            self.op("SimplifiedLayerNormalization", [x, gamma], node.output[0], axis=-1, epsilon=epsilon, stash_type=1)

    def is_layout_change(self, node: onnx.NodeProto) -> bool:
        if node.op_type == "Transpose":
            return list(node.attribute[0].ints) == [1, 0]
        return node.op_type in ("Squeeze", "Unsqueeze") and node.input[0] in self.rows

    # ---- graph ------------------------------------------------------------------------------------------------------
    def run(self, config: dict) -> None:
        """Also makes `config`, the exported config.json with the limits to build for, say what has become of the graph."""
        joined: set[str] = set()  # states of convolutions with the new rows behind them
        for node in self.graph.node:
            inputs, out = [self.rows.get(i, i) for i in node.input], node.output[0]
            if self.is_layout_change(node):
                self.rows[out] = inputs[0]
            elif node.op_type == "Concat" and inputs[0] in self.states:
                joined.add(self.op("Concat", inputs, out, axis=0))
            elif node.op_type == "Slice" and inputs[0] in joined:
                self.slice(node, inputs[0])
            elif node.op_type == "Conv":
                self.conv(node, inputs[0])
                self.rows[out] = out
            elif node.op_type == "ConvTranspose":
                self.transposed_conv(node, inputs[0])
            elif node.op_type == "Mul":
                self.mul(node, inputs)
            elif node.op_type == "RMSNormalization":
                self.norm(node)
            elif node.op_type == "Swish":
                self.op("QuickGelu", inputs, out, domain=MICROSOFT, alpha=1.0)
            else:
                del node.input[:]
                node.input.extend(inputs)
                self.put(node)
        self.transpose_states(config)
        config["limits"]["max_run_frames"] = MAX_RUN_FRAMES
        self.finish(config["limits"])

    def transpose_states(self, config: dict) -> None:
        for value in self.states.values():
            _, channels, columns = value.type.tensor_type.shape.dim
            channels.dim_value, columns.dim_value = columns.dim_value, channels.dim_value
            del value.type.tensor_type.shape.dim[0]
        for state in config["state"]:
            if state["input"] in self.states:
                _, channels, columns = state["shape"]
                state["shape"] = [columns, channels]
