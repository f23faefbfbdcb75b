"""Devices without hardware, at the pace of a clock: a WAV file or nothing in place of a microphone or a loudspeaker."""

import contextlib
import wave
from pathlib import Path

import numpy as np

from omni_ros.dialogue.clock import Clock
from omni_ros.errors import DeviceError

BUFFER = 0.08  # seconds that such a loudspeaker takes ahead


class PacedSource:
    """A microphone that hears a recording once, and silence after it."""

    def __init__(self, pcm: np.ndarray, rate: int, clock: Clock) -> None:
        self.rate, self.channels = rate, pcm.shape[1]
        self.overflows = 0
        self._pcm = pcm  # float32 [n, channels]
        self._clock = clock
        self._began = clock.now()
        self._read = 0

    def available(self) -> int:
        return int((self._clock.now() - self._began) * self.rate) - self._read

    def read(self, frames: int) -> np.ndarray:  # float32 [frames, channels]
        heard = self._pcm[self._read : self._read + frames]
        self._read += frames
        return np.concatenate([heard, np.zeros((frames - len(heard), self.channels), np.float32)])

    def close(self) -> None:
        """Nothing is held."""


class PacedSink:
    """A loudspeaker that plays into a WAV file, or nowhere. What comes too late is silence in the file, as it would be heard."""

    def __init__(self, path: Path | None, rate: int, channels: int, clock: Clock) -> None:
        self.rate, self.channels = rate, channels
        self.underflows = 0
        self._clock = clock
        self._path = path
        self._file = _create(path, rate, channels) if path is not None else None
        self._began = clock.now()
        self._written = 0

    def room(self) -> int:
        return int((self._clock.now() - self._began + BUFFER) * self.rate) - self._written

    def write(self, pcm: np.ndarray) -> None:  # float32 [frames, channels]
        gap = int((self._clock.now() - self._began) * self.rate) - self._written
        if gap > 0:
            self.underflows += self._written > 0
            self._put(np.zeros((gap, self.channels), np.float32))
        self._put(pcm)

    def _put(self, pcm: np.ndarray) -> None:
        self._written += len(pcm)
        if self._file is None:
            return
        try:  # written through: whoever looks at the file sees all that was played
            self._file.writeframes((np.clip(pcm, -1, 1) * 32767).round().astype("<i2").tobytes())
        except OSError as error:  # a full disk; to open the file again would empty it
            text = f"{self._path}: cannot be written any more ({error.strerror}) and has what was played until then: "
            raise DeviceError(text + "make room, then deactivate and activate the node: it begins anew", final=True) from error

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is still to be written does not fit either
                self._file.close()


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """16-bit PCM -> float32 [n, channels], sample rate."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                raise DeviceError(f"{path}: samples of {8 * file.getsampwidth()} bit; make it a WAV file of 16-bit PCM")
            data, channels, rate = file.readframes(file.getnframes()), file.getnchannels(), file.getframerate()
    except (OSError, wave.Error, EOFError) as error:
        raise DeviceError(f"{path}: cannot be read as a WAV file of 16-bit PCM ({error or 'it is too short'})") from error
    whole = len(data) // (2 * channels) * 2 * channels
    return np.frombuffer(data[:whole], "<i2").reshape(-1, channels).astype(np.float32) / 32768, rate


def _create(path: Path, rate: int, channels: int) -> wave.Wave_write:
    try:
        file = wave.open(str(path), "wb")  # noqa: SIM115 - closed by its owner
    except OSError as error:
        raise DeviceError(f"{path}: cannot be written ({error})") from error
    file.setnchannels(channels)
    file.setsampwidth(2)
    file.setframerate(rate)
    return file
