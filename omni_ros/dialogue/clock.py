"""Time, waiting and threads of a dialogue: one place, so that tests can run a conversation on simulated time."""

import sys
import threading
import time
import traceback
from collections.abc import Callable


class Clock:
    """The real world. A simulated clock has the same three methods; nothing else in dialogue/ reads the time or waits."""

    def now(self) -> float:
        """Seconds of a clock that never jumps."""
        return time.monotonic()

    def condition(self) -> threading.Condition:
        """A lock that can be waited on; its owner may take it again."""
        return threading.Condition(threading.RLock())

    def start(self, run: Callable[[], None], name: str) -> threading.Thread:
        """Runs `run` on a thread of its own; the result can be joined."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread


def keep_running(step: Callable[[], bool], report: Callable[[Exception], None]) -> None:
    """`step()` again and again until it returns False: the loop of a thread that lives as long as the dialogue.

    Whatever a step raises is reported and costs that step only: a robot must not lose its voice to one defect.
    """
    while True:
        try:
            if not step():
                return
        except Exception as error:  # noqa: BLE001 - the last resort
            try:
                report(error)
            except Exception:  # noqa: BLE001 - the way of reporting is what is broken
                traceback.print_exc(file=sys.stderr)
