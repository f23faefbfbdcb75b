"""Simulated time for a dialogue: threads run one at a time, in a fixed order, and time passes only when all wait.

A dialogue on it takes no longer than its model computes, and does exactly the same every time: for replaying a conversation,
and for tests.
"""

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable


class _Task:
    """A thread that runs only while it has the baton."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.baton = threading.Semaphore(0)
        self.ticket = 0  # of the wait it is in
        self.done = False


class SimulatedClock:
    """Stands in for clock.Clock. The thread that makes it takes part like those it starts."""

    def __init__(self) -> None:
        self._time = 0.0
        self._main = self._running = _Task("main")
        self._stuck = ""
        self._ready: deque[_Task] = deque()
        self._timers: list[tuple[float, int, _Task]] = []
        self._tickets = itertools.count(1)

    def now(self) -> float:
        return self._time

    def condition(self) -> "SimulatedCondition":
        return SimulatedCondition(self)

    def start(self, run: Callable[[], None], name: str) -> "SimulatedThread":
        task, ended = _Task(name), self.condition()

        def body() -> None:
            task.baton.acquire()
            try:
                run()
            finally:
                with ended:
                    task.done = True
                    ended.notify_all()
                self._pass_baton()

        threading.Thread(target=body, name=name, daemon=True).start()
        self._ready.append(task)
        return SimulatedThread(task, ended)

    def sleep(self, seconds: float) -> None:
        """Let the others run for so long."""
        self.block(self._time + seconds)

    def block(self, until: float | None = None) -> None:
        """Give the baton away until woken, or until the given time."""
        task = self._running
        task.ticket = next(self._tickets)
        if until is not None:
            heapq.heappush(self._timers, (until, task.ticket, task))
        self._pass_baton()
        task.baton.acquire()
        if self._stuck and task is self._main:
            raise RuntimeError(self._stuck)

    def wake(self, task: _Task) -> None:
        task.ticket = 0  # its timer, if any, is out of date
        self._ready.append(task)

    @property
    def running(self) -> _Task:
        return self._running

    def _pass_baton(self) -> None:
        while not self._ready:
            if not self._timers:
                self._stuck = f"all threads wait for one another, {self._running.name} was the last"
                self._ready.append(self._main)
                break
            time, ticket, task = heapq.heappop(self._timers)
            if task.ticket == ticket:
                self._time = max(self._time, time)
                self.wake(task)
        self._running = self._ready.popleft()
        self._running.baton.release()


class SimulatedCondition:
    """As threading.Condition(threading.RLock())."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._owner: _Task | None = None
        self._depth = 0
        self._blocked: deque[_Task] = deque()  # want the lock
        self._waiting: list[_Task] = []  # want to be notified

    def __enter__(self) -> None:
        while self._owner not in (None, self._clock.running):
            self._blocked.append(self._clock.running)
            self._clock.block()
        self._owner = self._clock.running
        self._depth += 1

    def __exit__(self, *_) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            if self._blocked:
                self._clock.wake(self._blocked.popleft())

    def wait(self, timeout: float | None = None) -> None:
        assert self._owner is self._clock.running, "wait without the lock"
        task, depth = self._owner, self._depth
        self._depth = 1
        self.__exit__()
        self._waiting.append(task)
        self._clock.block(None if timeout is None else self._clock.now() + timeout)
        if task in self._waiting:  # the time was up
            self._waiting.remove(task)
        self.__enter__()
        self._depth = depth

    def wait_for(self, predicate: Callable[[], object], timeout: float | None = None) -> bool:
        until = None if timeout is None else self._clock.now() + timeout
        while not predicate():
            left = None if until is None else until - self._clock.now()
            if left is not None and left <= 0:
                return False
            self.wait(left)
        return True

    def notify_all(self) -> None:
        assert self._owner is self._clock.running, "notify without the lock"
        for task in self._waiting:
            self._clock.wake(task)
        self._waiting.clear()


class SimulatedThread:
    def __init__(self, task: _Task, ended: SimulatedCondition) -> None:
        self._task = task
        self._ended = ended

    def join(self, timeout: float | None = None) -> None:
        with self._ended:
            self._ended.wait_for(lambda: self._task.done, timeout)

    def is_alive(self) -> bool:
        return not self._task.done
