"""What lets the user begin a turn: a voice, a button held down, or a wake word before it.

Each is an endpointer to the listener, on whose thread it runs: sound in, SpeechStart ... SpeechEnd out.
"""

from collections.abc import Callable

import numpy as np

from omni_ros.dialogue.endpoint import SAMPLE_RATE, Endpointer, SpeechEnd, SpeechEvent, SpeechStart
from omni_ros.dialogue.wake_word import WakeWord

TURN_STARTS = ("voice", "push_to_talk", "wake_word")


class PushToTalk:
    """An utterance is what is said while a button is held, pauses included; held without a word, it is no turn. The listener
    is told of the button in the order of the sound: `skip` is called while it is up."""

    def __init__(self, endpointer: Endpointer, *, max_seconds: float) -> None:
        self._endpointer = endpointer  # finds the voice
        self._max_samples = max_seconds * SAMPLE_RATE
        self._silence = 0.0
        self.reset()

    @property
    def in_speech(self) -> bool:
        return self._in_speech

    @property
    def voiced_seconds(self) -> float:
        """Of the utterance in progress."""
        return self._endpointer.voiced_seconds

    @property
    def silence(self) -> float:
        """Seconds between the last voice and the button's release."""
        return self._silence

    @property
    def vad_name(self) -> str:
        return self._endpointer.vad_name

    def reset(self) -> None:
        self._endpointer.reset()
        self._held: list[np.ndarray] = []
        self._samples = 0
        self._in_speech = self._ended = False

    def feed(self, pcm: np.ndarray) -> list[SpeechEvent]:
        """The button is held: take float32 [n] in [-1, 1]."""
        if self._ended:  # a button that is stuck must not keep the user waiting, nor fill the memory
            return []
        self._held.append(pcm.astype(np.float32, copy=False))
        self._samples += pcm.size
        events: list[SpeechEvent] = []
        heard = any(isinstance(event, SpeechStart) for event in self._endpointer.feed(pcm))
        if heard and not self._in_speech:
            self._in_speech = True
            events.append(SpeechStart())
        if self._samples >= self._max_samples:
            events += self.skip(0)
            self._ended = True
        return events

    def skip(self, samples: int) -> list[SpeechEvent]:
        """The button is up."""
        end: list[SpeechEvent] = [self.close()] if self._in_speech else []
        if self._held or self._ended:
            self.reset()
        return end

    def close(self) -> SpeechEnd:
        """End the utterance in progress, because no more sound will come."""
        end, self._silence = SpeechEnd(np.concatenate(self._held)), self._endpointer.silence
        self.reset()
        return end


class AfterWakeWord:
    """Listens for `window` seconds after a wake word, and for `follow_up` seconds after each turn and its answer; at other
    times nothing but the wake word is heard."""

    SETTLE = 0.25  # seconds: a wake word is known before its last vowel is over, which is no turn by itself

    def __init__(self, endpointer: Endpointer, wake_word: WakeWord, *, window: float, follow_up: float) -> None:
        self._endpointer = endpointer
        self._wake_word = wake_word
        self._window, self._follow_up = round(window * SAMPLE_RATE), round(follow_up * SAMPLE_RATE)
        self.busy: Callable[[], bool] = lambda: False  # whether an answer is made or spoken: no window ends meanwhile
        self.on_awake: Callable[[bool], None] = lambda awake: None
        self.take_back: Callable[[np.ndarray], bool] = lambda pcm: False  # see Endpointer
        endpointer.take_back = lambda pcm: self.take_back(pcm)
        self._left = self._settling = 0  # samples until it falls asleep, until it listens
        self._tail: list[np.ndarray] = []  # what settles

    @property
    def in_speech(self) -> bool:
        return self._endpointer.in_speech

    @property
    def voiced_seconds(self) -> float:
        """Of the utterance in progress."""
        return self._endpointer.voiced_seconds

    @property
    def silence(self) -> float:
        return self._endpointer.silence

    @property
    def vad_name(self) -> str:
        return self._endpointer.vad_name

    def reset(self) -> None:
        """After a gap in the stream: whoever had woken it has to do so again."""
        if self._left > 0:
            self._sleep()
        else:
            self._wake_word.reset()

    def close(self) -> SpeechEnd:
        return self._endpointer.close()

    def feed(self, pcm: np.ndarray) -> list[SpeechEvent]:
        if self._left <= 0:
            after = self._wake_word(pcm)
            if after is None:
                return []
            pcm, self._left, self._settling, self._tail = after, self._window, round(self.SETTLE * SAMPLE_RATE), []
            self.on_awake(True)
        if self._settling > 0:
            tail, pcm = pcm[: self._settling], pcm[self._settling :]
            self._tail.append(tail)
            self._settling -= tail.size
            if self._settling > 0:
                return []
            self._endpointer.prime(np.concatenate(self._tail))
        return self._count(self._endpointer.feed(pcm), pcm.size)

    def skip(self, samples: int) -> list[SpeechEvent]:
        return self._count(self._endpointer.skip(samples), samples) if self._left > 0 else []

    def _count(self, events: list[SpeechEvent], samples: int) -> list[SpeechEvent]:
        """Note what happened, and fall asleep when it is time."""
        if any(isinstance(event, SpeechEnd) for event in events):
            self._left = self._follow_up
        elif self.busy():
            self._left = max(self._left, self._follow_up)
        elif not self.in_speech:
            self._left -= samples
        if self._left <= 0:
            self._sleep()
        return events

    def _sleep(self) -> None:
        self._left = 0
        self._endpointer.reset()
        self._wake_word.reset()
        self.on_awake(False)


Ears = Endpointer | PushToTalk | AfterWakeWord
