"""The sounds, pictures and videos of a conversation: decoded, then encoded to the rows that the Thinker reads, once each."""

import hashlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from omni_ros.errors import EngineError, InputError, PromptTooLongError
from omni_ros.pipeline.audio_encoder import AudioEncoder
from omni_ros.pipeline.visual_encoder import VisualEncoder
from omni_ros.preprocess.audio import HOP, SAMPLE_RATE, load_audio, load_features, log_mel
from omni_ros.preprocess.image import VisionConfig, image_patches
from omni_ros.preprocess.video import load_video, video_patches

ROLES = ("system", "user", "assistant", "tool")
AXES = {"audio": ("samples",), "image": ("height", "width", "RGB"), "video": ("frames", "height", "width", "RGB")}
OPTIONS = ("fps", "max_pixels", "unfinished")  # of a part, beside its value
VIDEO_FPS = 2.0  # frames kept per second of video, as Qwen's own examples do


def nothing() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(eq=False)
class Piece:
    """What an encoder takes at once: a window of sound, a picture, a video. Its rows depend on nothing else in the conversation,
    so they are computed once. A clip that has become longer shares the windows that are still the same with what it was."""

    serial: int  # of the conversation; prompts name the rows by it
    tokens: int  # how many prompt rows it takes
    inputs: np.ndarray  # one of AudioEncoder.windows, or patches float32 [t*h*w, patch_width], until it is encoded
    digest: bytes = b""  # of the inputs of a window
    encoded: bool = False  # then, instead of `inputs`:
    features: np.ndarray = field(default_factory=nothing)  # float32 [tokens, H]
    deepstack: np.ndarray = field(default_factory=nothing)  # float32 [D, tokens, H], unless it is sound


@dataclass(eq=False)
class Media:
    """One clip, picture or video."""

    kind: str  # audio | image | video
    source: Any  # an array, known by being the same object, which is not kept alive; or a file, by its path, time and size
    options: tuple[Any, ...]
    pieces: list[Piece]
    grid: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))  # (t, h, w) in patches, unless it is sound
    seconds_per_grid: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(piece.tokens for piece in self.pieces)


class MediaReader:
    """Follows Qwen3OmniMoeProcessor and the two encoders. Without an encoder, its kind of media is an error."""

    def __init__(self, vision: VisionConfig, merge_size: int, audio: AudioEncoder | None, visual: VisualEncoder | None):
        self.vision, self.merge_size, self.audio, self.visual = vision, merge_size, audio, visual

    def read(self, kind: str, part: dict[str, Any], known: list[Media], serials: Iterator[int], max_tokens: int) -> Media:
        """The media of a part {"type": kind, kind: value, ...}: the one in `known` if it is there, else decoded anew.
        New pieces take the next of `serials`.

        Raises InputError naming the file when it cannot be used, PromptTooLongError, before it is decoded, when it needs more
        than `max_tokens` rows, EngineError when there is no encoder for it.
        """
        source, options = _identity(part[kind]), tuple(part.get(name) for name in OPTIONS)
        for media in known:
            if media.kind == kind and media.options == options and _same(media.source, source):
                return media
        if kind == "audio":
            pieces = self._windows(self._mel(part["audio"], max_tokens), known, serials)
            # More sound will come: of the last window, or its last frame, the mel is not final yet.
            return Media(kind, source, options, pieces[:-1] if part.get("unfinished") else pieces)
        self._encoder(self.visual, "pictures", "visual")
        value, seconds = part[kind], 0.0
        if kind == "image":
            patches, grid = image_patches(value, self.vision, part.get("max_pixels"), max_tokens)
        else:
            fps = part.get("fps", VIDEO_FPS)
            frames = value if isinstance(value, np.ndarray) else load_video(value, fps, self.vision, max_tokens)
            patches, grid, seconds = video_patches(frames, fps, self.vision, max_tokens)
        piece = Piece(next(serials), int(grid.prod()) // self.merge_size**2, patches)
        return Media(kind, source, options, [piece], grid, seconds)

    def _windows(self, mel: np.ndarray, known: list[Media], serials: Iterator[int]) -> list[Piece]:
        """The windows of a clip, those of `known` clips where the mel is the same to the last bit. It need not be for the same
        samples: a louder sound later in a clip raises the floor of all its mel."""
        of_digest = {piece.digest: piece for media in known if media.kind == "audio" for piece in media.pieces}
        pieces = []
        for window, tokens in self._encoder(self.audio, "sound", "audio").windows(mel):
            digest = hashlib.sha256(f"{window.shape} {tokens}".encode() + window.tobytes()).digest()
            pieces.append(of_digest.setdefault(digest, Piece(next(serials), tokens, window, digest)))
        return pieces

    def _mel(self, value: Any, max_tokens: int) -> np.ndarray:
        """float32 [bins, frames] of a file, features file or float32 [n] at 16 kHz."""
        encoder = self._encoder(self.audio, "sound", "audio")
        most = max_tokens * encoder.chunk_frames / encoder.chunk_tokens * HOP / SAMPLE_RATE + 1  # seconds, and one to spare
        if isinstance(value, np.ndarray):
            if len(value) > most * SAMPLE_RATE:
                raise PromptTooLongError(
                    f"sound of {len(value) / SAMPLE_RATE:.1f} s does not fit {max_tokens} rows of the prompt: send at most "
                    f"{most - 1:.1f} s, or build with a larger --maxInputLen"
                )
            return log_mel(value)
        if str(value).endswith(".safetensors"):
            return load_features(value, most)
        return log_mel(load_audio(value, most))

    def encode(self, media: Media, check: Callable[[], None]) -> None:
        """Fill in features and deepstack of its pieces; `check` is called between runs of the encoder and may raise."""
        for piece in media.pieces:
            if piece.encoded:
                continue
            if media.kind == "audio":
                check()
                piece.features = self._encoder(self.audio, "sound", "audio")(piece.inputs, piece.tokens)
            else:
                embeds, deepstack = self._encoder(self.visual, "pictures", "visual")(piece.inputs, media.grid[None], check)
                piece.features, piece.deepstack = embeds[0], deepstack[0]
            piece.inputs, piece.encoded = nothing(), True

    @staticmethod
    def _encoder(encoder: Any, what: str, name: str) -> Any:
        if encoder is None:
            raise EngineError(f"the request has {what}, and no {name} engine was opened: give the folder that has it")
        return encoder


def _identity(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return weakref.ref(value)
    try:
        status = Path(value).stat()
    except (OSError, ValueError):
        return str(value)  # decoding it says what is wrong
    return str(value), status.st_mtime_ns, status.st_size


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, weakref.ref) or isinstance(b, weakref.ref):  # whose own == would compare the arrays
        return type(a) is type(b) and a() is b()
    return a == b


def media_parts(messages: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(kind, part) of every media part in order. Raises InputError naming the first malformed message."""
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with at least one message")
    parts = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise InputError(f"{where} needs a role: {', '.join(ROLES[:-1])} or {ROLES[-1]}")
        _check_tool_calls(message, where)
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise InputError(f"{where}.content must be a string or a list of parts")
        for j, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", *AXES) or kind not in part:
                raise InputError(f"{where}.content[{j}] must be {{'type': 'text'|'audio'|'image'|'video', <type>: value}}")
            if kind == "text" and not isinstance(part["text"], str):
                raise InputError(f"{where}.content[{j}].text must be a string")
            if kind != "text":
                _check_media(kind, part, f"{where}.content[{j}]")
                parts.append((kind, part))
    return parts


def _check_tool_calls(message: dict[str, Any], where: str) -> None:
    calls = message.get("tool_calls")
    if calls is None:
        return
    if message["role"] != "assistant" or not isinstance(calls, list):
        raise InputError(f"{where}.tool_calls must be a list, in a message of the assistant")
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InputError(f"{where}.tool_calls[{i}] must be {{'function': {{'name': ..., 'arguments': ...}}}}")
        if not isinstance(function.get("arguments"), (str, dict)):
            raise InputError(f"{where}.tool_calls[{i}].function.arguments must be JSON or an object")


def _check_media(kind: str, part: dict[str, Any], where: str) -> None:
    value, fps, pixels = part[kind], part.get("fps", VIDEO_FPS), part.get("max_pixels")
    unfinished = part.get("unfinished", False)
    if not isinstance(value, (str, Path, np.ndarray)):
        raise InputError(f"{where}.{kind} must be a file or an array, got {type(value).__name__}")
    if isinstance(value, np.ndarray) and value.ndim != len(AXES[kind]):
        raise InputError(f"{where}.{kind} must be {list(AXES[kind])}, got {list(value.shape)}")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < np.inf:
        raise InputError(f"{where}.fps = {fps!r} must be a number above 0")
    if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1):
        raise InputError(f"{where}.max_pixels = {pixels!r} must be a whole number above 0")
    if not isinstance(unfinished, bool):
        raise InputError(f"{where}.unfinished = {unfinished!r} must be true or false")
