"""Has turns answered on a thread of its own, one at a time, so that whoever hears or reads them only hands them over."""

from collections.abc import Callable
from typing import Any

from omni_ros.dialogue.answering import Answering
from omni_ros.dialogue.clock import Clock, keep_running
from omni_ros.dialogue.history import History
from omni_ros.dialogue.read_ahead import ReadAhead
from omni_ros.dialogue.speech_pacer import SpeechPacer
from omni_ros.dialogue.tools import Tools
from omni_ros.dialogue.turn import Look, Outcome, Part, UserTurn
from omni_ros.dialogue.turn_queue import TurnQueue


class TurnWorker:
    """Runs the newest submitted turn; at most one more waits. A turn lasts until its speech was heard.

    `conversation` offers generate, feed, cancel and reset as pipeline.conversation.Conversation. Between turns it is fed the
    history as the next turn will send it, and what is known of a turn that the user is still speaking.
    """

    def __init__(
        self,
        conversation,
        speech: SpeechPacer,
        history: History,
        *,
        system_prompt: Callable[[], str],
        options: Callable[[], dict[str, Any]],  # Request's generation arguments
        transcribes: Callable[[], bool],  # whether on_transcript wants to know
        tools: Tools,
        on_text: Callable[[str], None],
        on_response: Callable[[str, str], None],  # the whole text, once it is written, and why it ended
        on_transcript: Callable[[str], None],  # the user's words, some time after the answer
        on_outcome: Callable[[Outcome], None],  # before the speech was heard to its end
        on_change: Callable[[], None],  # a turn began or ended
        on_failure: Callable[[Exception], None],
        clock: Clock,
    ) -> None:
        self._conversation = conversation
        self._speech = speech
        self._history = history
        self._tools = tools
        self._on_outcome = on_outcome
        self._on_change = on_change
        self._clock = clock
        # Guards all below and the history. The conversation's cancel() is called inside it, to hit no turn but its own.
        self._changed = clock.condition()
        self._answering = Answering(
            conversation,
            speech,
            history,
            changed=self._changed,
            is_closed=self.is_closed,
            may_tell=self.may_tell,
            system_prompt=system_prompt,
            options=options,
            tools=tools,
            on_text=on_text,
            on_response=on_response,
            on_outcome=on_outcome,
            clock=clock,
        )
        self.turns = TurnQueue()  # to be looked at by anybody
        self._ahead = ReadAhead(
            conversation,
            history,
            tools,
            changed=self._changed,
            is_wanted=lambda: self.turns.ready,
            system_prompt=system_prompt,
            transcribes=transcribes,
            on_transcript=on_transcript,
        )
        self._responses = 0
        self._closed = False
        self._forgotten = False  # the conversation's rows are of no more use
        self._thread = clock.start(lambda: keep_running(self._step, on_failure), "turns")

    def submit(self, turn: UserTurn, *, preempt: bool) -> None:
        """Answer `turn` next, in place of any that still waits; `preempt` stops the one in progress."""
        with self._changed:
            self.withdraw()
            dropped = self.turns.waiting if not preempt else None
            if preempt:
                self.interrupt()
            self.turns.waiting = turn
            self._ahead.stop()
            self._changed.notify_all()
        if dropped is not None:
            self._on_outcome(Outcome("dropped"))

    def say(self, turn: UserTurn, *, preempt: bool) -> None:
        """Speak a text (see say.py) when no user waits or speaks; `preempt`: at once, in place of all that is or would be said.
        Raises InputError when too many wait."""
        with self._changed:
            self.turns.says.add(turn, urgent=preempt)
            if preempt:
                self._cancel_current()
            self._says_may_begin()

    def hold_says(self, held: bool) -> None:
        """The user speaks: say nothing meanwhile that can wait."""
        with self._changed:
            self.turns.says.held = held
            self._says_may_begin()

    def _says_may_begin(self) -> None:
        if self.turns.says.ready:
            self._ahead.stop()
            self._changed.notify_all()

    def prepare(self, picture: Look | None, said: Part | None) -> None:
        """Compute what is known of the turn that the user is speaking, once no answer is in progress. Neither: no turn."""
        with self._changed:
            self._ahead.prepare(picture, said)
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Stop the answer in progress, since the user speaks: no turn is lost, each stays in the history as it was heard."""
        with self._changed:
            self.withdraw()
            self.turns.skip()
            self._cancel_current()

    def cancel(self) -> bool:
        """Stop the answer in progress and drop the waiting turn; False when there was neither."""
        with self._changed:
            self._tools.forget()
            turns = self.turns
            closed = [turn for turn in turns if not turn.open]
            stopped = bool(closed) or len(turns.says) > 0
            turns.says.clear()
            if turns.waiting in closed:
                turns.waiting = None
            if turns.current in closed:
                self._cancel_current()
            return stopped

    def forget(self) -> None:
        """Stop, and forget the conversation."""
        with self._changed:
            self.cancel()
            self.withdraw()
            self._history.clear()
            self.turns.skipped.clear()
            self._forgotten = self._ahead.due = True
            self._ahead.untold = False
            if self.turns.current is not None:
                self.turns.current.forgotten = True
            self._ahead.stop()
            self._changed.notify_all()

    def join(self) -> None:
        """Until no turn waits and none is in progress."""
        with self._changed:
            self._changed.wait_for(lambda: not self.turns.ready and self.turns.current is None)

    def give_up(self) -> bool:
        """The model never returns: nothing is answered from now on. Whether somebody waited for an answer."""
        with self._changed:
            self._closed = True
            lost = self.turns.thinking or len(self.turns.says) > 0
            self.cancel()
            self.withdraw()
            for turn in self.turns:
                turn.answered = True
            return lost

    def close(self, timeout: float) -> bool:
        """Stop for good; False when the turn in progress did not reach its next decode step in time."""
        with self._changed:
            self._closed = True
            self._ahead.stop()
            self._changed.notify_all()
            self.cancel()
            self.withdraw()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- a turn that may not be over: answered from its first pause on, and told only once it is --------------------

    def speculate(self, turn: UserTurn) -> None:
        """Begin to answer `turn`, which the user may go on with, unless another one is in progress."""
        with self._changed:
            current = self.turns.current
            if self.turns.waiting is None and (current is None or current.cancelled):
                turn.open = True
                self.turns.waiting = turn
                self._ahead.stop_for_now()
                self._changed.notify_all()

    def confirm(self, pcm: Any) -> bool:
        """The turn of this sound is closed: from now on it is like any other; False when it is not being answered."""
        with self._changed:
            turn = self.turns.open
            if turn is None or (turn.said or {}).get("audio") is not pcm:
                return False
            turn.open = False
            turn.opened_at, turn.closed_at = turn.closed_at, self._clock.now()
            self._changed.notify_all()
            return True

    def take_back(self, pcm: Any) -> bool:
        """The user goes on with the turn of this sound, which was closed too early: leave no trace of it; False when there was
        something to hear or to read of its answer."""
        with self._changed:
            turn = next((turn for turn in self.turns if (turn.said or {}).get("audio") is pcm and not turn.cancelled), None)
            if turn is None or turn.told:
                return False
            turn.open = True
            self.withdraw()
            return True

    def withdraw(self) -> None:
        """The turn that may not be over is not: leave no trace of its answer."""
        with self._changed:
            turn = self.turns.open
            if turn is not None and turn is self.turns.waiting:
                self.turns.waiting = None
            elif turn is not None:
                self._cancel_current()

    def is_closed(self, turn: UserTurn) -> bool:
        """Waits until `turn` is, or until it was withdrawn."""
        with self._changed:
            self._changed.wait_for(lambda: not turn.open or turn.cancelled)
            return not turn.open

    def may_tell(self, turn: UserTurn) -> bool:
        """As is_closed; from now on it cannot be taken back."""
        with self._changed:
            turn.told = self.is_closed(turn)
            return turn.told

    def _cancel_current(self) -> None:
        turn = self.turns.current
        if turn is not None and not turn.cancelled:
            turn.cancelled = True
            if not turn.answered:  # or it would hit the feed that comes next
                self._conversation.cancel()
            self._speech.cancel()
            self._tools.wake()
            self._changed.notify_all()

    # ---- the worker's thread -----------------------------------------------------------------------------------

    def _step(self) -> bool:
        """One turn, or one preparation of the next; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self.turns.ready or self._ahead.due or self._closed)
            if self._closed:
                return False
            turn = self.turns.take()
            for skipped in self.turns.take_skipped():
                self._history.add_interrupted([skipped.said] if skipped.said else [], "")
                self._tools.forget()  # it was not the very next turn's yes
            forgotten, self._forgotten = self._forgotten, False
            if turn is None or not turn.open:
                self._ahead.due = False
            if turn is not None:
                self._responses += 1
                turn.response = self._responses
                self._speech.begin(turn.response)
            spoken = self._ahead.begin() if turn is None else None
        if forgotten:
            self._conversation.reset()
        if turn is not None:
            self._take(turn)
        elif spoken is not None:
            self._ahead.run(spoken)
        return True

    def _take(self, turn: UserTurn) -> None:
        """A turn from its beginning until its speech was heard or stopped, and into the history."""
        try:
            self._on_change()
            remembered = self._answering.run(turn)
            with self._changed:
                self._ahead.due |= remembered
                self._ahead.untold = remembered and not turn.forgotten and turn.said is not None and turn.said["type"] == "audio"
        finally:
            turn.answered = True
            self._speech.cancel()  # nothing is left of it unless something above went wrong
            with self._changed:
                self.turns.current = None
                self._changed.notify_all()
            self._on_change()
