"""The thread of one device: it asks how much the device has or takes, never blocks in a driver, and survives its loss."""

from collections.abc import Callable
from typing import Any

from omni_ros.devices.reconnect import Reconnect
from omni_ros.dialogue.clock import Clock, keep_running
from omni_ros.errors import DeviceError

SHORTEST = 0.002  # seconds between two looks at the device
STALLED = 2.0  # seconds after which a device that neither takes nor gives is lost
CLOSE_WITHIN = 2.0  # seconds that a device is given to return from its driver


class SoundThread:
    """Calls `step(device)` again and again, until `close`: with None while there is no device. It moves what can be moved and
    returns the seconds until there may be more; the DeviceError that it raises is the loss of the device."""

    def __init__(
        self,
        name: str,
        open_device: Callable[[], Any],
        step: Callable[[Any], float],
        *,
        on_opened: Callable[[Any], None],  # before the first step with it
        on_failure: Callable[[Exception], None],
        clock: Clock,
    ) -> None:
        self.device = Reconnect(open_device, clock)
        self._name = name
        self._take_step = step
        self._on_opened = on_opened
        self._changed = clock.condition()
        self._closed = False
        self._start = lambda: clock.start(lambda: keep_running(self._step, on_failure), name)

    def start(self) -> None:
        """Once, when all that `step` uses is there."""
        self._thread = self._start()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(CLOSE_WITHIN)

    def patience(self, missing: float) -> float:
        """Seconds to wait for a device that is `missing` seconds short of the next piece. DeviceError when it is lost."""
        if self.device.device is not None and self.device.still_for > STALLED:
            raise DeviceError(f"the {self._name} has not moved for {STALLED:g} s: was it unplugged?")
        return max(SHORTEST, missing)

    def _step(self) -> bool:
        known = self.device.device
        device = self.device.get()
        if device is not None and device is not known:
            self._on_opened(device)
        try:
            wait = self._take_step(device)
        except DeviceError as error:
            self.device.lost(error)
            wait = 0.0
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed, wait)
            if not self._closed:
                return True
        self.device.close()
        return False
