"""One turn of a conversation: what the user said, and how its answer went."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omni_ros.dialogue.latency import Latency
from omni_ros.errors import OmniError


@dataclass
class UserTurn:
    """One user turn. `picture` is called on the worker's thread: decoding is too slow for whoever brings the turn."""

    said: dict[str, Any] | None  # a text or audio part; None of a turn that nobody asked for
    picture: Callable[[], dict[str, Any] | None]  # an image part
    closed_at: float  # when the user had finished
    context: Callable[[], dict[str, Any] | None] = lambda: None  # a text part of what the robot knows, called as `picture` is
    say: str = ""  # what the robot is to speak, word for word; the model then writes nothing
    opened_at: float | None = None  # when its answer was begun, if that was before
    response: int = 0
    cancelled: bool = False
    forgotten: bool = False  # the conversation was reset meanwhile
    open: bool = False  # the user may go on: nothing is told of it yet
    answered: bool = False  # the pipeline is done with it; its speech may still be heard
    spoken_until: float | None = None  # the last sound before closed_at; None: the turn was typed


@dataclass(frozen=True)
class Outcome:
    """How the making of an answer went. Times are seconds since the user had finished."""

    reason: str  # stop | length | kv_cache_full | cancelled | error | dropped (a newer turn took its place in the queue)
    audio_reason: str = "none"  # stop | length | kv_cache_full | cancelled | none
    text: str = ""
    error: str = ""
    first_text: float | None = None
    first_audio: float | None = None
    metrics: dict[str, Any] = field(default_factory=dict)  # the pipeline's
    latency: Latency | None = None  # None: the answer was not begun


def describe(error: Exception) -> str:
    """Our own errors explain themselves; of others the type is half of the message."""
    return str(error) if isinstance(error, OmniError) else f"{type(error).__name__}: {error}"
