"""A device that may be unplugged: it is looked for again, with growing pauses, until it is back."""

from collections.abc import Callable
from typing import Any

from omni_ros.dialogue.clock import Clock
from omni_ros.errors import DeviceError

PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between two attempts; the last is repeated


class Reconnect:
    """`get()` is the device, or None while there is none; whoever uses it says `lost` when it fails. One thread's."""

    def __init__(self, open_device: Callable[[], Any], clock: Clock) -> None:
        self._open = open_device
        self._clock = clock
        self.device: Any = None
        self._failures = 0
        self._again_at = float("-inf")
        self._moved_at = float("-inf")  # when it last took or gave sound
        self.problem = ""  # why there is none
        self.opened = 0  # times
        self.irregular = 0  # overflows and underflows of devices that were closed

    def get(self) -> Any:
        if self.device is None and self._clock.now() >= self._again_at:
            try:
                self.device = self._open()
                self.opened += 1
                self._failures, self.problem = 0, ""
                self.moved()
            except DeviceError as error:
                self.lost(error)
        return self.device

    def moved(self) -> None:
        """It has taken or given sound."""
        self._moved_at = self._clock.now()

    @property
    def still_for(self) -> float:
        """Seconds for which it has not: a device that was unplugged does not always say so."""
        return self._clock.now() - self._moved_at

    def lost(self, error: DeviceError) -> None:
        self.close()
        self.problem = str(error)
        self._again_at = self._clock.now() + (PAUSES[min(self._failures, len(PAUSES) - 1)] if not error.final else float("inf"))
        self._failures += 1

    def close(self) -> None:
        device, self.device = self.device, None
        if device is not None:
            self.irregular += irregular(device)
            device.close()


def irregular(device: Any) -> int:
    return 0 if device is None else getattr(device, "underflows", 0) + getattr(device, "overflows", 0)
