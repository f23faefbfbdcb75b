"""One turn of a conversation: what the user said, and how its answer went."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from omni_ros.dialogue.latency import Latency
from omni_ros.errors import OmniError

Part = dict[str, Any]  # of a message
Look = Callable[[], Part | None]  # decodes what was seen to an image part; None where that cannot be done


@dataclass
class UserTurn:
    """One user turn. `picture` is called on the worker's thread: decoding is too slow for whoever brings the turn."""

    said: Part | None  # a text or audio part; None of a turn that nobody asked for
    picture: Look | None
    closed_at: float  # when the user had finished
    context: Callable[[], Part | None] = lambda: None  # makes a text part of what the robot knows, as late as `picture`
    say: str = ""  # what the robot is to speak, word for word; the model then writes nothing
    opened_at: float | None = None  # when its answer was begun, if that was before
    response: int = 0
    cancelled: bool = False
    forgotten: bool = False  # the conversation was reset meanwhile
    open: bool = False  # the user may go on: nothing is told of it yet
    told: bool = False  # something of its answer was: the user who goes on begins another turn
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


def content(picture: Look | None, said: Part | None) -> list[Part]:
    """The parts of the user's message."""
    return [part for part in (picture and picture(), said) if part is not None]


def describe(error: Exception) -> str:
    """Our own errors explain themselves; of others the type is half of the message."""
    return str(error) if isinstance(error, OmniError) else f"{type(error).__name__}: {error}"
