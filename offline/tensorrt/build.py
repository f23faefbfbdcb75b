"""Build engines with TensorRT or TensorRT-RTX from exported graphs.

TensorRT builds for the GPU that it runs on, so engines for a Jetson are built on that Jetson. TensorRT-RTX also builds
for other GPUs, without having one. Networks are strongly typed: every tensor has the type that the exported graph says.
"""

import hashlib
import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto
from tqdm import tqdm

from omni_ros.engines.cuda_device import gpu_target
from omni_ros.engines.tensorrt.package import import_tensorrt, make_logger, package_name
from omni_ros.errors import EngineError

from ..outputs.atomic import atomic_file
from ..outputs.engine_folder import EngineFolder
from .known_faults import compiler_flags, known_good_flags
from .lower import Lowering
from .network import lower, parse
from .profiles import MAX_RUN_FRAMES, profiles

if TYPE_CHECKING:
    import tensorrt as trt

TARGETS = ("sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm103", "sm110", "sm120", "sm121")


def build(folder: EngineFolder, target: str | None = None) -> None:
    """For the GPU `target` (None: the one here). Raises EngineError with TensorRT's words and the fix."""
    trt = import_tensorrt()
    target = check_target(trt, target)
    config, limits = folder.config, folder.config["limits"]
    if folder.engine == "code2wav":
        limits["max_run_frames"] = min(limits["capacity"], MAX_RUN_FRAMES)
    if folder.engine == "visual":
        limits["max_frames"] = 1  # memory is planned for the most frames times the most patches
    graph = onnx.load(folder.source / "model.onnx", load_external_data=False).graph
    if int(target[2:]) < 100 and any(t.data_type == TensorProto.FLOAT4E2M1 for t in graph.initializer):
        raise EngineError(
            f"{folder.source}: has NVFP4 weights, {target} cannot compute with them (sm100 and newer can): "
            "export the 16-bit checkpoint, or use --backend onnxruntime"
        )
    folder.add_self_check()
    cache = folder.place.parent / f"timing-{trt.__version__}-{target}.cache"
    with tempfile.TemporaryDirectory(dir=folder.directory.parent) as work:
        lowering = lower(trt, folder.source, Path(work), target, limits.get("capacity", 0))
        lowered = hashlib.sha256((Path(work) / "model.onnx").read_bytes()).hexdigest()
        wanted = known_good_flags(package_name(trt), trt.__version__, target, lowering.stored.nvfp4)
        with compiler_flags(wanted) as flags:
            plan, host_inputs = build_plan(trt, lowering, config, target, cache)
    plan = memoryview(plan)
    (folder.directory / "model.engine").write_bytes(plan)
    folder.checksums["model.engine"] = config["engine_sha256"] = hashlib.sha256(plan).hexdigest()
    for state in config["state"]:
        state["in_place"] &= lowering.in_place
    config["tensorrt"] = {
        "package": package_name(trt),
        "version": trt.__version__,
        "target": target,
        "host_inputs": host_inputs,
        "compiler_flags": flags,
        "moe": lowering.moe_form if lowering.has_moe else None,
        "profiles": {
            name: {i: [list(s) for s in bounds] for i, bounds in shapes.items()}  # min, opt, max
            for name, shapes in profiles(config).items()
        },
    }
    folder.copy_sidecars()
    folder.write("tensorrt", "nvfp4" if lowering.stored.nvfp4 else config["dtype"], config["dtype"], graph_sha256=lowered)


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

    class Progress(trt.IProgressMonitor):  # type: ignore[name-defined]  # which of two modules `trt` is, is known at run time
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
        with atomic_file(timing_cache) as path:
            path.write_bytes(options.get_timing_cache().serialize())
    return plan, host_inputs


def _fix(errors: list[str]) -> str:
    text = " ".join(errors).lower()
    if "memory" in text and "out of" in text:
        return "Close other programs, or lower --maxInputLen and --maxKVCacheCapacity"
    if "fp4" in text:
        return "NVFP4 needs sm100 or newer: export the 16-bit checkpoint for this target"
    return "--backend onnxruntime builds every graph"
