"""Barge-in: whether a user who speaks into an answer wants it to stop, and what becomes of the speech until that is known.

The user begins    the robot goes on, quieter
0.25 s of voice    it falls silent where it is: nothing is lost yet, and what follows is heard undisturbed
barge_in_seconds   somebody talks: the answer is stopped for good
earlier silence    a back-channel ("mm-hm", "yes"): the answer goes on where it was

Only length tells the two apart, and single words it cannot: "yes" and "stop" last equally long. So a second word within 2 s is
meant: the robot stops while the second "stop!" is said. docs/barge_in.md has the rule measured.
"""

from collections.abc import Callable

from omni_ros.dialogue.clock import Clock
from omni_ros.dialogue.speech_pacer import SpeechPacer
from omni_ros.dialogue.turn import UserTurn

HOLD = 0.25  # seconds of voice
WORD = 0.1  # seconds of voice: less is not said
AGAIN = 2.0  # seconds after a back-channel within which another word is none
LAST_WORDS = 1.0  # seconds of an answer that are left when a user begins who does not nod but replies


class BargeIn:
    """Follows one utterance after the other, on the listener's thread. An utterance that is no back-channel is a turn."""

    def __init__(
        self,
        speech: SpeechPacer,
        answer: Callable[[], UserTurn | None],  # in progress now
        interrupt: Callable[[], None],  # stop it
        clock: Clock,
    ) -> None:
        self._speech = speech
        self._in_progress = answer
        self._interrupt = interrupt
        self._clock = clock
        self.undecided = False  # there is an answer that this utterance may stop
        self.back_channels = 0  # utterances that were none
        self._answer: UserTurn | None = None  # the one that it began into
        self._may_nod = False  # in the middle of speech, where people show that they listen
        self._voice = self._before = 0.0  # seconds of this utterance, and until its last pause
        self._again = False  # a word was said just before
        self._voiced_at = self._nodded_at = float("-inf")  # the last voice, also of the last back-channel

    def begins(self) -> None:
        """The user begins to speak, perhaps into an answer, or into the silence while it is made."""
        self._answer, self._voice, self._before = self._in_progress(), 0.0, 0.0
        self.undecided = self._answer is not None
        self._again = self._clock.now() - self._nodded_at < AGAIN
        if not self.undecided:
            return
        self._may_nod = self._speech.speaking and self._speech.left > LAST_WORDS
        if self._speech.speaking:
            self._speech.duck()
        else:
            self._speech.hold()  # nobody begins to talk while somebody else does

    def lasts(self, voice: float, barge_in_seconds: float) -> None:
        """The utterance has `voice` seconds of voice by now."""
        goes_on, self._voice = voice > self._voice, voice
        if goes_on:
            self._voiced_at = self._clock.now()
        if not (goes_on and self.undecided):
            return
        if voice >= barge_in_seconds or (self._again and voice - self._before >= HOLD):
            self._stop()
        elif voice >= HOLD:
            self._speech.hold()

    def pauses(self) -> None:
        """The user fell silent, perhaps for good."""
        if self.undecided and self._may_nod:
            self._speech.go_on() if self._nods() else self._stop()

    def goes_on(self) -> None:
        """The user had not finished."""
        self._before, self._again = self._voice, self._again or self._voice >= WORD
        if self.undecided:
            self._speech.duck()

    def ends(self, said: bool) -> bool:
        """The utterance is over, or was dropped as no speech (not `said`); whether it is a turn."""
        undecided, self.undecided = self.undecided, False
        nods = undecided and self._nods()
        if said and undecided and not nods:
            self._stop()
        elif undecided:
            self._speech.go_on()
            if said:
                self.back_channels += 1
                self._nodded_at = self._voiced_at
        return said and not nods

    def forget(self) -> None:
        """The utterance is not listened to any more."""
        if self.undecided:
            self.undecided = False
            self._speech.go_on()

    def _nods(self) -> bool:
        """As short as it is; but not twice, and not into an answer that began meanwhile, to a typed question."""
        said_again = self._again and self._voice - self._before >= WORD
        return self._may_nod and not said_again and self._in_progress() in (self._answer, None)

    def _stop(self) -> None:
        self.undecided = False
        self._interrupt()
        self._speech.go_on()  # whatever will be spoken next
