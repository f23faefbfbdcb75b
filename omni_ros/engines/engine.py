"""An engine is a graph with its weights; what a conversation leaves in it is a state. Callers give and get named arrays."""

from pathlib import Path
from typing import Protocol

import numpy as np

from omni_ros.engines.config import EngineConfig
from omni_ros.errors import EngineError, KVCacheFullError


class State:
    """What a conversation has in one engine: KV caches, or Code2Wav's convolutions and windows. They never leave the backend."""

    length = 0  # rows so far

    def __init__(self, name: str, truncates: bool = True):
        """`name` is the engine's, for messages; `truncates`: rows can be taken back, as of a KV cache."""
        self.name, self.truncates = name, truncates

    def reset(self) -> None:
        """Forget all rows: the next run starts a new sequence."""
        self.length = 0

    def truncate(self, length: int) -> None:
        """Keep only the first `length` rows: a prefix shared with the next prompt."""
        if not self.truncates:
            raise EngineError(f"{self.name}: this engine's state can be reset but not truncated")
        if not 0 <= length <= self.length:
            raise ValueError(f"truncate({length}) of {self.length} rows")
        self.length = length

    def close(self) -> None:
        """Give its memory back; it cannot be used afterwards."""


class Engine(Protocol):
    """What every backend offers. Runs of one engine never overlap, whichever threads ask for them."""

    config: EngineConfig
    directory: Path
    max_rows: int  # of a prompt in one run: what has to wait for the end of a run, such as cancel(), waits for no more

    def new_state(self) -> State:
        """A state of its own for a conversation. Raises EngineError when the engine was built for fewer of them."""
        ...

    def run(self, inputs: dict[str, np.ndarray], state: State | None = None) -> dict[str, np.ndarray]:
        """One forward pass; an engine with state takes it, and leaves its rows there.

        Raises KVCacheFullError when the rows do not fit, leaving the state as it was. Do not write into an array that
        was passed: a backend that has it on its device already does not send it again.
        """
        ...

    def close(self) -> None:
        """Free everything, on the GPU too; it cannot run afterwards."""
        ...


def check_rows(config: EngineConfig, inputs: dict[str, np.ndarray], state: State | None) -> int:
    """How many rows a run adds to `state`. Raises KVCacheFullError when they do not fit. For backends."""
    if config.position is None:
        return 0
    if state is None:
        raise ValueError(f"{config.engine}: run needs a state, from new_state()")
    rows = inputs[config.position.counts].shape[config.position.axis]
    capacity = config.limits.capacity
    if state.length + rows > capacity:
        raise KVCacheFullError(
            f"{config.engine}: {state.length} + {rows} rows do not fit its capacity of {capacity}; build with a larger one "
            "or shorten the turn"
        )
    return rows
