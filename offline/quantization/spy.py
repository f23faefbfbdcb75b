"""Watch an open pipeline's engines at work without changing the product: every `engine.run` is timed and kept."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from omni_ros.engines.engine import State
from omni_ros.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Call:
    engine: str
    start: float  # time.perf_counter
    end: float
    inputs: dict[str, np.ndarray] = field(repr=False)
    outputs: dict[str, np.ndarray] = field(repr=False)

    @property
    def seconds(self) -> float:
        return self.end - self.start


@contextlib.contextmanager
def spy(pipeline: Pipeline) -> Iterator[list[Call]]:
    """Yields the list that receives every engine call while the block runs, in order of their end."""
    calls: list[Call] = []

    def watch(name: str, run):
        def watched(inputs: dict[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
            start = time.perf_counter()
            outputs = run(inputs, state)
            calls.append(Call(name, start, time.perf_counter(), inputs, outputs))
            return outputs

        return watched

    for name, engine in pipeline.engines.items():
        # hides the class's method on this instance, which is what mypy warns of
        engine.run = watch(name, engine.run)  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        for engine in pipeline.engines.values():
            del engine.run
