"""What TensorRT is known to compile wrongly without a word, and what keeps it from that.

TensorRT's compiler takes undocumented switches from the environment variable __LUNOWUD while it builds. Those below are what
users of large language models found by trial on Jetson Thor (TensorRT-Edge-LLM issues 105, 151, 164 and 192). None of them has
been seen to work or to fail here: what an engine really computes is judged by its self-check when it is opened.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

VARIABLE = "__LUNOWUD"


@dataclass(frozen=True)
class Graph:
    """What decides whether a fault can meet an engine."""

    version: tuple[int, int]  # of TensorRT
    sm: int  # of the GPU: 110
    nvfp4: bool


@dataclass(frozen=True)
class KnownFault:
    effect: str
    flags: tuple[str, ...]
    meets: Callable[[Graph], bool]


KNOWN_FAULTS = (
    KnownFault(
        "products of one row that share their input (q/k/v, gate/up) are fused into nonsense",
        ("-peep:fc_h_fusion=off",),
        lambda g: g.version >= (10, 13),
    ),
    KnownFault(
        "two products of a gated layer are fused into nonsense",
        ("-peep:match_dual_gemm=off",),
        lambda g: (10, 13) <= g.version < (10, 15) or (g.version >= (11, 0) and g.sm >= 100),
    ),
    KnownFault(
        "several epilogues are fused into one NVFP4 product, which is then garbage",
        ("-cask_fusion:max_num_epilogues=1",),
        lambda g: g.nvfp4 and (10, 13) <= g.version < (10, 15),
    ),
    KnownFault(
        "NVFP4 products lose accuracy",
        ("-mlir:collective:fp4=off", "-cask_fusion:async_policy=1", "-mlir:autotune:num_threads=1"),
        lambda g: g.nvfp4 and g.version >= (10, 15),
    ),
)


def known_good_flags(package: str, version: str, target: str, nvfp4: bool) -> list[str]:
    """For an engine that `package` of `version` builds for the GPU `target`. TensorRT-RTX compiles on the robot, by itself."""
    if package != "tensorrt":
        return []
    major, minor = (int(part) for part in version.split(".")[:2])
    graph = Graph((major, minor), int(target.removeprefix("sm")), nvfp4)
    return [flag for fault in KNOWN_FAULTS if fault.meets(graph) for flag in fault.flags]


@contextmanager
def compiler_flags(flags: list[str]) -> Iterator[list[str]]:
    """Sets `flags` while TensorRT builds; yields what is set. Whoever set the variable knows better: then it stays as it is."""
    before = os.environ.get(VARIABLE)
    if before is not None:
        yield before.split()
        return
    if flags:
        os.environ[VARIABLE] = " ".join(flags)
    try:
        yield flags
    finally:
        os.environ.pop(VARIABLE, None)
