"""A turn's messages -> the rows the Thinker reads: token ids, media features, mRoPE positions, and who said what."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omni_ros.errors import CheckpointError, EngineError, InputError, PromptTooLongError
from omni_ros.pipeline.audio_encoder import AudioEncoder
from omni_ros.pipeline.positions import mrope_positions
from omni_ros.pipeline.tokenizer import ChatTokenizer
from omni_ros.pipeline.visual_encoder import VisualEncoder
from omni_ros.preprocess.audio import load_audio, load_features, log_mels
from omni_ros.preprocess.image import VisionConfig, image_patches, load_image
from omni_ros.preprocess.video import load_video, video_patches

ARRAY_AXES = {"audio": ("samples",), "image": ("height", "width", "RGB"), "video": ("frames", "height", "width", "RGB")}
VIDEO_FPS = 2.0  # frames kept per second of video, as Qwen's own examples do


@dataclass
class Prompt:
    ids: np.ndarray  # int64 [S], placeholders repeated
    positions: np.ndarray  # float32 [3, S]
    next_position: float
    audio_mask: np.ndarray  # bool [S]
    visual_mask: np.ndarray  # bool [S], images and videos
    audio_features: np.ndarray | None  # float32 [audio rows, H]
    visual_features: np.ndarray | None  # float32 [visual rows, H]
    deepstack: np.ndarray | None  # float32 [D, visual rows, H]
    user_mask: np.ndarray  # bool [S], rows of user segments
    user_image_grids: list[np.ndarray]  # (t, h, w) of the images in user segments, in order
    user_video_grids: list[np.ndarray]
    user_seconds_per_grid: list[float]
    assistant_start: int  # row of the last `<|im_start|>assistant`


class PromptBuilder:
    def __init__(
        self, directory: Path, model: dict, max_input_len: int, audio: AudioEncoder | None, visual: VisualEncoder | None
    ):
        """`directory` is the Thinker's engine folder, `model` the model section of its config."""
        self.tokenizer = ChatTokenizer(directory)
        tokens = self.tokenizer.tokenizer.get_vocab_size()
        if tokens > model["vocab_size"]:
            raise EngineError(
                f"{directory / 'tokenizer.json'}: has {tokens} tokens, the Thinker {model['vocab_size']}; "
                "export the Thinker again with its own tokenizer"
            )
        try:
            self.vision_config = VisionConfig.from_files(directory)
        except CheckpointError as e:
            raise EngineError(str(e)) from e
        for encoder in filter(None, (audio, visual)):
            made_for = encoder.engine.config["model"]
            levels = made_for.get("levels", model["num_deepstack"])
            if (made_for["hidden_size"], levels) != (model["hidden_size"], model["num_deepstack"]):
                raise EngineError(
                    f"{encoder.engine.directory}: made for a Thinker of width {made_for['hidden_size']} with "
                    f"{levels} deepstack levels, this one has {model['hidden_size']} and {model['num_deepstack']}; "
                    "export and build all engines from one checkpoint"
                )
        self.model, self.max_input_len, self.audio, self.visual = model, max_input_len, audio, visual
        self.placeholder = {kind: model[f"{kind}_token_id"] for kind in ("audio", "image", "video")}

    def build(self, messages: list[dict[str, Any]]) -> Prompt:
        """Raises InputError for messages or media that cannot be used, PromptTooLongError past max_input_len."""
        parts = _media_parts(messages)
        for kind, _ in parts:
            if (self.audio if kind == "audio" else self.visual) is None:
                raise EngineError(
                    f"{kind} in a prompt needs the {'audio' if kind == 'audio' else 'visual'} encoder, which is not loaded"
                )
        mels = self._load_audio([part["audio"] for kind, part in parts if kind == "audio"])
        clips = iter(mels)
        media = [
            {"kind": kind, "tokens": self.audio.token_count(next(clips).shape[1])}
            if kind == "audio"
            else self._load_visual(kind, part)
            for kind, part in parts
        ]
        ids, media_rows = self._expand(self.tokenizer.encode(messages), media)
        if len(ids) > self.max_input_len:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens, the Thinker engine was built for "
                f"{self.max_input_len}; shorten the history or build with a larger --maxInputLen"
            )
        visuals = [m for m in media if m["kind"] != "audio"]
        features = deepstack = None
        if visuals:
            embeds, deep = self.visual(np.concatenate([v["patches"] for v in visuals]), np.stack([v["grid"] for v in visuals]))
            features, deepstack = np.concatenate(embeds), np.concatenate(deep, axis=1)
        m = self.model
        positions, next_position = mrope_positions(
            ids, m["image_token_id"], m["video_token_id"], *_grids(media), m["spatial_merge_size"], m["position_id_per_seconds"]
        )
        starts = np.flatnonzero(ids == m["im_start_token_id"])
        roles = ids[np.minimum(starts + 1, len(ids) - 1)]
        assistant = starts[roles == m["assistant_token_id"]]
        if not len(assistant):
            raise InputError("the chat template opens no assistant turn; check chat_template in the Thinker's folder")
        row_role = np.full(len(ids), -1)
        for start, role in zip(starts, roles):
            row_role[start:] = role
        user_mask = row_role == m["user_token_id"]
        return Prompt(
            ids,
            positions,
            next_position,
            ids == m["audio_token_id"],
            (ids == m["image_token_id"]) | (ids == m["video_token_id"]),
            np.concatenate(self.audio(mels)) if mels else None,
            features,
            deepstack,
            user_mask,
            *_grids([m for m, row in zip(media, media_rows) if user_mask[row]]),
            int(assistant[-1]),
        )

    def _load_audio(self, sources: list) -> list[np.ndarray]:
        """Mel features float32 [128, frames] of each file, features file or array. Clips that are still samples go
        through the front end together, as transformers' processor does."""
        ready = [not isinstance(source, np.ndarray) and str(source).endswith(".safetensors") for source in sources]
        samples = [
            source if isinstance(source, np.ndarray) else load_audio(source)
            for source, is_mel in zip(sources, ready)
            if not is_mel
        ]
        mels = iter(log_mels(samples))
        return [load_features(source) if is_mel else next(mels) for source, is_mel in zip(sources, ready)]

    def _load_visual(self, kind: str, part: dict[str, Any]) -> dict[str, Any]:
        """Kind, patches, grid and `tokens` (how many prompt rows it takes) of one image or video."""
        source, config = part[kind], self.vision_config
        if kind == "image":
            patches, grid = image_patches(source if isinstance(source, np.ndarray) else load_image(source), config)
            seconds = 0.0
        else:
            fps = part.get("fps", VIDEO_FPS)
            frames = source if isinstance(source, np.ndarray) else load_video(source, fps, config)
            patches, grid, seconds = video_patches(frames, fps, config)
        return {
            "kind": kind,
            "patches": patches,
            "grid": grid,
            "seconds_per_grid": seconds,
            "tokens": int(grid.prod()) // self.model["spatial_merge_size"] ** 2,
        }

    def _expand(self, ids: np.ndarray, media: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        """Repeat each placeholder token as often as its media has rows; also returns the first row of each."""
        kind_of = {v: k for k, v in self.placeholder.items()}
        found = [kind_of[i] for i in ids.tolist() if i in kind_of]
        expected = [m["kind"] for m in media]
        if found != expected:
            raise InputError(
                f"the prompt has media placeholders {found}, the messages have {expected}; "
                "text must not contain the placeholder tokens themselves"
            )
        counts = np.ones(len(ids), np.int64)
        is_media = np.isin(ids, list(kind_of))
        counts[is_media] = [m["tokens"] for m in media]
        return np.repeat(ids, counts), (np.cumsum(counts) - counts)[is_media]


def _grids(media: list[dict[str, Any]]) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """(t, h, w) of the images, of the videos, and the seconds per grid of the videos, in order."""
    images, videos = ([m for m in media if m["kind"] == kind] for kind in ("image", "video"))
    return [m["grid"] for m in images], [m["grid"] for m in videos], [m["seconds_per_grid"] for m in videos]


def _media_parts(messages: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """(kind, part) of every media part in order. Raises InputError naming the first malformed message."""
    if not isinstance(messages, list) or not messages:
        raise InputError("messages must be a list with at least one message")
    parts = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise InputError(f"{where} needs a role: system, user or assistant")
        content = message.get("content")
        if isinstance(content, str):
            continue
        if not isinstance(content, list):
            raise InputError(f"{where}.content must be a string or a list of parts")
        for j, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in ("text", "audio", "image", "video") or kind not in part:
                raise InputError(f"{where}.content[{j}] must be {{'type': 'text'|'audio'|'image'|'video', <type>: value}}")
            value, fps = part[kind], part.get("fps", VIDEO_FPS)
            if kind == "text":
                if not isinstance(value, str):
                    raise InputError(f"{where}.content[{j}].text must be a string")
                continue
            if not isinstance(value, (str, Path, np.ndarray)):
                raise InputError(f"{where}.content[{j}].{kind} must be a file or an array, got {type(value).__name__}")
            if isinstance(value, np.ndarray) and value.ndim != len(ARRAY_AXES[kind]):
                raise InputError(f"{where}.content[{j}].{kind} must be {list(ARRAY_AXES[kind])}, got {list(value.shape)}")
            if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < np.inf:
                raise InputError(f"{where}.content[{j}].fps = {fps!r} must be a number above 0")
            parts.append((kind, part))
    return parts
