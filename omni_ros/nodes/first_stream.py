"""Two microphones on one topic: which message is whose."""

from collections.abc import Callable
from dataclasses import dataclass

SILENT = 1.0  # seconds without a message after which a publisher is taken for gone
FASTEST = 0.005  # seconds between two messages of one publisher: what bounds how many can have been lost


@dataclass
class _Stream:
    number: int  # of its newest message
    sent: float  # s, by the publisher's clock
    arrived: float  # s
    period: float = 0.02  # s between its messages


class FirstStream:
    """Lets the publisher through that was heard first, until it falls silent.

    rclpy does not say who sent a message, only (MessageInfo) the how-manieth of its publisher's messages it is, and when it
    was sent. Streams of one topic are continued by the next number; where two are at the same number, by the expected time.
    """

    def __init__(self) -> None:
        self._streams: list[_Stream] = []

    def others(self, now: float) -> int:
        """Publishers that are being passed over. Called on any thread."""
        return max(0, len(self._heard_lately(now)) - 1)

    def accepts(self, info: dict, now: float, publishers: Callable[[], int]) -> bool:
        """Whether this message is the first publisher's. `publishers()` counts those of the topic."""
        number, sent = info["publication_sequence_number"], info["source_timestamp"] / 1e9
        if number is None:  # this middleware does not count
            return True
        self._streams = self._heard_lately(now)
        stream = self._continued(number, sent, now)
        if stream is None:
            stream = _Stream(number, sent, now)
            self._streams.append(stream)
        elif number == stream.number + 1:
            stream.period += 0.2 * (sent - stream.sent - stream.period)
        stream.number, stream.sent, stream.arrived = number, sent, now
        if stream is not self._streams[0] and publishers() <= 1:  # the same microphone, started again
            self._streams = [stream]
        return stream is self._streams[0]

    def _continued(self, number: int, sent: float, now: float) -> _Stream | None:
        def misses(s: _Stream) -> float:
            return abs(sent - s.sent - (number - s.number) * s.period)

        possible = [s for s in self._streams if 1 <= number - s.number <= 2 + (now - s.arrived) / FASTEST]
        return min(possible, key=misses, default=None)

    def _heard_lately(self, now: float) -> list[_Stream]:
        return [s for s in self._streams if now - s.arrived < SILENT]
