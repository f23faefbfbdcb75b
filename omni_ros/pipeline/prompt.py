"""Messages -> the rows that the Thinker reads: token ids, media, mRoPE positions, and who said what."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from omni_ros.engines.config import ThinkerConfig
from omni_ros.errors import InputError, PromptTooLongError
from omni_ros.pipeline.media import Media, Piece, media_parts
from omni_ros.pipeline.positions import mrope_positions
from omni_ros.pipeline.tokenizer import ChatTokenizer

ReadMedia = Callable[[str, dict[str, Any], int], Media]  # kind, part, and how many rows it may take


@dataclass
class Prompt:
    ids: np.ndarray  # int64 [S], placeholders repeated
    keys: np.ndarray  # int64 [S], what tells rows apart: ids, and of media rows -1 - Piece.serial
    positions: np.ndarray  # float32 [3, S]
    next_position: float
    media: list[tuple[int, Media]]  # with the first row of each
    pieces: list[tuple[int, Piece]]  # of them all, with the first row of each
    user_mask: np.ndarray  # bool [S], rows of user segments: what the Talker sees
    assistant_start: int  # row of the last `<|im_start|>assistant`; -1 if the prompt opens no answer

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def media_mask(self) -> np.ndarray:  # bool [S]
        return self.keys < 0

    @property
    def user_media(self) -> list[Media]:
        return [media for row, media in self.media if self.user_mask[row]]


class PromptBuilder:
    def __init__(self, tokenizer: ChatTokenizer, config: ThinkerConfig, max_input_len: int):
        self.tokenizer, self.config, self.max_input_len = tokenizer, config, max_input_len
        self.placeholder = {kind: getattr(config, f"{kind}_token_id") for kind in ("audio", "image", "video")}

    def build(
        self,
        messages: list[dict[str, Any]],
        read: ReadMedia,
        *,
        answer: bool = True,
        special_tokens: bool = True,
        tools: list[dict[str, Any]] | None = None,
    ) -> Prompt:
        """`read` gives a part's media, and raises PromptTooLongError before it decodes what cannot fit. With `answer` the prompt
        ends by opening the assistant's turn; without, it ends where the last message does, before its end token, so that more
        can follow. See Request for `special_tokens` and `tools`.

        Raises InputError for messages or media that cannot be used, PromptTooLongError past max_input_len.
        """
        parts, media, free = media_parts(messages), [], self.max_input_len
        for kind, part in parts:
            media.append(read(kind, part, free))
            free -= media[-1].tokens
        try:  # a placeholder is one of the rows that its media takes
            ids = self.tokenizer.encode(messages, answer, special_tokens, tools, most=free + len(media))
        except PromptTooLongError as e:
            raise self._too_long(f"more than {self.max_input_len}") from e
        ids, rows = self._expand(ids, media)
        if not answer:
            ends = np.flatnonzero(ids == self.config.im_end_token_id)
            ids = ids[: ends[-1]] if len(ends) else ids
        if len(ids) > self.max_input_len:
            raise self._too_long(f"{len(ids)}")
        keys = ids.copy()
        placed = list(zip(rows.tolist(), media))
        pieces = _pieces(placed)
        for row, piece in pieces:
            keys[row : row + piece.tokens] = -1 - piece.serial
        positions, next_position = self._positions(ids, media)
        starts = np.flatnonzero(ids == self.config.im_start_token_id)
        roles = ids[np.minimum(starts + 1, len(ids) - 1)]
        assistant = starts[roles == self.config.assistant_token_id]
        if answer and not len(assistant):
            raise InputError("the chat template opens no assistant turn; check chat_template in the Thinker's folder")
        row_role = np.full(len(ids), -1)
        for start, role in zip(starts, roles):
            row_role[start:] = role
        user_mask = row_role == self.config.user_token_id
        assistant_start = int(assistant[-1]) if answer else -1
        return Prompt(ids, keys, positions, next_position, placed, pieces, user_mask, assistant_start)

    def words(self, text: str) -> list[int]:
        """The tokens of a reply that is this text. Raises PromptTooLongError for one that no later prompt could remember."""
        with suppress(PromptTooLongError):
            if len(tokens := self.tokenizer.words(text, self.max_input_len)) <= self.max_input_len:
                return tokens
        raise PromptTooLongError(
            f"a text of {len(text)} letters is too long to be said at once, the limit is {self.max_input_len} tokens: "
            "say it in pieces"
        )

    def _too_long(self, tokens: str) -> PromptTooLongError:
        return PromptTooLongError(
            f"the prompt has {tokens} tokens, the Thinker engine was built for {self.max_input_len}; "
            "shorten the history or build with a larger --maxInputLen"
        )

    def _positions(self, ids: np.ndarray, media: list[Media]) -> tuple[np.ndarray, float]:
        c = self.config
        return mrope_positions(
            ids, c.image_token_id, c.video_token_id, *grids(media), c.spatial_merge_size, c.position_id_per_seconds
        )

    def _expand(self, ids: np.ndarray, media: list[Media]) -> tuple[np.ndarray, np.ndarray]:
        """Repeat each placeholder token as often as its media has rows; also returns the first row of each."""
        kind_of = {v: k for k, v in self.placeholder.items()}
        found = [kind_of[i] for i in ids.tolist() if i in kind_of]
        expected = [m.kind for m in media]
        if found != expected:
            raise InputError(
                f"the prompt has media placeholders {found}, the messages have {expected}; "
                "text must not contain the placeholder tokens themselves"
            )
        counts = np.ones(len(ids), np.int64)
        is_media = np.isin(ids, list(kind_of))
        counts[is_media] = [m.tokens for m in media]
        return np.repeat(ids, counts), (np.cumsum(counts) - counts)[is_media]


def _pieces(media: list[tuple[int, Media]]) -> list[tuple[int, Piece]]:
    found = []
    for row, m in media:
        for piece in m.pieces:
            found.append((row, piece))
            row += piece.tokens
    return found


def grids(media: list[Media]) -> tuple[list[np.ndarray], list[np.ndarray], list[float]]:
    """(t, h, w) of the images, of the videos, and the seconds per grid of the videos, in order."""
    images, videos = ([m for m in media if m.kind == kind] for kind in ("image", "video"))
    return [m.grid for m in images], [m.grid for m in videos], [m.seconds_per_grid for m in videos]
