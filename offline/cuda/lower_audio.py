"""Lower the convolutions of an exported audio encoder to matrix products, for ONNX Runtime on an NVIDIA GPU.

cuDNN plans its convolutions for one number and one length of pieces, both of which change with nearly every turn. Matrix
products need no plan. Every node that is not a view of its input is a kernel launch, so there should be few.

  [pieces, channels, bins, frames] -> [pieces, frames, bins, channels]: channels last, and what is known here behind what is not
  Conv, Gelu      -> Pad, the nine rows of each window side by side (Gather), MatMul, BiasGelu. A Gemm would lose the axes,
                     and add its bias in a launch of its own
  last Transpose  -> none: a token's rows are together; the columns of the weight behind it are reordered instead

Windows take 9/4 times the memory of their rows: at the dimensions of the 30B model, 10 MB for each piece in float16.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graphs.external_data import StoredGraph
from ..onnxruntime.lower import MICROSOFT

KERNEL, STRIDE = 3, 2  # of all three, in both directions, with a border of one


class AudioLowering:
    """Nodes are visited in the order of graphs/audio_encoder.py; comments give shapes after the lowering."""

    def __init__(self, stored: StoredGraph, target: Path):
        """`target` holds a copy of the weights file; reordered weights take their old places in it."""
        self.stored, self.target, self.graph = stored, target, stored.model.graph
        self.nodes: list[onnx.NodeProto] = []
        self.renamed: dict[str, str] = {}  # exported value -> the one in its place
        self.biases: dict[str, str] = {}  # product of a convolution -> what its BiasGelu has to add
        mel = next(v for v in self.graph.input if v.name == "mel")
        self.bins = mel.type.tensor_type.shape.dim[2].dim_value  # of the rows that the next convolution reads
        self.channels = 1
        # conv_out reads a token's channels and bins side by side: Gemm <- Reshape <- the Transpose that is not needed here
        producer = {o: n for n in self.graph.node for o in n.output}
        self.conv_out = next(n for n in self.graph.node if "conv_out.weight" in n.input)
        self.by_token = producer[producer[self.conv_out.input[0]].input[0]]

    def op(self, op_type: str, inputs: list[str], output: str, domain: str = "", **attributes) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, domain=domain, **attributes))
        return output

    def const(self, name: str, value: list | np.ndarray) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
        return name

    def rewrite(self, name: str, weight: np.ndarray) -> None:
        """Weight `name` with its numbers in another order."""
        tensor = self.stored.tensors[name]
        where = {e.key: e.value for e in tensor.external_data}
        with (self.target / where["location"]).open("r+b") as file:
            file.seek(int(where["offset"]))
            weight.tofile(file)
        tensor.ClearField("dims")
        tensor.dims.extend(weight.shape)

    # ---- convolutions -----------------------------------------------------------------------------------------------
    def windows(self, x: str, out: str) -> str:
        """x [pieces, frames, bins, channels] -> [pieces, frames / 2, bins / 2, 9 * channels], both halves rounded up."""
        width, bins = self.bins + 2, -(-self.bins // STRIDE)
        padded = self.op("Pad", [x, self.const(f"{out}.border", [0, 1, 1, 0, 0, 1, 1, 0])], f"{out}.padded")
        rows = self.op("Reshape", [padded, self.const(f"{out}.one_axis", [0, -1, self.channels])], f"{out}.rows")
        # Index of the first bin in the last padded frame of each window: frames 2, 4, ... to the end, which Range reads on
        # the host. The offsets from there to the window's nine rows are known: [1, bins / 2 * 9].
        end = self.op("Shape", [rows], f"{out}.end", start=1, end=2)
        last = self.op(
            "Range",
            [self.const(f"{out}.first", [(KERNEL - 1) * width]), end, self.const(f"{out}.step", [STRIDE * width])],
            f"{out}.last",
        )
        column = self.op("Unsqueeze", [last, self.const(f"{out}.axis", [1])], f"{out}.column")
        bin_, frame, neighbour = np.ogrid[:bins, 1 - KERNEL : 1, :KERNEL]
        offsets = self.const(f"{out}.offsets", (STRIDE * bin_ + frame * width + neighbour).reshape(1, -1))
        index = self.op("Add", [column, offsets], f"{out}.index")
        gathered = self.op("Gather", [rows, index], f"{out}.gathered", axis=1)  # [pieces, frames / 2, bins / 2 * 9, channels]
        shape = self.const(f"{out}.shape", [0, 0, bins, KERNEL**2 * self.channels])
        return self.op("Reshape", [gathered, shape], f"{out}.windows")

    def conv(self, node: onnx.NodeProto, x: str) -> None:
        _, weight, bias = node.input
        out = node.output[0]
        if self.channels == 1:  # mel
            x = self.op("Transpose", [x], f"{out}.input", perm=[0, 3, 2, 1])
        exported = self.stored.raw(weight)  # [outer, inner, bins, frames]
        outer = len(exported)
        self.rewrite(weight, exported.transpose(3, 2, 1, 0).reshape(-1, outer))  # [frames * bins * inner, outer]
        self.op("MatMul", [self.windows(x, out), weight], out)
        self.biases[out], self.bins, self.channels = bias, -(-self.bins // STRIDE), outer

    def run(self) -> list[onnx.NodeProto]:
        for node in self.graph.node:
            inputs, out = [self.renamed.get(i, i) for i in node.input], node.output[0]
            if node.op_type == "Conv":
                self.conv(node, inputs[0])
            elif node.op_type == "Gelu" and inputs[0] in self.biases:
                self.op("BiasGelu", [inputs[0], self.biases[inputs[0]]], out, domain=MICROSOFT)
            elif out == self.by_token.output[0]:
                self.renamed[out] = inputs[0]
            else:
                if out == self.conv_out.output[0]:
                    weight = self.stored.raw("conv_out.weight")
                    by_bin = weight.reshape(len(weight), self.channels, self.bins).swapaxes(1, 2)
                    self.rewrite("conv_out.weight", by_bin.reshape(weight.shape))
                del node.input[:]
                node.input.extend(inputs)
                self.nodes.append(node)
        return self.nodes
