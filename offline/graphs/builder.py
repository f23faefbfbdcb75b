"""Write one ONNX graph (opset 24, batch 1) whose weights go straight from the checkpoint to `model.onnx.data`.

Activations inside a graph are 2-D, [rows, channels]: batch is always 1, and linear layers are `Gemm` with
the checkpoint's own [out, in] weight layout, so nothing is transposed on the way.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import TensorProto, helper

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.forms import read_scalar
from .external_data import ONNX_TYPE, ExternalData

OPSET = 24
IR_VERSION = 11
DOMAIN = "omni_ros"  # our local functions: nodes that each backend lowers its own way
NVFP4_BLOCK = 16


class GraphBuilder:
    """Nodes in order of creation; every method that makes a node returns the name of its output."""

    def __init__(self, directory: Path, checkpoint: Checkpoint, prefix: str, dtype: np.dtype, quantize_activations: bool = False):
        """`prefix` stands before every key in the checkpoint; `dtype` is that of activations and 16-bit weights.

        `quantize_activations` rounds what goes into NVFP4 weights to NVFP4 too (W4A4 rather than W4A16), and into FP8 to FP8.
        """
        self.quantize_activations = quantize_activations
        self.directory, self.checkpoint, self.prefix = directory, checkpoint, prefix
        self.dtype = np.dtype(dtype)
        self.onnx_dtype = ONNX_TYPE[self.dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[dict] = []
        self.outputs: list[dict] = []
        self.states: list[dict] = []
        self.functions: list[onnx.FunctionProto] = []
        self._names: set[str] = set()
        self._constants: dict[tuple, str] = {}
        self._activations: dict[tuple[str, float], str] = {}
        self._dequantized: dict[str, str] = {}  # matrix -> its value: the CodePredictor uses each 15 times
        directory.mkdir(parents=True, exist_ok=True)
        self._data = ExternalData(directory)

    # ---- inputs, outputs, state -------------------------------------------------------------------------------
    def input(self, name: str, shape: list[int | str], dtype: DTypeLike | None = None) -> str:
        self.inputs.append({"name": name, "dtype": str(np.dtype(dtype or self.dtype)), "shape": shape})
        return name

    def output(self, name: str, value: str, shape: list[int | str], dtype: DTypeLike | None = None) -> None:
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        self.outputs.append({"name": name, "dtype": str(np.dtype(dtype or self.dtype)), "shape": shape})

    def state(self, name: str, shape: Sequence[int | str], in_place: bool = False, **more: float) -> str:
        """Declare state that the engine keeps between runs: input `past_<name>`, output `present_<name>`.

        All state starts as zeros. `in_place` says that input and output may share one buffer; `more` goes into config.json.
        """
        ends = {"input": f"past_{name}", "output": f"present_{name}"}
        self.states.append({**ends, "dtype": str(self.dtype), "shape": shape, "in_place": in_place, **more})
        return f"past_{name}"

    def set_state(self, name: str, value: str) -> None:
        """Name `value` as the new content of state `name` (in-place nodes write `present_<name>` themselves)."""
        self.nodes.append(helper.make_node("Identity", [value], [f"present_{name}"], name=f"present_{name}"))

    # ---- weights and constants ----------------------------------------------------------------------------------
    def weight(self, key: str, shape: tuple[int, ...] | None = None) -> str:
        """The checkpoint's tensor `prefix + key`, converted to the graph's dtype; written once, however often used."""
        if key in self._names:
            return key
        return self.tensor(key, self.checkpoint.read(self.prefix + key, shape).astype(self.dtype))

    def matrix(self, key: str) -> str:
        """A linear layer's weight [out, in], 16-bit, FP8 or NVFP4."""
        if not (self.is_fp8(key) or self.is_nvfp4(key)):
            return self.weight(key)
        if key not in self._dequantized:
            out, packed = self.checkpoint.info(self.prefix + key).shape
            self._dequantized[key] = self.fp8(key) if self.is_fp8(key) else self.nvfp4(key, [key], (out, 2 * packed))
        return self._dequantized[key]

    def stack(self, name: str, keys: list[str], shape: tuple[int, ...]) -> str:
        """Tensors of one shape stacked on a new first axis (a layer's experts), in memory one at a time."""
        if self.is_nvfp4(keys[0]):
            return self.nvfp4(name, keys, (len(keys), *shape))
        parts = (self.checkpoint.read(self.prefix + k, shape).astype(self.dtype) for k in keys)
        return self._external(name, (len(keys), *shape), self.dtype, parts)

    def tensor(self, name: str, value: np.ndarray) -> str:
        """A weight computed here rather than read."""
        return self._external(name, value.shape, value.dtype, [value])

    def activation(self, x: str, key: str) -> str:
        """x as it goes into the weight `key`: rounded with the input scale that calibration found, if that is asked for."""
        if not (self.quantize_activations and (self.is_nvfp4(key) or self.is_fp8(key))):
            return x
        name = (x, float(read_scalar(self.checkpoint, self.prefix + key.removesuffix("weight") + "input_scale")))
        if name not in self._activations:  # q, k and v share theirs
            function = "FP8Quantize" if self.is_fp8(key) else "NVFP4Quantize"
            self._activations[name] = self.op(function, x, self.const(name[1], np.float32), domain=DOMAIN)
        return self._activations[name]

    def is_nvfp4(self, key: str) -> bool:
        """ModelOpt stores an NVFP4 weight as packed codes with `_scale` and `_scale_2` beside them,"""
        return f"{self.prefix}{key}_scale_2" in self.checkpoint

    def is_fp8(self, key: str) -> bool:
        """and an FP8 weight as codes with one `_scale`."""
        return f"{self.prefix}{key}_scale" in self.checkpoint and not self.is_nvfp4(key)

    def fp8(self, key: str) -> str:
        """A matrix of FP8 (E4M3) codes, bit for bit, behind DequantizeLinear with its scale (and a Cast)."""
        codes = self.tensor(key, self.checkpoint.read(self.prefix + key))
        scale = self.tensor(f"{key}_scale_2", np.array(read_scalar(self.checkpoint, f"{self.prefix}{key}_scale")))
        weight = self.op("DequantizeLinear", codes, scale)
        return weight if self.dtype == np.float32 else self.cast(weight, self.dtype)

    def nvfp4(self, name: str, keys: list[str], shape: tuple[int, ...]) -> str:
        """NVFP4 weights [..., K], bit for bit as ModelOpt wrote them, behind two DequantizeLinear nodes (and a Cast).

        weight = FP4 code * (FP8 scale of its block of 16 * float32 scale of its matrix); one key makes a matrix
        [O, K] with a scalar last scale, several a stack [E, O, K] with one per matrix.
        """
        packed, blocks = (*shape[:-1], shape[-1] // 2), (*shape[:-1], shape[-1] // NVFP4_BLOCK)
        rows = shape[-2:-1]

        def read(suffix: str, part_shape: tuple[int, ...]) -> Iterable[np.ndarray]:
            return (self.checkpoint.read(f"{self.prefix}{key}{suffix}", part_shape) for key in keys)

        codes = self._external(name, shape, np.uint8, read("", (*rows, packed[-1])), TensorProto.FLOAT4E2M1)
        scale = self._external(f"{name}_scale", blocks, ml_dtypes.float8_e4m3fn, read("_scale", (*rows, blocks[-1])))
        scales = np.array([read_scalar(self.checkpoint, f"{self.prefix}{key}_scale_2") for key in keys], np.float32)
        last = self.tensor(f"{name}_scale_2", scales if len(shape) > 2 else scales[0])
        scale = self.op("DequantizeLinear", scale, last, axis=0)
        weight = self.op("DequantizeLinear", codes, scale, axis=len(shape) - 1, block_size=NVFP4_BLOCK)
        return weight if self.dtype == np.float32 else self.cast(weight, self.dtype)  # TensorRT refuses output_dtype

    def _external(
        self, name: str, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[np.ndarray], onnx_type: int | None = None
    ) -> str:
        self.initializers.append(self._data.add(name, dtype, shape, parts, onnx_type))
        self._names.add(name)
        return name

    def const(self, value: np.ndarray | list | int | float, dtype: DTypeLike | None = None) -> str:
        """A small constant inside model.onnx. Python ints become int64, floats the graph's dtype."""
        array = np.asarray(value)
        array = array.astype(dtype or (self.dtype if array.dtype.kind == "f" else np.int64))
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"const_{len(self._constants)}"
            self.initializers.append(onnx.numpy_helper.from_array(array, name))
            self._constants[key] = name
        return self._constants[key]

    # ---- nodes ----------------------------------------------------------------------------------------------------
    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes) -> str:
        return self.ops(op_type, *inputs, n_outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, n_outputs: int = 0, names: list[str] | None = None, domain: str = "", **attributes
    ) -> list[str]:
        """A node with several outputs, or (`names`) with outputs of given names."""
        name = f"{op_type}_{len(self.nodes)}"
        outputs = names or ([name] if n_outputs == 1 else [f"{name}_{i}" for i in range(n_outputs)])
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=name, domain=domain, **attributes))
        return outputs

    def linear(self, x: str, key: str, bias: bool = False) -> str:
        """x [n, in] -> [n, out] with `key`.weight [out, in] (and `key`.bias [out])."""
        operands = [self.activation(x, f"{key}.weight"), self.matrix(f"{key}.weight")]
        operands += [self.weight(f"{key}.bias")] if bias else []
        return self.op("Gemm", *operands, transB=1)

    def rms_norm(self, x: str, key: str, eps: float) -> str:
        return self.op("RMSNormalization", x, self.weight(f"{key}.weight"), axis=-1, epsilon=eps)

    def layer_norm(self, x: str, key: str, eps: float) -> str:
        return self.op("LayerNormalization", x, self.weight(f"{key}.weight"), self.weight(f"{key}.bias"), axis=-1, epsilon=eps)

    def reshape(self, x: str, shape: list[int]) -> str:
        """0 keeps a dimension, -1 infers one (ONNX Reshape)."""
        return self.op("Reshape", x, self.const(shape))

    def transpose(self, x: str, perm: list[int]) -> str:
        return self.op("Transpose", x, perm=perm)

    def swiglu(self, x: str, key: str) -> str:
        """down(silu(gate(x)) * up(x)) with the checkpoint's `key`.{gate,up,down}_proj."""
        gated = self.op("Mul", self.op("Swish", self.linear(x, f"{key}.gate_proj")), self.linear(x, f"{key}.up_proj"))
        return self.linear(gated, f"{key}.down_proj")

    def cast(self, x: str, dtype: DTypeLike) -> str:
        return self.op("Cast", x, to=ONNX_TYPE[np.dtype(dtype)])

    # ---- file -----------------------------------------------------------------------------------------------------
    def save(self, config: dict) -> None:
        """Write model.onnx and config.json (`config` plus the graph's inputs, outputs and state)."""
        checksum = self._data.close()
        value = lambda e, key: helper.make_tensor_value_info(  # noqa: E731
            e[key], ONNX_TYPE[np.dtype(e["dtype"])], e["shape"]
        )
        graph = helper.make_graph(
            self.nodes,
            config["engine"],
            [value(e, "name") for e in self.inputs] + [value(e, "input") for e in self.states],
            [value(e, "name") for e in self.outputs] + [value(e, "output") for e in self.states],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if self.functions:
            opsets.append(helper.make_opsetid(DOMAIN, 1))
        model = helper.make_model(
            graph, opset_imports=opsets, functions=self.functions, ir_version=IR_VERSION, producer_name="omni_ros"
        )
        onnx.save(model, self.directory / "model.onnx")
        config = {
            **config,
            "dtype": str(self.dtype),
            "inputs": self.inputs,
            "outputs": self.outputs,
            "state": self.states,
            "checksums": {self._data.name: checksum},
        }
        (self.directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
