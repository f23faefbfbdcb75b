"""Build engines with TensorRT or TensorRT-RTX from exported graphs.

TensorRT builds for the GPU that it runs on, so engines for a Jetson are built on that Jetson. TensorRT-RTX also builds
for other GPUs, without having one. Networks are strongly typed: every tensor has the type that the exported graph says.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto
from tqdm import tqdm

from offline.tensorrt.lower import Lowering
from omni_ros import __version__
from omni_ros.engines.cuda_device import gpu_target
from omni_ros.engines.tensorrt.package import make_logger, package_name
from omni_ros.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

TARGETS = ("sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")
MOE_LAYER_TARGETS = ("sm100", "sm103", "sm110")  # GPUs that IMoELayer has kernels for
MAX_RUN_FRAMES = 100  # codec frames per Code2Wav run: 8 s; the real model then needs 0.3 GB of activations
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]  # input -> shapes: min, opt, max


def check_target(trt: ModuleType, target: str | None) -> str:
    """The target to build for (default: the GPU present), or an EngineError if this TensorRT cannot."""
    present = gpu_target()
    target = target or present
    if target is None:
        raise EngineError(f"there is no GPU here; name the GPU to build for, --target {'|'.join(TARGETS)}")
    if target != present and not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        raise EngineError(
            f"TensorRT {trt.__version__} builds only for the GPU that it runs on ({present or 'none here'}): "
            f"run this command on the {target} machine"
        )
    if package_name(trt) == "tensorrt_rtx" and not hasattr(trt.ComputeCapability, target.upper()):
        known = [n.lower() for n in dir(trt.ComputeCapability) if n.startswith("SM")]
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} cannot build for {target} (only {', '.join(known)}): "
            f"run this command with TensorRT on the {target} machine"
        )
    return target


def make_progress(trt: ModuleType) -> "trt.IProgressMonitor":
    """TensorRT's build phases as nested progress bars."""

    class Progress(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.bars: dict[str, tqdm] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.bars[phase] = tqdm(total=steps, desc=phase[:30], position=len(self.bars) + 1, leave=False, disable=None)

        def step_complete(self, phase: str, step: int) -> bool:
            self.bars[phase].update(step + 1 - self.bars[phase].n)
            return True  # False would stop the build

        def phase_finish(self, phase: str) -> None:
            self.bars.pop(phase).close()

    return Progress()


# ---- limits -> shapes -------------------------------------------------------------------------------------------------
def profiles(config: dict) -> dict[str, Shapes]:
    """Optimisation profiles of an engine, by name; inputs without symbolic dimensions appear in none."""
    limits, model = config["limits"], config["model"]
    sizes: dict[str, dict[str, tuple[int, int, int]]] = {  # profile -> symbol -> min, opt, max
        "thinker": lambda: _decoder_sizes(limits),
        "talker": lambda: _decoder_sizes(limits),
        "code_predictor": lambda: {"frame": {}},
        "code2wav": lambda: {"chunk": {"frames": _range(limits["max_run_frames"])}},
        "audio": lambda: {
            "clip": {
                "windows": (1, 1, limits["max_chunks"] // model["window_chunks"]),
                "chunks": _range(model["window_chunks"]),
                "frames": (1, model["chunk_frames"], model["chunk_frames"]),
                "tokens": _range(model["window_chunks"] * model["chunk_tokens"]),
            }
        },
        "visual": lambda: {
            "image": {"frames": (1, 1, limits["max_frames"]), "n": (4, limits["max_patches"] // 8, limits["max_patches"])}
        },
    }[config["engine"]]()
    dynamic = {i["name"]: i["shape"] for i in config["inputs"] if any(isinstance(d, str) for d in i["shape"])}
    return {
        name: {
            i: tuple(tuple(symbols[d][k] if isinstance(d, str) else d for d in shape) for k in range(3))
            for i, shape in dynamic.items()
        }
        for name, symbols in sizes.items()
    }


def _decoder_sizes(limits: dict) -> dict[str, dict[str, tuple[int, int, int]]]:
    # TensorRT-RTX 1.7 fails on attention of at most 64 rows over 512 or more cached ones, unless it is exactly one row.
    longest = max(limits["max_input_len"], min(128, limits["capacity"]))
    return {"decode": {"S": (1, 1, 1)}, "prefill": {"S": _range(longest)}}


def _range(largest: int) -> tuple[int, int, int]:
    return 1, max(1, largest // 4), largest


# ---- graph -> network -> engine -----------------------------------------------------------------------------------------
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


def build_plan(
    trt: ModuleType,
    lowering: Lowering,
    config: dict,
    target: str,
    timing_cache: Path,
) -> tuple["trt.IHostMemory", list[str]]:
    """The serialised engine, and which inputs it reads on the CPU. Raises EngineError with TensorRT's words and the fix."""
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network, parser = parse(trt, builder, logger, lowering)
    options = builder.create_builder_config()
    options.progress_monitor = make_progress(trt)
    options.clear_flag(trt.BuilderFlag.TF32)  # on by default: float32 products of 10-bit mantissas, as no CPU computes them
    host_inputs = [t.name for t in map(network.get_input, range(network.num_inputs)) if t.is_shape_tensor]
    for shapes in profiles(config).values():
        profile = builder.create_optimization_profile()
        for name, bounds in shapes.items():
            profile.set_shape(name, *bounds)
        for name in host_inputs:  # numbers on which shapes depend: Code2Wav's first call gives fewer samples
            profile.set_shape_input(name, [0], [1], [config["limits"]["capacity"]])
        options.add_optimization_profile(profile)
    if hasattr(options, "set_compute_capability"):
        options.num_compute_capabilities = 1
        options.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    if package_name(trt) == "tensorrt":  # TensorRT-RTX measures on the robot, not here
        known = timing_cache.read_bytes() if timing_cache.is_file() else b""
        options.set_timing_cache(options.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, options)
    del parser  # only now
    if plan is None:
        raise EngineError(
            f"{lowering.stored.directory}: TensorRT {trt.__version__} cannot build it for {target}: "
            f"{logger.errors[-1] if logger.errors else 'no reason given'}. {_fix(logger.errors)}"
        )
    if package_name(trt) == "tensorrt":
        timing_cache.write_bytes(options.get_timing_cache().serialize())
    return plan, host_inputs


def _fix(errors: list[str]) -> str:
    text = " ".join(errors).lower()
    if "memory" in text and "out of" in text:
        return "Close other programs, or lower --maxInputLen and --maxKVCacheCapacity"
    if "fp4" in text:
        return "NVFP4 needs sm100 or newer: export the 16-bit checkpoint for this target"
    return "--backend onnxruntime builds every graph"


def build_engine(trt: ModuleType, source: Path, directory: Path, config: dict, target: str) -> None:
    """Write model.engine and config.json into `directory`, which has the sidecars already.

    `config` is the exported config.json with the limits to build for.
    """
    limits = config["limits"]
    if config["engine"] == "code2wav":
        limits["max_run_frames"] = min(limits["capacity"], MAX_RUN_FRAMES)
    if config["engine"] == "visual":
        limits["max_frames"] = 1  # memory is planned for the most frames times the most patches
    graph = onnx.load(source / "model.onnx", load_external_data=False).graph
    if int(target[2:]) < 100 and any(t.data_type == TensorProto.FLOAT4E2M1 for t in graph.initializer):
        raise EngineError(
            f"{source}: has NVFP4 weights, {target} cannot compute with them (sm100 and newer can): "
            "export the 16-bit checkpoint, or use --backend onnxruntime"
        )
    cache = directory.parent / f"timing-{trt.__version__}-{target}.cache"
    with tempfile.TemporaryDirectory(dir=directory.parent) as work:
        lowering = lower(trt, source, Path(work), target, limits.get("capacity", 0))
        lowered = hashlib.sha256((Path(work) / "model.onnx").read_bytes()).hexdigest()
        plan, host_inputs = build_plan(trt, lowering, config, target, cache)
    plan = memoryview(plan)
    (directory / "model.engine").write_bytes(plan)
    for entry in config["inputs"] + config["outputs"] + config["state"]:
        entry["shape"] = [limits.get(d, d) if isinstance(d, str) else d for d in entry["shape"]]
    for state in config["state"]:
        state["in_place"] &= lowering.in_place
    config["tensorrt"] = {
        "package": package_name(trt),
        "version": trt.__version__,
        "target": target,
        "host_inputs": host_inputs,
        "moe": lowering.moe_form if lowering.has_moe else None,
        "profiles": {
            name: {i: [list(s) for s in bounds] for i, bounds in shapes.items()}  # min, opt, max
            for name, shapes in profiles(config).items()
        },
    }
    config.update(backend="tensorrt", weights="nvfp4" if lowering.stored.nvfp4 else config["dtype"])
    config["provenance"].update(onnx_sha256=config["graph_sha256"], built_with=__version__)
    config["graph_sha256"] = lowered
    config["engine_sha256"] = hashlib.sha256(plan).hexdigest()
    config["files"] = {p.name: p.stat().st_size for p in sorted(directory.iterdir())}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
