"""A call of an engine that never returns: it can be neither cancelled nor freed, so it has to be noticed.

Drivers and compilers hang rarely, and for ever. What is in progress then can only be given up, and the process ended.
"""

from omni_ros.engines.calls import Call, in_progress
from omni_ros.errors import EngineHungError

LONGEST_LOOK = 5.0  # seconds between two looks that count at most: a process that is stopped does not compute meanwhile


class Watchdog:
    """Look at it every second or so, from a thread that calls no engine."""

    def __init__(self) -> None:
        self._looked_at: float | None = None
        self._waited: dict[Call, float] = {}  # seconds for which each call was seen to last

    def look(self, now: float, limit: float) -> EngineHungError | None:
        """What is wrong, if a call has been in progress for more than `limit` seconds; 0: never. `now` is a steady clock's."""
        passed = min(now - self._looked_at, LONGEST_LOOK) if self._looked_at is not None else 0.0
        self._looked_at = now
        self._waited = {call: self._waited[call] + passed if call in self._waited else 0.0 for call in list(in_progress)}
        call = max(self._waited, key=lambda call: self._waited[call], default=None)
        if call is None or not limit or self._waited[call] <= limit:
            return None
        return EngineHungError(
            f"{call.what} has not come back for {limit:g} s (engine_timeout); it cannot be cancelled, so the process has to be "
            "started again. If that repeats: build the engine again, or look at the GPU's driver, and at the memory"
        )
