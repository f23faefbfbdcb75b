"""What goes into a turn and what comes out of it."""

from dataclasses import dataclass, field
from types import NoneType
from typing import Any

import numpy as np

from omni_ros.errors import InputError


@dataclass(frozen=True)
class Request:
    """One turn. `messages` follow the chat format: role plus a string or a list of parts
    {"type": "text"|"audio"|"image"|"video", <type>: value}; audio is a file, a mel .safetensors or float32 [n] at
    16 kHz, image a file or uint8 [H, W, 3], video a file or uint8 [T, H, W, 3] (with "fps", default 2). A message of the
    assistant may have "tool_calls": [{"function": {"name": ..., "arguments": JSON or a dict}}], and "tool" messages follow it.

    temperature 0 makes the Thinker greedy; talker_temperature 0 the Talker and the CodePredictor. top_k 0 keeps all.
    """

    messages: list[dict[str, Any]]
    max_generate_length: int = 256  # tokens, the end token included
    audio_output: bool = True
    streaming: bool = True  # False: Talker after Thinker, Code2Wav after Talker; same tokens and codes
    temperature: float = 0.7
    top_k: int = 20
    top_p: float = 0.8
    talker_temperature: float = 0.9
    talker_top_k: int = 10
    talker_top_p: float = 1.0
    repetition_penalty: float = 1.0  # of the Talker's first codebook
    max_audio_length: int = 4096  # codec frames of 80 ms
    speaker: str | None = None  # None: the checkpoint's default voice
    seed: int | None = None  # None: different every time
    first_chunk_frames: int = 1  # the first two speech chunks are this small ...
    chunk_frames: int = 8  # ... then every other one doubles, up to this size
    # Functions as transformers' apply_chat_template takes them. If this is a list, be it empty, what the model writes as a tool
    # call comes as ToolCall, and is neither text nor speech.
    tools: list[dict[str, Any]] | None = None
    # Tokens, or codec frames, that may repeat one cycle, be silent, or be more than the text needs (a second a token), before
    # the turn ends with RunawayError; 0: never, since random weights do nothing else.
    runaway_limit: int = 0
    special_tokens: bool = True  # False: what looks like a special token in a text is plain text, as words of a stranger are
    say: str | None = None  # words to speak, exactly these, in place of a reply: the Thinker writes none

    def __post_init__(self) -> None:
        for name, low in (
            ("max_generate_length", 1),
            ("top_k", 0),
            ("talker_top_k", 0),
            ("max_audio_length", 1),
            ("first_chunk_frames", 1),
            ("chunk_frames", 1),
            ("runaway_limit", 0),
            ("seed", 0),
        ):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= low
            if not whole and not (name == "seed" and value is None):
                raise InputError(f"{name} = {value!r} must be a whole number, at least {low}")
        for name, lowest, high in (
            ("temperature", 1e-4, 1e4),
            ("talker_temperature", 1e-4, 1e4),
            ("top_p", 0, 1),
            ("talker_top_p", 0, 1),
            ("repetition_penalty", 0.01, 100),
        ):
            value, greedy = getattr(self, name), name.endswith("temperature")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not (lowest <= value <= high or greedy and value == 0):
                raise InputError(f"{name} = {value!r} must be a number from {lowest:g} to {high:g}{', or 0' * greedy}")
        if not isinstance(self.special_tokens, bool):
            raise InputError(f"special_tokens = {self.special_tokens!r} must be true or false")
        if not isinstance(self.speaker, (str, NoneType)):
            raise InputError(f"speaker = {self.speaker!r} must be a name")
        if self.say is not None and not (isinstance(self.say, str) and self.say.strip()):
            raise InputError("say must be a text that is not empty")
        if self.say is not None and not self.audio_output:
            raise InputError("say speaks: it cannot go without audio_output")
        if self.tools is not None and not (isinstance(self.tools, list) and all(isinstance(t, dict) for t in self.tools)):
            raise InputError("tools must be a list of objects, each {'type': 'function', 'function': {...}}")


@dataclass(frozen=True)
class TextDelta:
    """New reply text and the tokens it came from (a token that ends inside a UTF-8 character adds no text yet)."""

    text: str
    token_ids: list[int]


@dataclass(frozen=True)
class ToolCall:
    """What the model wrote between <tool_call> and </tool_call>; not `whole` where the reply ended inside."""

    text: str
    whole: bool


@dataclass(frozen=True)
class TextFinished:
    """The whole reply text without tool calls, as soon as it is written; speech usually goes on. `reason` as in Finished, or
    `runaway`: the turn ends with RunawayError."""

    text: str
    token_ids: list[int]
    reason: str


@dataclass(frozen=True)
class AudioChunk:
    """The next samples of speech, float32 [n] in -1..1 at 24 kHz."""

    pcm: np.ndarray
    is_last: bool


@dataclass(frozen=True)
class Finished:
    """End of the turn. `reason` is why the text ended, `audio_reason` why the speech did:
    stop | length | kv_cache_full | cancelled | none (no speech was asked for or there was no word to speak)."""

    text: str
    token_ids: list[int]
    codes: np.ndarray  # int64 [16, frames]
    reason: str
    audio_reason: str
    metrics: dict[str, Any] = field(default_factory=dict)


Event = TextDelta | ToolCall | TextFinished | AudioChunk | Finished
