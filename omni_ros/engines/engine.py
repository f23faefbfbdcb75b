"""An engine is a graph with its weights; what a conversation leaves in it is a state. Callers give and get named arrays."""

import threading
import traceback
import weakref
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from omni_ros.engines.calls import Call
from omni_ros.engines.config import EngineConfig
from omni_ros.errors import EngineError, KVCacheFullError


class State:
    """What a conversation has in one engine: KV caches, or Code2Wav's convolutions and windows. They never leave the backend."""

    length = 0  # rows so far
    closed = False

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
        """Give its memory back; it cannot be used afterwards. A second call does nothing."""
        self.closed = True


S = TypeVar("S", bound=State)


class Engine(Protocol):
    """What every backend offers. Runs of one engine never overlap, whichever threads ask for them."""

    config: EngineConfig
    directory: Path
    max_rows: int  # of a prompt in one run: what has to wait for the end of a run, such as cancel(), waits for no more
    verified: bool | str | None  # the files' checksums: right, what is wrong, or not compared (yet); see open_engine

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
        """Free everything, on the GPU too, once a run that is under way has ended. A second call does nothing.

        Whatever is asked of the engine afterwards raises EngineError.
        """
        ...


# ---- for backends ---------------------------------------------------------------------------------------------------
class Running:
    """`with running:` is one run at a time, known to calls.py, and an error that leaves it keeps nothing of the engine alive.

    Whoever keeps the error (a diagnostic, a traceback in a reference cycle) would otherwise keep, through the frames that it
    came through, the session or context that `close` lets go of.
    """

    def __init__(self, name: str) -> None:
        self.name = name  # the engine's
        self.lock = threading.Lock()

    def __enter__(self) -> None:
        self.lock.acquire()
        self.call = Call(f"a call of engine {self.name}")
        self.call.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.call.__exit__()
        self.lock.release()
        traceback.clear_frames(trace)


class OneState:
    """Of an engine with memory for one conversation: recorded CUDA graphs read and write at the addresses they were made with."""

    def __init__(self, name: str):
        self.name = name
        self.held: weakref.ref[State] | None = None  # a state that nobody holds any more is as good as closed

    def take(self, state: State) -> None:
        """Raises EngineError while another one is open."""
        held = self.held() if self.held else None
        if held is not None and not held.closed:
            raise EngineError(f"{self.name}: built for one conversation at a time; close the other one")
        self.held = weakref.ref(state)


def check_rows(config: EngineConfig, inputs: dict[str, np.ndarray], state: State | None) -> int:
    """How many rows a run adds to `state`. Raises KVCacheFullError when they do not fit."""
    if config.position is None:
        return 0
    if state is None:
        raise ValueError(f"{config.engine}: run needs a state, from new_state()")
    if state.closed:
        raise EngineError(f"{config.engine}: this conversation's state was closed; take another one, new_state()")
    rows = inputs[config.position.counts].shape[config.position.axis]
    capacity = config.limits.capacity
    if state.length + rows > capacity:
        raise KVCacheFullError(
            f"{config.engine}: {state.length} + {rows} rows do not fit its capacity of {capacity}; build with a larger one "
            "or shorten the turn"
        )
    return rows


def own_state(kind: type[S], state: State | None) -> S | None:
    """`state` as the kind that a backend makes."""
    if state is None or isinstance(state, kind):
        return state
    raise ValueError(f"{state.name}: this state was made by an engine of another backend")


def was_closed(config: EngineConfig, directory: Path) -> EngineError:
    return EngineError(f"{config.engine}: was closed; open {directory} again")
