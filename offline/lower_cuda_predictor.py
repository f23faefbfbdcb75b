"""The CodePredictor for ONNX Runtime on an NVIDIA GPU: 15 unrolled steps whose KV cache never leaves the graph.

The exported graph joins the keys and values of all steps so far by Concat. Here each step's GroupQueryAttention appends to
the cache that the step before it returned, and looks its rotary angles up in one table for all 16 positions.
"""
import numpy as np
import onnx

from offline.lower_onnxruntime_cuda import CudaLowering

ROWS = 16  # the most rows a frame's cache can hold: two of the prefill and one for each later step


class CodePredictorLowering(CudaLowering):
    step_attention = "Attention"

    def run(self, dimensions: dict[str, int]) -> None:
        self.rows_so_far: dict[str, int] = {}  # of each step's keys and values
        super().run(dimensions)

    def one_step(self, node: onnx.NodeProto) -> None:
        """Replace one layer's Attention of one step."""
        def newest(value: str) -> tuple[str, str | None]:  # this step's heads, and what came before them
            producer = self.producer[value]
            return (producer.input[1], producer.input[0]) if producer.op_type == "Concat" else (value, None)

        (k, past_k), (v, past_v) = newest(node.input[1]), newest(node.input[2])
        q_gemm, norm, rotary = self.heads(node.input[0])
        head_dim = self.stored.shape(norm.input[1])[0]
        heads, kv_heads = (self.stored.shape(self.gemm_of(i).input[1])[0] // head_dim for i in (node.input[0], v))
        cos = self.stored.read(rotary.input[1])  # [1, rows, D/2]
        first = 0 if past_k is None else int(self.rows_so_far[past_k])
        rows = cos.shape[1]
        empty = np.zeros((1, kv_heads, ROWS, head_dim), np.float16)
        past = [f"{p}.cache" if p else self.const(f"empty_{kv_heads}_{head_dim}", empty) for p in (past_k, past_v)]
        present = [f"{p}.cache" for p in (node.input[1], node.input[2])]
        self.rows_so_far[node.input[1]] = self.rows_so_far[node.input[2]] = first + rows
        tables = [self.rotary_table(rotary, i) for i in (1, 2)]
        ids = self.const(f"ids_{first}_{rows}", np.arange(first, first + rows)[None])
        counts = [self.const(f"last_{first + rows}", np.array([first + rows - 1], np.int32)),
                  self.const(f"total_{first + rows}", np.array(first + rows, np.int32))]
        out = self.readers[self.readers[node.output[0]][0].output[0]][0]  # Attention -> Transpose -> Reshape
        self.attention(node.input[0], k, v, f"{out.output[0]}.heads", past, present, counts, [*tables, ids], heads, kv_heads)
        self.node("Reshape", [f"{out.output[0]}.heads", out.input[1]], [out.output[0]])
        self.done.update([out.output[0], self.readers[node.output[0]][0].output[0]])

    def rotary_table(self, rotary: onnx.NodeProto, index: int) -> str:
        """The whole cos (1) or sin (2) table [16, D/2], put together from the exported steps' constants."""
        name = f"rotary_{index}"
        if name not in self.initializers:
            steps = {}
            for n in self.graph.node:
                if n.op_type == "RotaryEmbedding":
                    steps[n.input[index]] = self.stored.read(n.input[index])[0]
            self.const(name, np.concatenate(list(steps.values())).astype(np.float16))
        return name
