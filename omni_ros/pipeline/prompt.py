"""A turn's messages -> the rows the Thinker reads: token ids, media features, mRoPE positions, and who said what."""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.pipeline.audio_encoder import AudioEncoder
from omni_ros.pipeline.positions import mrope_positions
from omni_ros.pipeline.tokenizer import ChatTokenizer
from omni_ros.pipeline.visual_encoder import VisualEncoder
from omni_ros.preprocess.audio import load_audio, load_features, log_mels
from omni_ros.preprocess.image import VisionConfig, image_patches, load_image
from omni_ros.preprocess.video import load_video, video_patches

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
    def __init__(self, directory: Path, model: dict, max_input_len: int, audio: AudioEncoder, visual: VisualEncoder):
        """`directory` is the Thinker's engine folder, `model` the model section of its config."""
        self.tokenizer = ChatTokenizer(directory)
        self.vision_config = VisionConfig.from_files(directory)
        self.model, self.max_input_len, self.audio, self.visual = model, max_input_len, audio, visual
        self.placeholder = {kind: model[f"{kind}_token_id"] for kind in ("audio", "image", "video")}

    def build(self, messages: list[dict[str, Any]]) -> Prompt:
        """Raises InputError for messages or media that cannot be used, PromptTooLongError past max_input_len."""
        parts = _media_parts(messages)
        mels = self._load_audio([part["audio"] for kind, _, part in parts if kind == "audio"])
        clips = iter(mels)
        prepared = [(kind, role, {"tokens": self.audio.token_count(next(clips).shape[1])} if kind == "audio" else
                     self._load_visual(kind, part)) for kind, role, part in parts]
        ids = self._expand(self.tokenizer.encode(messages), prepared)
        if len(ids) > self.max_input_len:
            raise PromptTooLongError(f"the prompt has {len(ids)} tokens, the Thinker engine was built for "
                                     f"{self.max_input_len}; shorten the history or build with a larger --maxInputLen")
        visuals = [m for kind, _, m in prepared if kind != "audio"]
        features = deepstack = None
        if visuals:
            embeds, deep = self.visual(np.concatenate([v["patches"] for v in visuals]), np.stack([v["grid"] for v in visuals]))
            features, deepstack = np.concatenate(embeds), np.concatenate(deep, axis=1)
        grids = {(kind, who): [m["grid"] for k, role, m in prepared if k == kind and (who == "all" or role == who)]
                 for kind in ("image", "video") for who in ("all", "user")}
        seconds = {who: [m["seconds_per_grid"] for k, role, m in prepared if k == "video" and (who == "all" or role == who)]
                   for who in ("all", "user")}
        m = self.model
        positions, next_position = mrope_positions(
            ids, m["image_token_id"], m["video_token_id"], grids["image", "all"], grids["video", "all"], seconds["all"],
            m["spatial_merge_size"], m["position_id_per_seconds"])
        starts = np.flatnonzero(ids == m["im_start_token_id"])
        roles = ids[np.minimum(starts + 1, len(ids) - 1)]
        assistant = starts[roles == m["assistant_token_id"]]
        if not len(assistant):
            raise InputError("the chat template opens no assistant turn; check chat_template in the Thinker's folder")
        row_role = np.full(len(ids), -1)
        for start, role in zip(starts, roles):
            row_role[start:] = role
        return Prompt(
            ids, positions, next_position, ids == m["audio_token_id"],
            (ids == m["image_token_id"]) | (ids == m["video_token_id"]),
            np.concatenate(self.audio(mels)) if mels else None, features, deepstack, row_role == m["user_token_id"],
            grids["image", "user"], grids["video", "user"], seconds["user"], int(assistant[-1]))

    def _load_audio(self, sources: list) -> list[np.ndarray]:
        """Mel features float32 [128, frames] of each file, features file or array. Clips that are still samples go
        through the front end together, as transformers' processor does."""
        loaded = [source if isinstance(source, np.ndarray) else load_features(source)
                  if str(source).endswith(".safetensors") else load_audio(source) for source in sources]
        mels = iter(log_mels([x for x in loaded if x.ndim == 1]))
        return [next(mels) if x.ndim == 1 else x for x in loaded]

    def _load_visual(self, kind: str, part: dict[str, Any]) -> dict[str, Any]:
        """Patches, grid and `tokens` (how many prompt rows it takes) of one image or video."""
        source, config = part[kind], self.vision_config
        if kind == "image":
            patches, grid = image_patches(source if isinstance(source, np.ndarray) else load_image(source), config)
            seconds = 0.0
        else:
            fps = float(part.get("fps", VIDEO_FPS))
            frames = source if isinstance(source, np.ndarray) else load_video(source, fps, config)
            patches, grid, seconds = video_patches(frames, fps, config)
        return {"patches": patches, "grid": grid, "seconds_per_grid": seconds,
                "tokens": int(grid.prod()) // self.model["spatial_merge_size"] ** 2}

    def _expand(self, ids: np.ndarray, prepared: list[tuple[str, str, dict]]) -> np.ndarray:
        """Repeat each placeholder token as often as its media has rows."""
        kind_of = {v: k for k, v in self.placeholder.items()}
        found = [kind_of[i] for i in ids.tolist() if i in kind_of]
        expected = [kind for kind, _, _ in prepared]
        if found != expected:
            raise InputError(f"the prompt has media placeholders {found}, the messages have {expected}; "
                             "text must not contain the placeholder tokens themselves")
        counts = np.ones(len(ids), np.int64)
        counts[np.isin(ids, list(kind_of))] = [m["tokens"] for _, _, m in prepared]
        return np.repeat(ids, counts)


def _media_parts(messages: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """(kind, role, part) of every media part in order. Raises InputError naming the first malformed message."""
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
            if kind != "text":
                parts.append((kind, message["role"], part))
            elif not isinstance(part["text"], str):
                raise InputError(f"{where}.content[{j}].text must be a string")
    return parts
