"""An exported graph as a TensorRT network: lowered, parsed, and with MoE layers where the parser has none."""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from omni_ros.engines.tensorrt.package import make_logger
from omni_ros.errors import EngineError

from .lower import Lowering

if TYPE_CHECKING:
    import tensorrt as trt

MOE_LAYER_TARGETS = ("sm100", "sm103", "sm110")  # GPUs that IMoELayer has kernels for


def lower(trt: ModuleType, source: Path, work: Path, target: str, capacity: int) -> Lowering:
    """Write the lowered graph for `target` into `work`."""
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    parser = trt.OnnxParser(builder.create_network(0), logger)
    moe = "generic"
    if target in MOE_LAYER_TARGETS and hasattr(trt.INetworkDefinition, "add_moe"):
        moe = "layer" if parser.supports_operator("TRT_MoE") else "splice"
    lowering = Lowering(source, work, capacity, moe, parser.supports_operator)
    lowering.run()
    return lowering


def parse(
    trt: ModuleType,
    builder: "trt.Builder",
    logger: "trt.ILogger",
    lowering: Lowering,
) -> tuple["trt.INetworkDefinition", "trt.OnnxParser"]:
    """The lowered graph as a strongly typed network, whose weights live as long as the parser."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(lowering.target / "model.onnx")):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        first = errors[0].desc() if errors else "; ".join(logger.errors[-3:])
        where = f"node {errors[0].node_name()} ({errors[0].node_operator()})" if errors else "the graph"
        raise EngineError(
            f"{lowering.stored.directory}: TensorRT {trt.__version__} cannot parse {where}: {first}. "
            "Use TensorRT 10.13 or newer, or --backend onnxruntime"
        )
    for layer in map(network.get_layer, range(network.num_layers)):
        if str(layer.type).endswith("ATTENTION_INPUT"):  # fused where a kernel exists, else several kernels
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True
    if lowering.moe_outputs:
        splice_moe(trt, network, lowering.moe_outputs)
    return network, parser


def splice_moe(trt: ModuleType, network: "trt.INetworkDefinition", moe_outputs: dict[str, list[str]]) -> None:
    """Put MoE layers where a parser without TRT_MoE (10.16) has a stand-in, `moe_outputs`: its output -> MoE inputs.

    The lowered graph returns those inputs, so that the parser keeps them and they can be found by name.
    """
    outputs = {t.name: t for t in map(network.get_output, range(network.num_outputs))}
    readers: dict[str, list] = {}
    for layer in map(network.get_layer, range(network.num_layers)):
        for i in range(layer.num_inputs):
            if layer.get_input(i) is not None:
                readers.setdefault(layer.get_input(i).name, []).append((layer, i))
    for stand_in, names in moe_outputs.items():
        x, expert, score, gate, up, down = (outputs[n] for n in names[:6])
        layer = network.add_moe(x, expert, score)
        layer.name = f"{stand_in}.layer"
        layer.set_gated_weights(gate, up, down, trt.MoEActType.SILU)
        if len(names) > 6:
            layer.set_quantization_static(outputs[names[-1]], trt.DataType.FP8)
        for reader, i in readers[stand_in]:
            reader.set_input(i, layer.get_output(0))
    for name in {n for names in moe_outputs.values() for n in names if n}:
        network.unmark_output(outputs[name])
