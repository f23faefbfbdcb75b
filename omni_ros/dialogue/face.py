"""What a dialogue tells whoever it stands behind: a ROS node, a terminal, a test."""

import numpy as np

from omni_ros.dialogue.tools import ToolReport
from omni_ros.dialogue.turn import Outcome
from omni_ros.errors import InputError


class Face:
    """What a dialogue tells. Override what is of interest. Called on the dialogue's threads, partly under its locks: be quick,
    and call no method of the dialogue from here."""

    def text(self, delta: str) -> None:
        """More words of the answer."""

    def response(self, text: str) -> None:
        """The whole answer, once it is written."""

    def transcript(self, text: str) -> None:
        """What the user said in the last spoken turn, some time after its answer, if no new turn came first."""

    def response_json(self, text: str) -> None:
        """The whole answer as JSON that fits the dialogue's response schema."""

    def tool(self, report: ToolReport) -> None:
        """A tool call of the model was carried out, or was not."""

    def speech(self, pcm: np.ndarray) -> None:
        """To be played now: float32 [n] in -1..1 at 24 kHz."""

    def gain(self, gain: float) -> bool:
        """The loudness of all speech from now on, of what waits in the loudspeaker, too: 1, less while the user may have begun
        to speak, or 0: drop what waits and what still comes, until it is more than 0 again. Returns whether the loudspeaker
        obeys; without one that does, speech ends at most `speech_lead` after it was stopped."""
        return False

    def speaking(self, speaking: bool) -> None:
        """The speech of an answer begins to be played, or has been played or stopped."""

    def user_speaking(self, speaking: bool) -> None:
        """The user begins to speak, or has ended."""

    def awake(self, awake: bool) -> None:
        """The wake word was said, or the time to speak after it is over."""

    def state(self, state: str) -> None:
        """It has become idle | listening | thinking | speaking | error | disabled."""

    def outcome(self, outcome: Outcome) -> None:
        """An answer was made, or failed."""

    def bad_input(self, source: str, error: InputError) -> None:
        """Something cannot be used and is passed over; `source` is audio, camera, facts or response_json."""

    def sound_stopped(self, seconds: float, dropped: bool) -> None:
        """The microphone fell silent inside an utterance, which was closed there, or dropped."""

    def failed(self, error: Exception) -> None:
        """A defect, in the dialogue or in one of these methods. What it hit is lost, the dialogue goes on."""
