"""Has turns answered on a thread of its own, one at a time, so that whoever hears or reads them only hands them over."""

from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

from omni_ros.dialogue.answering import Answering
from omni_ros.dialogue.clock import Clock, keep_running
from omni_ros.dialogue.history import History
from omni_ros.dialogue.say import SayQueue
from omni_ros.dialogue.speech_pacer import SpeechPacer
from omni_ros.dialogue.tools import Tools
from omni_ros.dialogue.transcript import transcript_request
from omni_ros.dialogue.turn import Look, Outcome, Part, UserTurn, content
from omni_ros.errors import PromptTooLongError
from omni_ros.pipeline.request import Finished


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
        self._system_prompt = system_prompt
        self._transcribes = transcribes
        self._on_transcript = on_transcript
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
            system_prompt=system_prompt,
            options=options,
            tools=tools,
            on_text=on_text,
            on_response=on_response,
            on_outcome=on_outcome,
            clock=clock,
        )
        self._waiting: UserTurn | None = None
        self._says = SayQueue()
        self._skipped: list[UserTurn] = []  # turns that were spoken over before their answer began: the history gets them
        self._current: UserTurn | None = None
        self._responses = 0
        self._closed = False
        self._spoken: tuple[Look | None, Part | None] = (None, None)  # what is known of the turn that the user is speaking
        self._unfed = True  # there is more to feed to the conversation than when it was last fed
        self._forgotten = False  # the conversation's rows are of no more use
        self._feeding = False
        self._untold = False  # the words of the last turn were not written down yet
        self._transcribing = False
        self._thread = clock.start(lambda: keep_running(self._step, on_failure), "turns")

    @property
    def answer(self) -> UserTurn | None:
        """The turn that waits for its answer, is being answered, or whose answer is spoken, if there is one."""
        return next((turn for turn in self._turns() if not turn.open and not turn.cancelled), None)

    @property
    def thinking(self) -> bool:
        """Whether a turn waits for its answer or is being answered."""
        return any(not turn.open and not turn.answered for turn in self._turns())

    @property
    def _has_turn(self) -> bool:
        return self._waiting is not None or self._says.ready

    @property
    def waiting(self) -> int:
        waiting = self._waiting
        return int(waiting is not None and not waiting.open) + len(self._says)

    def _turns(self) -> list[UserTurn]:
        """Read without the lock, which may be held by who waits for the reader's, and in the order that turns go through."""
        return [turn for turn in (self._waiting, self._current) if turn is not None]

    def submit(self, turn: UserTurn, *, preempt: bool) -> None:
        """Answer `turn` next, in place of any that still waits; `preempt` stops the one in progress."""
        with self._changed:
            self.withdraw()
            dropped = self._waiting if not preempt else None
            if preempt:
                self.interrupt()
            self._waiting = turn
            self._stop_feeding()
            self._changed.notify_all()
        if dropped is not None:
            self._on_outcome(Outcome("dropped"))

    def say(self, turn: UserTurn, *, preempt: bool) -> None:
        """Speak a text (see say.py) when no user waits or speaks; `preempt`: at once, in place of all that is or would be said.
        Raises InputError when too many wait."""
        with self._changed:
            self._says.add(turn, urgent=preempt)
            if preempt:
                self._cancel_current()
            self._says_may_begin()

    def hold_says(self, held: bool) -> None:
        """The user speaks: say nothing meanwhile that can wait."""
        with self._changed:
            self._says.held = held
            self._says_may_begin()

    def _says_may_begin(self) -> None:
        if self._says.ready:
            self._stop_feeding()
            self._changed.notify_all()

    def prepare(self, picture: Look | None, said: Part | None) -> None:
        """Compute what is known of the turn that the user is speaking, once no answer is in progress. Neither: no turn."""
        with self._changed:
            self._spoken = picture, said
            if picture or said:
                self._unfed = True
                if self._transcribing:  # the user who speaks goes first
                    self._conversation.cancel()
                self._changed.notify_all()

    def interrupt(self) -> None:
        """Stop the answer in progress, since the user speaks: no turn is lost, each stays in the history as it was heard."""
        with self._changed:
            self.withdraw()
            if self._waiting is not None:
                self._skipped.append(self._waiting)
                self._waiting = None
            self._cancel_current()

    def cancel(self) -> bool:
        """Stop the answer in progress and drop the waiting turn; False when there was neither."""
        with self._changed:
            self._tools.forget()
            closed = [turn for turn in self._turns() if not turn.open]
            stopped = bool(closed) or len(self._says) > 0
            self._says.clear()
            if self._waiting in closed:
                self._waiting = None
            if self._current in closed:
                self._cancel_current()
            return stopped

    def forget(self) -> None:
        """Stop, and forget the conversation."""
        with self._changed:
            self.cancel()
            self.withdraw()
            self._history.clear()
            self._skipped.clear()
            self._forgotten = self._unfed = True
            self._untold = False
            if self._current is not None:
                self._current.forgotten = True
            self._stop_feeding()
            self._changed.notify_all()

    def join(self) -> None:
        """Until no turn waits and none is in progress."""
        with self._changed:
            self._changed.wait_for(lambda: not self._has_turn and self._current is None)

    def give_up(self) -> bool:
        """The model never returns: nothing is answered from now on. Whether somebody waited for an answer."""
        with self._changed:
            self._closed = True
            lost = self.thinking or len(self._says) > 0
            self.cancel()
            self.withdraw()
            for turn in self._turns():
                turn.answered = True
            return lost

    def close(self, timeout: float) -> bool:
        """Stop for good; False when the turn in progress did not reach its next decode step in time."""
        with self._changed:
            self._closed = True
            self._stop_feeding()
            self._changed.notify_all()
            self.cancel()
            self.withdraw()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # ---- a turn that may not be over: answered from its first pause on, and told only once it is --------------------

    def speculate(self, turn: UserTurn) -> None:
        """Begin to answer `turn`, which the user may go on with, unless another one is in progress."""
        with self._changed:
            if self._waiting is None and (self._current is None or self._current.cancelled):
                turn.open = True
                self._waiting = turn
                self._unfed |= self._feeding  # to be fed again if the turn is withdrawn
                self._stop_feeding()
                self._changed.notify_all()

    def confirm(self, pcm: Any) -> bool:
        """The turn of this sound is closed: from now on it is like any other; False when it is not being answered."""
        with self._changed:
            turn = self._open_turn()
            if turn is None or (turn.said or {}).get("audio") is not pcm:
                return False
            turn.open = False
            turn.opened_at, turn.closed_at = turn.closed_at, self._clock.now()
            self._changed.notify_all()
            return True

    def withdraw(self) -> None:
        """The turn that may not be over is not: leave no trace of its answer."""
        with self._changed:
            turn = self._open_turn()
            if turn is not None and turn is self._waiting:
                self._waiting = None
            elif turn is not None:
                self._cancel_current()

    def is_closed(self, turn: UserTurn) -> bool:
        """Waits until `turn` is, or until it was withdrawn."""
        with self._changed:
            self._changed.wait_for(lambda: not turn.open or turn.cancelled)
            return not turn.open

    def _open_turn(self) -> UserTurn | None:
        return next((turn for turn in self._turns() if turn.open and not turn.cancelled), None)

    def _cancel_current(self) -> None:
        if self._current is not None and not self._current.cancelled:
            self._current.cancelled = True
            if not self._current.answered:  # or it would hit the feed that comes next
                self._conversation.cancel()
            self._speech.cancel()
            self._tools.wake()
            self._changed.notify_all()

    def _stop_feeding(self) -> None:
        if self._feeding:
            self._conversation.cancel()

    # ---- the worker's thread -----------------------------------------------------------------------------------

    def _step(self) -> bool:
        """One turn, or one preparation of the next; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_turn or self._unfed or self._closed)
            if self._closed:
                return False
            turn = self._says.take(user_waits=self._waiting is not None)
            if turn is None:
                turn, self._waiting = self._waiting, None
            for skipped in self._skipped:
                self._history.add_interrupted([skipped.said] if skipped.said else [], "")
                self._tools.forget()  # it was not the very next turn's yes
            self._skipped.clear()
            forgotten, self._forgotten = self._forgotten, False
            spoken = self._spoken
            if turn is None or not turn.open:
                self._unfed = False
            self._feeding = turn is None
            if turn is not None:
                self._begin(turn)
        if forgotten:
            self._conversation.reset()
        if turn is None:
            try:
                self._transcribe(wanted=not any(spoken))
            finally:
                self._feed(*spoken)
        else:
            self._take(turn)
        return True

    def _begin(self, turn: UserTurn) -> None:
        self._current = turn
        self._responses += 1
        turn.response = self._responses
        self._speech.begin(turn.response)

    def _transcribe(self, wanted: bool) -> None:
        """Write down what the user said, unless a new turn begins or comes: that cancels it as it cancels a feed."""
        untold, self._untold = self._untold, False
        if not (untold and wanted and self._transcribes()):
            return
        with self._changed:
            request = transcript_request(self._history.messages(self._system_prompt()), self._tools.offer)
            if request is None or self._has_turn:
                return
            events, self._transcribing = self._conversation.generate(request), True
        try:
            with closing(events), suppress(PromptTooLongError):  # there is room for the history, but for no question more
                for event in events:
                    if isinstance(event, Finished) and event.reason != "cancelled" and event.text.strip():
                        self._on_transcript(event.text.strip())
        finally:
            with self._changed:
                self._transcribing = False

    def _feed(self, picture: Look | None, said: Part | None) -> None:
        """Compute ahead what the next turn will begin with, in a history as short as it will be; nobody waits for it then."""
        try:
            parts, skip = content(picture, said), 0
            while True:
                with self._changed:
                    remembered = len(self._history)
                    messages = self._history.messages(self._system_prompt(), parts, skip)
                if not messages and self._tools.offer:  # they stand ahead of everything
                    messages = [{"role": "user", "content": ""}]
                try:
                    if messages and not self._has_turn:  # a cancel() from here on is the conversation's to hear
                        self._conversation.feed(messages, special_tokens=False, tools=self._tools.offer)
                    return
                except PromptTooLongError:
                    if skip >= remembered:
                        return
                    skip += 1
        finally:
            with self._changed:
                self._feeding = False

    def _take(self, turn: UserTurn) -> None:
        """A turn from its beginning until its speech was heard or stopped, and into the history."""
        try:
            self._on_change()
            remembered = self._answering.run(turn)
            with self._changed:
                self._unfed |= remembered
                self._untold = remembered and not turn.forgotten and turn.said is not None and turn.said["type"] == "audio"
        finally:
            turn.answered = True
            self._speech.cancel()  # nothing is left of it unless something above went wrong
            with self._changed:
                self._current = None
                self._changed.notify_all()
            self._on_change()
