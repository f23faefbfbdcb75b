"""Sound cards, by PortAudio through package sounddevice."""

import threading
from types import ModuleType

import numpy as np

from omni_ros.errors import DeviceError

INSTALL = "pip install sounddevice (on Debian and Ubuntu also: sudo apt install libportaudio2)"

# PortAudio looks for devices only when it is initialised, and crashes where a stream is open then: who looks and who opens waits
# for the other, and while a stream is open, the devices are those that were found before.
_lock = threading.RLock()
_open_streams: set["_Stream"] = set()


def _sounddevice() -> ModuleType:
    try:
        import sounddevice  # extra `devices`
    except ImportError as error:
        raise DeviceError(f"package sounddevice is not installed: {INSTALL}") from error
    except OSError as error:
        raise DeviceError(f"PortAudio is not installed ({error}): {INSTALL}") from error
    return sounddevice


def devices() -> list[dict]:
    """PortAudio's description of each device, in the order of their numbers."""
    sounddevice = _sounddevice()
    try:
        with _lock:
            if not _open_streams:
                sounddevice._terminate()
                sounddevice._initialize()
            return list(sounddevice.query_devices())
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"PortAudio cannot list the devices: {error}") from error


def find(name: str, direction: str) -> dict:
    """`name`: a number, the name of a device or a part of it (case does not matter), or `default`. direction: input | output."""
    found = [device for device in devices() if device[f"max_{direction}_channels"] > 0]
    if name == "default":
        number = _sounddevice().default.device[direction == "output"]
        chosen = [device for device in found if device["index"] == number] or found[:1]
    elif name.isdigit():
        chosen = [device for device in found if device["index"] == int(name)]
    else:
        chosen = [device for device in found if device["name"] == name]
        chosen = chosen or [device for device in found if name.lower() in device["name"].lower()]
    if len(chosen) == 1:
        return chosen[0]
    known = "; ".join(f"{device['index']}: {device['name']}" for device in chosen or found) or "none at all"
    problem = f"several {direction} devices are called" if chosen else f"there is no {direction} device"
    raise DeviceError(f"{problem} {name!r}: {known} (ros2 run omni_ros devices)")


class _Stream:
    """What input and output have in common. `rate` and `channels` 0: what the device can do."""

    def __init__(self, name: str, direction: str, rate: int, channels: int, latency: float, usual: tuple[int, ...]) -> None:
        sounddevice = _sounddevice()
        with _lock:
            self._open(sounddevice, name, direction, rate, channels, latency, usual)
            _open_streams.add(self)

    def _open(self, sounddevice, name, direction, rate, channels, latency, usual) -> None:
        device = find(name, direction)
        most = device[f"max_{direction}_channels"]
        kind = sounddevice.InputStream if direction == "input" else sounddevice.OutputStream
        self.rate = rate or round(device["default_samplerate"])
        self.name = device["name"]
        self._error = sounddevice.PortAudioError
        problem = ""
        for number in [channels] if channels else dict.fromkeys((*(n for n in usual if n <= most), most)):
            try:
                self._stream = kind(self.rate, device=device["index"], channels=number, dtype="float32", latency=latency)
                self._stream.start()
                self.channels = number
                return
            except (self._error, ValueError) as error:
                problem = str(error)
        raise DeviceError(f"{direction} device {self.name!r} cannot be opened at {self.rate} Hz: {problem}")

    def _ask(self, ask):
        try:
            return ask()
        except self._error as error:
            raise DeviceError(f"device {self.name!r} has failed: {error}") from error

    def close(self) -> None:
        with _lock:
            _open_streams.discard(self)
            try:
                self._stream.close()
            except self._error:
                return  # a device that was taken away is closed already


class InputStream(_Stream):
    def __init__(self, name: str, rate: int, channels: int, latency: float) -> None:
        self.overflows = 0  # times that the device gave up sound because nobody had read it in time
        super().__init__(name, "input", rate, channels, latency, (1, 2))

    def available(self) -> int:
        """Frames that can be read without waiting."""
        return self._ask(lambda: self._stream.read_available)

    def read(self, frames: int) -> np.ndarray:  # float32 [frames, channels]
        pcm, lost = self._ask(lambda: self._stream.read(frames))
        self.overflows += bool(lost)
        return pcm


class OutputStream(_Stream):
    def __init__(self, name: str, rate: int, channels: int, latency: float) -> None:
        self.underflows = 0  # times that the device had nothing to play
        super().__init__(name, "output", rate, channels, latency, (2, 1))

    def room(self) -> int:
        """Frames that can be written without waiting."""
        return self._ask(lambda: self._stream.write_available)

    def write(self, pcm: np.ndarray) -> None:  # float32 [frames, channels]
        self.underflows += bool(self._ask(lambda: self._stream.write(np.ascontiguousarray(pcm))))
