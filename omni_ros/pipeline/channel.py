"""A bounded queue between two stages that can be closed from either end, so that no stage ever waits for a dead one."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ChannelClosed(Exception):
    """The consumer is gone; the producer should stop."""


class Channel(Generic[T]):
    def __init__(self, capacity: int):
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._closed = self._aborted = self._abandoned = False
        self._changed = threading.Condition()

    def put(self, item: T) -> None:
        """Waits while the channel is full; raises ChannelClosed once it was aborted."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._capacity or self._aborted or self._abandoned)
            if self._aborted:
                raise ChannelClosed
            if not self._abandoned:
                self._items.append(item)
            self._changed.notify_all()

    def get(self) -> T | None:
        """The next item, waiting for it; None when the producer closed the channel and all items are taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed or self._aborted)
            if not self._items or self._aborted:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def drain(self) -> list[T]:
        """What is here now, without waiting."""
        with self._changed:
            items = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            return items

    def close(self) -> None:
        """Producer: no more items."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Consumer: I need no more; what comes is dropped and nobody waits for me."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._changed.notify_all()

    def abort(self) -> None:
        """Either side: drop everything and wake both."""
        with self._changed:
            self._aborted = True
            self._items.clear()
            self._changed.notify_all()

    def wait_closed(self) -> None:
        """Until the producer has closed (or anyone aborted) the channel; needs capacity for all its items."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._aborted)

    def __iter__(self) -> Iterator[T]:
        while (item := self.get()) is not None:
            yield item
