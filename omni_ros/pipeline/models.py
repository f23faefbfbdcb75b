"""What the conversations on one set of engines share: weights and logic, and nothing that any of them has said."""

from dataclasses import dataclass

from omni_ros.errors import EngineError
from omni_ros.pipeline.code2wav import Code2Wav
from omni_ros.pipeline.media import MediaReader
from omni_ros.pipeline.prompt import PromptBuilder
from omni_ros.pipeline.talker import Talker
from omni_ros.pipeline.thinker import Thinker


@dataclass(frozen=True)
class Voice:
    """Talker (with its CodePredictor) and Code2Wav."""

    talker: Talker
    code2wav: Code2Wav


@dataclass(frozen=True)
class Models:
    thinker: Thinker
    prompts: PromptBuilder
    media: MediaReader
    voice: Voice | None  # None: text only

    def speak(self) -> Voice:
        """The voice, or EngineError."""
        if self.voice is None:
            raise EngineError("speech was asked for, and the engines talker, code_predictor and code2wav were not opened")
        return self.voice
