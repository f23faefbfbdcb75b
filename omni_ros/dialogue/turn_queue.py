"""Who is next: the turn in progress, the newest one that waits, texts to say, and turns that were spoken over."""

from collections.abc import Iterator

from omni_ros.dialogue.say import SayQueue
from omni_ros.dialogue.turn import UserTurn


class TurnQueue:
    """Changed under its owner's lock. What only reads takes no lock, which may be held by who waits for the reader's: it
    looks at the turns in the order that they go through."""

    def __init__(self) -> None:
        self.waiting: UserTurn | None = None
        self.current: UserTurn | None = None
        self.says = SayQueue()
        self.skipped: list[UserTurn] = []  # spoken over before their answer began: the history gets them

    def __iter__(self) -> Iterator[UserTurn]:
        return iter([turn for turn in (self.waiting, self.current) if turn is not None])

    @property
    def answer(self) -> UserTurn | None:
        """The turn that waits for its answer, is being answered, or whose answer is spoken, if there is one."""
        return next((turn for turn in self if not turn.open and not turn.cancelled), None)

    @property
    def open(self) -> UserTurn | None:
        """The turn that the user may go on with, if its answer was begun."""
        return next((turn for turn in self if turn.open and not turn.cancelled), None)

    @property
    def thinking(self) -> bool:
        """Whether a turn waits for its answer or is being answered."""
        return any(not turn.open and not turn.answered for turn in self)

    @property
    def length(self) -> int:
        """How many wait."""
        waiting = self.waiting
        return int(waiting is not None and not waiting.open) + len(self.says)

    @property
    def ready(self) -> bool:
        """Whether one can begin."""
        return self.waiting is not None or self.says.ready

    def take(self) -> UserTurn | None:
        """The next to be answered or said is the one in progress from now on."""
        turn = self.says.take(user_waits=self.waiting is not None) or self.waiting
        if turn is not None:
            self.current = turn  # before it waits no longer: who looks meanwhile must not miss it
            if turn is self.waiting:
                self.waiting = None
        return turn

    def skip(self) -> None:
        """The user speaks over the turn that waits."""
        if self.waiting is not None:
            self.skipped.append(self.waiting)
            self.waiting = None

    def take_skipped(self) -> list[UserTurn]:
        skipped, self.skipped = self.skipped, []
        return skipped
