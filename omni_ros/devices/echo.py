"""What becomes of the robot's own voice in its microphone: cancelled, muted, or left as it is."""

import numpy as np

from omni_ros.devices.kalman import FRAME, KalmanFilter
from omni_ros.errors import DeviceError

MODES = ("none", "aec", "mute")
RATE = 16000
AUDIBLE = 1e-4  # of full scale: what is played below it (-80 dBFS) leaves no echo
# Seconds of played sound for which the robot mutes itself, until the canceller knows the room: its first words would be heard.
LEARNING = 2.0
TAIL = 0.5  # seconds that an echo may come after what is played: delay and reverberation
QUIET = 0.05  # how fast the level of the room's own noise is followed upwards, per frame


class Echo:
    """One microphone's path, frame by frame: `near` and the `far` that was played then -> what the robot listens to.

    aec: a Kalman filter subtracts the echo that it predicts, and WebRTC's AEC3 suppresses what is left of it. AEC3 alone leaves
    no echo either, but takes a person who speaks 10 dB below the robot's voice away with it; behind the filter it hardly does.
    mute: room noise instead of the microphone while something is played (half duplex).
    """

    def __init__(self, mode: str, *, noise_suppression: bool = False, gain_control: bool = False) -> None:
        if mode not in MODES:
            raise DeviceError(f"echo is '{mode}', but must be one of {', '.join(MODES)}")
        self._mode = mode
        self._suppressor = None
        if mode == "aec" or noise_suppression or gain_control:
            try:
                from pywebrtc_audio import AudioProcessor  # extra `devices`
            except ImportError as error:
                what = "echo: aec, noise_suppression and gain_control need WebRTC's audio processing"
                raise DeviceError(f"{what}: pip install pywebrtc-audio ({error})") from error
            self._suppressor = AudioProcessor(
                RATE,
                echo_cancellation=mode == "aec",
                noise_suppression=noise_suppression,
                auto_gain_control=gain_control,
            )
        self._filter = KalmanFilter()
        self._rng = np.random.default_rng(0)
        self._noise = 1e-3  # level of the room, RMS
        self._muted = 0  # frames to go
        self.learn()

    def learn(self) -> None:
        """The loudspeaker may be another one, or its delay may have changed."""
        self._filter.doubt()
        self._to_learn = round(LEARNING * RATE / FRAME)

    @property
    def learning(self) -> bool:
        """Whether the canceller does not know the room yet."""
        return self._mode == "aec" and self._to_learn > 0

    def __call__(self, near: np.ndarray, far: np.ndarray, blind: bool = False) -> np.ndarray:
        """float32 [FRAME] at 16 kHz each -> float32 [FRAME]. blind: something is played, but `far` does not have it."""
        playing = audible(far)
        clean = self._filter(near, far) if self._mode == "aec" else near
        if self._suppressor is not None:
            clean = self._suppressor.process(clean, far) if self._mode == "aec" else self._suppressor.process(clean)
        if self._mode != "none" and (blind or playing and (self._mode == "mute" or self.learning)):
            self._muted = round(TAIL * RATE / FRAME)
            self._to_learn -= playing
        if self._muted:
            self._muted -= 1
            # Not digital silence: it would teach a voice activity detector that a quiet room is loud.
            return self._rng.normal(0, self._noise, FRAME).astype(np.float32)
        level = float(np.sqrt(np.mean(clean * clean)))
        self._noise += (level - self._noise) * (1.0 if level < self._noise else QUIET * min(1.0, self._noise / (level + 1e-9)))
        return clean


def audible(pcm: np.ndarray) -> bool:
    return bool(np.abs(pcm).max(initial=0.0) > AUDIBLE)
